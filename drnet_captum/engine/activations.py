"""Every activation function of PyTorch, by the name under which a function mode sees it called."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Unary = Callable[[Tensor], Tensor]
Derivative = Callable[[Tensor, Tensor, bool], Tensor]  # g, z (or f(z)), whether g may be written into → g·f′(z)
aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """One call of an elementwise function: what it was called with is closed over.

    ``mask`` is given for piecewise linear functions: where the slope is 1 (elsewhere it is ``slope``).
    ``is_gate`` marks the bounded factors of activations by parts; ``is_activation`` is false for those
    that are nothing but gates (sigmoid), whose backward rule is always plain.
    """

    z: Tensor
    call: Unary  # out of place
    inplace: bool = False
    mask: Unary | None = None
    slope: float = 0.0
    derivative: Derivative | None = None  # PyTorch's own kernel; None: by differentiating ``call``
    of_output: bool = False  # the derivative is told by the output, and the input need not be saved
    bounds: tuple[float, float] | None = None
    is_relu: bool = False
    is_gate: bool = False
    is_activation: bool = True

    @property
    def is_piecewise(self) -> bool:
        """Linear but for a bend, so that a mask tells the derivative."""
        return self.is_relu or self.mask is not None


def derivative_by(kernel: Any, *rest: Any, **options: Any) -> Derivative:
    """g·f′(z) by one of PyTorch's own backward kernels, written into g where that is allowed and the kernel can."""
    names = kernel.overloads()
    into = next((name for name in ("grad_input", "out") if name in names), None)

    def derivative(g: Tensor, z: Tensor, owned: bool) -> Tensor:
        if owned and into is not None and g.dtype == z.dtype:
            return getattr(kernel, into)(g, z, *rest, **options, **{into: g})  # type: ignore[no-any-return]
        return kernel(g, z, *rest, **options)  # type: ignore[no-any-return]

    return derivative


def relu(input: Tensor, inplace: bool = False) -> Activation:
    return Activation(input, torch.relu, inplace, is_relu=True)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Activation:
    return Activation(
        input,
        lambda z: F.hardtanh(z, min_val, max_val),
        inplace,
        mask=lambda z: (z > min_val) & (z < max_val),
        bounds=(float(min_val), float(max_val)),
        is_gate=True,
    )


def relu6(input: Tensor, inplace: bool = False) -> Activation:
    return hardtanh(input, 0.0, 6.0, inplace)


def clamp(input: Tensor, min: Any = None, max: Any = None) -> Activation | None:
    """``clamp(min=0)`` is ReLU and ``clamp(0, 6)`` is ReLU6; other bounds are guards against bad numbers."""
    upper = math.inf if max is None else max
    if isinstance(min, Tensor) or isinstance(upper, Tensor) or min is None or min != 0 or upper <= 0:
        return None
    return Activation(
        input,
        lambda z: z.clamp(min, max),
        mask=(lambda z: z >= 0) if max is None else (lambda z: (z > 0) & (z < upper)),  # at the bounds as PyTorch 2.15
        bounds=(0.0, float(upper)),
        is_gate=max is not None,
    )


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Activation:
    return Activation(
        input, lambda z: F.leaky_relu(z, negative_slope), inplace, mask=lambda z: z > 0, slope=negative_slope
    )


def rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Activation | None:
    return None if training else leaky_relu(input, (lower + upper) / 2, inplace)  # random slopes cannot be replayed


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Activation:
    return Activation(input, lambda z: F.threshold(z, threshold, value), inplace, mask=lambda z: z > threshold)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Activation:
    return Activation(
        input,
        lambda z: F.softplus(z, beta, threshold),
        derivative=derivative_by(aten.softplus_backward, beta, threshold),
        is_gate=True,
    )


def prelu(input: Tensor, weight: Tensor) -> Activation:
    return Activation(input, lambda z: F.prelu(z, weight))


def tanh(input: Tensor) -> Activation:
    return Activation(input, torch.tanh, derivative=derivative_by(aten.tanh_backward), of_output=True, is_gate=True)


def smooth(
    function: Callable[..., Tensor],
    kernel: Any = None,
    is_gate: bool = False,
    is_activation: bool = True,
) -> Callable[..., Activation]:
    """A builder for a function of one tensor, whatever numbers follow it, in place or not."""

    def build(input: Tensor, *rest: Any, inplace: bool = False, **options: Any) -> Activation:
        if rest and isinstance(rest[-1], bool):
            *rest, inplace = rest  # type: ignore[assignment]
        call: Unary = lambda z: function(z, *rest, **options)  # noqa: E731
        derivative = None if kernel is None else derivative_by(kernel, *rest, **options)
        return Activation(input, call, inplace, derivative=derivative, is_gate=is_gate, is_activation=is_activation)

    return build


ACTIVATIONS: dict[str, Callable[..., Activation | None]] = {
    "relu": relu,
    "relu6": relu6,
    "hardtanh": hardtanh,
    "clamp": clamp,
    "leaky_relu": leaky_relu,
    "rrelu": rrelu,
    "threshold": threshold,
    "_threshold": threshold,
    "softplus": softplus,
    "prelu": prelu,
    "silu": smooth(F.silu, aten.silu_backward),
    "gelu": smooth(F.gelu, aten.gelu_backward),
    "hardswish": smooth(F.hardswish, aten.hardswish_backward),
    "mish": smooth(F.mish, aten.mish_backward),
    "elu": smooth(F.elu),
    "selu": smooth(F.selu),
    "celu": smooth(F.celu),
    "tanh": tanh,
    "softsign": smooth(F.softsign),
    "tanhshrink": smooth(F.tanhshrink),
    "logsigmoid": smooth(F.logsigmoid),
    "log_sigmoid": smooth(F.logsigmoid),
    "hardshrink": smooth(F.hardshrink),
    "softshrink": smooth(F.softshrink),
    "sigmoid": smooth(torch.sigmoid, is_gate=True, is_activation=False),
    "hardsigmoid": smooth(F.hardsigmoid, is_gate=True, is_activation=False),
    "erf": smooth(torch.erf, is_gate=True, is_activation=False),
}
