"""The picture of explained detections: the photo with all its boxes, and a map for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, sqrt
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from .boxes import box_colour, draw_box, draw_tags
from .normalize import ArrayLike, FloatArray, as_array, to_heat
from .overlay import LUMA, SEQUENTIAL, as_photo, fit, overlay
from .page import CELL, DPI, FAINT, GAP, GRID_OPACITY, KEY, MARGIN, TITLE, Page, folded

Place = tuple[float, float, float, float]

_NARROW, _WIDE = 0.4, 2.5  # aspects between which all cells have one area
_LARGER = 2.0  # the photo beside the cells, and cells that are one or two

# Inches.
_HEADER = 0.27
_NOTE = 0.2
_COLUMN, _PAGE = 1.2, 5.0  # the least, and as far as titles need it:
_LONGEST_COLUMN, _LONGEST_PAGE = 2.2, 9.0
_LETTER, _TITLE_LETTER = 0.088, 0.122
_SWATCH = 0.11


def detection_panel(
    photo: ArrayLike,
    boxes: ArrayLike,
    labels: Sequence[str],
    maps: ArrayLike,
    *,
    title: str | None = None,
    percentile: float = 99.0,
    columns: int = 4,
    notes: Sequence[str] | None = None,
) -> Image.Image:
    """A figure of what a detector found: the photo with all boxes, then for each the map of what speaks for it.

    Maps are drawn by their positive part over the photo in grey, each scaled by itself, with the detection's own box
    and a cross where the map is strongest. A map without a positive value says so.

    Args:
        photo: (H, W, 3), floats in [0, 1] or uint8.
        boxes: (M, 4), xyxy in the photo's pixels; what lies outside of the photo is left out. M may be 0.
        labels: M titles, e.g. "cat 54%".
        maps: (M, h, w); smaller ones than the photo are enlarged.
        title: a line above everything.
        percentile: as for `normalize`.
        columns: the most maps beside the photo; the lines below it take as many as fit.
        notes: M short lines, each below its map.

    Returns:
        An RGB image at 110 dpi.

    Raises:
        ValueError: other numbers of labels, maps or notes than boxes, boxes that are not finite, maps that do not
            belong to the photo.

    Example:
        >>> import torch
        >>> from drnet_captum.viz import detection_panel
        >>> boxes = torch.tensor([[8.0, 8, 40, 40]])
        >>> image = detection_panel(torch.ones(64, 64, 3), boxes, ["cat 54%"], torch.rand(1, 64, 64))
        >>> image.mode, image.width > image.height
        ('RGB', True)
    """
    picture = as_photo(photo)
    corners = as_array(boxes)
    if columns < 1:
        raise ValueError(f"expected at least one column, got columns={columns}")
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(f"expected boxes of shape (M, 4) in xyxy pixels, got {corners.shape}")
    if not np.isfinite(corners).all():
        raise ValueError("expected finite boxes, got NaN or infinite values")
    for name, given in (("labels", labels), ("maps", maps), ("notes", notes)):
        if given is not None and len(given) != len(corners):
            raise ValueError(f"expected {name} for {len(corners)} boxes, one each, got {len(given)}")
    heats = [_heat(one, number, picture) for number, one in enumerate(maps)]
    return _draw(picture, corners.tolist(), labels, heats, title, percentile, columns, notes)


def _heat(one: Any, number: int, photo: FloatArray) -> FloatArray:
    try:
        return fit(to_heat(one), photo.shape[:2])
    except ValueError as error:
        raise ValueError(f"map {number}: {error}") from error


def _draw(
    photo: FloatArray,
    boxes: list[list[float]],
    labels: Sequence[str],
    heats: Sequence[FloatArray],
    title: str | None,
    percentile: float,
    columns: int,
    notes: Sequence[str] | None,
) -> Image.Image:
    count, size = len(boxes), photo.shape[:2]
    rows = 1 if count <= 2 else 2  # beside the photo
    scale = _LARGER if rows == 1 else 1.0
    wide, high = (scale * inches for inches in _cell_size(photo))
    named = max(map(len, labels), default=0) * _LETTER + 2 * _SWATCH
    column, row = max(wide, _COLUMN, min(named, _LONGEST_COLUMN)), _HEADER + high + (_NOTE if notes else 0) + GAP
    # As high as the rows beside it, if that is about twice a cell.
    larger = 1.0 if rows == 1 else min((row + high) / high, 1.2 * _LARGER)
    photo_column = max(larger * wide, _COLUMN)
    beside = min(columns, ceil(count / rows))
    across = int((photo_column + GAP) / (column + GAP)) + beside
    below = ceil(max(count - rows * beside, 0) / across)
    content = photo_column + beside * (GAP + column)
    width = 2 * MARGIN + max(content, _PAGE, min(len(title or "") * _TITLE_LETTER, _LONGEST_PAGE))
    top = TITLE if title else 0.06
    lines = max(min(rows, ceil(count / max(beside, 1))) * row, _HEADER + larger * high + GAP)
    page = Page(width, top + lines + below * row + KEY)
    if title:
        page.title(title)
    left = (width - content) / 2
    middle = left + (photo_column - larger * wide) / 2
    page.text(left + photo_column / 2, top + 0.15, "Photo" if count else "No detections", 11)
    axes = page.picture(middle, top + _HEADER, larger * wide, larger * high, photo)
    for number in reversed(range(count)):  # the first, which is the surest, is drawn last
        draw_box(axes, boxes[number], size, box_colour(number))
    draw_tags(page, axes, boxes, labels, size)
    grey = np.repeat((photo @ LUMA)[..., None], 3, axis=2)
    places = _places(count, rows, beside, across)
    for number, (line, place) in enumerate(places):
        # Below the photo, lines begin at the left.
        x = left + (photo_column + GAP if line < rows else 0) + place * (column + GAP) + (column - wide) / 2
        y = top + line * row if line < rows else top + lines + (line - rows) * row
        inside = (x, y + _HEADER, wide, high)
        _title(page, x - (column - wide) / 2, y, column, labels[number], box_colour(number))
        _cell(page, inside, grey, heats[number], boxes[number], box_colour(number), percentile)
        if notes:
            note = folded(notes[number], column, 9, 1)
            page.text(x + wide / 2, y + _HEADER + high + _NOTE / 2 + 0.01, note, 9, color=FAINT)
    if count:
        note = f"each map's positive part, scaled by itself, clipped at its {percentile:g}th percentile; + its maximum"
        page.key(left, [(SEQUENTIAL, "0", "high")], note)
    return page.image()


def _cell_size(photo: FloatArray) -> tuple[float, float]:
    """Width and height in inches, in the photo's aspect; of one area, but for strips."""
    aspect = photo.shape[1] / photo.shape[0]
    common = min(max(aspect, _NARROW), _WIDE)
    wide, high = CELL * sqrt(common), CELL / sqrt(common)
    if aspect > _WIDE:
        high = max(wide / aspect, 2 / DPI)
    elif aspect < _NARROW:
        wide = max(high * aspect, 2 / DPI)
    return wide, high


