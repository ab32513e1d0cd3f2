"""A layer's filters, and its answers to one input, as grids of small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.colors import Colormap
from PIL import Image, ImageDraw, ImageFont

from .normalize import ArrayLike, FloatArray, as_array, is_signed
from .overlay import DIVERGING, colormap, colour

Image8 = npt.NDArray[np.uint8]
Order = Literal["strongest", "index"]

_TILE = 56  # pixels of the longer side, or as near as whole enlargements come
_GAP = 4
_CAPTION = 14
_INK = (90, 90, 90)


def filter_grid(weights: ArrayLike, *, columns: int | None = None) -> Image.Image:
    """The filters of a first layer as pictures, 127.5 · (1 + w / max |w|), each scaled by itself.

    Zero weights are mid-grey: what is brighter excites the unit, what is darker inhibits it. The scale is
    one for the three colours of a filter, so its colours are its own. A filter of zeros is all grey.

    Args:
        weights: (C, 3, kh, kw) for filters on RGB, (C, 1, kh, kw) for filters on grey.
        columns: filters in a row; as good as square if None.

    Returns:
        An RGB image on white, filters in order from the top left, 4 pixels apart, every weight a square of
        pixels (enlarged to about 56 pixels, without blur).

    Raises:
        ValueError: input channels other than 3 or 1 (deeper filters are no pictures), NaN or infinity.

    Example:
        >>> import torch
        >>> from drnet_captum.viz import filter_grid
        >>> filter_grid(torch.randn(16, 3, 7, 7)).size  # four rows of four, 8 pixels a weight
        (244, 244)
    """
    values = _finite(as_array(weights), "weights")
    if values.ndim != 4 or values.size == 0:
        raise ValueError(f"expected the weights of a 2d convolution, (C, 3 or 1, kh, kw), got {values.shape}")
    if values.shape[1] not in (1, 3):
        raise ValueError(
            f"expected filters on 3 colours or 1 grey channel, got {values.shape[1]} input channels: only a first "
            "layer's filters are pictures; project a deeper unit back to pixels instead (DeconvNet with layer=)"
        )
    largest = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
    scaled = values / np.where(largest == 0, 1, largest)
    tiles = np.broadcast_to(_bytes((scaled + 1) / 2).transpose(0, 2, 3, 1), (*_sides(values), 3))
    return _grid(tiles, columns)


def feature_grid(
    maps: ArrayLike,
    *,
    count: int = 64,
    order: Order = "strongest",
    columns: int | None = None,
    cmap: str | Colormap | None = None,
) -> Image.Image:
    """What the units of one layer answer to one input: their maps, with the units' numbers below.

    Every map is scaled by its own largest magnitude, zero staying zero: a map says where, not how much.

    Args:
        maps: (C, h, w), the layer's output for one input.
        count: how many units to show, at most; the others are left out.
        order: "strongest" takes the units by their largest value, "index" by their number.
        columns: maps in a row; as good as square if None.
        cmap: a matplotlib colormap or its name, instead of "viridis" (no value is negative) or
            blue-white-red (some are; the colormap's middle is then zero).

    Returns:
        An RGB image on white, maps enlarged without blur to about 56 pixels; larger ones stay as they are.

    Raises:
        ValueError: maps of another shape, NaN or infinity, a count below 1, an unknown order.

    Example:
        >>> import torch
        >>> from drnet_captum.viz import feature_grid
        >>> feature_grid(torch.rand(256, 14, 14), count=9).size
        (184, 226)
    """
    values = _finite(as_array(maps), "maps")
    if values.ndim != 3 or values.size == 0:
        raise ValueError(f"expected one input's maps of shape (C, h, w), got {values.shape}: take maps[0] of a batch")
    if count < 1:
        raise ValueError(f"expected a count of at least 1 unit, got {count}")
    if order not in ("strongest", "index"):
        raise ValueError(f'expected the order "strongest" or "index", got {order!r}')
    units = np.arange(len(values))
    if order == "strongest":
        units = np.argsort(-values.max(axis=(1, 2)), kind="stable")
    units = units[:count]
    signed = is_signed(values)
    shown = values[units]
    largest = np.abs(shown).max(axis=(1, 2), keepdims=True)
    scaled: FloatArray = (shown / np.where(largest == 0, 1, largest)).astype(np.float32)
    chosen = colormap(cmap if cmap is not None else DIVERGING if signed else "viridis")
    return _grid(_bytes(colour(scaled, signed, chosen)), columns, captions=[str(unit) for unit in units])


def _grid(tiles: Image8, columns: int | None, captions: Sequence[str] | None = None) -> Image.Image:
    """(M, h, w, 3) tiles enlarged by a whole factor, in rows on white, captions centred below."""
    number, h, w, _ = tiles.shape
    if columns is not None and columns < 1:
        raise ValueError(f"expected at least 1 column, got {columns}")
    columns = min(number, columns or ceil(sqrt(number)))
    rows = ceil(number / columns)
    scale = max(1, round(_TILE / max(h, w)))
    below = _CAPTION if captions else 0
    across, down = w * scale + _GAP, h * scale + below + _GAP
    page = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default()
    for index, tile in enumerate(tiles):
        x, y = _GAP + index % columns * across, _GAP + index // columns * down
        page.paste(Image.fromarray(tile.repeat(scale, axis=0).repeat(scale, axis=1)), (x, y))
        if captions:
            room = draw.textlength(captions[index], font=font)
            draw.text((x + (w * scale - room) / 2, y + h * scale + 1), captions[index], fill=_INK, font=font)
    return page


def _sides(values: npt.NDArray[Any]) -> tuple[int, int, int]:
    return values.shape[0], values.shape[2], values.shape[3]


def _bytes(values: npt.NDArray[Any]) -> Image8:
    return (values * 255).round().astype(np.uint8)


def _finite(values: npt.NDArray[np.float64], what: str) -> npt.NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise ValueError(f"the {what} have NaN or infinite values: look for them in the model or its input")
    return values
