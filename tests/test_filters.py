"""Grids of filters and of feature maps: every pixel where it belongs, in the colour it stands for."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

from drnet_captum.viz import feature_grid, filter_grid


def test_filters_are_scaled_around_zero_each_by_itself() -> None:
    weights = torch.zeros(2, 3, 2, 2)
    weights[0, 0, 0, 0], weights[0, 1, 0, 1], weights[0, 2, 1, 0] = 2.0, -2.0, 1.0
    weights[1, :, 0, 0] = 0.01
    page = np.asarray(filter_grid(weights))
    assert page.shape == (4 + 56 + 4, 4 + 56 + 4 + 56 + 4, 3)  # 28 pixels a weight
    first = page[4:60, 4:60]
    np.testing.assert_array_equal(first[:28, :28], np.broadcast_to([255, 128, 128], (28, 28, 3)))
    np.testing.assert_array_equal(first[:28, 28:], np.broadcast_to([128, 0, 128], (28, 28, 3)))
    np.testing.assert_array_equal(first[28:, :28], np.broadcast_to([128, 128, 191], (28, 28, 3)))
    np.testing.assert_array_equal(first[28:, 28:], np.full((28, 28, 3), 128))
    np.testing.assert_array_equal(page[4:32, 64:92], np.full((28, 28, 3), 255))  # its own largest
    assert (page[:, 60:64] == 255).all() and (page[:4] == 255).all()  # gaps and margin


def test_filters_on_grey_and_filters_of_zeros() -> None:
    weights = torch.tensor([[[[1.0, -1.0]]], [[[0.0, 0.0]]]])
    page = np.asarray(filter_grid(weights, columns=1))
    assert page.shape == (2 * (28 + 4) + 4, 56 + 8, 3)
    assert page[4, 4].tolist() == [255] * 3 and page[4, 59].tolist() == [0] * 3
    assert (page[36:64, 4:60] == 128).all()


def test_filters_of_any_dtype_and_size() -> None:
    assert filter_grid(torch.randn(5, 3, 3, 3, dtype=torch.bfloat16, requires_grad=True)).size == (187, 126)
    assert filter_grid(np.ones((1, 1, 60, 80))).size == (88, 68)  # never made smaller
    assert filter_grid(np.ones((3, 1, 56, 56)), columns=10).size == (184, 64)


def test_filters_that_are_no_pictures() -> None:
    with pytest.raises(ValueError, match=r"got 64 input channels: only a first layer's.*DeconvNet"):
        filter_grid(torch.randn(8, 64, 3, 3))
    with pytest.raises(ValueError, match=r"2d convolution, .* got \(8, 3, 3\)"):
        filter_grid(torch.randn(8, 3, 3))
    with pytest.raises(ValueError, match=r"2d convolution, .* got \(0, 3, 3, 3\)"):
        filter_grid(torch.randn(0, 3, 3, 3))
    with pytest.raises(ValueError, match="weights have NaN"):
        filter_grid(torch.full((1, 1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="at least 1 column, got 0"):
        filter_grid(torch.ones(1, 1, 2, 2), columns=0)


def tile(page: np.ndarray, index: int) -> np.ndarray:
    """The map at ``index`` of a grid with one column of 56 pixels."""
    top = 4 + index * (56 + 14 + 4)
    return page[top : top + 56, 4:60]


def test_maps_come_strongest_first() -> None:
    maps = torch.zeros(4, 2, 2)
    maps[1, 0, 0], maps[3, 1, 1] = 1.0, 5.0
    maps[2] = 0.9  # more in sum, less at its strongest
    page = np.asarray(feature_grid(maps, count=3, columns=1))
    assert page.shape == (3 * 74 + 4, 64, 3)
    low, high = ((np.array(matplotlib.colormaps["viridis"](v)[:3]) * 255).round() for v in (0.0, 1.0))
    for index, (y, x) in enumerate([(28, 28), (0, 0)]):  # unit 3, unit 1
        expected = np.broadcast_to(low, (56, 56, 3)).copy()
        expected[y : y + 28, x : x + 28] = high
        np.testing.assert_array_equal(tile(page, index), expected)
    assert (tile(page, 2) == high).all()


def test_maps_by_index_with_silent_units() -> None:
    maps = torch.zeros(3, 2, 2)
    maps[1] = 1.0
    page = np.asarray(feature_grid(maps, order="index", columns=1, cmap="gray"))
    assert [int(tile(page, index).mean()) for index in range(3)] == [0, 255, 0]


def test_signed_maps_are_white_at_zero() -> None:
    maps = torch.tensor([[[-2.0, 0.0]], [[1.0, 4.0]]])
    page = np.asarray(feature_grid(maps, order="index", columns=1))
    np.testing.assert_allclose(page[4, 59], 255, atol=1)
    blue, red = page[4, 4].astype(int), page[4 + 28 + 14 + 4, 59].astype(int)
    assert blue[2] > blue[0] + 100 and red[0] > red[2] + 100
    strongest = np.asarray(feature_grid(maps, count=1))
    np.testing.assert_array_equal(strongest[4, 59], red)  # -2 is larger in magnitude than 1, not stronger than 4


def test_captions_name_the_units() -> None:
    maps = torch.arange(12.0)[:, None, None].expand(12, 4, 4)
    last, first = np.asarray(feature_grid(maps, count=1)), np.asarray(feature_grid(maps, count=1, order="index"))
    np.testing.assert_array_equal(last[:4], first[:4])
    ink = [(page[60:] < 255).any(axis=2).any(axis=0).nonzero()[0] for page in (last, first)]
    widths = [columns.max() - columns.min() for columns in ink]
    assert widths[0] > widths[1]  # "11" takes more room than "0"
    assert abs(ink[0].mean() - 32) < 3  # centred below the map


def test_maps_that_cannot_be_shown() -> None:
    with pytest.raises(ValueError, match=r"\(C, h, w\), got \(1, 2, 3, 3\): take maps\[0\]"):
        feature_grid(torch.ones(1, 2, 3, 3))
    with pytest.raises(ValueError, match="maps have NaN"):
        feature_grid(torch.full((1, 2, 2), torch.inf))
    with pytest.raises(ValueError, match="at least 1 unit, got 0"):
        feature_grid(torch.ones(1, 2, 2), count=0)
    with pytest.raises(ValueError, match="got 'weakest'"):
        feature_grid(torch.ones(1, 2, 2), order="weakest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no colormap 'rainbows'"):
        feature_grid(torch.ones(1, 2, 2), cmap="rainbows")
