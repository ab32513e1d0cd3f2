"""Bringing a layer's map to the input's size without changing its sum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


def spread(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation that hands on every position's value in full: the sum over positions stays.

    Args:
        maps: (N, C, h, w), or with one or three spatial dimensions.
        size: (H, W).

    Returns:
        (N, C, H, W).

    Example:
        >>> maps = torch.rand(2, 1, 7, 9)
        >>> big = spread(maps, (100, 60))
        >>> big.shape, torch.allclose(big.sum((2, 3)), maps.sum((2, 3)), rtol=1e-4)
        (torch.Size([2, 1, 100, 60]), True)
    """
    for axis, length in enumerate(size, start=2):
        matrix = interpolation_matrix(maps.shape[axis], length).to(maps.device, maps.dtype)
        maps = torch.movedim(torch.tensordot(maps, matrix, dims=([axis], [1])), -1, axis)
    return maps


@lru_cache(maxsize=64)
def interpolation_matrix(short: int, long: int) -> Tensor:
    """(long, short): what every position hands to the pixels, by linear interpolation; columns sum to 1.

    Example:
        >>> interpolation_matrix(2, 4)
        tensor([[0.5000, 0.0000],
                [0.3750, 0.1250],
                [0.1250, 0.3750],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    with torch.inference_mode(False):  # it is remembered, and may be met by gradients later
        eye = torch.eye(short, dtype=torch.float64)
        if long < short:
            matrix = F.adaptive_avg_pool1d(eye, long)  # (short, long)
        else:
            matrix = F.interpolate(eye[None], size=long, mode="linear", align_corners=False)[0]
        return (matrix / matrix.sum(1, keepdim=True)).T
