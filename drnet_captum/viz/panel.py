"""The panel: one photo, its classes as rows, its methods as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from textwrap import wrap
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from PIL import Image

from .normalize import ArrayLike, FloatArray, as_array, is_signed, normalize, to_heat
from .overlay import DIVERGING, LUMA, SEQUENTIAL, as_photo, colormap, colour, fit, overlay

Style = Literal["heat", "detail"]

DPI = 110
_DETAIL = "Greys"  # positive details on white, as in print
_GRID_OPACITY = 0.75

# Inches.
_CELL = 2.04  # 224 pixels
_GAP = 0.08
_MARGIN = 0.15
_LABEL = 0.62  # row titles, written upwards
_HEADER = 0.13  # above the first row, and a line of column titles takes so much more:
_HEADER_LINE = 0.17
_TITLE = 0.44
_KEY = 0.45
_BLOCK_GAP = 0.14

_INK = "#222222"
_FAINT = "#777777"
_FRAME = "#cccccc"


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


class _Page:
    """A figure laid out in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)

    def picture(self, left: float, top: float, width: float, height: float, pixels: Any) -> None:
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.imshow(pixels, aspect="auto", interpolation="antialiased", vmin=0, vmax=1, origin="upper")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, color=_FRAME, linewidth=0.6)

    def text(self, x: float, y: float, text: str, size: float = 10, **options: Any) -> None:
        settings = {"color": _INK, "ha": "center", "va": "center", "family": "DejaVu Sans"} | options
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size,
            parse_math=False,
            usetex=False,
            **settings,
        )

    def image(self) -> Image.Image:
        # By way of Any: matplotlib's Agg canvas carries no types.
        canvas: Any = self.canvas
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _draw(
    photo: FloatArray,
    lines: list[list[_Column]],
    row_titles: Sequence[str],
    title: str | None,
    percentile: float,
) -> Image.Image:
    # Cells of one area whatever the photo's aspect.
    aspect = min(max(photo.shape[1] / photo.shape[0], 0.4), 2.5)
    wide, high = _CELL * sqrt(aspect), _CELL / sqrt(aspect)
    rows, across = len(row_titles), 1 + len(lines[0])
    titles = [["Photo", *(_folded(method.name, wide, 11, 2) for method in line)] for line in lines]
    headers = [_HEADER + _HEADER_LINE * (1 + max(text.count("\n") for text in line)) for line in titles]
    width = 2 * _MARGIN + _LABEL + across * (wide + _GAP) - _GAP
    height = sum(headers) + len(lines) * (rows * (high + _GAP) + _BLOCK_GAP) + _KEY + (_TITLE if title else 0)
    page = _Page(width, height)
    top = 0.0
    if title:
        page.text(width / 2, _TITLE / 2 + 0.06, _folded(title, width - 2 * _MARGIN, 14, 1), 14, weight="bold")
        top = _TITLE
    for line, names, header in zip(lines, titles, headers, strict=True):
        top += header
        for column, name in enumerate(names):
            left = _MARGIN + _LABEL + column * (wide + _GAP)
            page.text(left + wide / 2, top - 0.07, name, 11, va="bottom")
            for row, row_title in enumerate(row_titles):
                y = top + row * (high + _GAP)
                if column:
                    method = line[column - 1]
                    _cell(page, (left, y, wide, high), photo, method, method.heats[row], percentile)
                else:
                    page.picture(left, y, wide, high, photo)
                    label = _folded(row_title, high, 11, 3)
                    page.text(left - 0.08, y + high / 2, label, 11, rotation=90, ha="right")
        top += rows * (high + _GAP) + _BLOCK_GAP
    _key(page, [method for line in lines for method in line], percentile)
    return page.image()


def _cell(
    page: _Page,
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
        page.text(left + width / 2, top + height / 2, note, 9, color=_FAINT, style="italic")
    elif method.style == "heat":
        # On grey, as the photo in colour stands beside it: nothing in it can be mistaken for heat.
        grey = np.repeat((photo @ LUMA)[..., None], 3, axis=2)
        page.picture(*box, overlay(grey, heat, alpha=_GRID_OPACITY, signed=method.signed, percentile=percentile))
    else:
        scaled = normalize(heat, signed=method.signed, percentile=percentile)
        page.picture(*box, colour(scaled, method.signed, None if method.signed else _DETAIL))


def _key(page: _Page, methods: list[_Column], percentile: float) -> None:
    """The colours in use, each with its ends named, at the foot of the page."""
    used: list[tuple[str | Colormap, str, str]] = []
    if any(m.style == "heat" and not m.signed for m in methods):
        used.append((SEQUENTIAL, "0", "high"))
    if any(m.style == "detail" and not m.signed for m in methods):
        used.append((_DETAIL, "0", "high"))
    if any(m.signed for m in methods):
        used.append((DIVERGING, "against", "for"))
    y, x, bar = page.height - _KEY / 2, _MARGIN + _LABEL, 1.0
    for cmap, low, high in used:
        x += 0.065 * len(low)
        page.text(x, y, low, 9, ha="right", color=_FAINT)
        page.picture(x + 0.07, y - 0.05, bar, 0.1, colormap(cmap)(np.linspace(0, 1, 256))[None, :, :3])
        x += bar + 0.14
        page.text(x, y, high, 9, ha="left", color=_FAINT)
        x += 0.065 * len(high) + 0.3
    note = f"each map scaled by itself, clipped at its {percentile:g}th percentile"
    if page.width - _MARGIN - x > 0.075 * len(note):
        page.text(page.width - _MARGIN, y, note, 9, ha="right", color=_FAINT)


def _folded(text: str, width: float, size: float, most: int) -> str:
    """``text`` on at most ``most`` lines of ``width`` inches, cut with an ellipsis where it is longer."""
    letters = max(int(width / (size / 72 * 0.56)), 4)  # DejaVu Sans is about 0.56 em wide on average
    lines = wrap(text, letters)
    if len(lines) > most:
        lines = wrap(text, letters, max_lines=most, placeholder=" …")
    return "\n".join(lines)
