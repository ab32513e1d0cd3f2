"""The base of maps over the positions of a layer, and where the layer comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from drnet_captum.attr.base import TapeAttribution, additional_args
from drnet_captum.attr.reading import Needs, Reading, Tensors
from drnet_captum.engine.inputs import as_tuple, is_tokens
from drnet_captum.engine.naming import Layer
from drnet_captum.engine.running import RunOptions
from drnet_captum.engine.unwrap import eager
from drnet_captum.layers.discovery import target_layer_for
from drnet_captum.layers.layout import Placement, placement_of, to_map


class LayerMap(TapeAttribution, LayerAttribution):
    """The base of maps Σ_k w_k·A_k over the channels of a layer. A subclass gives the weights w.

    Args:
        forward_func: the model, or any function of tensors.
        layer: a module of the model, its dotted name, or None: found automatically (the last layer with a spatial grid
            that decides the answer alone; see :func:`drnet_captum.find_target_layer`).
        device_ids: accepted as in Captum. Data-parallel models are explained on their first device, whatever it says.
        memory_format, precision, compile: as for :func:`explain`; CAM, Eigen-CAM and Score-CAM take no ``compile``.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Layer | None = None,
        device_ids: list[int] | None = None,
        **running: Unpack[RunOptions],
    ) -> None:
        TapeAttribution.__init__(self, forward_func, layer, **running)
        self.device_ids = device_ids

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """w of A (N, C, …) and ∂y/∂A of the same shape; the result broadcasts to it."""
        raise NotImplementedError

    def needs(self) -> Needs:
        return Needs(layer=True, layer_gradient=True)

    def read(self, reading: Reading, relu_attributions: bool = False, attr_dim_summation: bool = True) -> Tensors:
        maps = []
        is_text = is_tokens(reading.given)
        activations, gradients = reading.activation, self.gradients(reading)
        for i in self.mapped(reading):
            placement = self.placement(activations[i], reading)
            activation = arranged(activations[i], placement, is_text)
            rows = []
            for gradient in gradients[i]:
                row = self.weights(activation, arranged(gradient, placement, is_text)) * activation
                rows.append((row.sum(1, keepdim=not is_text) if attr_dim_summation else row).contiguous())
            stacked = torch.stack(rows)
            maps.append(torch.relu(stacked) if relu_attributions else stacked)
        return tuple(maps)

    def gradients(self, reading: Reading) -> Tensors:
        """∂y/∂A of K targets, (K, N, C, …), for each of the layer's tensors."""
        return reading.layer_gradient()

    def mapped(self, reading: Reading) -> list[int]:
        """Which of the layer's tensors become maps: those with a grid, or all where none has one."""
        tensors = range(len(reading.activation))
        with_grid = [i for i in tensors if self.placement(reading.activation[i], reading) is not None]
        return with_grid or list(tensors)

    def placement(self, activation: Tensor, reading: Reading) -> Placement | None:
        """Where the channels and the grid of the layer's output are; None where shapes do not tell."""
        inputs = reading.given
        if activation.dim() < 3 <= inputs[0].dim():
            raise ValueError(
                f"expected a layer with a spatial grid, (N, C, h, w), got an output of {tuple(activation.shape)}: "
                "choose a layer before the pooling, or pass layer=None to have it found"
            )
        if is_tokens(inputs):
            return None
        model = eager(self.forward_func)
        return placement_of(activation.shape, inputs[0].shape, model if isinstance(model, nn.Module) else None)

    def layer_for(self, inputs: Any, additional_forward_args: Any) -> Layer:
        """The layer of the constructor, or the one found for these inputs."""
        if self.layer is not None:
            return self.layer
        return target_layer_for(self.forward_func, as_tuple(inputs), additional_args(additional_forward_args)).module


def arranged(value: Tensor, placement: Placement | None, is_text: bool = False) -> Tensor:
    """A layer's output as maps (N, C, …); as it is where its layout is not known. Text embeddings become (N, C, t)."""
    if is_text and value.dim() == 3:
        return value.movedim(-1, 1)
    return value if placement is None else to_map(value, placement)
