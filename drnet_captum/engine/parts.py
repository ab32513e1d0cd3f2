"""Activations written by parts: ``x * sigmoid(1.702 * x)``, ``x * tanh(softplus(x))``, ``x * relu6(x + 3) / 6``.

While a forward pass is recorded, a ledger follows the elementwise functions of one tensor. A product of two functions
of the same tensor, one of them bounded by a gate (sigmoid, tanh, erf, softplus, clamp), is an activation in one piece.
A gate on *another* tensor, as in squeeze-and-excitation or gated linear units, is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from drnet_captum.engine.activations import Activation, Unary

ARITHMETIC: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "rsub": torch.rsub,
    "neg": torch.neg,
}


@dataclass(frozen=True)
class Expression:
    """A tensor as an elementwise function of another one, its base."""

    base: Tensor
    version: int  # of the base, when this was written down
    function: Unary
    gated: bool = False
    shift: float | None = None  # c, where the function is z + c


class Ledger:
    """Which tensors of the running forward pass are elementwise functions of which others."""

    def __init__(self) -> None:
        self._known = WeakIdKeyDictionary()
        self._shifted = WeakIdKeyDictionary()  # tensors that a number was added to in place

    def record(self, result: Any, expression: Expression | None) -> None:
        """Write down what a tensor is a function of. A base written over is a function of nothing that exists."""
        if expression is None or not isinstance(result, Tensor):
            return
        if result is not expression.base:
            self._known[result] = (expression, result._version)
        elif expression.shift is not None:
            self._shifted[result] = (expression.shift, result._version)

    def of(self, x: Tensor) -> Expression:
        """What is known of a tensor; nothing known, or changed in place since: it is its own base."""
        entry: tuple[Expression, int] | None = self._known.get(x)
        if entry is not None and entry[1] == x._version and entry[0].base._version == entry[0].version:
            return entry[0]
        shift, version = self._shifted.get(x, (0.0, x._version))
        return Expression(x, x._version, lambda z: z, shift=shift if version == x._version else 0.0)

    def after_activation(self, activation: Activation) -> Expression:
        known, call = self.of(activation.z), activation.call
        inner = known.function
        return replace(known, function=lambda z: call(inner(z)), gated=known.gated or activation.is_gate, shift=None)

    def after_arithmetic(self, name: str, args: tuple[Any, ...]) -> Expression | None:
        """The expression for ``name(*args)``: of a tensor and numbers, or of two tensors with one base."""
        op = ARITHMETIC[name]
        if not args or not isinstance(args[0], Tensor):
            args = args[::-1] if name in ("add", "mul") else ()  # 2 * x
        if not args or not args[0].dtype.is_floating_point:
            return None
        known, rest = self.of(args[0]), args[1:]
        f = known.function
        if all(isinstance(r, (int, float)) for r in rest):
            shift = known.shift + rest[0] if name == "add" and known.shift is not None and rest else None
            return replace(known, function=lambda z: op(f(z), *rest), shift=shift)
        if name not in ("add", "sub", "mul") or len(rest) != 1 or not self._related(args[0], rest[0]):
            return None
        other = self.of(rest[0])
        g = other.function
        return replace(known, function=lambda z: op(f(z), g(z)), gated=known.gated or other.gated, shift=None)

    def _related(self, a: Any, b: Any) -> bool:
        if not isinstance(b, Tensor) or not (a is b or a in self._known or b in self._known):
            return False
        return self.of(a).base is self.of(b).base

    def is_hard_sigmoid(self, activation: Activation) -> bool:
        """relu6(x + 3), six times a hard sigmoid: a gate, and no activation."""
        return activation.bounds == (0.0, 6.0) and self.of(activation.z).shift == 3.0
