"""The function mode under which a model is recorded: it sees every torch function called, by a module or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from drnet_captum.engine import lean
from drnet_captum.engine.activations import ACTIVATIONS, Activation, Unary
from drnet_captum.engine.parts import CHOICES, PARTS, ZEROS, Expression, Ledger
from drnet_captum.engine.rules import PiecewiseLinear, Smooth, Switch, derivative_of
from drnet_captum.engine.waiting import LOOKS, Waiting

ALIASES = {
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "true_divide": "div",
    "truediv": "div",
    "negative": "neg",
    "clip": "clamp",
    "clamp_min": "clamp",
    "max": "maximum",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "radd": "add",
    "rmul": "mul",
    "special_expit": "sigmoid",
    "special_erf": "erf",
}
CONTAINERS = (Tensor, list, tuple)  # what a parameter comes as, or in
INPLACE_OPERATORS = {f"__i{name}__" for name in ("add", "sub", "mul", "div", "truediv", "pow")}


@cache
def canonical(func: Callable[..., Any]) -> tuple[str, bool]:
    """The plain name of a torch function, and whether it writes into its first argument: ``mul_`` → ("mul", True)."""
    name = getattr(func, "__name__", "")
    inplace = name in INPLACE_OPERATORS
    if name.startswith("__") and name.endswith("__"):
        name = name[3:-2] if inplace else name[2:-2]
    elif name.endswith("_"):
        name, inplace = name[:-1], True
    return ALIASES.get(name, name), inplace


class Recording(TorchFunctionMode):
    """Makes activations nodes that follow ``switch``, frozen layers lean nodes, and parameters constants.

    Args:
        switch: what the nodes look at.
        ruled: whether rules other than the plain one will be asked for. Without, what PyTorch does as well or better
            is left to it.
        small: how many numbers a tensor has, at least, for a lean node to pay. None: ``lean.SMALL``.
    """

    def __init__(self, switch: Switch, ruled: bool = True, small: int | None = None) -> None:
        super().__init__()
        self.switch = switch
        self._ruled = ruled
        self._terms = lean.Terms(lean.SMALL if small is None else small)
        self.before_norms: frozenset[int] = frozenset()  # ids of weights whose convolutions wait for a batch norm
        self._waiting: Waiting | None = None  # what the last call put out
        self.gates: set[Any] = set()  # autograd nodes that look like activations and are gates
        self._ledger = Ledger()

    def forget(self) -> None:
        """Drop what is only of use while the model runs."""
        self._ledger, self._waiting = Ledger(), None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in LOOKS:
            return func(*args, **kwargs)
        if self._waiting is not None:
            joined = self._joined(func, args, kwargs)
            if joined is not None:
                return joined
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        waits = len(args) > 1 and id(args[1]) in self.before_norms
        # Leaves that require gradients are parameters (the tape's own leaves never come here): constants to us.
        args = tuple([constant(a) if isinstance(a, CONTAINERS) else a for a in args])
        if kwargs:
            kwargs = {key: constant(value) for key, value in kwargs.items()}
        name, inplace = canonical(func)
        if name in ("register_hook", "retain_grad"):
            self.switch.in_place = False  # the model keeps gradients
        if name in ACTIVATIONS:
            if not self._ruled and args and not self._terms.pays(args[0]):
                return func(*args, **kwargs)
            return self._activation(name, inplace, func, args, kwargs)
        if self._ruled and name in PARTS:
            return self._part(name, inplace, func, args, kwargs)
        if name in lean.LAYERS and args:
            terms = replace(self._terms, waits=True) if waits else self._terms
            result = lean.LAYERS[name](terms, *args, **kwargs)
            if isinstance(result, Waiting):
                self._waiting = result
            if result is not None:
                return result
        return func(*args, **kwargs)

    def _joined(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The batch norm of the convolution that waits for it. Any other call ends the waiting."""
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        if func is F.batch_norm and args and args[0] is waiting and not waiting.is_settled:
            rest = {key: constant(value) for key, value in kwargs.items()}
            return lean.batch_norm(self._terms, waiting, *map(constant, args[1:]), **rest)
        waiting.values()  # now, as the call may write into what the convolution reads
        return None

    def _activation(
        self, name: str, inplace: bool, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        found = None if "out" in kwargs else ACTIVATIONS[name](*args, **kwargs)
        if (
            found is None
            or not found.z.requires_grad
            or not (self._ruled or (found.is_piecewise and self._terms.pays(found.z)))
        ):
            return func(*args, **kwargs)
        inplace = inplace or found.inplace
        expression = self._ledger.after_activation(found)
        if found.is_activation and not self._ledger.is_hard_sigmoid(found):
            result = self._node(found, (lambda z: func(*args, **kwargs)) if inplace else None)
        else:
            result = func(*args, **kwargs)
            self.gates.add(result.grad_fn)
        self._ledger.record(result, expression)
        return result

    def _part(
        self, name: str, inplace: bool, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        expression = None if kwargs else self._ledger.after(name, func, args)
        if expression is not None and self._completes_activation(name, expression, args):
            whole = Activation(expression.base, expression.function)
            overwrite = (lambda z: z.copy_(whole.call(z))) if inplace and args[0] is expression.base else None
            result = self._node(whole, overwrite)
            if inplace and args[0] is not expression.base:
                result = args[0].copy_(result)
        else:
            result = func(*args, **kwargs)
        self._ledger.record(result, expression)
        if name in ZEROS:
            self._ledger.record_zeros(result)
        return result

    @staticmethod
    def _completes_activation(name: str, expression: Expression, args: tuple[Any, ...]) -> bool:
        if not expression.base.requires_grad:
            return False
        both = len(args) == 2 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor)
        return name in CHOICES or (name == "mul" and both and expression.gated)

    def _node(self, activation: Activation, overwrite: Unary | None) -> Tensor:
        """The activation as a node of the graph; ``overwrite`` writes it into its input, None: out of place."""
        z, call, inplace = activation.z, activation.call, overwrite is not None
        run = overwrite or call
        if activation.is_relu:
            result = PiecewiseLinear.apply(z, None, 0.0, run, inplace, self.switch)
        elif activation.mask is not None:
            mask = activation.mask(z.detach())
            result = PiecewiseLinear.apply(z, mask, activation.slope, run, inplace, self.switch)
        else:
            saved = z.detach().clone() if inplace and not activation.of_output else z.detach()
            derivative = activation.derivative or derivative_of(call)
            result = Smooth.apply(z, saved, run, derivative, activation.of_output, inplace, self.switch)
        return result  # type: ignore[no-any-return]


def constant(value: Any) -> Any:
    """A parameter out of the graph; lists of them too, as recurrent layers pass them. What waits, as it is needed."""
    if isinstance(value, Tensor):
        if type(value) is Waiting:
            return value.settled()
        return value.detach() if value.requires_grad and value.is_leaf else value
    if type(value) in (list, tuple) and any(isinstance(v, Tensor) for v in value):
        return type(value)(constant(v) for v in value)
    return value
