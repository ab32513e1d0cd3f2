"""The picture of a dissection: what each layer's units detect, and which units of a layer serve which class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .normalize import ArrayLike, as_array
from .overlay import DIVERGING
from .page import DPI

Patch = Callable[[int], npt.NDArray[np.uint8] | None]

UNLABELLED = "unlabelled"
_GREY = "#d5d5d5"
# Okabe and Ito's colours, which colour-blind readers tell apart, and two more.
_COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#6a51a3", "#8c6d31", "#b8de29")
_INK = "#222222"
_FAINT = "#777777"

_CLASSES = 16  # rows
_UNITS = 24  # columns
_NAME = 36  # characters of a name written upwards
_CLASS_NAME = 23

# Inches.
_WIDTH = 13.0
_LEFT = 1.9
_RIGHT = 1.35
_TITLE = 0.5
_HEADING = 0.36
_BARS = 1.9
_CELL = 0.27
_LETTER = 0.062  # of a name written upwards
_LEAST = 0.16  # between two names of layers


def dissection_picture(
    families: Mapping[str, Sequence[str]],
    layer: str,
    importance: ArrayLike,
    class_names: Sequence[str],
    unit_names: Sequence[str] = (),
    patch: Patch | None = None,
    *,
    title: str | None = None,
) -> Image.Image:
    """A bar a layer, of the families of what its units detect; below, one layer's units by the classes they serve.

    Shown are the classes with the strongest units, and of each the units that add most to its score, side by side in
    the order of the classes. All cells have one scale: blue takes from the score, white is zero, red adds to it.

    Args:
        families: layer -> the family of each unit, input to output; no families: an empty place.
        layer: whose units are shown below.
        importance: (K, C), what unit k adds to class c's score. No classes: the bars alone.
        class_names: K names.
        unit_names: C names of what the units detect, or none.
        patch: unit -> (h, w, 3) uint8, what it fires at most; None where there is no such image.
        title: a line above everything.

    Returns:
        An RGB image at 110 dpi.

    Raises:
        ValueError: no layers, or sizes that do not belong together.

    Example:
        >>> import numpy as np
        >>> picture = dissection_picture({"conv1": ["edges", "colours"]}, "conv1", np.eye(2), ["cat", "cup"])
        >>> picture.mode, picture.width
        ('RGB', 1430)
    """
    values = as_array(importance)
    if not families:
        raise ValueError("expected at least one layer, got none")
    if values.ndim != 2 or len(values) != len(class_names):
        raise ValueError(f"expected importances ({len(class_names)}, C), a row a class name, got {values.shape}")
    if unit_names and len(unit_names) != values.shape[1]:
        raise ValueError(f"expected a name for each of {values.shape[1]} units, or none, got {len(unit_names)}")
    rows, columns = _chosen(values)
    said = {unit: unit_names[unit] for unit in columns if unit_names and unit_names[unit] != UNLABELLED}
    names = [f"{unit} {said.get(unit, '')}".rstrip() for unit in columns]
    heat = _HEADING + _CELL * len(rows) + (_foot(names) if names else 0)
    # Square patches of a column's width stand between the heading and the cells.
    column = (_WIDTH - _LEFT - _RIGHT) / max(len(columns), 12)
    patches = [patch(unit) for unit in columns] if patch is not None else []
    shown = any(pixels is not None for pixels in patches)
    heat += column * shown
    height = (_TITLE if title else 0.1) + _HEADING + _BARS + _foot(families) + (heat if rows else 0)
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")
    page = _Page(figure, height)
    top = 0.1
    if title:
        page.text(_WIDTH / 2, 0.3, title, 14, ha="center", weight="bold")
        top = _TITLE
    page.text(_LEFT, top + 0.2, "Share of each layer's units by what they detect, input to output", 11)
    top += _HEADING
    _bars(page.axes(_LEFT, top, _WIDTH - _LEFT - _RIGHT, _BARS), families)
    top += _BARS + _foot(families)
    if rows:
        page.text(_LEFT, top + 0.1, f"Units of {layer} that add most to a class's score", 11)
        top += _HEADING
        for position, pixels in enumerate(patches):
            if pixels is not None:
                axes = page.axes(_LEFT + (position + 0.04) * column, top, 0.92 * column, 0.92 * column)
                axes.imshow(_square(pixels), interpolation="antialiased")
                axes.set_axis_off()
        top += column * shown
        box = (_LEFT, top, column * len(columns), _CELL * len(rows))
        _heat(page, box, values[np.ix_(rows, columns)], [class_names[row] for row in rows], names)
    return page.image()


def _chosen(values: npt.NDArray[Any]) -> tuple[list[int], list[int]]:
    """The rows and columns to show: the strongest of each row in turn, put together by the row that they serve most."""
    if values.size == 0 or values.max() <= 0:
        return [], []
    best = values.max(axis=1)
    rows = sorted(row for row in np.argsort(-best, kind="stable")[:_CLASSES].tolist() if best[row] > 0)
    part = values[rows]
    ranked = np.argsort(-part, axis=1, kind="stable").T  # every row's first before any row's second
    adding = ranked[np.take_along_axis(part, ranked.T, axis=1).T > 0]
    columns = list(islice(dict.fromkeys(adding.tolist()), _UNITS))
    part = part[:, columns]
    order = np.lexsort((-part.max(axis=0), part.argmax(axis=0)))
    return rows, [columns[i] for i in order]


def _foot(names: Iterable[str]) -> float:
    """The height that names written upwards take."""
    return 0.35 + _LETTER * max(len(_short(name)) for name in names)


class _Page:
    """A figure laid out in inches from its top left corner."""

    def __init__(self, figure: Figure, height: float) -> None:
        self.figure, self.height = figure, height
        self.canvas: Any = FigureCanvasAgg(figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        box = (left / _WIDTH, 1 - (top + height) / self.height, width / _WIDTH, height / self.height)
        return self.figure.add_axes(box)

    def text(self, x: float, y: float, text: str, size: float, **options: Any) -> None:
        settings = {"color": _INK, "va": "center", "family": "DejaVu Sans"} | options
        self.figure.text(x / _WIDTH, 1 - y / self.height, text, fontsize=size, parse_math=False, **settings)

    def image(self) -> Image.Image:
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())


def _bars(axes: Any, families: Mapping[str, Sequence[str]]) -> None:
    known = sorted({name for names in families.values() for name in names} - {UNLABELLED})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(known)} | {UNLABELLED: _GREY}
    counts = {name: np.array([list(names).count(name) for names in families.values()]) for name in colours}
    places = np.arange(len(families))
    # What early layers detect at the bottom, what late layers detect on top.
    known.sort(key=lambda name: (counts[name] @ places) / counts[name].sum())
    sizes = np.array([max(len(names), 1) for names in families.values()])
    base = np.zeros(len(families))
    for name in [*known, UNLABELLED]:
        share = counts[name] / sizes
        if share.any():
            axes.bar(places, share, bottom=base, color=colours[name], width=0.86, label=name)
        base += share
    between = (_WIDTH - _LEFT - _RIGHT) / max(len(families), 8)
    for place, names in zip(places.tolist(), families.values(), strict=True):
        if not names and between > _LEAST:
            axes.text(place, 0.5, "not labelled", rotation=90, ha="center", va="center", fontsize=8, color=_FAINT)
    # Wide bars of few layers would say nothing more.
    axes.set_xlim(-0.5, max(len(families), 8) - 0.5)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "100%"], fontsize=9)
    named = places[:: max(1, ceil(_LEAST / between))]
    texts = [_short(name) for i, name in enumerate(families) if i in named]
    axes.set_xticks(named, texts, rotation=90, fontsize=8, parse_math=False)
    _plain(axes)
    if axes.containers:
        # As the bars are stacked: the last one is on top.
        handles, names = axes.get_legend_handles_labels()
        options = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.03), "frameon": False, "fontsize": 9}
        axes.legend(handles[::-1], names[::-1], handlelength=1, handleheight=1, **options)


def _heat(
    page: _Page,
    box: tuple[float, float, float, float],
    values: npt.NDArray[Any],
    class_names: Sequence[str],
    unit_names: Sequence[str],
) -> None:
    left, top, width, height = box
    axes = page.axes(*box)
    limit = float(np.abs(values).max()) or 1.0
    image = axes.imshow(values, aspect="auto", cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
    options = {"fontsize": 8, "parse_math": False}
    axes.set_yticks(
        range(len(class_names)), [_short(name, _CLASS_NAME) for name in class_names], **options | {"fontsize": 9}
    )
    axes.set_xticks(range(len(unit_names)), [_short(name) for name in unit_names], rotation=90, **options)
    axes.set_xticks(np.arange(0.5, len(unit_names) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(class_names) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    _plain(axes)
    bar = page.figure.colorbar(image, cax=page.axes(left + width + 0.15, top, 0.13, height))
    bar.set_ticks([-limit, 0, limit], labels=[f"−{limit:.2g}", "0", f"+{limit:.2g}"])
    bar.ax.tick_params(labelsize=9, length=0)
    bar.outline.set_visible(False)


def _plain(axes: Any) -> None:
    axes.tick_params(which="both", length=0, colors=_INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _square(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The patch on a white square, in its middle: fields at an image's edge are cut."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, dtype=np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    square[y : y + height, x : x + width] = pixels
    return square


def _short(name: str, most: int = _NAME) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
