"""Integrated weights: the mean gradient along the straight line from a layer's baseline to its activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drnet_captum._captum import approximation_parameters
from drnet_captum.attr.score import Score, scores
from drnet_captum.engine.state import differentiable
from drnet_captum.engine.tail import Tail
from drnet_captum.engine.targets import Target

ROWS = 16  # of a chunk, where none is asked for: more saves no time on a CPU


def path_weights(
    make_tail: Callable[[slice], Tail],
    activation: Tensor,
    baseline: Tensor,
    target: Target,
    score: Score,
    n_steps: int,
    method: str = "gausslegendre",
    internal_batch_size: int | None = None,
    step: Callable[[int], None] | None = None,
) -> Tensor:
    r"""The path integral :math:`\int_0^1 \partial y / \partial F\,(F_b + t (F - F_b))\,dt` by quadrature.

    Only what lies above the layer is run, ``n_steps`` times, ``internal_batch_size`` rows at a time.

    Args:
        make_tail: the tail above the layer for some of the examples.
        activation: F of N examples, (N, …).
        baseline: F_b, of the same shape.
        target: as in Captum.
        score: "logit" or "log_prob".
        n_steps: steps of the quadrature.
        method: the quadrature, by Captum's name.
        internal_batch_size: rows of a run. None: 16.
        step: called with the number of rows that were run.

    Returns:
        The mean gradient, of the activation's shape.
    """
    if n_steps < 1:
        raise ValueError(f"expected n_steps to be at least 1, got {n_steps}")
    rows = ROWS if internal_batch_size is None else internal_batch_size
    if rows < 1:
        raise ValueError(f"expected internal_batch_size to be at least 1, got {internal_batch_size}")
    step_sizes, alphas = approximation_parameters(method)
    places, sizes = alphas(n_steps), step_sizes(n_steps)
    count = len(activation)
    found = torch.zeros_like(activation)
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))
        examples = part.stop - part.start
        tail = make_tail(part)
        at_once = max(1, rows // examples)
        line = activation[part] - baseline[part]
        for first in range(0, n_steps, at_once):
            t = torch.tensor(places[first : first + at_once], dtype=activation.dtype, device=activation.device)
            size = torch.tensor(sizes[first : first + at_once], dtype=activation.dtype, device=activation.device)
            ones = [1] * activation.dim()
            with differentiable():
                points = (baseline[part] + t.view(-1, *ones) * line).flatten(0, 1)  # (steps · examples, C, …)
                points = points.detach().requires_grad_()
                y = scores(tail(points), target_rows(target, part, count, len(t)), score)
                (gradient,) = torch.autograd.grad(y.sum(), points)
            found[part] += (size.view(-1, *ones) * gradient.unflatten(0, (len(t), examples))).sum(0)
            if step is not None:
                step(len(t) * examples)
    return found


def target_rows(target: Target, part: slice, count: int, copies: int) -> Any:
    """The targets of some of the examples, all of them again and again.

    Example:
        >>> target_rows([3, 1, 2], slice(0, 2), 3, 2), target_rows(5, slice(0, 2), 3, 2)
        ([3, 1, 3, 1], 5)
    """
    if isinstance(target, Tensor) and target.numel() > 1:
        target = target.tolist() if target.dim() == 1 else [tuple(row) for row in target.tolist()]
    if isinstance(target, list):
        if len(target) != count:
            raise ValueError(f"expected one target for each of the {count} examples, got a list of {len(target)}")
        return target[part] * copies
    return target
