"""The part of a model above a cut layer, run from the layer's output alone.

A model cannot be entered in the middle. It can be walked up to there at no cost: below the layer everything runs on the
device "meta", which knows shapes and computes nothing; at the layer the real activation is handed in. As every path to
the output passes through the layer, nothing from below is missing above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from drnet_captum.engine.recording import Recording
from drnet_captum.engine.rules import Switch
from drnet_captum.engine.state import attributes_kept, kept
from drnet_captum.engine.targets import check_output
from drnet_captum.engine.unwrap import uncompiled


class Tail:
    """``tail(activation)``: what the model answers when the layer puts out ``activation``.

    Args:
        forward_func: the model, or any function of tensors.
        layer: a layer of it that puts out one tensor.
        inputs: the inputs that the activations belong to, examples first. Their values do not matter at a cut layer.
        additional: further arguments of the model, with one row per example where they are tensors of that length.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        >>> x = torch.rand(5, 4)
        >>> tail = Tail(model, model[1], (x,))
        >>> torch.equal(tail(model[:2](x)), model(x))
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        inputs: Sequence[Tensor],
        additional: Sequence[Any] = (),
    ) -> None:
        self.forward_func, self.layer = forward_func, layer
        self.inputs, self.additional = tuple(inputs), tuple(additional)
        self._skips = True

    def __call__(self, activation: Tensor) -> Tensor:
        """The model's output for activations (n·N, C, …) of the N inputs, repeated n times; differentiable by them."""
        if self._skips:
            try:
                return self._run(activation, lambda value: value.to("meta"))
            except (RuntimeError, NotImplementedError, TypeError, ValueError):
                self._skips = False  # something above reads what was computed below: masks by value, sizes by .item()
        return self._run(activation, lambda value: value)

    def _run(self, activation: Tensor, place: Callable[[Tensor], Tensor]) -> Tensor:
        count = len(self.inputs[0])
        copies = len(activation) // count
        inputs = [repeated(place(v.detach()), copies) for v in self.inputs]
        additional = [repeated(a, copies) if has_rows(a, count) else a for a in self.additional]

        def hand_in(module: nn.Module, args: Any, out: Any) -> Any:
            with torch._C.DisableTorchFunction():  # or the recording takes a leaf for a parameter, a constant
                # Earlier runs of a layer that serves several times may be of other shapes.
                return tree_map_only(Tensor, lambda t: activation.clone() if t.shape == activation.shape else t, out)

        handle = self.layer.register_forward_hook(hand_in)
        try:
            with kept(self.forward_func, {v.device for v in self.inputs}), uncompiled():
                with attributes_kept(self.forward_func), _ShapesBelow(), Recording(Switch(), ruled=False):
                    output = check_output(self.forward_func(*inputs, *additional))
        finally:
            handle.remove()
        if output.is_meta != activation.is_meta:
            raise RuntimeError("the output does not depend on the layer alone")
        return output


class _ShapesBelow(TorchFunctionMode):
    """What touches a tensor on "meta" runs on "meta"."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves, _ = tree_flatten((args, kwargs))
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
            args, kwargs = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, (args, kwargs))
        return func(*args, **kwargs)


def has_rows(value: Any, count: int) -> bool:
    """Whether a further argument of the model has one row for each example."""
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count


def repeated(value: Tensor, copies: int) -> Tensor:
    """The examples, all of them again and again: (N, …) → (copies·N, …)."""
    return value if copies == 1 else value.repeat(copies, *[1] * (value.dim() - 1))
