"""Captum's forms of a target, checked: an index, one per example, tuples for outputs with more than two dimensions."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Target = int | tuple[int, ...] | Tensor | Sequence[int] | Sequence[tuple[int, ...]] | None


def check_output(output: Any) -> Tensor:
    """The output itself, where it is a tensor with one row per example."""
    if isinstance(output, Tensor):
        if not output.dtype.is_floating_point:
            raise TypeError(
                f"expected the model to return floating-point scores, got {output.dtype}: a tensor of class "
                "indices has no gradient, so explain the scores they were chosen from"
            )
        return output
    kind = type(output).__name__
    fields = ""
    if isinstance(output, dict):
        fields = f" with the keys {', '.join(map(repr, list(output)[:6]))}"
    raise TypeError(f"expected the model to return a tensor of scores, got {kind}{fields}: {wrapping(output)}")


def wrapping(output: Any) -> str:
    """How to make such an output a tensor of scores."""
    if isinstance(output, (tuple, list)):
        return (
            "wrap it so that it does, for example\n"
            "    class Scores(torch.nn.Module):\n"
            "        def __init__(self, model): super().__init__(); self.model = model\n"
            "        def forward(self, x): return self.model(x)[0]"
        )
    key = "logits" if not isinstance(output, dict) or "logits" in output else next(iter(output), "logits")
    return f"wrap it, drnet_captum.LogitsOf(model{'' if key == 'logits' else f', {key!r}'})"


def select(output: Tensor, target: Target) -> Tensor:
    """The scalar y of every example.

    Args:
        output: (N, C), (N, C, …) or, with ``target=None``, (N,) or (N, 1).
        target: as in Captum: an index for all examples; a list or 1-D tensor with one per example; for outputs of more
            than two dimensions a tuple of indices, or a list of tuples.

    Returns:
        (N,)

    Raises:
        ValueError: a target outside the output, or not one for each example.
        TypeError: a target of another form.

    Example:
        >>> select(torch.arange(6.0).view(2, 3), [2, 0])
        tensor([2., 3.])
    """
    if output.dim() == 0:
        output = output[None]
    if target is None:
        if output[0].numel() != 1:
            raise ValueError(
                f"expected a target, as the model returns {tuple(output.shape)}: "
                f"pass target=… to choose one of the {output[0].numel()} scores of each example"
            )
        return output.reshape(len(output))
    rows = indices(target, len(output))
    wanted = tuple(output.shape[1:])
    for row in rows:
        if len(row) != len(wanted):
            raise ValueError(
                f"expected a target with {len(wanted)} indices for outputs of shape (N, "
                f"{', '.join(map(str, wanted))}), got {row if len(row) != 1 else row[0]}"
            )
        if any(not -size <= i < size for i, size in zip(row, wanted, strict=True)):
            raise ValueError(
                f"target {row[0] if len(row) == 1 else row} is out of range for outputs of shape (N, "
                f"{', '.join(map(str, wanted))}): indices go from 0 to "
                f"{', '.join(str(size - 1) for size in wanted)}"
            )
    if len(rows) == 1:
        for i in rows[0]:
            output = output.select(1, i)
        return output
    columns = torch.tensor(rows, device=output.device).unbind(1)
    return output[(torch.arange(len(output), device=output.device), *columns)]


def indices(target: Any, n: int) -> list[tuple[int, ...]]:
    """A target as tuples of indices: one for all examples, or n."""
    if isinstance(target, Tensor):
        if target.dtype.is_floating_point or target.dtype == torch.bool:
            raise TypeError(f"expected a target of integers, got a tensor of {target.dtype}")
        if target.numel() == 1:
            return [(int(target),)]
        target = target.tolist() if target.dim() == 1 else [tuple(row) for row in target.tolist()]
    if isinstance(target, tuple):
        return [tuple(index(t) for t in target)]
    if isinstance(target, list):
        if len(target) != n:
            raise ValueError(f"expected one target for each of the {n} examples, got a list of {len(target)}")
        return [tuple(index(t) for t in row) if isinstance(row, tuple) else (index(row),) for row in target]
    return [(index(target),)]


def index(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"expected a target that is an integer, a tuple of them, a list or a tensor, got {value!r}")
    return operator.index(value)
