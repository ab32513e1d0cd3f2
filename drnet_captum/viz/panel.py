"""The panel: one photo, its classes as rows, its methods as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal

import numpy as np
from matplotlib.colors import Colormap
from PIL import Image

from .normalize import ArrayLike, FloatArray, as_array, is_signed, normalize, to_heat
from .overlay import DIVERGING, LUMA, SEQUENTIAL, as_photo, colour, fit, overlay
from .page import CELL, FAINT, GAP, GRID_OPACITY, KEY, MARGIN, TITLE, Page, folded

Style = Literal["heat", "detail"]

_DETAIL = "Greys"  # positive details on white, as in print

# Inches.
_LABEL = 0.62  # row titles, written upwards
_HEADER = 0.13  # above the first row, and a line of column titles takes so much more:
_HEADER_LINE = 0.17
_BLOCK_GAP = 0.14


@dataclass(frozen=True)
class _Column:
    """One method: its K maps of one channel at the photo's size, and how they are drawn."""

    name: str
    heats: list[FloatArray]
    signed: bool
    style: Style


def panel(
    photo: ArrayLike,
    maps: Mapping[str, ArrayLike],
    row_titles: Sequence[str],
    *,
    title: str | None = None,
    signed: Mapping[str, bool] | None = None,
    percentile: float = 99.0,
    style: Mapping[str, Style] | None = None,
    columns: int = 8,
) -> Image.Image:
    """A figure of all maps of one photo: the photo at the left, methods as columns, classes as rows.

    Every map is scaled by itself, as `normalize` does; a map with nothing to show is left blank and says so.

    Args:
        photo: (H, W, 3), floats in [0, 1] or uint8: the crop that the model saw.
        maps: method title -> (K, C, h, w) or (K, h, w), one map for each of the K rows, in order.
        row_titles: K titles, e.g. "tabby 42%".
        title: a line above everything.
        signed: method title -> as for `normalize`; one not in it is signed if it has a negative
            value.
        percentile: as for `normalize`.
        style: method title -> "heat" (over the photo) or "detail" (alone, on white); one not in it is a
            detail if it has several channels.
        columns: the most methods side by side; more go to further lines, evenly.

    Returns:
        An RGB image at 110 dpi.

    Raises:
        ValueError: no maps, another number of maps than row titles, maps that do not belong to the photo
            (signals and volumes do not), titles in ``signed`` or ``style`` that ``maps`` lacks.

    Example:
        >>> import torch
        >>> from drnet_captum.viz import panel
        >>> image = panel(torch.ones(64, 64, 3), {"Grad-CAM": torch.rand(1, 4, 4)}, ["tabby 42%"])
        >>> image.mode, image.width > image.height
        ('RGB', True)
    """
    picture = as_photo(photo)
    if columns < 1:
        raise ValueError(f"expected at least one column, got columns={columns}")
    if not maps or not row_titles:
        raise ValueError(f"expected at least one method and one row, got {len(maps)} and {len(row_titles)}")
    methods = _columns(maps, len(row_titles), picture.shape[:2], dict(signed or {}), dict(style or {}))
    lines = _even(methods, columns)
    return _draw(picture, lines, row_titles, title, percentile)


def _columns(
    maps: Mapping[str, ArrayLike],
    rows: int,
    size: tuple[int, int],
    signed: dict[str, bool],
    style: dict[str, Style],
) -> list[_Column]:
    for name, chosen in (("signed", signed), ("style", style)):
        if unknown := set(chosen) - set(maps):
            raise ValueError(f"{name} names {sorted(unknown)}, which is not among the maps: {', '.join(maps)}")
    if wrong := set(style.values()) - {"heat", "detail"}:
        raise ValueError(f'expected the styles "heat" or "detail", got {sorted(wrong)}')
    methods = []
    for name, values in maps.items():
        array = as_array(values)
        if array.ndim not in (3, 4) or array.shape[0] != rows:
            raise ValueError(
                f"{name}: expected one map for each row title, ({rows}, C, h, w) or ({rows}, h, w), "
                f"got {array.shape}; signals and volumes do not fit a photo's panel"
            )
        try:
            heats = [fit(to_heat(one), size) for one in array]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        guess: Style = "detail" if array.ndim == 4 and array.shape[1] > 1 else "heat"
        sign = signed.get(name, any(is_signed(heat) for heat in heats))
        methods.append(_Column(name, heats, sign, style.get(name, guess)))
    return methods