def _places(count: int, rows: int, beside: int, across: int) -> Iterator[tuple[int, int]]:
    """Line and column of each cell: ``rows`` lines beside the photo, then longer ones below it."""
    for number in range(count):
        if number < rows * beside:
            yield divmod(number, beside)
        else:
            line, place = divmod(number - rows * beside, across)
            yield rows + line, place


def _title(page: Page, left: float, top: float, width: float, label: str, colour: str) -> None:
    """A label behind a square in its detection's colour."""
    box = (left / page.width, 1 - (top + 0.15 + _SWATCH / 2) / page.height)
    square = Rectangle(box, _SWATCH / page.width, _SWATCH / page.height, color=colour, linewidth=0)
    square.set_transform(page.figure.transFigure)
    page.figure.add_artist(square)
    text = folded(label, width - 2 * _SWATCH, 11, 1)
    page.text(left + 1.6 * _SWATCH, top + 0.15, text, 11, ha="left", va="center")


def _cell(
    page: Page, place: Place, grey: FloatArray, heat: FloatArray, box: list[float], colour: str, percentile: float
) -> None:
    positive = bool((heat > 0).any())
    shown = overlay(grey, heat, alpha=GRID_OPACITY, signed=False, percentile=percentile) if positive else grey
    axes = page.picture(*place, shown)
    axes.set_autoscale_on(False)
    draw_box(axes, box, grey.shape[:2], colour)
    left, top, width, height = place
    if not positive:
        note = "no positive value" if heat.any() else "all zero"
        back = {"boxstyle": "square,pad=0.3", "facecolor": "white", "edgecolor": "none"}
        page.text(left + width / 2, top + height / 2, note, 9, color=FAINT, style="italic", bbox=back)
        return
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    (cross,) = axes.plot(x, y, marker="+", markersize=9, markeredgewidth=1.6, color="white", clip_on=False)
    cross.set_path_effects([withStroke(linewidth=3.4, foreground="black")])
