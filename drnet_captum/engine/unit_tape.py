"""A recorded forward pass in which many places are looked at, and backward passes that read all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from drnet_captum.engine import graph
from drnet_captum.engine.inputs import MemoryFormat, arranged, as_tuple, check_memory_format
from drnet_captum.engine.naming import find_module
from drnet_captum.engine.recording import Recording
from drnet_captum.engine.rules import Switch
from drnet_captum.engine.state import check_parameters, differentiable, kept, without_autocast
from drnet_captum.engine.targets import check_output
from drnet_captum.engine.unwrap import uncompiled
from drnet_captum.engine.watch import Watch


class Place(Protocol):
    """Where a tensor is met: at a watched call of the run, or (None) where a module puts it out.

    ``function`` and ``shape`` (of one example) are the call's, to be sure that it is the same one.
    """

    @property
    def call(self) -> int | None: ...
    @property
    def function(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def overwritten(self) -> bool: ...


class UnitTape:
    """One forward pass whose tensors at many places are read, and backward passes that read the gradients there.

    No gradient is kept: each is handed to a reader as the backward pass goes by, and let go. Hundreds of places cost
    one backward pass and the memory of their activations.

    Args:
        model: the model.
        places: by the names of modules.
        gradients: whether backward passes will be asked for. Without, no graph is made and no tensor kept.
        memory_format: as for :class:`Tape`.
    """

    def __init__(
        self,
        model: nn.Module,
        places: Mapping[str, Place],
        *,
        gradients: bool = True,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        check_memory_format(memory_format)
        self.model, self.places, self.gradients = model, dict(places), gradients
        self.memory_format: MemoryFormat = memory_format
        self._edges: dict[str, GradientEdge] = {}
        self._tensors: dict[str, Tensor] = {}
        self._numbered: dict[int, list[str]] = {}
        for name, place in self.places.items():
            if place.call is not None:
                self._numbered.setdefault(place.call, []).append(name)

    def forward(self, *inputs: Any, seen: Callable[[str, Tensor], None] | None = None) -> Tensor:
        """Run the model. ``seen`` gets the name and the tensor of every place when it is met, detached."""
        check_parameters(self.model)
        values = as_tuple(inputs[0])
        waiting = set(self.places)

        def meet(name: str, tensor: Tensor) -> None:
            waiting.discard(name)
            with torch._C.DisableTorchFunction():
                value = tensor.detach()
                if seen is not None:
                    seen(name, value)
                if self.gradients and tensor.requires_grad:
                    self._tensors[name] = value.clone() if self.places[name].overwritten else value
                    self._edges[name] = get_gradient_edge(tensor)

        def notice(number: int, function: str, tensor: Tensor) -> None:
            for name in self._numbered.get(number, ()):
                place = self.places[name]
                if (place.function, place.shape) == (function, tuple(tensor.shape[1:])):
                    meet(name, tensor)

        recording = Recording(Switch(), ruled=False)
        handles = []
        with differentiable(), kept(self.model, {v.device for v in values}), uncompiled():
            leaves = [v.detach().clone() for v in values]
            if self.gradients:
                leaves = [v.requires_grad_() if v.dtype.is_floating_point else v for v in leaves]
            copies = [arranged(v, self.memory_format) for v in leaves]
            copies = [c.clone() if c is v else c for c, v in zip(copies, leaves, strict=True)]
            try:
                for name in [name for name, place in self.places.items() if place.call is None]:
                    hook = lambda module, args, out, name=name: meet(name, only_tensor(out))  # noqa: E731
                    handles.append(find_module(self.model, name).register_forward_hook(hook))
                with recording, Watch(notice):
                    output = check_output(self.model(*copies, *inputs[1:]))
            finally:
                recording.forget()
                for handle in handles:
                    handle.remove()
        if waiting:
            raise RuntimeError(
                f"layer {min(waiting)!r} was not met: the model does not run the same steps at every call, so its "
                "units cannot be followed"
            )
        if self.gradients:
            looked_at = {edge.node for edge in self._edges.values()}
            # The gradient where it is read is that of the convolution's output, and not of its norm's.
            graph.fold_batch_norms(list(graph.nodes([output])), apart=looked_at)
        return output

    def backward(self, y: Tensor, read: Callable[[str, Tensor, Tensor], None], *, keep: bool = False) -> None:
        """``read(name, tensor, gradient of the sum of y by it)`` for every place, output to input.

        Places on which y does not depend are not read.

        Args:
            y: (N,), computed from the output.
            read: what is done with each; the gradient may be used only inside it.
            keep: keep the graph for further passes.
        """
        ends = graph.lowest({edge.node for edge in self._edges.values()})
        last = {name: edge for name, edge in self._edges.items() if edge.node in ends}  # whose nodes do not run
        hooks = [self._hook(name, edge, read) for name, edge in self._edges.items() if name not in last]
        try:
            with differentiable(), without_autocast(y.device):
                found = torch.autograd.grad(y.sum(), list(last.values()), retain_graph=keep, allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
        for name, gradient in zip(last, found, strict=True):
            if gradient is not None:
                read(name, self._tensors[name], gradient)

    def _hook(self, name: str, edge: GradientEdge, read: Callable[[str, Tensor, Tensor], None]) -> Any:
        def note(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[edge.output_nr]
            if gradient is not None:
                with torch.no_grad():
                    read(name, self._tensors[name], gradient)

        return edge.node.register_prehook(note)


def only_tensor(out: Any) -> Tensor:
    """A module's tensor, where it is handed on in a tuple with what has no graph."""
    parts = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]
    return max(parts, key=lambda t: t.requires_grad)
