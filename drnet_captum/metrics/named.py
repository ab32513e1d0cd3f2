"""Maps of a method of the registry, by its name, at the input's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum.attr import LayerAttribution
from torch import Tensor

from drnet_captum.engine.naming import Layer
from drnet_captum.engine.targets import Target
from drnet_captum.explanation import explain
from drnet_captum.registry import find_methods

from .maps import check_images


def named_maps(
    model: Callable[..., Any],
    inputs: Tensor,
    target: Target,
    method: str = "grad_cam",
    *,
    layer: Layer | None = None,
    additional_forward_args: Any = None,
    **options: Any,
) -> Tensor:
    """One method's maps.

    Args:
        model: as for ``explain``.
        inputs: images (N, C, H, W).
        target: a class, or one for each image; None where the model gives one score for each image.
        method: a name of ``drnet_captum.methods()``.
        layer: for the methods that take one. None: found.
        additional_forward_args: as in Captum.
        options: of the method's ``attribute``.

    Returns:
        (N, C, H, W), or (N, 1, H, W) of DRNet and, enlarged bilinearly, of the CAM family.

    Raises:
        ValueError: an unknown method, and what the method itself raises.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> named_maps(model, torch.rand(2, 3, 8, 8), 1, "smooth_grad", n_samples=2).shape
        torch.Size([2, 3, 8, 8])
    """
    x = check_images(inputs)
    (found,) = find_methods([method])
    if not options:
        maps = explain(
            model,
            x,
            methods=method,
            classes=[target],
            layer=layer,
            additional_forward_args=additional_forward_args,
        )
        explained: Tensor = maps[method][0]
        return explained
    make: Any = found.cls
    maker = make(model, layer) if found.uses_layer else make(model)
    made = maker.attribute(x, target=target, additional_forward_args=additional_forward_args, **options).detach()
    if found.output == "layer" and made.shape[2:] != x.shape[2:]:
        made = LayerAttribution.interpolate(made, tuple(x.shape[2:]), "bilinear")
    sized: Tensor = made
    return sized
