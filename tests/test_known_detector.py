"""A detector with a known answer: where the map must be, and how near it must come to its exact expectation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectors import Box, BrightRectangles
from reference import mask_covariance
from torch import Tensor
from torch.testing import assert_close

import drnet_captum as dc

H, W, GRID = 64, 96, (16, 16)  # cells of 4 × 6 pixels
WHITE = torch.ones(1, 3, H, W)


def explained(box: Box, normalize: str = "coverage", n_masks: int = 5000, **options) -> tuple[Tensor, Tensor]:
    """The map of a rectangle, and its standard errors."""
    drise = dc.DRISE(BrightRectangles(box))
    target = dc.Detections.drawn([box], [0])
    steps = drise.attribute_iter(
        WHITE, target, n_masks=n_masks, grid=GRID, baselines=0.0, normalize=normalize, every=n_masks, **options
    )
    found = list(steps)[-1]
    return found.maps[0][0], found.standard_errors[0][0]


def energy_inside(heat: Tensor, box: Box) -> float:
    """The share of the centred map's positive part that lies in the box."""
    positive = (heat - heat.mean()).clamp_min(0)
    return float(positive[box[1] : box[3], box[0] : box[2]].sum() / positive.sum())


def square(cells: int) -> Box:
    """A square of that many cells near the middle."""
    left, top = (16 - cells) // 2 * 6 + 2, (16 - cells) // 2 * 4 + 1
    return left, top, left + 6 * cells, top + 4 * cells


@pytest.mark.parametrize(("cells", "least"), [(1, 0.2), (2, 0.5), (4, 0.76), (8, 0.9)])
def test_energy_lies_in_the_rectangle(cells, least):
    heat, _ = explained(square(cells))
    assert energy_inside(heat, square(cells)) >= least


RECTANGLES = [
    (40, 30, 46, 34),
    (0, 0, 12, 8),
    (90, 60, 96, 64),
    (10, 40, 86, 44),
    (33, 5, 40, 60),
    square(8),
    (5, 3, 91, 61),
]


@pytest.mark.parametrize("box", RECTANGLES)
def test_the_strongest_point_is_within_a_cell_of_the_rectangle(box):
    heat, _ = explained(box)
    y, x = divmod(int(heat.argmax()), W)
    assert box[0] - 6 <= x < box[2] + 6 and box[1] - 4 <= y < box[3] + 4


def expected(box: Box, p: float) -> Tensor:
    """Cov(w, M) in closed form: the rectangle blurred by the masks' covariance, for w = mean of M over it."""
    rows, columns = mask_covariance(H, GRID[0], p), mask_covariance(W, GRID[1], p)
    blurred = np.outer(rows[:, box[1] : box[3]].mean(1), columns[:, box[0] : box[2]].mean(1))
    return torch.from_numpy(p * (1 - p) * blurred)


@pytest.mark.parametrize("box", RECTANGLES)
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_the_map_meets_its_expectation_within_three_standard_errors(box, p):
    n = 5000
    heat, error = explained(box, "mean", n, keep_probability=p, generator=torch.Generator().manual_seed(1))
    deviation = (heat - n * expected(box, p)).abs() / error
    assert float((deviation < 3).double().mean()) >= 0.99


@pytest.mark.parametrize(("normalize", "of_masks"), [("none", 1.0), ("expectation", 1 / 0.5), ("coverage", 1 / 0.5)])
def test_the_other_normalisations_meet_theirs(normalize, of_masks):
    """E[w M] = Cov + p·E[w], with E[w] = p; over p for the other two (of a ratio: to first order)."""
    box, n = square(4), 5000
    heat, error = explained(box, normalize, n)
    scale = of_masks * (n if normalize == "none" else 1)
    deviation = (heat - scale * (expected(box, 0.5) + 0.25)).abs() / error
    assert float((deviation < 3).double().mean()) >= 0.99


def test_masks_that_say_nothing_leave_the_mean_normalised_map_at_zero():
    """A detector that sees no mask: the control variate takes all of it."""
    target = dc.Detections.drawn([[0, 0, 8, 8]], [0])

    def constant(images: Tensor) -> list[dict[str, Tensor]]:
        one = {"boxes": target.boxes, "scores": torch.tensor([0.7]), "labels": target.labels}
        return [one for _ in images]

    drise = dc.DRISE(constant)
    (heat,) = drise.attribute_detections(WHITE, target, n_masks=300)
    assert_close(heat, torch.zeros(1, H, W), atol=1e-5, rtol=0)
    (paper,) = drise.attribute_detections(WHITE, target, n_masks=300, normalize="coverage")
    assert_close(paper, torch.full((1, H, W), 0.7))


def test_the_class_goes_by_colour():
    """Left is red, right is green; hiding shows blue. The same box asked as red looks left, as green right."""
    x = torch.zeros(1, 3, H, W)
    x[:, 0, :, : W // 2], x[:, 1, :, W // 2 :] = 1, 1
    box = (0, 0, W, H)
    drise = dc.DRISE(BrightRectangles(box, labels_only=False), image_range=(0, 1), objectness=None)
    blue = torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1)
    red, green = drise.attribute_detections(x, dc.Detections.drawn([box] * 2, [0, 1]), n_masks=2000, baselines=blue)[0]
    assert energy_inside(red, (0, 0, W // 2, H)) > 0.9 and energy_inside(green, (W // 2, 0, W, H)) > 0.9
