"""The grid pointing game: on a mosaic of known photos, how much of a class's map lies in the cell that shows it."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import heat_of


def mosaic(images: Tensor, n: int = 2) -> Tensor:
    """n·n images as one, row by row.

    Args:
        images: (n·n, C, h, w).
        n: cells along a side.

    Returns:
        (C, n·h, n·w).

    Example:
        >>> mosaic(torch.arange(4.0).view(4, 1, 1, 1))
        tensor([[[0., 1.],
                 [2., 3.]]])
    """
    if images.dim() != 4 or len(images) != n * n:
        raise ValueError(f"expected {n}·{n} images, ({n * n}, C, h, w), got {tuple(images.shape)}")
    _, channels, height, width = images.shape
    return images.view(n, n, channels, height, width).permute(2, 0, 3, 1, 4).reshape(channels, n * height, n * width)


def cell_shares(maps: Tensor, n: int = 2) -> Tensor:
    """The share of a map's positive values in each of the n·n cells; 1/n² of each where it has none.

    Args:
        maps: (N, H, W) or (N, C, H, W), channels summed; H and W multiples of n.
        n: cells along a side.

    Returns:
        (N, n²), rows of sum 1.

    Example:
        >>> cell_shares(torch.tensor([[[[3.0, -5.0], [0.0, 1.0]]]]))
        tensor([[0.7500, 0.0000, 0.0000, 0.2500]])
    """
    heat = heat_of(maps).clamp(min=0)
    count, height, width = heat.shape
    if n < 1 or height % n or width % n:
        raise ValueError(f"expected maps whose height and width {n} divides, got {tuple(maps.shape)}")
    cells = heat.reshape(count, n, height // n, n, width // n).sum((2, 4)).flatten(1)  # (N, n²)
    total = cells.sum(1, keepdim=True)
    return torch.where(total > 0, cells / torch.where(total > 0, total, 1.0), 1 / n**2)


def grid_pointing_game(maps: Tensor, n: int = 2) -> Tensor:
    """Of maps of a mosaic, one for the class of each cell, the share of the positive values in that cell.

    Chance is 1/n², which is also the share of a map without a positive value.

    Args:
        maps: (M·n², H, W) or (M·n², C, H, W) of M mosaics, channels summed: the maps of a mosaic's cells one after the
            other, cells row by row.
        n: cells along a side.

    Returns:
        (M·n²,) in [0, 1].

    Raises:
        ValueError: a number of maps, a height or a width that does not fit the grid.

    Source: Böhle et al. 2021, arXiv 2104.00032.

    Example:
        >>> maps = torch.tensor([[3.0, 0, 0, 1], [0, 2, 0, 0], [1, 0, 0, 0], [-1, -1, 0, 0]]).view(4, 2, 2)
        >>> grid_pointing_game(maps)
        tensor([0.7500, 1.0000, 0.0000, 0.2500])
    """
    shares = cell_shares(maps, n)
    if len(shares) % n**2:
        raise ValueError(f"expected a map for each of the {n**2} cells of every mosaic, got {len(shares)} maps")
    own = torch.arange(len(shares), device=shares.device) % n**2
    return shares.gather(1, own[:, None])[:, 0]