def _even(methods: list[_Column], most: int) -> list[list[_Column]]:
    lines = ceil(len(methods) / most)
    each = ceil(len(methods) / lines)
    return [methods[start : start + each] for start in range(0, len(methods), each)]


def _draw(
    photo: FloatArray,
    lines: list[list[_Column]],
    row_titles: Sequence[str],
    title: str | None,
    percentile: float,
) -> Image.Image:
    # Cells of one area whatever the photo's aspect.
    aspect = min(max(photo.shape[1] / photo.shape[0], 0.4), 2.5)
    wide, high = CELL * sqrt(aspect), CELL / sqrt(aspect)
    rows, across = len(row_titles), 1 + len(lines[0])
    titles = [["Photo", *(folded(method.name, wide, 11, 2) for method in line)] for line in lines]
    headers = [_HEADER + _HEADER_LINE * (1 + max(text.count("\n") for text in line)) for line in titles]
    width = 2 * MARGIN + _LABEL + across * (wide + GAP) - GAP
    height = sum(headers) + len(lines) * (rows * (high + GAP) + _BLOCK_GAP) + KEY + (TITLE if title else 0)
    page = Page(width, height)
    top = 0.0
    if title:
        page.title(title)
        top = TITLE
    for line, names, header in zip(lines, titles, headers, strict=True):
        top += header
        for column, name in enumerate(names):
            left = MARGIN + _LABEL + column * (wide + GAP)
            page.text(left + wide / 2, top - 0.07, name, 11, va="bottom")
            for row, row_title in enumerate(row_titles):
                y = top + row * (high + GAP)
                if column:
                    method = line[column - 1]
                    _cell(page, (left, y, wide, high), photo, method, method.heats[row], percentile)
                else:
                    page.picture(left, y, wide, high, photo)
                    label = folded(row_title, high, 11, 3)
                    page.text(left - 0.08, y + high / 2, label, 11, rotation=90, ha="right")
        top += rows * (high + GAP) + _BLOCK_GAP
    note = f"each map scaled by itself, clipped at its {percentile:g}th percentile"
    page.key(MARGIN + _LABEL, _colours([method for line in lines for method in line]), note)
    return page.image()


def _cell(
    page: Page,
    box: tuple[float, float, float, float],
    photo: FloatArray,
    method: _Column,
    heat: FloatArray,
    percentile: float,
) -> None:
    left, top, width, height = box
    shown = np.abs(heat) if method.signed else heat.clip(0)
    if not shown.any():
        page.picture(*box, np.ones((1, 1, 3)))
        note = "no positive value" if heat.any() else "all zero"
        page.text(left + width / 2, top + height / 2, note, 9, color=FAINT, style="italic")
    elif method.style == "heat":
        # On grey, as the photo in colour stands beside it: nothing in it can be mistaken for heat.
        grey = np.repeat((photo @ LUMA)[..., None], 3, axis=2)
        page.picture(*box, overlay(grey, heat, alpha=GRID_OPACITY, signed=method.signed, percentile=percentile))
    else:
        scaled = normalize(heat, signed=method.signed, percentile=percentile)
        page.picture(*box, colour(scaled, method.signed, None if method.signed else _DETAIL))


def _colours(methods: list[_Column]) -> list[tuple[str | Colormap, str, str]]:
    """The colours in use, each with its ends named."""
    used: list[tuple[str | Colormap, str, str]] = []
    if any(m.style == "heat" and not m.signed for m in methods):
        used.append((SEQUENTIAL, "0", "high"))
    if any(m.style == "detail" and not m.signed for m in methods):
        used.append((_DETAIL, "0", "high"))
    if any(m.signed for m in methods):
        used.append((DIVERGING, "against", "for"))
    return used
