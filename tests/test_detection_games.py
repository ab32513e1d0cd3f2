"""The games that maps of detections are judged by: numbers by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.detection_games import (
    above_median,
    coverage,
    curve,
    curve_areas,
    energy_inside,
    enrichment,
    exchanged,
    likeness,
    points_inside,
    ranks,
)
from drnet_captum.detect import Detections


def test_coverage_of_boxes_beyond_the_image_and_within_a_pixel():
    assert coverage([-5, -5, 50, 50], (2, 3)).tolist() == [[1.0] * 3] * 2
    assert coverage([0.25, 0.5, 0.75, 1.0], (1, 2)).tolist() == [[0.25, 0.0]]
    assert float(coverage([7, 7, 9, 9], (4, 4)).sum()) == 0


def test_energy_and_enrichment_by_hand():
    heat = torch.tensor([[4.0, 2.0, 0.0], [-9.0, 1.0, 1.0]])
    assert energy_inside(heat, [0, 0, 1, 2]) == pytest.approx(4 / 8)
    assert energy_inside(heat, [0, 0, 1.5, 1]) == pytest.approx(5 / 8)
    assert enrichment(heat, [0, 0, 1, 2]) == pytest.approx(4 / 8 * 3)
    assert energy_inside(-torch.ones(2, 4), [0, 0, 1, 2]) == pytest.approx(1 / 4)  # nothing positive: chance
    assert enrichment(torch.ones(7, 9), [1.3, 2.2, 4.9, 6.1]) == pytest.approx(1)
    with pytest.raises(ValueError, match="expected a box within"):
        enrichment(heat, [8, 8, 9, 9])
    assert torch.equal(above_median(heat + 70), above_median(heat))


@pytest.mark.parametrize("heat", [torch.zeros(1, 2, 2), torch.tensor([[float("nan"), 1.0]])])
def test_games_refuse_what_is_no_map(heat):
    for game in (points_inside, energy_inside, enrichment):
        with pytest.raises(ValueError, match="expected a map"):
            game(heat, [0, 0, 1, 1])


def test_points_of_equals_and_at_the_edge():
    heat = torch.zeros(4, 4)
    assert points_inside(heat, [0, 0, 2, 2]) == 0.25  # all are equal: chance
    heat[1, 2] = 1
    assert [points_inside(heat, box) for box in ([2.5, 1, 4, 2], [2.6, 1, 4, 2], [2, 1, 2.5, 1.5])] == [1, 0, 1]


def test_equals_have_no_direction_and_others_their_order():
    flat = ranks(torch.zeros(40, 40)).double()
    assert sorted(flat.flatten().tolist()) == list(range(1600))
    assert abs(flat[:20].mean() - flat[20:].mean()) < 60 and abs(flat[:, :20].mean() - flat[:, 20:].mean()) < 60
    assert torch.equal(ranks(torch.zeros(5, 5), seed=3), ranks(torch.ones(5, 5), seed=3))
    heat = torch.rand(6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(heat.flatten()[ranks(heat).flatten().argsort()], heat.flatten().sort(descending=True).values)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_most_important_pixels_go_first(batch):
    start, end = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    parts = list(exchanged(start, end, torch.tensor([[0.1, 4.0], [-3.0, 0.2]]), 4, batch))
    assert max(len(part) for part in parts) == min(batch, 5)
    found = torch.cat(parts)[:, 1].flatten(1).tolist()
    assert found == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]


def test_likeness_by_hand():
    target = Detections.drawn([[0, 0, 4, 4]], [0])
    boxes = torch.tensor([[0.0, 0, 4, 8], [0, 0, 4, 4], [9, 9, 10, 10]])
    probs = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    found = Detections(boxes, torch.tensor([0.9, 0.5, 1.0]), probs)
    torch.testing.assert_close(likeness(found, target), torch.tensor([0.6, 0.45]))  # the surest is another one
    assert likeness(found[:0], target).tolist() == [0, 0]
    unsure = Detections(boxes[:1], torch.tensor([float("nan")]), probs[:1])
    assert likeness(unsure, target).tolist() == [0, 0]


def brightness(images):
    """One box, whose score is the mean of the image."""
    box, probs = torch.tensor([[0.0, 0, 2, 2]]), torch.ones(1, 1)
    return [Detections(box, x.mean()[None], probs, objectness=x.mean()[None]) for x in images]


def test_curves_and_their_areas_by_hand():
    image, dark = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    image[:, 0, 0] = 1.0
    target = Detections.drawn([[0, 0, 2, 2]], [0])
    good = torch.tensor([[3.0, 2.0], [1.0, 0.0]])
    found = curve(brightness, target, image, dark, good, steps=4, batch=3)
    torch.testing.assert_close(found, torch.tensor([[0.25, 0, 0, 0, 0], [0.0625, 0, 0, 0, 0]]))
    areas = curve_areas(brightness, target, image, good, {"deletion": dark, "insertion": dark}, steps=4)
    assert areas == pytest.approx(
        {"deletion": 1 / 32, "deletion, score": 1 / 128, "insertion": 7 / 32, "insertion, score": 7 / 128}
    )
    bad = curve_areas(brightness, target, image, -good, {"deletion": dark, "insertion": dark}, steps=4)
    assert (bad["deletion"], bad["insertion"]) == pytest.approx((7 / 32, 1 / 32))
