"""The backward rules of activations, as autograd nodes that look up the rule that is being replayed.

For an activation f with input z and incoming gradient g:

========  ==============================  ===============================
rule      passes on                       paper
========  ==============================  ===============================
plain     g · f′(z)                       the chain rule
guided    max(g, 0) · max(f′(z), 0)       Springenberg et al. 2014
deconv    max(g, 0)                       Zeiler & Fergus 2013
========  ==============================  ===============================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from drnet_captum.engine.activations import Derivative

Rule = Literal["plain", "guided", "deconv"]
PART = 1 << 20  # numbers multiplied at a time: the factor stays in the cache
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass
class Switch:
    """What the nodes of one tape look at when they are replayed."""

    rule: Rule = "plain"
    batched: bool = False  # several gradients at once, under vmap
    in_place: bool = True  # gradients that nobody else holds may be written into


class PiecewiseLinear(torch.autograd.Function):
    """An activation of slope 1 where a bool mask holds and ``slope`` elsewhere; the mask is all it saves.

    ``mask=None`` is ReLU: the mask is then the sign of the output, which is cheaper to take.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        mask: Tensor | None,
        slope: float,
        call: Callable[[Tensor], Tensor],
        inplace: bool,
        switch: Switch,
    ) -> Tensor:
        output = call(z)
        if inplace:
            ctx.mark_dirty(z)
        ctx.save_for_backward(output.bool() if mask is None else mask)
        ctx.slope, ctx.switch = slope, switch
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        rule = ctx.switch.rule
        batched = ctx.switch.batched
        owned = ctx.switch.in_place and not batched and is_exclusive(g)
        if rule != "plain":
            g = positive(g, owned)
            owned = not batched  # a new tensor, if it was not ours before
        if rule != "deconv":
            (mask,) = ctx.saved_tensors
            slope = max(ctx.slope, 0.0) if rule == "guided" else ctx.slope
            if not slope:
                g = masked(g, mask, owned)
            else:
                g = g * (as_factor(mask, g) * (1 - slope) + slope)
        return g, None, None, None, None, None


def masked(g: Tensor, mask: Tensor, in_place: bool) -> Tensor:
    """g·mask. On a CPU large tensors cost more to allocate than to multiply: in place, a part at a time."""
    if not in_place or g.dim() == 0:
        return as_factor(mask, g) * g
    if g.device.type != "cpu":
        return g.mul_(mask)
    examples = max(1, PART * len(g) // max(1, g.numel()))
    for part, part_mask in zip(g.split(examples), mask.split(examples), strict=True):
        part.mul_(as_factor(part_mask, part))
    return g


def is_exclusive(g: Tensor) -> bool:
    """Whether nothing else holds this gradient or its memory: not another branch, a capture, or the caller.

    By reference counts that PyTorch keeps for itself; without them the answer is no.
    """
    count = getattr(g, "_use_count", None)
    if count is None or count() != 1:
        return False
    storage = g.untyped_storage()  # the second reference
    return bool(torch._C._storage_Use_Count(storage._cdata) == 2 and storage.nbytes() == g.nbytes)


def as_factor(mask: Tensor, like: Tensor) -> Tensor:
    """A bool mask as zeros and ones. By way of int8 on a CPU, whose conversion is vectorised (4× faster)."""
    return mask.view(torch.int8).to(like.dtype) if like.device.type == "cpu" else mask


class Smooth(torch.autograd.Function):
    """Any elementwise activation: takes its derivative again at every replay.

    It saves its input, or its output where that tells the slope.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        saved: Tensor,
        call: Callable[[Tensor], Tensor],
        derivative: Derivative,
        of_output: bool,
        inplace: bool,
        switch: Switch,
    ) -> Tensor:
        output = call(z)
        if inplace:
            ctx.mark_dirty(z)
        ctx.save_for_backward(output if of_output else saved)
        ctx.derivative, ctx.switch = derivative, switch
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        rule, batched = ctx.switch.rule, ctx.switch.batched
        (saved,) = ctx.saved_tensors
        owned = ctx.switch.in_place and not batched and is_exclusive(g)
        if rule != "plain":
            g = positive(g, owned)
            owned = not batched  # a new tensor, if it was not ours before
        if rule != "deconv":
            # Kernels of derivatives take one gradient at a time.
            slope = ctx.derivative(torch.ones_like(saved), saved, True) if batched else None
            g = ctx.derivative(g, saved, owned) if slope is None else g * slope
        if rule == "guided":
            g = positive(g, owned=not batched)  # where g ≥ 0, max(g·f′, 0) is g·max(f′, 0)
        return g.to(saved.dtype), None, None, None, None, None, None


def positive(g: Tensor, owned: bool) -> Tensor:
    """max(g, 0), in place if the tensor is ours."""
    return g.clamp_(min=0) if owned else g.clamp(min=0)


def derivative_of(call: Callable[[Tensor], Tensor]) -> Derivative:
    """g·f′(z) of any elementwise function f, by differentiating it."""

    def derivative(g: Tensor, z: Tensor, owned: bool) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            out = call(z)
            return torch.autograd.grad(out, z, g.to(out.dtype))[0]

    return derivative


def is_rule_node(node: object) -> bool:
    """Whether an autograd node is an activation that follows the switch."""
    return getattr(node, "_forward_cls", None) in (PiecewiseLinear, Smooth)
