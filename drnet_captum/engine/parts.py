"""Activations written by parts: ``x * sigmoid(1.702 * x)``, ``x * tanh(softplus(x))``, ``x * (x > 0)``.

While a forward pass is recorded, a ledger follows the elementwise functions of one tensor. A product of two functions
of the same tensor, one of them bounded by a gate (sigmoid, tanh, erf, softplus, clamp, a comparison with a number), is
an activation in one piece. So is a choice between such functions, or zero, by such a comparison:
``where(x > 0, x, 0.01 * x)``, ``maximum(x, zero)``. A gate on *another* tensor, as in squeeze-and-excitation or gated
linear units, is not.
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
COMPARISONS: dict[str, Callable[..., Tensor]] = {"gt": torch.gt, "ge": torch.ge, "lt": torch.lt, "le": torch.le}
CHOICES = frozenset({"where", "masked_fill", "maximum"})
CONVERSIONS = frozenset({"to", "type_as", "float", "double", "half", "bfloat16"})  # of a comparison to numbers
ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})
#: The plain names of all functions that a ledger follows.
PARTS = frozenset(ARITHMETIC) | frozenset(COMPARISONS) | CHOICES | CONVERSIONS | ZEROS


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
        self._zeros = WeakIdKeyDictionary()  # tensors that were made of zeros

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

    def record_zeros(self, result: Any) -> None:
        """Write down that a tensor is zero everywhere."""
        self._zeros[result] = result._version

    def after(self, name: str, func: Callable[..., Any], args: tuple[Any, ...]) -> Expression | None:
        """The expression for ``func(*args)``, one of `PARTS`; None where it is no function of one tensor."""
        if name in ARITHMETIC:
            return self._after_arithmetic(name, args)
        if name in COMPARISONS:
            return self._after_comparison(name, args)
        if name in CHOICES:
            return self._after_choice(name, args)
        mask, *rest = args
        if name in CONVERSIONS and isinstance(mask, Tensor) and mask.dtype == torch.bool:
            known = self.of(mask)
            f = known.function
            return replace(known, function=lambda z: func(f(z), *rest))
        return None

    def _after_comparison(self, name: str, args: tuple[Any, ...]) -> Expression | None:
        """``x > 0``: a gate of x."""
        if len(args) != 2 or not isinstance(args[0], Tensor) or not isinstance(args[1], (int, float)):
            return None
        known, op, bound = self.of(args[0]), COMPARISONS[name], args[1]
        f = known.function
        return replace(known, function=lambda z: op(f(z), bound), gated=True, shift=None)

    def _after_choice(self, name: str, args: tuple[Any, ...]) -> Expression | None:
        """``where(mask, a, b)``, the mask a comparison of what a and b are functions of; ``maximum(x, zero)``."""
        if name == "maximum":
            return self._after_maximum(args)
        if len(args) != 3:
            return None
        mask, a, b = args if name == "where" else (args[1], args[2], args[0])
        if name == "where" and isinstance(a, Tensor) and a.dtype == torch.bool:  # x.where(mask, b)
            mask, a = a, mask
        if not isinstance(mask, Tensor):
            return None
        known = self.of(mask)
        m, f, g = known.function, self._branch(a, known.base), self._branch(b, known.base)
        if f is None or g is None or (self._is_zero(a) and self._is_zero(b)):
            return None
        return replace(known, function=lambda z: torch.where(m(z), f(z), g(z)), gated=False, shift=None)

    def _after_maximum(self, args: tuple[Any, ...]) -> Expression | None:
        """Of a tensor and zeros. Reductions, of one tensor and perhaps a dimension, have the same name."""
        if len(args) != 2 or not all(isinstance(value, Tensor) for value in args):
            return None
        x, zero = args if self._is_zero(args[1]) else args[::-1]
        known = self.of(x)
        if not self._is_zero(zero) or self._branch(zero, known.base) is None:
            return None
        f = known.function
        return replace(known, function=lambda z: torch.maximum(f(z), zero), gated=False, shift=None)

    def _branch(self, value: Any, base: Tensor) -> Callable[[Tensor], Any] | None:
        """What is chosen, as a function of the base: one that is known, or zero, and of its shape."""
        if self._is_zero(value):
            wider = isinstance(value, Tensor) and torch.broadcast_shapes(value.shape, base.shape) != base.shape
            return None if wider else lambda z: value
        return self.of(value).function if isinstance(value, Tensor) and self.of(value).base is base else None

    def _is_zero(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            version: int | None = self._zeros.get(value)
            return version == value._version
        return isinstance(value, (int, float)) and value == 0

    def _after_arithmetic(self, name: str, args: tuple[Any, ...]) -> Expression | None:
        """Of a tensor and numbers, or of two tensors with one base."""
        op = ARITHMETIC[name]
        if name == "mul" and len(args) == 2 and isinstance(args[0], Tensor) and args[0].dtype == torch.bool:
            args = args[::-1]  # (x > 0) * x
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
