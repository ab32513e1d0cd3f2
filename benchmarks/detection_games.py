"""Whether a map of a detection shows where it is: what lies in its box; deletion and insertion as the detector sees it.

Boxes are xyxy in the map's pixels, heats (H, W).

Source: Zhang et al. 2016, arXiv 1608.00507 (pointing game); Wang et al. 2019, arXiv 1910.01279 (energy in the box);
Petsiuk et al. 2021, arXiv 2006.03204 (deletion and insertion of detections).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.curves import area
from drnet_captum.attr.detection_similarity import Similarity
from drnet_captum.detect.detections import Detections
from drnet_captum.metrics.pointing import box_masks, energy_in

STEPS = 32
BATCH = 4

Propose = Callable[[Tensor], Sequence[Detections]]


def coverage(box: Tensor | Sequence[float], size: tuple[int, int]) -> Tensor:
    """The share of every pixel that a box covers, (H, W).

    Example:
        >>> coverage([0.5, 0, 2, 1], (2, 3))
        tensor([[0.5000, 1.0000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    return box_masks(one_box(box), size)[0]


def one_box(box: Tensor | Sequence[float]) -> Tensor:
    """(1, 4), on the CPU."""
    return torch.tensor([[float(v) for v in box]])


def box_share(box: Tensor | Sequence[float], size: tuple[int, int]) -> float:
    """The share of the image that a box covers: what chance scores.

    Example:
        >>> box_share([1, 0, 9, 2], (4, 3))
        0.3333333432674408
    """
    return float(coverage(box, size).mean())


def points_inside(heat: Tensor, box: Tensor | Sequence[float]) -> float:
    """The pointing game: 1 where the middle of the map's highest pixel lies in the box; of equals, the share that does.

    Example:
        >>> heat = torch.tensor([[0.0, 3.0], [1.0, 3.0]])
        >>> points_inside(heat, [1, 0, 2, 2]), points_inside(heat, [0, 0, 2, 1]), points_inside(heat, [0, 0, 1, 2])
        (1.0, 0.5, 0.0)
    """
    check(heat)
    left, top, right, bottom = (float(v) for v in box)
    rows, columns = (heat == heat.max()).nonzero(as_tuple=True)
    x, y = columns + 0.5, rows + 0.5
    return float(((x >= left) & (x <= right) & (y >= top) & (y <= bottom)).double().mean())


def energy_inside(heat: Tensor, box: Tensor | Sequence[float]) -> float:
    """The share of a map's positive part in the box; the box's own share where nothing is positive.

    Example:
        >>> energy_inside(torch.tensor([[1.0, 3.0], [-7.0, 0.0]]), [0, 0, 1, 2])
        0.25
    """
    check(heat)
    return float(energy_in(heat[None].double(), coverage(box, (heat.shape[0], heat.shape[1]))[None]))


def enrichment(heat: Tensor, box: Tensor | Sequence[float]) -> float:
    """Energy in the box over the box's share of the image: 1 is chance, 1 ÷ that share the most there can be.

    Raises:
        ValueError: a box outside of the image.

    Example:
        >>> enrichment(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), [0, 0, 1, 2])
        0.5
    """
    share = box_share(box, (heat.shape[0], heat.shape[1]))
    if share == 0:
        raise ValueError(f"expected a box within {tuple(heat.shape)} pixels, got {[float(v) for v in box]}")
    return energy_inside(heat, box) / share


def above_median(heat: Tensor) -> Tensor:
    """The map less its median, so that a constant in it, as the paper's plain sum has, counts for nothing.

    Example:
        >>> above_median(torch.tensor([[5.0, 6.0, 9.0]]))
        tensor([[-1.,  0.,  3.]])
    """
    return heat - heat.median()


def ranks(heat: Tensor, seed: int = 0) -> Tensor:
    """Each pixel's place in the order of importance, (H, W), 0 the most important; of equals, chance decides.

    Example:
        >>> ranks(torch.tensor([[0.0, 3.0], [1.0, -2.0]]))
        tensor([[2, 0],
                [1, 3]])
    """
    check(heat)
    flat = heat.flatten()
    shuffled = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(seed)).to(flat.device)
    order = shuffled[flat[shuffled].argsort(descending=True, stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device)).view_as(heat)


def exchanged(start: Tensor, end: Tensor, heat: Tensor, steps: int, batch: int, seed: int = 0) -> Iterator[Tensor]:
    """Images on the way from one to the other, the most important pixels first, in batches.

    Args:
        start, end: (3, H, W).
        heat: (H, W).
        steps: how many; the pixels are shared out evenly.
        batch: images at a time.

    Yields:
        (n, 3, H, W): together steps + 1, ``start`` first and ``end`` last.
    """
    place = ranks(heat, seed).to(start.device)
    for numbers in torch.arange(steps + 1, device=start.device).split(batch):
        pixels = numbers * place.numel() // steps  # exchanged so far
        yield torch.where((place[None] < pixels[:, None, None])[:, None], end, start)


def likeness(found: Detections, target: Detections) -> Tensor:
    """How much a detection is still found, (2,): the largest similarity, as D-RISE weighs; and that times the score.

    Example:
        >>> found = Detections(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 8]]), torch.tensor([0.9, 0.2]), torch.eye(2))
        >>> likeness(found, Detections.drawn([[0, 0, 4, 4]], [0]))
        tensor([1.0000, 0.9000])
    """
    if not len(found):
        return torch.zeros(2)
    similar = Similarity()(found, target)[:, 0]
    sure = torch.where(similar > 0, similar * found.scores.to(similar), 0.0)  # scores may be NaN where nothing is alike
    return torch.stack([similar.max(), sure.max()]).float().cpu()


def curve(
    propose: Propose,
    target: Detections,
    start: Tensor,
    end: Tensor,
    heat: Tensor,
    *,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
) -> Tensor:
    """`likeness` of the detection as ``start`` becomes ``end``, (2, steps + 1).

    Args:
        propose: images (n, 3, H, W) -> n detections.
        target: one detection.
        start, end: (3, H, W).
        heat: (H, W).
    """
    values = []
    with torch.no_grad():
        for images in exchanged(start, end, heat, steps, batch, seed):
            values.extend(likeness(found, target) for found in propose(images))
    return torch.stack(values, 1)


def curve_areas(
    propose: Propose, target: Detections, image: Tensor, heat: Tensor, fills: dict[str, Tensor], **options: int
) -> dict[str, float]:
    """Areas under the curves of deletion (the lower the better) and insertion (the higher).

    Args:
        image: (3, H, W).
        fills: (3, H, W) each: "deletion" is what pixels are replaced by, "insertion" what they are revealed from.
        options: steps, batch and seed of `curve`.

    Returns:
        "deletion" and "insertion" by the similarity alone, "deletion, score" and "insertion, score" times the score.
    """
    areas = {}
    for name, ends in (("deletion", (image, fills["deletion"])), ("insertion", (fills["insertion"], image))):
        similar, sure = curve(propose, target, *ends, heat, **options)
        areas |= {name: area(similar), f"{name}, score": area(sure)}
    return areas


def check(heat: Tensor) -> None:
    """A map of finite numbers.

    Raises:
        ValueError: another number of dimensions than two, NaN, infinite values.
    """
    if heat.dim() != 2:
        raise ValueError(f"expected a map (H, W), got {tuple(heat.shape)}")
    if not bool(torch.isfinite(heat).all()):
        raise ValueError("expected a map of finite numbers, got NaN or infinite values")
