"""The pointing games: by hand, and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from drnet_captum.metrics import box_masks, cell_shares, energy_in, grid_pointing_game, mosaic, pointing_game


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_hit(heat, mask, tolerance):
    """One map (H, W) and one mask, pixel by pixel."""
    points = [(i, j) for i in range(heat.shape[0]) for j in range(heat.shape[1])]
    top = max(points, key=lambda p: (float(heat[p]), -p[0], -p[1]))
    return any(mask[p] and math.dist(p, top) <= tolerance for p in points)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 3.5, 15])
def test_pointing_against_loops(tolerance):
    maps, masks = drawn(40, 9, 7), drawn(40, 9, 7, seed=1) > 1.7
    masks[:, 8, 6] = True
    expected = [slow_hit(heat, mask, tolerance) for heat, mask in zip(maps, masks, strict=True)]
    assert pointing_game(maps, masks, tolerance).tolist() == expected
    assert tolerance in (0, 15) or 0 < sum(expected) < 40
    assert pointing_game(maps[:, None], masks[:, None].double(), tolerance).tolist() == expected


def test_pointing_at_boxes_by_hand():
    heat = torch.zeros(1, 40, 40)
    heat[0, 10, 30] = 1.0  # its middle at x 30.5, y 10.5
    for box, distance in (
        ([0, 0, 20, 40], 10.5),
        ([35, 5, 40, 12], 4.5),
        ([25, 5, 32, 12], 0),
        ([33.5, 14.5, 40, 40], 5),
    ):
        boxes = torch.tensor([box], dtype=torch.float32)
        assert pointing_game(heat, boxes, distance).tolist() == [True]
        if distance:
            assert pointing_game(heat, boxes, distance - 0.1).tolist() == [False]
    assert pointing_game(heat, torch.tensor([[0, 0, 16, 40]])).tolist() == [True]  # 14.5 of the default 15
    assert pointing_game(heat, torch.tensor([[0, 0, 15, 40]])).tolist() == [False]


def test_channels_are_summed_and_equals_are_taken_in_order():
    maps = torch.tensor([[[[0.0, 5.0, 4.0]], [[0.0, -5.0, 0.0]]]])  # sum: 0, 0, 4
    last = torch.tensor([[[False, False, True]]])
    assert pointing_game(maps, last, 0).tolist() == [True]
    equal = torch.tensor([[[1.0, 3.0, 3.0]]])
    assert pointing_game(equal, last, 0).tolist() == [False]
    assert pointing_game(equal, torch.tensor([[[False, True, False]]]), 0).tolist() == [True]
    assert pointing_game(torch.ones(1, 1, 3), torch.ones(1, 1, 3), 15).tolist() == [False]  # constant


def test_energy_against_loops():
    maps, masks = drawn(5, 2, 6, 8), drawn(5, 6, 8, seed=1) > 0
    maps[2] = -maps[2].abs()
    found = energy_in(maps, masks)
    for n in range(5):
        inside = total = 0.0
        for i in range(6):
            for j in range(8):
                value = max(float(maps[n, :, i, j].sum()), 0.0)
                total += value
                inside += value * float(masks[n, i, j])
        assert float(found[n]) == pytest.approx(inside / total if total else float(masks[n].double().mean()))
    assert_close(energy_in(maps, masks[:, None].float()), found)


def test_energy_in_boxes_that_cut_through_pixels():
    maps = torch.tensor([[[1.0, 3.0], [2.0, -9.0]]])
    assert energy_in(maps, torch.tensor([[0.0, 0.0, 1.5, 1.0]])).item() == pytest.approx(2.5 / 6)
    assert energy_in(maps, torch.tensor([[-4.0, -4.0, 9.0, 9.0]])).item() == 1
    assert energy_in(-maps.abs(), torch.tensor([[0, 0, 1, 2]])).item() == 0.5  # nothing positive: the box's share


def test_box_masks_sum_to_the_boxes_areas():
    boxes = torch.tensor([[0.25, 0.5, 3.75, 2.0], [1.0, 1.0, 2.0, 3.0]])
    masks = box_masks(boxes, (4, 5))
    assert masks.shape == (2, 4, 5)
    assert masks.sum((1, 2)).tolist() == [3.5 * 1.5, 2.0]
    assert masks[0, 0].tolist() == [0.375, 0.5, 0.5, 0.375, 0]


@pytest.mark.parametrize("game", [pointing_game, energy_in])
@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (torch.ones(2, 4, 5), r"masks of shape \(2, 4, 4\) or boxes of shape \(2, 4\) in xyxy pixels, got \(2, 4, 5\)"),
        (torch.ones(1, 4, 4), r"got \(1, 4, 4\)"),
        (torch.ones(2, 3, 4, 4), r"got \(2, 3, 4, 4\)"),
        (torch.ones(2, 5), r"boxes of shape \(N, 4\)"),
        (torch.ones(2, 4, 4) * 2, r"values in \[0, 1\]"),
        (torch.zeros(2, 4, 4, dtype=torch.bool), "at least one pixel in the image, got an empty one"),
        (torch.tensor([[0, 0, 2, 2], [9, 9, 12, 12]]), "at least one pixel in the image"),
    ],
)
def test_regions_that_do_not_fit(game, regions, message):
    with pytest.raises(ValueError, match=message):
        game(torch.rand(2, 4, 4), regions)


def test_negative_tolerance():
    with pytest.raises(ValueError, match="at least 0 pixels, got -1"):
        pointing_game(torch.rand(1, 4, 4), torch.ones(1, 4, 4), -1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_mosaics_row_by_row(n):
    images = drawn(n * n, 3, 4, 5)
    whole = mosaic(images, n)
    assert whole.shape == (3, 4 * n, 5 * n)
    for k in range(n * n):
        i, j = divmod(k, n)
        assert torch.equal(whole[:, 4 * i : 4 * i + 4, 5 * j : 5 * j + 5], images[k])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_grid_game_against_loops(n):
    maps = drawn(2 * n * n, 2, 3 * n, 4 * n)
    maps[1 % len(maps)] = -maps[1 % len(maps)].abs()
    found, shares = grid_pointing_game(maps, n), cell_shares(maps, n)
    assert_close(shares.sum(1), torch.ones(len(maps), dtype=torch.float64))
    for m in range(len(maps)):
        heat = maps[m].sum(0).clamp(min=0)
        for k in range(n * n):
            i, j = divmod(k, n)
            part = heat[3 * i : 3 * i + 3, 4 * j : 4 * j + 4].sum()
            expected = float(part / heat.sum()) if heat.sum() > 0 else 1 / n**2
            assert float(shares[m, k]) == pytest.approx(expected)
        assert found[m] == shares[m, m % (n * n)]


def test_grid_errors():
    with pytest.raises(ValueError, match=r"2·2 images, \(4, C, h, w\), got \(3, 3, 2, 2\)"):
        mosaic(torch.rand(3, 3, 2, 2))
    with pytest.raises(ValueError, match="each of the 4 cells of every mosaic, got 3 maps"):
        grid_pointing_game(torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="height and width 2 divides"):
        grid_pointing_game(torch.rand(4, 5, 4))
