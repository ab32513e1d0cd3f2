"""The masks: exactly the paper's from their grids, the same whatever the device, the chunk and the number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import mask_covariance, rise_mask
from torch.testing import assert_close

from drnet_captum.masking.random_masks import RandomMasks, enlarging_matrix

CPU = torch.device("cpu")


def draw(n: int = 40, size: tuple[int, int] = (30, 44), grid: tuple[int, int] = (4, 6), p: float = 0.5) -> RandomMasks:
    return RandomMasks.draw(n, size, grid, p, torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("size", "grid"), [((30, 44), (4, 6)), ((31, 17), (16, 16)), ((5, 7), (8, 9)), ((9, 9), (1, 1))]
)
def test_equal_to_enlarging_and_cropping(size, grid):
    masks = draw(size=size, grid=grid)
    pairs = zip(masks.grids.numpy(), masks.offsets.tolist(), strict=True)
    slow = torch.from_numpy(np.stack([rise_mask(grid, offset, size) for grid, offset in pairs]))
    assert_close(masks.build(0, 40), slow, rtol=0, atol=1e-12)
    assert_close(masks.to(CPU, torch.float32).build(0, 40).double(), slow, rtol=0, atol=1e-6)


def test_in_parts_and_into_memory_that_is_given():
    masks = draw()
    held = torch.full((7, 30, 44), torch.nan, dtype=torch.float64)
    parts = [masks.build(a, min(a + 7, 40), out=held[: min(a + 7, 40) - a]).clone() for a in range(0, 40, 7)]
    assert_close(torch.cat(parts), masks.build(0, 40), rtol=0, atol=0)


def test_fewer_masks_are_the_first_of_more():
    few, many = draw(10), draw(1000)
    assert torch.equal(few.grids, many.grids[:10]) and torch.equal(few.offsets, many.offsets[:10])


def test_every_pixel_is_shown_with_the_same_probability():
    """E[M] = p, and Var[M] as the grid and the offsets say, within 4 standard errors of 4,000 masks."""
    masks = draw(4000, p=0.3).build(0, 4000)
    variance = 0.3 * 0.7 * np.outer(np.diag(mask_covariance(30, 4, 0.3)), np.diag(mask_covariance(44, 6, 0.3)))
    assert float(((masks.mean(0) - 0.3).abs() / torch.from_numpy(variance / 4000).sqrt()).max()) < 4.5
    assert_close(masks.var(0), torch.from_numpy(variance), rtol=0.15, atol=0)


def test_offsets_are_uniform_over_the_cell():
    offsets = draw(8000).offsets  # cells of 8 × 8 pixels
    for axis in (0, 1):
        counts = torch.bincount(offsets[:, axis], minlength=8)
        assert len(counts) == 8 and float((counts - 1000).abs().max()) < 150


def test_signals_and_volumes():
    """A volume whose masks vary along one axis only is a signal's."""
    line = draw(size=(30,), grid=(5,)).build(0, 40)
    flat = draw(size=(30, 1), grid=(5, 1)).build(0, 40)
    deep = draw(size=(2, 30, 3), grid=(1, 5, 1)).build(0, 40)
    assert line.shape == (40, 30) and deep.shape == (40, 2, 30, 3)
    first = draw(size=(30,), grid=(5,))
    slow = [
        rise_mask(g[:, None], (int(o), 0), (30, 1))[:, 0]
        for g, o in zip(first.grids.numpy(), first.offsets, strict=True)
    ]
    assert_close(line, torch.from_numpy(np.stack(slow)), rtol=0, atol=1e-12)
    for masks, other in ((flat[:, :, 0], flat), (deep[:, 0, :, 0], deep)):
        assert_close(masks.view(40, *(30 if s == 30 else 1 for s in other.shape[1:])).expand_as(other), other)
    cells = draw(3, size=(6, 9, 8), grid=(3, 3, 4))
    (rows, columns, depth), grid = cells.matrices, cells.grids[0]
    y, x, z = cells.offsets[0].tolist()
    slow = torch.einsum("ai,bj,ck,ijk->abc", rows[y : y + 6], columns[x : x + 9], depth[z : z + 8], grid)
    assert_close(cells.build(0, 3)[0], slow)


def test_rows_of_the_enlarging_matrix_sum_to_one():
    for short, long in ((1, 9), (4, 40), (16, 17)):
        assert_close(enlarging_matrix(short, long).sum(1), torch.ones(long, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "at least one mask, got n_masks=0"),
        ({"grid": (0, 4)}, r"at least one cell .* got \(0, 4\)"),
        ({"grid": (4,)}, r"along each of 2 dimensions, got \(4,\)"),
        ({"p": 0.0}, "keep_probability in \\(0, 1\\)"),
        ({"p": 1.0}, "keep_probability in \\(0, 1\\)"),
        ({"p": float("nan")}, "keep_probability in \\(0, 1\\)"),
    ],
)
def test_what_cannot_be_drawn(options, message):
    with pytest.raises(ValueError, match=message):
        draw(**options)


@pytest.mark.gpu
def test_the_same_on_a_gpu():
    masks = draw()
    there = masks.to(torch.device("cuda"), torch.float32).build(0, 40)
    assert_close(there.cpu().double(), masks.build(0, 40), rtol=0, atol=1e-6)
