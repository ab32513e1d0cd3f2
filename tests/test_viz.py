"""Scaling, overlays, boxes and panels, in numbers worked out by hand."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

from drnet_captum.viz import localize, normalize, overlay, panel, to_heat
from drnet_captum.viz.localize import components
from drnet_captum.viz.overlay import fit

GREY = np.full((8, 8, 3), 0.5, dtype=np.float32)


# Scaling


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_to_heat_sums_channels_of_any_dtype(dtype: torch.dtype) -> None:
    ones = torch.ones(3, 2, 5).to(dtype)
    np.testing.assert_array_equal(to_heat(ones), np.full((2, 5), 3.0))
    np.testing.assert_array_equal(to_heat(ones[:1]), np.ones((2, 5)))
    np.testing.assert_array_equal(to_heat(ones[0].numpy() if dtype != torch.bfloat16 else ones[0]), np.ones((2, 5)))


def test_to_heat_keeps_signs_and_the_callers_tensor() -> None:
    values = torch.tensor([[[1.0, -5.0]], [[2.0, 1.0]]], requires_grad=True)
    np.testing.assert_array_equal(to_heat(values), [[3.0, -4.0]])
    assert values.requires_grad
    assert values.grad is None


@pytest.mark.parametrize("shape", [(5,), (1, 3, 4, 4), (0, 4), (2, 1, 3, 4, 4)])
def test_to_heat_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        to_heat(torch.zeros(shape))


def test_to_heat_of_what_is_no_map() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_heat(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(TypeError, match=r"real values, got torch\.complex64"):
        to_heat(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="real numbers"):
        to_heat(np.array([["a"]]))


def test_normalize_clips_at_the_percentile() -> None:
    values = torch.arange(101.0).reshape(1, 101)  # the 50th percentile is 50
    np.testing.assert_allclose(normalize(values, percentile=50)[0, [0, 25, 50, 100]], [0, 0.5, 1, 1])
    np.testing.assert_allclose(normalize(-values, percentile=50)[0, [0, 25, 100]], [0, -0.5, -1])


def test_normalize_by_sign() -> None:
    values = torch.tensor([[-4.0, 2.0, 1.0]])
    np.testing.assert_allclose(normalize(values, percentile=100), [[-1, 0.5, 0.25]])
    np.testing.assert_allclose(normalize(values, percentile=100, signed=False), [[0, 1, 0.5]])


def test_normalize_when_nearly_all_is_zero() -> None:
    values = torch.zeros(100, 100)
    values[3, 4], values[5, 6] = 2.0, 1.0  # fewer than one in a hundred
    scaled = normalize(values)
    assert (scaled[3, 4], scaled[5, 6], np.count_nonzero(scaled)) == (1.0, 0.5, 2)


def test_normalize_with_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="nowhere positive"):
        normalize(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="nowhere positive"):
        normalize(-torch.ones(4, 4), signed=False)
    with pytest.raises(ValueError, match="all zero"):
        normalize(torch.zeros(4, 4), signed=True)
    for percentile in (0, 101):
        with pytest.raises(ValueError, match=r"percentile in \(0, 100\]"):
            normalize(torch.ones(4, 4), percentile=percentile)


# Overlays


def test_overlay_leaves_the_photo_where_the_map_is_zero() -> None:
    photo = np.random.default_rng(0).random((8, 8, 3), dtype=np.float32)
    values = torch.zeros(8, 8)
    values[2, 3] = 5.0
    result = overlay(photo, values, alpha=1.0, percentile=100)
    rest = np.ones((8, 8), dtype=bool)
    rest[2, 3] = False
    np.testing.assert_allclose(result[rest], photo[rest])
    np.testing.assert_allclose(result[2, 3], matplotlib.colormaps["turbo"](1.0)[:3], atol=1e-6)


def test_overlay_in_numbers() -> None:
    values = torch.zeros(8, 8)
    values[0, 0], values[0, 1] = 1.0, 0.25
    result = overlay(GREY, values, alpha=0.5, percentile=100, cmap="gray")
    np.testing.assert_allclose(result[0, 0], 0.5 * 0.5 + 0.5 * 1.0, atol=1e-6)  # half white
    np.testing.assert_allclose(result[0, 1], 0.875 * 0.5 + 0.125 * 0.25, atol=2e-3)  # an eighth of a quarter's grey
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[..., 0] = 255
    np.testing.assert_allclose(overlay(red, values, alpha=0.0, percentile=100)[0, 0], 0.299, atol=1e-6)  # its luma


def test_overlay_of_a_signed_map_is_red_for_and_blue_against() -> None:
    values = torch.zeros(8, 8)
    values[0, 0], values[7, 7] = 1.0, -1.0
    result = overlay(GREY, values, percentile=100)
    assert result[0, 0, 0] > result[0, 0, 2] + 0.2
    assert result[7, 7, 2] > result[7, 7, 0] + 0.2
    np.testing.assert_allclose(result[4, 4], 0.5)
    positive = overlay(GREY, values, percentile=100, signed=False)
    np.testing.assert_allclose(positive[7, 7], 0.5)


def test_overlay_enlarges_bilinearly() -> None:
    enlarged = fit(np.array([[0.0, 4.0]]), (2, 4))
    np.testing.assert_allclose(enlarged, [[0, 1, 3, 4], [0, 1, 3, 4]])
    with torch.no_grad():
        assert overlay(np.zeros((224, 300, 3)), torch.rand(7, 10)).shape == (224, 300, 3)  # 300 / 32, rounded up


@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (16, 16), (4, 8)])
def test_overlay_refuses_sizes_that_do_not_belong(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"a map of {shape[0]}×{shape[1]} does not belong to a photo of 8×8 pixels"):
        overlay(GREY, torch.ones(shape))


def test_overlay_refuses_what_is_no_photo() -> None:
    values = torch.ones(8, 8)
    with pytest.raises(ValueError, match=r"photo of shape \(H, W, 3\), got \(3, 8, 8\): permute"):
        overlay(torch.zeros(3, 8, 8), values)
    with pytest.raises(ValueError, match=r"\[0, 1\] \(or uint8\), got -2 to 0.5: undo the model's normalisation"):
        overlay(np.where(np.arange(8)[:, None] > 3, GREY, -2.0), values)
    with pytest.raises(ValueError, match="alpha"):
        overlay(GREY, values, alpha=2)
    with pytest.raises(ValueError, match="no colormap 'rainbows'"):
        overlay(GREY, values, cmap="rainbows")


# Boxes


def test_localize_finds_known_boxes_strongest_first() -> None:
    values = torch.zeros(20, 30)
    values[2:5, 3:9] = 0.5  # 18 pixels, mass 9
    values[10:15, 20:24] = 1.0  # 20 pixels, mass 20
    values[18, 0] = 0.39  # below 0.4 of the maximum
    values[0, 29] = 0.41
    boxes, mask = localize(values)
    assert boxes.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert boxes.tolist() == [[20, 10, 24, 15], [3, 2, 9, 5], [29, 0, 30, 1]]
    assert int(mask.sum()) == 18 + 20 + 1
    larger = localize(values, min_area=2)
    assert larger.boxes.tolist() == boxes.tolist()[:2]
    assert int(larger.mask.sum()) == 38
    assert localize(values, threshold=0.6).boxes.tolist() == [[20, 10, 24, 15]]
    assert localize(values, min_area=100).boxes.shape == (0, 4)


def test_localize_ignores_negative_evidence_and_sums_channels() -> None:
    values = torch.zeros(2, 6, 6)
    values[:, 1, 1] = 1.0
    values[:, 4, 4] = -9.0
    assert localize(values).boxes.tolist() == [[1, 1, 2, 2]]


def test_components_join_at_corners_and_along_snakes() -> None:
    rows = ["##..#", "...#.", "#.#..", "#...#", "####."]
    mask = np.array([[letter == "#" for letter in row] for row in rows])
    assert components(mask).tolist() == [
        [0, 0, -1, -1, 1],
        [-1, -1, -1, 1, -1],
        [2, -1, 1, -1, -1],
        [2, -1, -1, -1, 2],
        [2, 2, 2, 2, -1],
    ]


def test_components_agree_with_a_flood_fill() -> None:
    random = np.random.default_rng(0)
    for density in (0.2, 0.4, 0.6):
        mask = random.random((23, 31)) < density
        expected = np.full(mask.shape, -1)
        count = 0
        for start in zip(*np.nonzero(mask), strict=True):
            stack = [start] if expected[start] < 0 else []
            count += len(stack)
            while stack:
                y, x = stack.pop()
                if 0 <= y < 23 and 0 <= x < 31 and mask[y, x] and expected[y, x] < 0:
                    expected[y, x] = count - 1
                    stack += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        np.testing.assert_array_equal(components(mask), expected)


def test_localize_refuses() -> None:
    with pytest.raises(ValueError, match="nowhere positive"):
        localize(torch.zeros(4, 4))
    for threshold in (0, 1.5):
        with pytest.raises(ValueError, match=r"threshold in \(0, 1\]"):
            localize(torch.ones(4, 4), threshold)
    with pytest.raises(ValueError, match="min_area"):
        localize(torch.ones(4, 4), min_area=0)


# Panels


def pixels(image: object) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_panel_is_a_readable_figure() -> None:
    torch.manual_seed(0)
    maps = {"Grad-CAM": torch.rand(2, 1, 2, 2), "Saliency": torch.rand(2, 3, 8, 8), "Signed": torch.randn(2, 8, 8)}
    image = panel(GREY, maps, ["tabby 42%", "Egyptian cat 31%"], title="cat.jpg")
    assert image.mode == "RGB"
    # Four cells of 2.04 inches at 110 dpi beside each other, two above each other, and room for titles.
    assert 4 * 224 < image.width < 4 * 224 + 150
    assert 2 * 224 < image.height < 2 * 224 + 180
    assert pixels(image).std() > 20
    assert (pixels(image)[0] == 255).all()  # a white margin
    assert (pixels(image)[:, 0] == 255).all()


def test_panel_wraps_many_methods_evenly() -> None:
    maps = {f"Method {i}": torch.rand(3, 2, 2) for i in range(10)}
    titles = ["a very long class name, with several synonyms, that goes over lines 12%", "short", "$math_{is$ text"]
    wrapped = panel(GREY, maps, titles)
    assert wrapped.width < 6 * 224 + 150  # two lines of five and the photo
    assert wrapped.height > 6 * 224
    assert panel(GREY, maps, titles, columns=10).width > 11 * 224


def test_panel_draws_a_blank_map_as_blank_and_says_so() -> None:
    zero = torch.zeros(1, 1, 8, 8)
    image = pixels(panel(GREY, {"Zero": zero, "Negative": -1 - zero}, ["tabby"], signed={"Negative": False}))
    cell = image[80:230, 340:500]  # inside the first map's cell
    assert cell.max() == 255
    assert (cell < 200).any()  # the note
    assert (cell == 255).mean() > 0.9  # and nothing else


def test_panel_styles_decide_what_is_behind_the_map() -> None:
    values = torch.zeros(1, 1, 8, 8)
    values[..., :4, :] = 1.0  # its lower half is zero: there the photo shows, or white
    heat = pixels(panel(GREY, {"M": values}, ["a"]))
    detail = pixels(panel(GREY, {"M": values}, ["a"], style={"M": "detail"}))
    y, x = 200, 420
    assert abs(heat[y, x] - 127).max() <= 1
    assert (detail[y, x] == 255).all()


def test_panel_leaves_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    panel(GREY, {"M": torch.ones(1, 8, 8)}, ["a"])
    assert dict(matplotlib.rcParams) == before


def test_panel_refuses() -> None:
    good = torch.ones(1, 8, 8)
    with pytest.raises(ValueError, match="at least one method"):
        panel(GREY, {}, ["a"])
    with pytest.raises(ValueError, match=r"M: expected one map for each row title, \(2, C, h, w\).*got \(1, 8, 8\)"):
        panel(GREY, {"M": good}, ["a", "b"])
    with pytest.raises(ValueError, match=r"M: a map of 1×64 does not belong .* signal"):
        panel(GREY, {"M": torch.ones(1, 1, 64)}, ["a"])
    with pytest.raises(ValueError, match="volumes do not fit"):
        panel(GREY, {"M": torch.ones(1, 1, 4, 8, 8)}, ["a"])
    with pytest.raises(ValueError, match="M: the map has NaN"):
        panel(GREY, {"M": good * float("nan")}, ["a"])
    with pytest.raises(ValueError, match=r"style names \['N'\], which is not among the maps: M"):
        panel(GREY, {"M": good}, ["a"], style={"N": "heat"})
    with pytest.raises(ValueError, match='styles "heat" or "detail"'):
        panel(GREY, {"M": good}, ["a"], style={"M": "loud"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="columns=0"):
        panel(GREY, {"M": good}, ["a"], columns=0)
