"""How a layer's output is laid out: where the channels are, where the grid, and how it becomes a map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal, Protocol

from torch import Tensor, nn

from drnet_captum.layers.statements import output_format, patch_grid, prefix_tokens, raster_grid

Layout = Literal["NCHW", "NHWC", "tokens"]
MOST_PREFIX_TOKENS = 9  # a class token and eight registers: the most that published models have


class Placed(Protocol):
    """What says where a layer's channels and grid are: a ``TargetLayer``, a ``Placement``."""

    @property
    def layout(self) -> Layout: ...
    @property
    def grid(self) -> tuple[int, ...]: ...
    @property
    def prefix_tokens(self) -> int: ...


@dataclass(frozen=True)
class Placement:
    """Where the channels and the grid of a layer's output are."""

    layout: Layout
    grid: tuple[int, ...]
    channels: int
    prefix_tokens: int = 0


def to_map(activation: Tensor, target_layer: Placed) -> Tensor:
    """A layer's output as maps: channels first, then the grid, without the tokens before it.

    Args:
        activation: (N, C, h, w), (N, h, w, C) or (N, prefix + h·w, C), as ``target_layer`` says.
        target_layer: a :class:`TargetLayer`, or anything with its ``layout``, ``grid`` and ``prefix_tokens``.

    Returns:
        (N, C, h, w); a view where that is possible.

    Raises:
        ValueError: the activation is not of the layout and grid that ``target_layer`` states.

    Example:
        >>> import torch
        >>> tokens = torch.randn(2, 1 + 14 * 20, 192)  # a class token, then 14 rows of 20 patches
        >>> to_map(tokens, Placement("tokens", (14, 20), 192, prefix_tokens=1)).shape
        torch.Size([2, 192, 14, 20])
    """
    layout, grid, prefix = target_layer.layout, tuple(target_layer.grid), target_layer.prefix_tokens
    there = {"NCHW": activation.shape[2:], "NHWC": activation.shape[1:-1], "tokens": activation.shape[1:-1]}[layout]
    if tuple(there) != ((prefix + prod(grid),) if layout == "tokens" else grid):
        raise ValueError(
            f"expected an activation with a grid of {grid} laid out as {layout} with {prefix} prefix tokens, got "
            f"{tuple(activation.shape)}: find the layer for inputs of this size"
        )
    if layout == "NCHW":
        return activation
    if layout == "NHWC":
        return activation.movedim(-1, 1)
    maps: Tensor = activation[:, prefix:].transpose(1, 2).unflatten(2, grid)
    return maps


def placement_of(shape: Sequence[int], input_shape: Sequence[int], model: nn.Module | None = None) -> Placement | None:
    """The layout whose grid is in proportion to the image's; None where no layout fits.

    What the model states of itself decides first (``num_prefix_tokens``, ``output_fmt``, ``patch_embed.grid_size``),
    and shapes where it says nothing or something else. Grids need not be square.

    Args:
        shape: the layer's output, (N, …).
        input_shape: the image's, (N, C, H, W); signals and volumes likewise.
        model: what may state something.

    Example:
        >>> placement_of((1, 512, 7, 10), (1, 3, 224, 320))
        Placement(layout='NCHW', grid=(7, 10), channels=512, prefix_tokens=0)
        >>> placement_of((1, 7, 10, 768), (1, 3, 224, 320)).layout
        'NHWC'
        >>> placement_of((1, 197, 768), (1, 3, 224, 224))
        Placement(layout='tokens', grid=(14, 14), channels=768, prefix_tokens=1)
        >>> placement_of((1, 768), (1, 3, 224, 224)) is None
        True
    """
    if len(shape) < 3 or shape[0] != input_shape[0]:
        return None
    if len(shape) == len(input_shape):
        return _grid(shape, input_shape, model)
    if len(shape) == 3 and len(input_shape) == 4:
        return _tokens(shape, input_shape, model)
    return None


def _grid(shape: Sequence[int], input_shape: Sequence[int], model: nn.Module | None) -> Placement | None:
    image = input_shape[2:][-2:]  # of volumes and videos the frame: their depth has a stride of its own
    first = Placement("NCHW", tuple(shape[2:]), shape[1])
    last = Placement("NHWC", tuple(shape[1:-1]), shape[-1])
    fitting = [p for p in (first, last) if in_proportion(p.grid[-2:], image)]
    if len(fitting) == 2 and model is not None and output_format(model) == "NHWC":
        return last
    return fitting[0] if fitting else None


def _tokens(shape: Sequence[int], input_shape: Sequence[int], model: nn.Module | None) -> Placement | None:
    count, channels = shape[1], shape[2]
    if channels == 1:
        return None  # pooled channels, (N, C, 1)
    stated = prefix_tokens(model) if model is not None else None
    counts = [stated] if stated is not None else []
    for prefix in [*counts, *range(min(MOST_PREFIX_TOKENS + 1, count))]:
        grids = grids_by_count(tuple(input_shape[2:])).get(count - prefix, frozenset())
        own = patch_grid(model) if model is not None else None
        if not grids and own is not None and prod(own) == count - prefix and prefix == (stated or 0):
            grids = frozenset({own})
        if grids:
            grid = min(grids, key=lambda g: unevenness(g, input_shape[2:]))
            in_rows = raster_grid(model) if model is not None else None
            return None if in_rows not in (None, grid) else Placement("tokens", grid, channels, prefix)
    return None


def patch_grids(image: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The grids that patches of one stride cut an image into: the incomplete ones left out, or padded."""
    for stride in range(1, max(image) + 1):
        yield tuple(max(1, side // stride) for side in image)
        yield tuple(-(-side // stride) for side in image)


@lru_cache
def grids_by_count(image: tuple[int, ...]) -> dict[int, frozenset[tuple[int, ...]]]:
    """Those grids, by how many patches they have."""
    found: dict[int, set[tuple[int, ...]]] = {}
    for grid in patch_grids(image):
        found.setdefault(prod(grid), set()).add(grid)
    return {count: frozenset(grids) for count, grids in found.items()}


def unevenness(grid: Sequence[int], image: Sequence[int]) -> float:
    """How far a grid is from the image's proportions: 0 where every side has the same stride."""
    shares = [g / i for g, i in zip(grid, image, strict=True)]
    return max(shares) / min(shares) - 1


def in_proportion(grid: Sequence[int], image: Sequence[int]) -> bool:
    """Whether every side of the grid is the image's side over one stride, give or take a cell."""
    share = max(g / i for g, i in zip(grid, image, strict=True))
    return all(abs(g - share * i) <= 1 for g, i in zip(grid, image, strict=True))
