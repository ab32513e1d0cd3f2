"""Receptive fields, read off a recorded graph: which pixels a position of a layer can see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drnet_captum.engine.lean import Convolution, MaxPool2d, times
from drnet_captum.layers.cuts import Flow


@dataclass(frozen=True)
class Field:
    """The receptive fields of a layer's positions, in pixels of the input.

    Attributes:
        size: height and width of one position's field.
        stride: pixels between the fields of neighbouring positions.
        start: top and left edge of the first position's field; negative where it reaches into the padding.
    """

    size: tuple[int, ...]
    stride: tuple[float, ...]
    start: tuple[float, ...]

    def box(self, y: int, x: int, image: Sequence[int]) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of a position's field, cut to an image of (H, W) pixels.

        Example:
            >>> Field((7, 7), (2.0, 2.0), (-3.0, -3.0)).box(1, 0, (32, 32))
            (0, 0, 6, 4)
        """
        edges = []
        for place, size, stride, start, most in zip((y, x), self.size, self.stride, self.start, image, strict=True):
            low = round(start + place * stride)
            edges.append((min(max(low, 0), most - 1), max(min(low + size, most), 1)))
        (top, bottom), (left, right) = edges
        return top, left, bottom, right


def fields(graph: Flow, image: Sequence[int]) -> dict[Any, Field]:
    """The receptive field behind every node of a graph, of which the sources are images of a size.

    Convolutions and poolings widen it; where branches meet, the widest counts. What mixes all positions (attention,
    gates from averages) is passed over: the fields say where a unit looks, and not all that could reach it.
    """
    spatial = len(image)
    found = {source: Field((1,) * spatial, (1.0,) * spatial, (0.0,) * spatial) for source in graph.sources}
    for node in reversed(graph.order):
        if node in graph.sources:
            continue
        below = [found[child] for child, _ in node.next_functions if child in found]
        if below:
            found[node] = widened(union(below), node, spatial)
    return found


def union(several: Sequence[Field]) -> Field:
    """The field that holds all of them."""
    first, *others = several
    for other in others:
        start = tuple(map(min, first.start, other.start))
        ends = [max(f.start[i] + f.size[i] for f in (first, other)) for i in range(len(start))]
        size = tuple(round(end - low) for end, low in zip(ends, start, strict=True))
        first = Field(size, tuple(map(max, first.stride, other.stride)), start)
    return first


def widened(field: Field, node: Any, spatial: int) -> Field:
    """The field after a step with a kernel; the same after any other."""
    window = window_of(node)
    if window is None or any(len(part) < spatial for part in window):
        return field
    kernel, stride, padding, dilation = (part[-spatial:] for part in window)  # signals are pooled as images of one row
    return Field(
        tuple(
            s + round((k - 1) * d * j) for s, k, d, j in zip(field.size, kernel, dilation, field.stride, strict=True)
        ),
        tuple(j * s for j, s in zip(field.stride, stride, strict=True)),
        tuple(a - p * j for a, p, j in zip(field.start, padding, field.stride, strict=True)),
    )


def window_of(node: Any) -> tuple[Sequence[int], ...] | None:
    """Kernel, stride, padding and dilation of a convolution or a pooling."""
    kind, name = getattr(node, "_forward_cls", None), node.name()
    if kind is Convolution:
        stride, padding, dilation, _ = node.geometry
        return node.saved_tensors[0].shape[2:], stride, padding, dilation
    if kind is MaxPool2d:
        kernel, stride, padding, dilation, _ = node.geometry
        return kernel, stride, padding, dilation
    if name.startswith("ConvolutionBackward") and not node._saved_transposed:
        kernel = node._saved_weight.shape[2:]
        return kernel, node._saved_stride, node._saved_padding, node._saved_dilation
    if name.startswith(("AvgPool", "MaxPool")) and hasattr(node, "_saved_kernel_size"):
        kernel = node._saved_kernel_size
        dilation = getattr(node, "_saved_dilation", (1,) * len(kernel))
        n = len(kernel)
        return kernel, times(n, node._saved_stride or kernel), times(n, node._saved_padding), times(n, dilation)
    if name.startswith(("ConstantPad", "ReflectionPad", "ReplicationPad")):
        pad = getattr(node, "_saved_pad", None) or node._saved_padding  # pairs, the last dimension first
        before = [p if p < 1 << 63 else p - (1 << 64) for p in pad[::2]][::-1]  # cropping comes as a large number
        return (1,) * len(before), (1,) * len(before), before, (1,) * len(before)
    return None


def fitted(field: Field, grid: Sequence[int], image: Sequence[int]) -> Field:
    """A field whose stride is the grid's: where steps that are not windows (patches cut by reshaping) hid it."""
    strides = [i / g for i, g in zip(image, grid, strict=True)]
    spans = zip(field.start, grid, field.stride, field.size, image, strict=True)
    is_centred = all(abs(2 * a + (g - 1) * j + s - i) <= j for a, g, j, s, i in spans)  # no padding: fewer positions
    if is_centred or all(j / 1.5 <= s <= j * 1.5 for s, j in zip(strides, field.stride, strict=True)):
        return field
    size = tuple(max(s, round(j)) for s, j in zip(field.size, strides, strict=True))
    return Field(size, tuple(strides), tuple((j - s) / 2 for s, j in zip(size, strides, strict=True)))
