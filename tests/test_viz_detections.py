"""The picture of explained detections: where boxes, tags and crosses come to stand."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.transforms import Bbox

from drnet_captum.viz import detection_panel
from drnet_captum.viz.boxes import box_colour, draw_box, draw_tags
from drnet_captum.viz.detections import _cell_size, _places
from drnet_captum.viz.page import CELL, DPI, Page

GREY = np.full((60, 90, 3), 0.5, dtype=np.float32)


def pixels(image: object) -> np.ndarray:
    return np.asarray(image).astype(int)


def where(image: object, colour: str) -> np.ndarray:
    """Rows and columns (P, 2) of the pixels of a colour."""
    wanted = np.array([round(255 * part) for part in to_rgb(colour)])
    return np.argwhere(np.abs(pixels(image) - wanted).max(axis=2) <= 1)


def peak(y: int, x: int, size: tuple[int, int] = (60, 90)) -> torch.Tensor:
    values = torch.full(size, -0.1)
    values[y, x] = 1.0
    return values


def canvas(height: int = 60, width: int = 90) -> tuple[Page, object]:
    """A page of 9 by 6 inches, a picture of the given size all over it."""
    page = Page(9, 6)
    return page, page.picture(0, 0, 9, 6, np.full((height, width, 3), 0.5))


# Boxes


def test_a_box_is_drawn_where_it_is() -> None:
    page, axes = canvas()
    draw_box(axes, (10, 20, 40, 50), (60, 90), box_colour(0))
    found = where(page.image(), box_colour(0))
    assert len(found)
    # A photo's pixel is 11 of the figure's; the line is 2 points = 3 pixels wide.
    np.testing.assert_allclose(found.min(0), (220, 110), atol=2)
    np.testing.assert_allclose(found.max(0), (550, 440), atol=2)


@pytest.mark.parametrize("box", [(-30, -20, 200, 100), (0, 0, 90, 60)])
def test_a_box_beyond_the_picture_is_drawn_at_its_edges(box: tuple[int, ...]) -> None:
    page, axes = canvas()
    draw_box(axes, box, (60, 90), box_colour(1))
    image = page.image()
    found = where(image, box_colour(1))
    assert (found.min(0) <= 6).all()
    assert (found.max(0) >= np.array(pixels(image).shape[:2]) - 7).all()
    assert len(np.unique(found[:, 0])) == found[:, 0].max() - found[:, 0].min() + 1  # all four sides


@pytest.mark.parametrize("box", [(100, 10, 120, 30), (-40, 10, -5, 30), (10, 70, 20, 90), (10, -9, 20, 0)])
def test_a_box_outside_the_picture_is_not_drawn(box: tuple[int, ...]) -> None:
    page, axes = canvas()
    draw_box(axes, box, (60, 90), box_colour(0))
    assert len(where(page.image(), box_colour(0))) == 0


def test_ten_boxes_have_ten_colours() -> None:
    colours = np.array([to_rgb(box_colour(number)) for number in range(10)])
    apart = np.abs(colours[:, None] - colours[None]).sum(2) + 9 * np.eye(10)
    assert apart.min() > 0.3
    assert box_colour(10) == box_colour(0)


# Tags


def tags(page: Page) -> list[Bbox]:
    renderer = page.canvas.get_renderer()
    page.canvas.draw()
    return [text.get_bbox_patch().get_window_extent(renderer) for text in page.figure.texts]


def test_a_tag_stands_on_its_box() -> None:
    page, axes = canvas()
    draw_tags(page, axes, [(10, 20, 80, 50)], ["cat 54%"], (60, 90))
    (tag,) = tags(page)
    assert abs(tag.x0 - 110) < 2
    assert abs(tag.y0 - (660 - 220)) < 2  # the figure's pixels count upwards


@pytest.mark.parametrize(
    "box", [(0, 0, 9, 6), (85, 0, 90, 3), (88, 58, 90, 60), (-10, -10, 200, 200), (300, 300, 310, 310)]
)
def test_a_tag_stays_in_its_picture(box: tuple[int, ...]) -> None:
    page, axes = canvas()
    draw_tags(page, axes, [box], ["traffic light 54%"], (60, 90))
    (tag,) = tags(page)
    assert tag.x0 >= -1 and tag.y0 >= -1 and tag.x1 <= 991 and tag.y1 <= 661


@pytest.mark.parametrize("box", [(10, 20, 40, 50), (0, 0, 20, 20), (0, 0, 90, 60)])
def test_tags_of_one_box_do_not_cover_each_other(box: tuple[int, ...]) -> None:
    page, axes = canvas()
    draw_tags(page, axes, [box] * 20, [f"class {i} 54%" for i in range(20)], (60, 90))
    places = tags(page)
    for i, one in enumerate(places):
        for other in places[:i]:
            shared = Bbox.intersection(one, other)
            assert shared is None or shared.width * shared.height < 4


def test_a_tag_wider_than_its_picture_is_cut() -> None:
    page = Page(9, 6)
    axes = page.picture(1, 1, 0.8, 4, np.full((40, 8, 3), 0.5))
    draw_tags(page, axes, [(0, 0, 8, 8)], ["a class of a very long name 12%"], (40, 8))
    (text,) = page.figure.texts
    assert text.get_text().startswith("a cla") and text.get_text().endswith("…")
    assert tags(page)[0].width <= 0.8 * DPI


# The whole


def test_one_detection_stands_beside_the_photo() -> None:
    image = detection_panel(GREY, torch.tensor([[10.0, 20, 40, 50]]), ["cat 54%"], peak(30, 20)[None])
    assert image.mode == "RGB"
    wide = round(2 * CELL * 1.5**0.5 * DPI)
    assert 2 * wide < image.width < 2 * wide + 60
    assert (pixels(image)[0] == 255).all() and (pixels(image)[:, 0] == 255).all()  # a white margin
    found = where(image, box_colour(0))
    assert (found[:, 1] < image.width / 2).any() and (found[:, 1] > image.width / 2).any()  # on the photo and the map


def test_the_cross_is_at_the_strongest_point() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 6]])
    left, right = (pixels(detection_panel(GREY, boxes, ["cat"], peak(30, x)[None])) for x in (20, 70))
    differs = np.argwhere(np.abs(left - right).max(2) > 60)
    wide = 2 * CELL * 1.5**0.5 * DPI
    # The middles of the two crosses are 50 of the photo's 90 pixels apart.
    columns = differs[:, 1]
    split = (columns.min() + columns.max()) / 2
    apart = columns[columns > split].mean() - columns[columns < split].mean()
    assert abs(apart - 50 / 90 * wide) < 3


def test_only_the_positive_part_is_drawn() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 6]])
    values = peak(30, 20)
    negative = values.clone()
    negative[:, 50:] = -7.0
    np.testing.assert_array_equal(
        pixels(detection_panel(GREY, boxes, ["cat"], values[None])),
        pixels(detection_panel(GREY, boxes, ["cat"], negative[None])),
    )


def test_a_map_without_a_positive_value_says_so() -> None:
    boxes = torch.tensor([[10.0, 20, 40, 50]] * 2)
    maps = torch.stack([torch.zeros(60, 90), -torch.ones(60, 90)])
    image = detection_panel(GREY, boxes, ["a", "b"], maps)
    third = image.width // 3
    for cell in (pixels(image)[60:250, third + 20 : 2 * third - 20], pixels(image)[60:250, 2 * third + 20 : -40]):
        assert (cell == 255).all(2).sum() > 400  # the white behind the words
        assert (np.abs(cell - 127).max(2) <= 2).mean() > 0.8  # the photo in grey, and no heat


def test_no_detections_give_the_photo() -> None:
    image = detection_panel(GREY, torch.zeros(0, 4), [], torch.zeros(0, 60, 90), title="cat.jpg")
    wide = round(2 * CELL * 1.5**0.5 * DPI)
    assert wide < image.width < 1.2 * wide
    assert (np.abs(pixels(image) - 127).max(2) <= 1).sum() > 0.9 * wide * wide / 1.5


def test_cells_flow_beside_the_photo_and_then_below_it() -> None:
    assert list(_places(2, 1, 2, 4)) == [(0, 0), (0, 1)]
    assert list(_places(9, 2, 2, 4)) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0)]
    sizes = [detection_panel(GREY, torch.ones(m, 4), ["cat"] * m, torch.ones(m, 6, 9)).size for m in (8, 9, 14, 15)]
    assert len({width for width, _ in sizes}) == 1
    heights = [height for _, height in sizes]
    assert heights[0] < heights[1] == heights[2] < heights[3]  # six fit into a line below
    assert (
        detection_panel(GREY, torch.ones(8, 4), ["cat"] * 8, torch.ones(8, 6, 9), columns=1).width < sizes[0][0] / 1.5
    )


@pytest.mark.parametrize(
    ("height", "width", "aspect"), [(300, 450, 1.5), (10, 451, 45.1), (450, 30, 30 / 450), (4, 4, 1.0)]
)
def test_cells_have_the_photo_s_aspect(height: int, width: int, aspect: float) -> None:
    wide, high = _cell_size(np.zeros((height, width, 3), dtype=np.float32))
    assert abs(wide / high / aspect - 1) < 1e-6
    image = detection_panel(np.zeros((height, width, 3)), torch.ones(3, 4), ["a"] * 3, torch.ones(3, height, width))
    assert max(image.size) < 2200


def test_long_words_and_odd_ones() -> None:
    labels = ["a very long class name, with several synonyms 12%", "$math_{is$ text", ""]
    boxes, maps = torch.tensor([[0.0, 0, 40, 50]] * 3), torch.ones(3, 60, 90)
    image = detection_panel(GREY, boxes, labels, maps, title="$t_" * 100, notes=["n" * 100, "", "$x_"])
    assert image.width < 1400


def test_nothing_else_changes() -> None:
    before = dict(matplotlib.rcParams)
    boxes, maps = torch.tensor([[-5.0, 2, 40, 200]]), torch.rand(1, 60, 90)
    kept = boxes.clone(), maps.clone()
    detection_panel(GREY, boxes, ["a"], maps)
    assert dict(matplotlib.rcParams) == before
    assert torch.equal(boxes, kept[0]) and torch.equal(maps, kept[1])


def test_refuses() -> None:
    box, one = torch.ones(1, 4), torch.ones(1, 60, 90)
    with pytest.raises(ValueError, match=r"labels for 1 boxes, one each, got 2"):
        detection_panel(GREY, box, ["a", "b"], one)
    with pytest.raises(ValueError, match=r"maps for 2 boxes, one each, got 1"):
        detection_panel(GREY, torch.ones(2, 4), ["a", "b"], one)
    with pytest.raises(ValueError, match=r"notes for 1 boxes"):
        detection_panel(GREY, box, ["a"], one, notes=[])
    with pytest.raises(ValueError, match=r"boxes of shape \(M, 4\) in xyxy pixels, got \(4,\)"):
        detection_panel(GREY, torch.ones(4), ["a"], one)
    with pytest.raises(ValueError, match="finite boxes"):
        detection_panel(GREY, box * float("nan"), ["a"], one)
    with pytest.raises(ValueError, match="map 0: the map has NaN"):
        detection_panel(GREY, box, ["a"], one * float("nan"))
    with pytest.raises(ValueError, match="map 0: a map of 60×9 does not belong"):
        detection_panel(GREY, box, ["a"], one[..., :9])
    with pytest.raises(ValueError, match="columns=0"):
        detection_panel(GREY, box, ["a"], one, columns=0)
