"""From a map to boxes and a mask: where the evidence is, as the seed of an object's segmentation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .normalize import ArrayLike, to_heat


class Localization(NamedTuple):
    """What `localize` finds, on the CPU.

    Attributes:
        boxes: (M, 4) int64, xyxy in pixels of the map, x2 and y2 exclusive: the inside is
            ``mask[y1:y2, x1:x2]``. Strongest first.
        mask: (H, W) bool, the union of the components that have a box.
    """

    boxes: Tensor
    mask: Tensor


def localize(map: ArrayLike, threshold: float = 0.4, *, min_area: int = 1) -> Localization:
    """The 8-connected regions where the map is at least ``threshold`` times its maximum, each with its box.

    Args:
        map: (H, W) or (C, H, W), as for `to_heat`; negative evidence is ignored. Boxes come in its pixels:
            bring a layer-size map to input size first.
        threshold: share of the maximum, in (0, 1]. Boxes are sorted by the map's sum inside their region.
        min_area: regions of fewer pixels are dropped from boxes and mask.

    Raises:
        ValueError: threshold or min_area out of range, a map that is nowhere positive, and as `to_heat`.

    Example:
        >>> import torch
        >>> from drnet_captum.viz import localize
        >>> map = torch.zeros(6, 8)
        >>> map[1:3, 2:7] = 1.0
        >>> boxes, mask = localize(map)
        >>> boxes.tolist(), int(mask.sum())
        ([[2, 1, 7, 3]], 10)
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"expected a threshold in (0, 1], a share of the maximum, got {threshold}")
    if min_area < 1:
        raise ValueError(f"expected min_area of at least 1 pixel, got {min_area}")
    heat = to_heat(map)
    if heat.max() <= 0:
        raise ValueError("the map is nowhere positive: there is nothing to localize")
    mask = heat >= threshold * heat.max()
    labels = components(mask)
    ys, xs = np.nonzero(mask)
    ids = labels[ys, xs]
    count = int(ids.max()) + 1
    area = np.bincount(ids, minlength=count)
    mass = np.bincount(ids, weights=heat[ys, xs], minlength=count)
    low = np.full((count, 2), max(mask.shape), dtype=np.int64)
    high = np.zeros((count, 2), dtype=np.int64)
    for axis, position in enumerate((xs, ys)):
        np.minimum.at(low[:, axis], ids, position)
        np.maximum.at(high[:, axis], ids, position + 1)
    kept = area >= min_area
    order = np.argsort(-mass, kind="stable")
    order = order[kept[order]]
    boxes = np.concatenate([low, high], axis=1)[order]  # (M, 4)
    mask[ys, xs] = kept[ids]
    return Localization(torch.from_numpy(boxes), torch.from_numpy(mask))


def components(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """8-connected components of a (H, W) mask, numbered from 0 in reading order; -1 outside.

    Every pixel points to a pixel of its component; edges hook the higher root onto the lower, and pointers
    are shortened by halving, until no edge joins two roots: few rounds, whatever the shape of the region.

    Example:
        >>> import numpy as np
        >>> from drnet_captum.viz.localize import components
        >>> components(np.array([[True, False, False], [False, True, False], [False, False, False]])).max()
        np.int64(0)
    """
    height, width = mask.shape
    index = np.arange(height * width).reshape(height, width)
    pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = (slice(0, height - dy), slice(max(0, -dx), width - max(0, dx)))
        there = (slice(dy, height), slice(max(0, dx), width + min(0, dx)))
        both = mask[here] & mask[there]
        pairs.append((index[here][both], index[there][both]))
    one = np.concatenate([pair[0] for pair in pairs])
    other = np.concatenate([pair[1] for pair in pairs])
    root = index.ravel().copy()
    while one.size:
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        np.minimum.at(root, high, low)
        while (root != root[root]).any():
            root = root[root]
        apart = root[one] != root[other]
        one, other = one[apart], other[apart]
    labels = np.full(mask.shape, -1, dtype=np.int64)
    labels[mask] = np.unique(root[mask.ravel()], return_inverse=True)[1]
    return labels
