"""Guided Grad-CAM: the fine detail of guided backpropagation where Grad-CAM finds evidence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Unpack

import torch
from captum.attr import LayerAttribution
from torch import Tensor

from drnet_captum._captum import log_usage
from drnet_captum.attr.base import TapeAttribution, first_of
from drnet_captum.attr.cam import GradCAM
from drnet_captum.attr.reading import Needs, Reading, Tensors
from drnet_captum.engine.inputs import as_tuple, check_differentiable
from drnet_captum.engine.naming import Layer
from drnet_captum.engine.running import RunOptions
from drnet_captum.engine.targets import Target


class GuidedGradCAM(TapeAttribution):
    r"""Guided Grad-CAM: guided backpropagation ⊙ upsampled ReLU(Grad-CAM), on one forward pass.

    .. math:: R = g^{\text{guided}} \odot \operatorname{up}\left(\max\left(\textstyle\sum_k w_k A_k, 0\right)\right)

    Equals Captum's ``GuidedGradCam`` where all activations are ``nn.ReLU`` modules. The paper upsamples bilinearly; the
    default here is Captum's, "nearest", which serves signals and volumes too.

    Args:
        model: the model, or any function of tensors.
        layer: where Grad-CAM looks: a module, a dotted name, or None (found automatically).
        device_ids: accepted as in Captum; data-parallel models are explained on their first device.
        memory_format, precision, compile: as for :func:`explain`.

    Returns (of ``attribute``): the inputs' shape. As in Captum, an input that the map cannot be resized to gets an
        empty tensor and a warning.

    Source: Selvaraju et al. 2017, arXiv 1610.02391, section 3.2.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> GuidedGradCAM(model, layer="1").attribute(torch.rand(1, 3, 8, 8), target=0).shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        layer: Layer | None = None,
        device_ids: list[int] | None = None,
        **running: Unpack[RunOptions],
    ) -> None:
        super().__init__(model, layer, **running)
        self.model = model
        self.grad_cam = GradCAM(model, self.layer, device_ids, **running)

    _name = "Guided Grad-CAM"

    def needs(self) -> Needs:
        return Needs(input_rules=("guided",), layer=True, layer_gradient=True)

    def layer_for(self, inputs: Any, additional_forward_args: Any) -> Layer:
        """The layer of the constructor, or the one found for these inputs."""
        return self.grad_cam.layer_for(inputs, additional_forward_args)

    def read(self, reading: Reading, interpolate_mode: str = "nearest") -> Tensors:
        check_differentiable(reading.given)
        maps = self.grad_cam.read(reading, relu_attributions=True)
        if len(maps) != 1:
            raise ValueError(f"expected a layer with one output, got {len(maps)}: choose another layer")
        return tuple(
            torch.stack([times_resized(g, cam, interpolate_mode) for g, cam in zip(grads, maps[0], strict=True)])
            for grads in reading.input_gradient("guided")
        )

    @log_usage
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        interpolate_mode: str = "nearest",
        attribute_to_layer_input: bool = False,
    ) -> Any:
        """Attribute the target's score to the inputs.

        Args:
            inputs, target, additional_forward_args, attribute_to_layer_input: as in Captum.
            interpolate_mode: how Grad-CAM is upsampled: "nearest", "linear", "bilinear", "trilinear", "bicubic",
                "area".
        """
        as_tuple(inputs)
        layer = self.layer_for(inputs, additional_forward_args)
        at_inputs = attribute_to_layer_input
        with self._reading(inputs, [target], additional_forward_args, layer, at_layer_inputs=at_inputs) as reading:
            maps = self.read(reading, interpolate_mode)
        return first_of(maps, isinstance(inputs, tuple))


def times_resized(gradient: Tensor, cam: Tensor, mode: str) -> Tensor:
    """gradient (N, C, H, W) ⊙ cam (N, 1, h, w) at H×W; empty, with a warning, where it cannot be resized."""
    if cam.dim() != gradient.dim() or cam.dim() not in (3, 4, 5):
        warnings.warn(
            f"the Grad-CAM map {tuple(cam.shape)} cannot be resized to an input of shape {tuple(gradient.shape)}: "
            "returning an empty tensor for that input",
            stacklevel=2,
        )
        return gradient.new_empty(0)
    resized: Tensor = LayerAttribution.interpolate(cam, tuple(gradient.shape[2:]), interpolate_mode=mode)
    return gradient * resized
