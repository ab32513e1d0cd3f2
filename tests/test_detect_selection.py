"""Selecting proposals, in numbers worked out by hand, and against a slow loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from drnet_captum.detect.selection import rows_of, select


def strip(*lengths: float) -> Tensor:
    """Boxes of height 10 from x = 0 to each length: two of them have IoU = the shorter / the longer."""
    return torch.tensor([[0.0, 0, x, 10] for x in lengths])


def test_select_drops_doubles_of_one_class_only() -> None:
    boxes = strip(10, 8, 7)  # IoU 0.8, 0.7, 0.875
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.5]])
    rows, classes = select(scores, boxes, min_score=0.1, overlap=0.75, most=9)
    assert rows.tolist() == [0, 2]
    assert classes.tolist() == [0, 1]
    assert select(scores, boxes, min_score=0.1, overlap=0.81, most=9)[0].tolist() == [0, 1, 2]


def test_select_is_best_first_above_the_least_score_and_capped() -> None:
    boxes = torch.arange(4.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    scores = torch.tensor([[0.25], [0.5], [0.75], [0.625]])
    assert select(scores, boxes, min_score=0.25, overlap=0.7, most=9)[0].tolist() == [2, 3, 1]  # 0.25 is not above
    assert select(scores, boxes, min_score=0.125, overlap=0.7, most=2)[0].tolist() == [2, 3]


def test_select_gives_a_shared_box_once_and_boxes_of_classes_each() -> None:
    scores = torch.tensor([[0.5, 0.25], [0.125, 0.75]])
    shared = strip(10, 50)
    rows, classes = select(scores, shared, min_score=0.2, overlap=0.7, most=9)
    assert (rows.tolist(), classes.tolist()) == ([1, 0], [1, 0])
    each = torch.stack([shared, shared + 100], 1)  # (N, K, 4)
    rows, classes = select(scores, each, min_score=0.2, overlap=0.7, most=9)
    assert (rows.tolist(), classes.tolist()) == ([1, 0, 0], [1, 0, 1])


def test_select_keeps_a_row_for_the_class_in_which_it_is_no_double() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.5]])  # row 1 doubles row 0 in class 0, and leads in class 1
    rows, classes = select(scores, strip(10, 9), min_score=0.05, overlap=0.7, most=9)
    assert (rows.tolist(), classes.tolist()) == ([0, 1], [0, 1])


def test_select_drops_boxes_without_area_and_may_find_nothing() -> None:
    scores = torch.tensor([[0.9], [0.8]])
    assert select(scores, strip(0, 10), min_score=0.1, overlap=0.7, most=9)[0].tolist() == [1]
    for boxes in (strip(5, 10), strip(5, 10)[:, None]):
        rows, classes = select(scores, boxes, min_score=0.95, overlap=0.7, most=9)
        assert (rows.shape, classes.shape) == ((0,), (0,))
        assert select(scores[:0], boxes[:0], min_score=0.1, overlap=0.7, most=9)[0].shape == (0,)


def test_select_gives_the_best_where_far_more_are_above() -> None:
    x = torch.arange(4000.0) * 20
    boxes = torch.stack([x, x * 0, x + 10, x * 0 + 10], 1)
    scores = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0))
    for most in (5, 3500):
        rows, _ = select(scores, boxes, min_score=0.0, overlap=0.7, most=most)
        assert rows.tolist() == scores[:, 0].argsort(descending=True, stable=True)[:most].tolist()


@pytest.mark.parametrize("each", [False, True])
def test_select_agrees_with_a_loop(each: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(60, 3, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 15 + 10 * torch.rand(60, 3, 2, generator=generator)], 2)
    boxes = boxes if each else boxes[:, 0]
    scores = torch.rand(60, 3, generator=generator)
    kept: list[tuple[int, int]] = []
    for flat in scores.flatten().argsort(descending=True).tolist():
        row, label = divmod(flat, 3)

        def box(r: int, c: int) -> Tensor:
            return boxes[r, c][None] if each else boxes[r][None]

        if scores[row, label] > 0.3 and all(c != label or box_iou(box(r, c), box(row, label)) <= 0.5 for r, c in kept):
            kept.append((row, label))
    once = kept if each else [pair for i, pair in enumerate(kept) if pair[0] not in [r for r, _ in kept[:i]]]
    rows, classes = select(scores, boxes, min_score=0.3, overlap=0.5, most=100)
    assert list(zip(rows.tolist(), classes.tolist(), strict=True)) == once
    assert len(once) > 20


def test_rows_of_asks_for_the_score_and_then_for_the_box() -> None:
    scores = torch.tensor([[0.5, 0.25], [0.25, 0.5], [0.5, 0.0], [0.5, 0.0]])
    boxes = strip(10, 20, 30, 30)
    found = strip(30, 20, 10) + 1e-4
    rows = rows_of(found, torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0, 1, 0]), scores, boxes)
    assert rows.tolist() == [2, 1, 0]  # of two equal rows the first
    assert rows_of(found[:0], scores[:0, 0], torch.zeros(0, dtype=torch.int64), scores, boxes).shape == (0,)


def test_rows_of_refuses_a_score_that_no_row_has() -> None:
    with pytest.raises(ValueError, match="expected every detection's score among the class scores of the head"):
        rows_of(strip(10), torch.tensor([0.5]), torch.tensor([1]), torch.tensor([[0.5, 0.25]]), strip(10))
