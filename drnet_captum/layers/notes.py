"""What is noted while a model runs once: what its modules put out, and its convolutions, norms and activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from drnet_captum.engine.watch import Watch


@dataclass(frozen=True)
class Put:
    """A tensor that was put out, and its node.

    Attributes:
        node: of the recorded graph.
        tensor: what was put out.
        version: of the tensor, at that time.
        module: the innermost module that was running, or that put it out.
        call: the number of the watched call; None for what a module put out.
        function: the plain name of the watched function.
    """

    node: Any
    tensor: Tensor
    version: int
    module: str
    call: int | None = None
    function: str = ""

    @property
    def is_overwritten(self) -> bool:
        """Whether it has been written into since."""
        return self.tensor._version != self.version

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


class Notes:
    """Everything that is put out with a graph while ``taken()`` lasts.

    Attributes:
        runs: by module, what every one of its runs put out; only the tensors that have a graph.
        calls: the watched calls, by node.
    """

    def __init__(self, model: nn.Module) -> None:
        self.runs: dict[str, list[list[Put]]] = {}
        self.calls: dict[Any, Put] = {}
        self._names = {module: name for name, module in model.named_modules() if name}
        self._inside = [""]

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        handles = [m.register_forward_pre_hook(self._enter) for m in self._names]
        handles += [m.register_forward_hook(self._leave) for m in self._names]
        try:
            with Watch(self._note):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._inside.append(self._names[module])

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        name = self._inside.pop()
        parts = out if isinstance(out, (tuple, list)) else (out,)
        tensors = [t for t in parts if isinstance(t, Tensor) and t.grad_fn is not None]
        self.runs.setdefault(name, []).append([Put(t.grad_fn, t, t._version, name) for t in tensors])

    def _note(self, number: int, function: str, tensor: Tensor) -> None:
        if tensor.grad_fn is not None:
            put = Put(tensor.grad_fn, tensor, tensor._version, self._inside[-1], number, function)
            self.calls[tensor.grad_fn] = put
