"""Boxes drawn on a picture, each in a colour of its own, with tags that keep out of each other's way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox, IdentityTransform

from .overlay import LUMA
from .page import DPI, Page

Box = Sequence[float]

_COLOURS = (
    "#ff2d87",
    "#00a5e3",
    "#f5a800",
    "#7b4bd6",
    "#00b050",
    "#d8430d",
    "#1f49c4",
    "#c8d400",
    "#a3006e",
    "#8c5a2b",
)
_LINE = 2.0  # points
_CASING = 3.6  # white, so that a box is seen on a photo of its own colour
_SIZE = 9.5
_PAD = 0.22  # of a tag, in letters


def box_colour(number: int) -> str:
    """The colour of the box with a number; they come round again after ten."""
    return _COLOURS[number % len(_COLOURS)]


def draw_box(axes: Any, box: Box, size: tuple[int, int], colour: str) -> None:
    """Draw the part of a box that lies in the picture on it.

    Args:
        axes: as `Page.picture` gives them.
        box: xyxy in the picture's pixels.
        size: the picture's height and width.
        colour: of the line.
    """
    height, width = size
    inches = axes.get_window_extent().width / DPI
    inset = _CASING / 2 / 72 / inches * width  # lines at the picture's edge stay in it whole
    (left, right), (top, bottom) = _within(box[::2], width, inset), _within(box[1::2], height, inset)
    if right < left or bottom < top:
        return
    # Pixel (0, 0) is drawn from −0.5 to 0.5.
    patch = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False)
    patch.set(edgecolor=colour, linewidth=_LINE, joinstyle="miter")
    patch.set_path_effects([withStroke(linewidth=_CASING, foreground="white", alpha=0.85)])
    axes.add_patch(patch)


def _within(ends: Box, size: int, inset: float) -> tuple[float, float]:
    """Both ends moved into a picture; (1, 0) where nothing of what lies between them is in it."""
    low, high = ends
    if high <= 0 or low >= size or high < low:
        return 1.0, 0.0
    first, last = np.clip([low, high], min(inset, size / 2), max(size - inset, size / 2))
    return float(first), float(last)


def draw_tags(page: Page, axes: Any, boxes: Sequence[Box], texts: Sequence[str], size: tuple[int, int]) -> None:
    """Write a text at each box, in the box's colour; of the places around a box the first that is free."""
    frame = axes.get_window_extent()
    renderer = page.canvas.get_renderer()
    pad = _PAD * _SIZE / 72 * DPI
    taken: list[Bbox] = []
    for number, (box, text) in enumerate(zip(boxes, texts, strict=True)):
        colour = box_colour(number)
        ink = "black" if float(np.dot(to_rgb(colour), LUMA)) > 0.5 else "white"
        options: dict[str, Any] = {"family": "DejaVu Sans", "fontsize": _SIZE, "weight": "bold", "parse_math": False}
        tag = page.figure.text(0, 0, text, color=ink, ha="left", va="bottom", transform=IdentityTransform(), **options)
        while (extent := tag.get_window_extent(renderer)).width + 2 * pad > frame.width and len(text) > 2:
            text = text[:-2].rstrip() + "…"
            tag.set_text(text)
        wide, high = extent.width + 2 * pad, extent.height + 2 * pad
        places = [_moved_in(x, y, wide, high, frame) for x, y in _places(_on_page(box, size, frame), wide, high)]
        best = min(places, key=lambda place: _overlap(place, taken))
        taken.append(best)
        tag.set_position((best.x0 + pad - extent.x0, best.y0 + pad - extent.y0))
        tag.set_bbox({"boxstyle": f"square,pad={_PAD}", "facecolor": colour, "edgecolor": "white", "linewidth": 0.6})


def _on_page(box: Box, size: tuple[int, int], frame: Bbox) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of a box in the figure's pixels, which count upwards."""
    height, width = size
    x = np.clip(np.array(box[::2]) / width, 0, 1) * frame.width + frame.x0
    y = frame.y1 - np.clip(np.array(box[1::2]) / height, 0, 1) * frame.height
    return float(x[0]), float(y[1]), float(x[1]), float(y[0])


def _places(box: tuple[float, float, float, float], wide: float, high: float) -> Iterator[tuple[float, float]]:
    """Left bottom corners for a tag, best first: at the corners of its box, then down from the top one, then up."""
    left, bottom, right, top = box
    for y in (top, top - high, bottom - high, bottom):
        yield left, y
        yield right - wide, y
    for step in range(2, 40):
        yield left, top - step * high
    for step in range(1, 40):
        yield left, top + step * high


def _moved_in(x: float, y: float, wide: float, high: float, frame: Bbox) -> Bbox:
    # A picture lower than a tag has it begin at its top.
    x = max(min(x, frame.x1 - wide), frame.x0)
    y = min(max(y, frame.y0), frame.y1 - high)
    return Bbox.from_bounds(x, y, wide, high)


def _overlap(place: Bbox, taken: Sequence[Bbox]) -> float:
    shared = [Bbox.intersection(place, other) for other in taken]
    return float(sum(part.width * part.height for part in shared if part is not None))
