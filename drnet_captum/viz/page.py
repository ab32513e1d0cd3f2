"""The page that figures are drawn on: laid out in inches, with a key to its colours at the foot."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from PIL import Image

from .overlay import colormap

DPI = 110
GRID_OPACITY = 0.75  # of heat over a grey photo

# Inches.
CELL = 2.04  # 224 pixels
GAP = 0.08
MARGIN = 0.15
TITLE = 0.44
KEY = 0.45

INK = "#222222"
FAINT = "#777777"
_FRAME = "#cccccc"


class Page:
    """A figure laid out in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        # By way of Any: matplotlib's Agg canvas carries no types.
        self.canvas: Any = FigureCanvasAgg(self.figure)

    def picture(self, left: float, top: float, width: float, height: float, pixels: Any) -> Any:
        """Pixels (h, w, 3) in a frame; the axes, for what is drawn on them."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.imshow(pixels, aspect="auto", interpolation="antialiased", vmin=0, vmax=1, origin="upper")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, color=_FRAME, linewidth=0.6)
        return axes

    def text(self, x: float, y: float, text: str, size: float = 10, **options: Any) -> Any:
        settings = {"color": INK, "ha": "center", "va": "center", "family": "DejaVu Sans"} | options
        return self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size,
            parse_math=False,
            usetex=False,
            **settings,
        )

    def title(self, text: str) -> None:
        """A line above everything."""
        folded_title = folded(text, self.width - 2 * MARGIN, 14, 1)
        self.text(self.width / 2, TITLE / 2 + 0.06, folded_title, 14, weight="bold")

    def key(self, left: float, colours: Sequence[tuple[str | Colormap, str, str]], note: str) -> None:
        """Colours, each with its ends named, at the foot; and a note beside them where there is room."""
        y, x, bar = self.height - KEY / 2, left, 1.0
        for cmap, low, high in colours:
            x += 0.065 * len(low)
            self.text(x, y, low, 9, ha="right", color=FAINT)
            self.picture(x + 0.07, y - 0.05, bar, 0.1, colormap(cmap)(np.linspace(0, 1, 256))[None, :, :3])
            x += bar + 0.14
            self.text(x, y, high, 9, ha="left", color=FAINT)
            x += 0.065 * len(high) + 0.3
        if self.width - MARGIN - x > 0.075 * len(note):
            self.text(self.width - MARGIN, y, note, 9, ha="right", color=FAINT)

    def image(self) -> Image.Image:
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())


def folded(text: str, width: float, size: float, most: int) -> str:
    """``text`` on at most ``most`` lines of ``width`` inches, cut with an ellipsis where it is longer."""
    letters = max(int(width / (size / 72 * 0.56)), 4)  # DejaVu Sans is about 0.56 em wide on average
    lines = wrap(text, letters)
    if len(lines) > most:
        lines = wrap(text, letters, max_lines=most, placeholder=" …")
    return "\n".join(lines)
