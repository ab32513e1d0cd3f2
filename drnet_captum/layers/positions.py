"""Which positions of a sequence of tokens the output depends on, read off the recorded graph.

A class-token head reads one token of the last block: the others receive no gradient there, and a map over them would be
zero. The graph says so without any values: between the layer and the output, steps that treat every position alike are
followed, and ``x[:, 0]`` is seen as what it is. What mixes positions (attention, a mean) depends on all that reach it.

A place is where positions are on their way: an output of a node, one of its axes, and for every index of that axis the
position that is there (None: something else, that was put beside them).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from drnet_captum.layers.cuts import Flow, output_shape

#: Steps that compute every position from itself alone, besides activations.
POINTWISE = (
    *("Add", "Sub", "RSub", "Mul", "Div", "Neg", "Pow", "Rsqrt", "Sqrt", "Exp", "Clamp", "Where", "MaskedFill"),
    *("Clone", "Copy", "CopySlices", "ToCopy", "Alias", "Contiguous", "Expand", "View", "UnsafeView", "ReshapeAlias"),
    *("Squeeze", "Unsqueeze", "NativeDropout", "FusedDropout", "BatchNorm", "PiecewiseLinear"),
    *("Smooth", "Relu", "Gelu", "Silu", "Sigmoid", "Tanh", "Softmax", "LogSoftmax", "NativeLayerNorm", "FusedRmsNorm"),
    *("Mean", "Sum"),
)
#: Those of them that change the shape otherwise than by broadcasting.
RESHAPING = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Mean", "Sum")
#: Steps that pass on the strongest position of each channel, and leave the others without gradient.
STRONGEST = ("Max", "Amax", "Min", "Amin", "AdaptiveMaxPool1D")


Positions = tuple[int | None, ...]
Place = tuple[int, int, Positions]
Onwards = tuple[Positions, list[Place]]


def receiving(flow: Flow, node: Any, axis: int = 1) -> set[int]:
    """The positions along one axis of a node's output that receive gradient from the flow's output.

    Where a step is not known, all positions that reach it are taken to.
    """
    count = output_shape(node)[axis]
    reached: set[int | None] = {None}
    stack: list[tuple[Any, Place]] = [(node, (0, axis, tuple(range(count))))]
    seen = set()
    while stack and len(reached) <= count:
        state = stack.pop()
        if state in seen:
            continue
        seen.add(state)
        node, (output, axis, positions) = state
        if node is flow.order[0]:
            reached.update(positions)  # the output itself has these positions
        for reader, argument, output_read in flow.consumers.get(node, ()):
            if output_read != output:
                continue
            onwards = step(reader, argument, output_shape(node, output), axis, positions)
            if onwards is None:
                reached.update(positions)
            else:
                reached.update(onwards[0])
                stack.extend((reader, place) for place in onwards[1])
    return {position for position in reached if position is not None}


def step(node: Any, argument: int, shape: Sequence[int], axis: int, positions: Positions) -> Onwards | None:
    """What one step does with the positions: those it reads, and where the others are, (output, axis, positions).

    None: it mixes them, or is not known.
    """
    kind = node.name().rstrip("0123456789").removesuffix("Backward")
    if kind in ("NativeBatchNorm", "CudnnBatchNorm") and not node._saved_training:
        kind = "BatchNorm"  # by running statistics: a scale and a shift
    out = output_shape(node)
    if kind in ("Select", "Unbind", "Slice", "Split", "SplitWithSizes"):
        return _part(node, kind, len(shape), axis, positions)
    if kind in ("Transpose", "Permute", "T"):
        return (), [(0, _moved(node, kind, len(shape), axis), positions)]
    if kind in STRONGEST:
        if axis in _dims(node, len(shape)) and len(out) == len(shape):
            return None  # kept as a dimension, to be compared with every position
        return ((), []) if axis in _dims(node, len(shape)) else _kept(shape, out, axis, positions)
    if kind == "Cat":
        return _beside(node, argument, len(shape), axis, positions)
    if kind in ("Addmm", "Mm", "Linear"):
        rows = argument == (1 if kind == "Addmm" else 0) and axis < len(shape) - 1
        return ((), [(0, axis, positions)]) if rows else None
    if kind not in POINTWISE:
        return None
    if kind in ("Mean", "Sum", "Softmax", "LogSoftmax") and axis in _dims(node, len(shape)):
        return None
    if "Norm" in kind and kind != "BatchNorm":
        normalized = getattr(node, "_saved_normalized_shape", None)
        if normalized is None or axis >= len(shape) - len(normalized):
            return None
    if kind in RESHAPING:
        return _kept(shape, out, axis, positions)
    aligned = axis + len(out) - len(shape)  # broadcasting aligns dimensions from the right
    return ((), [(0, aligned, positions)]) if out[aligned] == shape[axis] else None


def _part(node: Any, kind: str, dims: int, axis: int, positions: Positions) -> Onwards:
    """Steps that take positions apart."""
    dim = signed(node._saved_dim) % dims
    if kind in ("Select", "Unbind"):
        moved = axis - (dim < axis)
        if dim == axis:
            return positions if kind == "Unbind" else (positions[signed(node._saved_index)],), []
        outputs = len(node._input_metadata) if kind == "Unbind" else 1
        return (), [(i, moved, positions) for i in range(outputs)]
    if dim != axis:
        return (), [(i, axis, positions) for i in range(len(node._input_metadata))]
    if kind == "Slice":
        start, end, step = (signed(getattr(node, f"_saved_{name}")) for name in ("start", "end", "step"))
        return (), [(0, axis, positions[start:end:step])]
    rows, start = [], 0
    for i in range(len(node._input_metadata)):
        size = output_shape(node, i)[axis]
        rows.append((i, axis, positions[start : start + size]))
        start += size
    return (), rows


def _beside(node: Any, argument: int, dims: int, axis: int, positions: Positions) -> Onwards | None:
    """Concatenation: along the axis, other things before and after the positions."""
    if signed(node._saved_dim) % dims != axis:
        return (), [(0, axis, positions)]
    sizes = [None if child is None else output_shape(child, nr)[axis] for child, nr in node.next_functions]
    if sizes.count(None) > 1:
        return None  # several constants, of sizes that the graph does not keep
    total = output_shape(node)[axis]
    known = sum(size for size in sizes if size is not None)
    before = sum(total - known if size is None else size for size in sizes[:argument])
    after = total - before - len(positions)
    return (), [(0, axis, (None,) * before + positions + (None,) * after)]


def _kept(shape: Sequence[int], out: Sequence[int], axis: int, positions: Positions) -> Onwards | None:
    """Where the axis is after a change of shape: as long, with as many elements before it, or after it."""
    length = shape[axis]
    for after in range(len(out)):
        before_it = prod(out[:after]) == prod(shape[:axis])
        if out[after] == length and (before_it or prod(out[after + 1 :]) == prod(shape[axis + 1 :])):
            return (), [(0, after, positions)]
    return None


def _moved(node: Any, kind: str, dims: int, axis: int) -> int:
    if kind == "Permute":
        return [signed(d) % dims for d in node._saved_dims].index(axis)
    swap = (0, 1) if kind == "T" else (signed(node._saved_dim0) % dims, signed(node._saved_dim1) % dims)
    return {swap[0]: swap[1], swap[1]: swap[0]}.get(axis, axis)


def _dims(node: Any, dims: int) -> set[int]:
    """The dimensions that a node reduces; all of them where it says none."""
    found = getattr(node, "_saved_dim", None)
    if found is None or found == ():
        return set(range(dims))
    return {signed(d) % dims for d in (found if isinstance(found, tuple) else (found,))}


def signed(value: int) -> int:
    """A saved 64-bit integer: autograd hands negative ones out as unsigned."""
    return value - 2**64 if value >= 2**63 else value
