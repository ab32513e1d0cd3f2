"""The pointing game and its energy-based form: whether a map's highest pixel, or its mass, lies on the object.

Boxes are xyxy in pixels: a pixel's middle lies at its index + 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import heat_of

TOLERANCE = 15.0  # pixels, the paper's


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The share of every pixel that a box covers.

    Args:
        boxes: (N, 4), xyxy in pixels; what lies outside the image counts for nothing.
        size: height and width of the image.

    Returns:
        (N, H, W) in [0, 1].

    Example:
        >>> box_masks(torch.tensor([[0.5, 0, 2, 1]]), (2, 3))
        tensor([[[0.5000, 1.0000, 0.0000],
                 [0.0000, 0.0000, 0.0000]]])
    """
    left, top, right, bottom = checked(boxes).unbind(1)

    def along(low: Tensor, high: Tensor, count: int) -> Tensor:
        start = torch.arange(count, device=low.device).to(low.dtype)[None]
        return (torch.minimum(start + 1, high[:, None]) - torch.maximum(start, low[:, None])).clamp_min(0)

    return along(top, bottom, size[0])[:, :, None] * along(left, right, size[1])[:, None]


def energy_in(maps: Tensor, regions: Tensor) -> Tensor:
    r"""The share of a map's positive values that lies in a region.

    .. math:: \sum_p m_p \max(R_p, 0) \,/ \sum_p \max(R_p, 0)

    A map without a positive value counts as chance: the region's share of the image.

    Args:
        maps: (N, H, W) or (N, C, H, W), channels summed before the positive part is taken.
        regions: masks m (N, H, W) or (N, 1, H, W), boolean or in [0, 1]; or boxes (N, 4), xyxy in pixels, whose edges
            may cut through pixels.

    Returns:
        (N,) in [0, 1].

    Raises:
        ValueError: shapes that do not fit, mask values outside of [0, 1], a region without a pixel.

    Source: Wang et al. 2020, arXiv 1910.01279.

    Example:
        >>> energy_in(torch.tensor([[[1.0, 3.0], [-7.0, 0.0]]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]]))
        tensor([0.2500])
    """
    heat = heat_of(maps).clamp_min(0)
    masks = masks_of(regions, heat)
    masks = masks if masks.dtype.is_floating_point else masks.to(heat)
    total = heat.sum((1, 2))
    share = (heat * masks).sum((1, 2)) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, share, masks.mean((1, 2)).to(heat))


def pointing_game(maps: Tensor, regions: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Whether a map's highest pixel lies in the region, or no farther from it than the tolerance.

    Distances are Euclidean: to the middle of the nearest pixel of a mask (those above 0), or to the box. Of several
    highest pixels, the first in reading order is taken. A constant map points nowhere, which is a miss.

    Args:
        maps: (N, H, W) or (N, C, H, W), channels summed.
        regions: as for `energy_in`.
        tolerance: in pixels; 15 is the paper's.

    Returns:
        (N,) of bool; their mean is the paper's accuracy.

    Raises:
        ValueError: shapes that do not fit, a region without a pixel, a negative tolerance.

    Source: Zhang et al. 2016, arXiv 1608.00507.

    Example:
        >>> heat = torch.zeros(1, 9, 9)
        >>> heat[0, 4, 8] = 1.0
        >>> box = torch.tensor([[0.0, 0.0, 5.0, 9.0]])
        >>> pointing_game(heat, box, 3).item(), pointing_game(heat, box, 4).item()
        (False, True)
    """
    if not tolerance >= 0:
        raise ValueError(f"expected a tolerance of at least 0 pixels, got {tolerance}")
    heat = heat_of(maps)
    masks = masks_of(regions, heat)
    width = heat.shape[2]
    flat = heat.flatten(1)
    highest = (flat == flat.amax(1, keepdim=True)).int().argmax(1)  # the first of equals, on every device
    rows, columns = highest // width, highest % width
    if regions.dim() == 2:
        boxes = regions.to(heat)
        points = torch.stack([columns, rows], 1) + 0.5  # (N, 2), xy
        off = torch.maximum(boxes[:, :2] - points, points - boxes[:, 2:]).clamp_min(0)
        near = off.square().sum(1)
    else:
        down = (torch.arange(heat.shape[1], device=heat.device)[None] - rows[:, None]).square()
        along = (torch.arange(width, device=heat.device)[None] - columns[:, None]).square()
        squares = (down[:, :, None] + along[:, None]).to(heat.dtype)
        near = torch.where(masks > 0, squares, torch.inf).amin((1, 2))
    return (near <= tolerance**2) & (flat.amax(1) > flat.amin(1))


def masks_of(regions: Tensor, heat: Tensor) -> Tensor:
    """Masks (N, H, W) of the regions of N maps, none of them empty."""
    n, height, width = heat.shape
    if regions.dim() == 2:
        masks = box_masks(regions, (height, width))
    else:
        masks = regions[:, 0] if regions.dim() == 4 and regions.shape[1] == 1 else regions
    if tuple(masks.shape) != (n, height, width):
        raise ValueError(
            f"expected masks of shape {(n, height, width)} or boxes of shape {(n, 4)} in xyxy pixels, got "
            f"{tuple(regions.shape)}"
        )
    if masks.dtype.is_floating_point and not bool(((masks >= 0) & (masks <= 1)).all()):
        raise ValueError("expected masks of values in [0, 1]")
    if not bool((masks > 0).flatten(1).any(1).all()):
        raise ValueError("expected regions with at least one pixel in the image, got an empty one")
    return masks.to(heat.device)


def checked(boxes: Tensor) -> Tensor:
    """Boxes (N, 4) in floating point."""
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"expected boxes of shape (N, 4) in xyxy pixels, got {tuple(boxes.shape)}")
    return boxes if boxes.dtype.is_floating_point else boxes.float()
