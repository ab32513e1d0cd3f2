"""One forward pass on one example, and what every module put out on its way, as nodes of the autograd graph."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from drnet_captum.engine.recording import Recording
from drnet_captum.engine.rules import Switch
from drnet_captum.engine.state import check_parameters, differentiable, kept
from drnet_captum.engine.targets import check_output
from drnet_captum.engine.unwrap import uncompiled


@dataclass(frozen=True)
class Call:
    """One run of a module: its name, and the nodes and shapes of the tensors that it put out."""

    name: str
    nodes: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Trace:
    """What a forward pass recorded.

    Attributes:
        output: the model's output; its ``grad_fn`` is None where it does not depend on the inputs.
        sources: the nodes of the inputs.
        calls: the modules that put out tensors, in the order in which they ended; only the last run of each, which is
            what a tape keeps of it.
    """

    output: Tensor
    sources: list[Any]
    calls: list[Call] = field(default_factory=list)


def trace(
    model: nn.Module,
    inputs: Sequence[Tensor],
    additional: Sequence[Any],
    inside: AbstractContextManager[Any] | None = None,
) -> Trace:
    """Run the model on the first example of the inputs, on any device ("meta" too), and leave nothing behind.

    ``inside`` is entered for the time of the run: a function mode that sees the calls as they are recorded.
    """
    check_parameters(model)
    names = {module: name for name, module in model.named_modules() if name}
    calls: dict[str, Call] = {}

    def note(module: nn.Module, args: Any, out: Any) -> None:
        calls.pop(names[module], None)
        tensors = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]
        tensors = [t for t in tensors if t.grad_fn is not None]
        if tensors:
            nodes = tuple(t.grad_fn for t in tensors)
            calls[names[module]] = Call(names[module], nodes, tuple(tuple(t.shape) for t in tensors))

    handles = []
    with differentiable(), kept(model, {v.device for v in inputs}), uncompiled():
        count = len(inputs[0])
        leaves = [v.detach()[:1].clone() for v in inputs]  # one example is enough
        additional = [a[:1] if isinstance(a, Tensor) and a.dim() and len(a) == count else a for a in additional]
        leaves = [v.requires_grad_() if v.dtype.is_floating_point else v for v in leaves]
        copies = [v.clone() for v in leaves]
        try:
            handles += [module.register_forward_hook(note) for module in names]
            with Recording(Switch()), inside or nullcontext():
                output = check_output(model(*copies, *additional))
        finally:
            for handle in handles:
                handle.remove()
    return Trace(output, [c.grad_fn for c in copies if c.grad_fn is not None], list(calls.values()))
