"""Maps at the door: one finite value for every pixel; and the order that they put the pixels in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def heat_of(maps: Any, like: Tensor | None = None) -> Tensor:
    """Maps as (N, H, W), channels summed.

    Args:
        maps: (N, H, W) or (N, C, H, W).
        like: images (N, C, H, W) that the maps are of.

    Raises:
        TypeError: no tensor, or complex values.
        ValueError: another number of dimensions, no values, NaN or infinite values, another size than the images'.

    Example:
        >>> heat_of(torch.tensor([[[[1.0, -2.0]], [[3.0, 1.0]]]]))
        tensor([[[ 4., -1.]]])
    """
    if not isinstance(maps, Tensor):
        raise TypeError(f"expected maps as a tensor, got {type(maps).__name__}: use torch.as_tensor(…)")
    if maps.is_complex():
        raise TypeError(f"expected maps of real numbers, got {maps.dtype}")
    if maps.dim() not in (3, 4) or maps.numel() == 0:
        raise ValueError(f"expected maps of shape (N, H, W) or (N, C, H, W), got {tuple(maps.shape)}")
    maps = maps.detach()
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    heat: Tensor = wide.sum(1) if maps.dim() == 4 else wide
    if not bool(torch.isfinite(heat).all()):
        raise ValueError("expected maps of finite numbers, got NaN or infinite values")
    if like is not None:
        size = (len(like), *like.shape[2:])
        if tuple(heat.shape) != size:
            raise ValueError(
                f"expected a map of {size[1]}×{size[2]} pixels for each of the {size[0]} images, got "
                f"{tuple(maps.shape)}: bring layer-size maps to the input's size with "
                "captum.attr.LayerAttribution.interpolate"
            )
        heat = heat.to(like.device)
    return heat


def check_images(inputs: Any) -> Tensor:
    """Images (N, C, H, W) of finite floating-point values, apart from any graph."""
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.dtype.is_floating_point:
        found = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"expected images as a floating-point tensor (N, C, H, W), got {found}")
    if inputs.numel() == 0 or not bool(torch.isfinite(inputs).all()):
        raise ValueError(f"expected at least one image of finite values, got {tuple(inputs.shape)} with none or others")
    return inputs.detach()


def places(heat: Tensor) -> Tensor:
    """Each pixel's place in its map's order, 0 the highest; of equals, the first in reading order comes first.

    Args:
        heat: (N, H, W).

    Returns:
        (N, H, W), integers.

    Example:
        >>> places(torch.tensor([[[0.0, 3.0], [0.0, -2.0]]]))
        tensor([[[1, 0],
                 [2, 3]]])
    """
    return heat.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(heat)


def check_shares(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares of an image's pixels, each above 0 and below 1."""
    found = tuple(float(share) for share in shares)
    if not found or not all(0 < share < 1 for share in found):
        raise ValueError(f"expected at least one share of the pixels, each above 0 and below 1, got {found}")
    return found
