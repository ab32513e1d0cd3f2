"""Which of a head's many boxes are proposals: a low score threshold, a loose suppression of doubles, a cap."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from .detections import Detections

_LEAST_SIDE = 1e-2  # pixels; torchvision's own. A box clipped away to less overlaps nothing.
_CANDIDATES = 3000  # go to the suppression, whose cost is their square


def select(scores: Tensor, boxes: Tensor, *, min_score: float, overlap: float, most: int) -> tuple[Tensor, Tensor]:
    """The boxes that score above ``min_score`` for some class, without doubles, best first.

    A box is a double when a better one of the same class has IoU > ``overlap`` with it. Where all classes of a row
    share one box, the row is given once, with the best class that is left to it: its distribution says the rest.

    Args:
        scores: (N, K), of every class in every row, without background.
        boxes: (N, 4), xyxy in pixels; or (N, K, 4), a box for each class.
        min_score, overlap, most: least score (exclusive), greatest IoU, most boxes.

    Returns:
        rows (M,) and classes (M,), M ≤ ``most``.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
        >>> scores = torch.tensor([[0.3, 0.1], [0.6, 0.2], [0.1, 0.4]])
        >>> rows, classes = select(scores, boxes, min_score=0.25, overlap=0.7, most=9)
        >>> rows.tolist(), classes.tolist()
        ([1, 2], [0, 1])
    """
    rows, classes = torch.where(scores > min_score)
    values = scores[rows, classes]
    if len(values) > max(_CANDIDATES, most):
        best = values.topk(max(_CANDIDATES, most)).indices
        rows, classes, values = rows[best], classes[best], values[best]
    chosen = at(boxes, rows, classes)
    seen = torch.where(((chosen[:, 2:] - chosen[:, :2]) >= _LEAST_SIDE).all(1))[0]
    keep = seen[batched_nms(chosen[seen], values[seen], classes[seen], overlap)]
    rows, classes = rows[keep], classes[keep]
    if boxes.dim() == 2:
        order = torch.arange(len(rows), device=rows.device)
        first = order.new_full((len(boxes),), len(rows)).scatter_reduce(0, rows, order, "amin")
        once = first[rows] == order
        rows, classes = rows[once], classes[once]
    return rows[:most], classes[:most]


def rows_of(found_boxes: Tensor, found_scores: Tensor, found_classes: Tensor, scores: Tensor, boxes: Tensor) -> Tensor:
    """The row from which each detection comes: the one with exactly its score, and of several the nearest box.

    Args:
        found_boxes, found_scores, found_classes: (M, 4), (M,), (M,), a selection of ``scores`` and ``boxes``.
        scores, boxes: as for :func:`select`.

    Returns:
        (M,) rows.

    Raises:
        ValueError: a score that no row has.
    """
    rows, index = torch.where(scores[:, found_classes] == found_scores)  # of (N, M)
    # Boxes decoded for all rows and for some may differ in the last bit, so the nearest is asked for, not an equal one.
    gap = (at(boxes, rows, found_classes[index]) - found_boxes[index]).abs().amax(1)
    least = gap.new_full((len(found_scores),), torch.inf).scatter_reduce(0, index, gap, "amin")
    if not bool(least.isfinite().all()):
        raise ValueError("expected every detection's score among the class scores of the head, got others")
    nearest = gap == least[index]
    result = rows.new_full((len(found_scores),), len(scores))
    return result.scatter_reduce(0, index[nearest], rows[nearest], "amin")


def at(boxes: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """The boxes (M, 4) of some rows and classes, from (N, 4) or (N, K, 4)."""
    return boxes[rows] if boxes.dim() == 2 else boxes[rows, classes]


def candidates(boxes: Tensor, probs: Tensor) -> Detections:
    """All boxes (A, 4) cxcywh with their class scores (A, K), each with its best class."""
    scores, labels = probs.max(1)
    return Detections(box_convert(boxes, "cxcywh", "xyxy"), scores, probs, labels=labels)


def best(found: Detections, min_score: float, limit: int, overlap: float | None) -> Detections:
    """The best ``limit`` of at least ``min_score``, none with IoU > ``overlap`` to a better one of its class."""
    found = found[(found.scores >= min_score) & found.boxes.isfinite().all(1)]  # NaN is not
    if overlap is None:
        return found[found.scores.argsort(descending=True, stable=True)[:limit]]
    return found[batched_nms(found.boxes, found.scores, found.labels, overlap)[:limit]]
