"""How a layer's output is laid out: where the channels are, and where the grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

Layout = Literal["NCHW", "NHWC", "tokens"]


def layout_of(shape: Sequence[int], input_shape: Sequence[int]) -> Layout | None:
    """The layout whose grid is in proportion to the image's, by shapes alone; None where neither is.

    Outputs with another number of dimensions than the input have no grid that could be told from their shape.

    Example:
        >>> layout_of((1, 512, 7, 10), (1, 3, 224, 320)), layout_of((1, 7, 10, 768), (1, 3, 224, 320))
        ('NCHW', 'NHWC')
        >>> layout_of((1, 197, 768), (1, 3, 224, 224)) is None
        True
    """
    if len(shape) != len(input_shape) or len(shape) < 3:
        return None
    image = input_shape[2:][-2:]  # of volumes and videos the frame: their depth has a stride of its own
    if in_proportion(shape[2:][-2:], image):
        return "NCHW"
    return "NHWC" if in_proportion(shape[1:-1][-2:], image) else None


def in_proportion(grid: Sequence[int], image: Sequence[int]) -> bool:
    """Whether every side of the grid is the image's side over one stride, give or take a cell."""
    share = max(g / i for g, i in zip(grid, image, strict=True))
    return all(abs(g - share * i) <= 1 for g, i in zip(grid, image, strict=True))


def to_channels_first(value: Tensor, layout: Layout, spatial: int) -> Tensor:
    """(…, h, w, C) as (…, C, h, w), and (…, t, C) as (…, C, t), for a number of spatial dimensions: a view."""
    return value if layout == "NCHW" else value.movedim(-1, -1 - spatial)
