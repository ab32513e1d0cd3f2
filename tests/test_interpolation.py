"""Maps brought to the input's size: the sum stays, and between the edges it is linear interpolation."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.layers.interpolation import interpolation_matrix, spread

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def values(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def interpolated(short, long):
    """Slowly: pixel p lies at (p + ½)·short/long − ½ between two positions; a position's shares sum to 1."""
    matrix = torch.zeros(long, short, dtype=torch.float64)
    for p in range(long):
        at = min(max((p + 0.5) * short / long - 0.5, 0.0), short - 1.0)
        low = int(at)
        matrix[p, low] += 1 - (at - low)
        if low + 1 < short:
            matrix[p, low + 1] += at - low
    return matrix / matrix.sum(0)


@pytest.mark.parametrize(("short", "long"), [(1, 1), (1, 5), (2, 3), (3, 7), (7, 224), (5, 5), (13, 227), (6, 11)])
def test_the_matrix_transcribed_slowly(short, long):
    assert_close(interpolation_matrix(short, long), interpolated(short, long), **EXACT)


def test_numbers_by_hand():
    """One dimension, 2 → 3: pixels lie at −1/6 (clamped), 1/2 and 7/6 (clamped); each position has 3/2 to hand out."""
    assert_close(interpolation_matrix(2, 3), torch.tensor([[2, 0], [1, 1], [0, 2]]).double() / 3)
    assert_close(spread(torch.tensor([[[3.0, 9.0]]]), (3,)), torch.tensor([[[2.0, 4.0, 6.0]]]))


def test_of_longer_ones_the_places_are_added_up():
    """4 → 2: two positions a pixel. 3 → 2: the middle one is halved."""
    assert_close(spread(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), (2,)), torch.tensor([[[3.0, 7.0]]]))
    assert_close(spread(torch.tensor([[[1.0, 2.0, 3.0]]]), (2,)), torch.tensor([[[2.0, 4.0]]]))
    assert_close(interpolation_matrix(3, 2), torch.tensor([[1, 0.5, 0], [0, 0.5, 1]]).double())


SIZES = [
    ((7,), (100,)),
    ((9,), (4,)),
    ((7, 9), (97, 61)),
    ((5, 6), (3, 31)),
    ((14, 14), (224, 224)),
    ((1, 1), (13, 7)),
    ((11, 3), (5, 2)),
    ((3, 5, 7), (11, 13, 17)),
    ((4, 5, 3), (2, 5, 8)),
]


@pytest.mark.parametrize(("grid", "size"), SIZES)
def test_the_sum_of_every_map_stays(grid, size):
    maps = values(2, 3, *grid)
    big = spread(maps, size)
    assert big.shape == (2, 3, *size) and big.dtype == maps.dtype
    assert_close(big.flatten(2).sum(2), maps.flatten(2).sum(2), **EXACT)


@pytest.mark.parametrize(("grid", "size"), SIZES)
def test_every_position_hands_on_its_own_share(grid, size):
    """Position by position: the map of one position sums to its value, and is nowhere negative."""
    for place in itertools.product(*(range(side) for side in grid[:2])):
        single = torch.zeros(1, 1, *grid, dtype=torch.float64)
        single[(0, 0, *place)] = 2.0
        big = spread(single, size)
        assert_close(big.sum(), single.sum(), **EXACT)
        assert (big >= 0).all()


@pytest.mark.parametrize("grid", [(6,), (4, 7), (3, 4, 5)])
def test_equal_sizes_are_the_identity(grid):
    maps = values(2, 1, *grid)
    assert_close(spread(maps, grid), maps, **EXACT)


@pytest.mark.parametrize(("grid", "factor"), [((5, 6), 4), ((7, 7), 32), ((9, 5), 3)])
def test_by_whole_factors_it_is_bilinear_over_the_areas_ratio(grid, factor):
    maps = values(2, 1, *grid)
    size = [side * factor for side in grid]
    assert_close(spread(maps, size), bilinear(maps, size) / factor**2, **EXACT)


def bilinear(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("grid", "size"), [((7, 7), (227, 300)), ((13, 9), (224, 200))])
def test_by_other_factors_it_is_so_within_a_few_percent(grid, size):
    """Positions have more or fewer pixels between them, and hand out the same to each of these."""
    maps, ratio = values(2, 1, *grid), size[0] * size[1] / (grid[0] * grid[1])
    expected = bilinear(maps, size) / ratio
    assert (spread(maps, size) - expected).abs().max() < 0.05 * expected.abs().max()
    assert_close(spread(torch.ones_like(maps), size) * ratio, torch.ones(2, 1, *size).double(), rtol=0.05, atol=0)


def test_dimensions_are_not_mixed_up():
    rows = torch.arange(3.0, dtype=torch.float64).view(1, 1, 3, 1).expand(1, 1, 3, 5)
    big = spread(rows, (6, 20))
    assert_close(big.sum(3), spread(rows.sum(3), (6,)))
    assert_close(big, spread(rows.mT, (20, 6)).mT)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_other_dtypes(dtype, tolerance):
    maps = values(1, 2, 7, 5).abs()
    big = spread(maps.to(dtype), (30, 21))
    assert big.dtype == dtype
    assert_close(big.double(), spread(maps, (30, 21)), rtol=tolerance, atol=tolerance / 10)


def test_channels_last_and_expanded_maps():
    maps = values(2, 3, 5, 4)
    assert_close(spread(maps.contiguous(memory_format=torch.channels_last), (9, 9)), spread(maps, (9, 9)), **EXACT)
    one = values(1, 3, 1, 1).expand(2, 3, 5, 4)
    assert_close(spread(one, (9, 9)), spread(one.contiguous(), (9, 9)), **EXACT)


def test_its_gradient_is_the_transposed_and_a_first_call_in_inference_mode_does_no_harm():
    with torch.inference_mode():
        spread(values(1, 1, 29), (43,))
    maps = values(1, 1, 29).requires_grad_()
    (gradient,) = torch.autograd.grad(spread(maps, (43,)).sum(), maps)
    assert_close(gradient, torch.ones_like(maps), **EXACT)
