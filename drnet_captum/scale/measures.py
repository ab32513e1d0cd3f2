"""What is kept of a map beside itself: its sum and ends, how it lies, and how much of it is in the boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from drnet_captum.metrics.pointing import energy_in

POOLED = 14  # positions a side
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measures:
    """Of n maps, each summed over its channels.

    Attributes:
        sum, low, high: (n,), in units of y.
        pooled: (n, 14 · 14), row by row: averaged where the map is larger, interpolated where it is smaller.
        inside: (n,), the share of its positive values that lies in the boxes; NaN without boxes in the crop.
    """

    sum: Floats
    low: Floats
    high: Floats
    pooled: Floats
    inside: Floats


def measured(maps: Tensor, inside: Tensor | None = None) -> Measures:
    """The measures of maps (n, C, h, w), with boxes as masks (n, H, W) of the image's size.

    Example:
        >>> found = measured(torch.eye(4).reshape(1, 1, 4, 4), torch.ones(1, 8, 8, dtype=torch.bool))
        >>> found.sum, found.pooled.shape, found.inside
        (array([4.], dtype=float32), (1, 196), array([1.], dtype=float32))
    """
    heat = maps.detach().float().sum(1)  # (n, h, w)
    flat = heat.flatten(1)
    return Measures(
        sum=_array(flat.sum(1)),
        low=_array(flat.amin(1)),
        high=_array(flat.amax(1)),
        pooled=_array(pooled(heat).flatten(1)),
        inside=np.full(len(heat), np.nan, np.float32) if inside is None else _array(inside_share(heat, inside)),
    )


def pooled(heat: Tensor) -> Tensor:
    """(n, h, w) → (n, 14, 14)."""
    sides = [max(side, POOLED) for side in heat.shape[1:]]
    grown = F.interpolate(heat[:, None], sides, mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(grown, POOLED)[:, 0]


def inside_share(heat: Tensor, inside: Tensor) -> Tensor:
    """(n,): the share of the positive values in the boxes; NaN without any, and where no box reaches into the crop."""
    known = inside.flatten(1).any(1) & (heat > 0).flatten(1).any(1)
    share = torch.full((len(heat),), torch.nan, device=heat.device)
    if bool(known.any()):
        size = tuple(inside.shape[1:])
        whole = F.interpolate(heat[known][:, None], size, mode="bilinear", align_corners=False)[:, 0]
        share[known] = energy_in(whole, inside[known]).float()
    return share


@dataclass(frozen=True)
class Packed:
    """One map in half precision: ``values · scale``, reshaped to ``shape``. The scale keeps small gradients."""

    values: npt.NDArray[np.float16]
    scale: float
    shape: tuple[int, ...]

    def map(self) -> Floats:
        """The map, to 11 bits of its largest value's size."""
        return (self.values.astype(np.float32) * np.float32(self.scale)).reshape(self.shape)


def packed(map: Tensor) -> Packed:
    """A map (C, h, w), divided by its largest magnitude.

    Example:
        >>> found = packed(torch.tensor([[[0.25, -0.5]]]) / 2**30)
        >>> found.scale * 2**30, found.map() * 2**30
        (0.5, array([[[ 0.25, -0.5 ]]], dtype=float32))
    """
    values = _array(map.detach())
    largest = float(np.abs(values).max(initial=0.0))
    scale = largest if largest > 0 else 1.0
    scaled: Any = values / np.float32(scale)
    return Packed(scaled.astype(np.float16).ravel(), float(np.float32(scale)), tuple(values.shape))


def _array(values: Tensor) -> Floats:
    return values.float().cpu().numpy()
