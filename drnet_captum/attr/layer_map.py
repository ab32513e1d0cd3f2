"""The base of maps over the positions of a layer, and where the layer comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import LayerAttribution
from torch import Tensor

from drnet_captum.attr.base import Needs, Reading, TapeAttribution, Tensors, additional_args
from drnet_captum.engine.inputs import MemoryFormat, as_tuple, is_tokens
from drnet_captum.engine.naming import Layer
from drnet_captum.layers.discovery import target_layer_for
from drnet_captum.layers.layout import Layout, layout_of, to_channels_first


class LayerMap(TapeAttribution, LayerAttribution):
    """The base of maps Σ_k w_k·A_k over the channels of a layer. A subclass gives the weights w.

    Args:
        forward_func: the model, or any function of tensors.
        layer: a module of the model, its dotted name, or None: found automatically (the last layer with a spatial grid
            that decides the answer alone; see :func:`drnet_captum.find_target_layer`).
        device_ids: accepted as in Captum. Data-parallel models are explained on their first device, whatever it says.
        memory_format: "auto" runs images channels last on a CPU; "preserve" leaves them as they are.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Layer | None = None,
        device_ids: list[int] | None = None,
        *,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        TapeAttribution.__init__(self, forward_func, layer, memory_format=memory_format)
        self.device_ids = device_ids

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """w of A (N, C, …) and ∂y/∂A of the same shape; the result broadcasts to it."""
        raise NotImplementedError

    def needs(self) -> Needs:
        return Needs(layer=True, layer_gradient=True)

    def read(self, reading: Reading, relu_attributions: bool = False, attr_dim_summation: bool = True) -> Tensors:
        maps = []
        for activation, gradients in zip(reading.activation, self.gradients(reading), strict=True):
            layout = self.layout(activation, reading)
            spatial = activation.dim() - 2
            activation = to_channels_first(activation, layout, spatial)
            gradients = to_channels_first(gradients, layout, spatial)
            rows = [self.weights(activation, gradient) * activation for gradient in gradients]
            if attr_dim_summation:
                rows = [row.sum(1, keepdim=layout != "tokens") for row in rows]
            stacked = torch.stack([row.contiguous() for row in rows])
            maps.append(torch.relu(stacked) if relu_attributions else stacked)
        return tuple(maps)

    def gradients(self, reading: Reading) -> Tensors:
        """∂y/∂A of K targets, (K, N, C, …), for each of the layer's tensors."""
        return reading.layer_gradient()

    def layout(self, activation: Tensor, reading: Reading) -> Layout:
        """Where the channels of the layer's output are; of token embeddings (N, t, C), last."""
        inputs = reading.tape.inputs
        if activation.dim() < 3 <= inputs[0].dim():
            raise ValueError(
                f"expected a layer with a spatial grid, (N, C, h, w), got an output of {tuple(activation.shape)}: "
                "choose a layer before the pooling, or pass layer=None to have it found"
            )
        if is_tokens(inputs):
            return "tokens" if activation.shape[:-1] == inputs[0].shape else "NCHW"
        return layout_of(activation.shape, inputs[0].shape) or "NCHW"

    def layer_for(self, inputs: Any, additional_forward_args: Any) -> Layer:
        """The layer of the constructor, or the one found for these inputs."""
        if self.layer is not None:
            return self.layer
        return target_layer_for(self.forward_func, as_tuple(inputs), additional_args(additional_forward_args)).module
