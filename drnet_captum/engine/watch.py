"""Seeing what chosen calls of torch functions put out while a model runs: a layer after its own norm and activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from drnet_captum.engine.activations import ACTIVATIONS
from drnet_captum.engine.parts import ARITHMETIC, CHOICES
from drnet_captum.engine.recording import canonical

CONVOLUTIONS = frozenset(f"conv{'_transpose' * transposed}{n}d" for n in (1, 2, 3) for transposed in (False, True))
NORMS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"})
WATCHED = CONVOLUTIONS | NORMS | ACTIVATIONS.keys() | ARITHMETIC.keys() | CHOICES

#: (number of the call among the watched ones, plain name of the function, what it put out).
Notice = Callable[[int, str, Tensor], None]


class Watch(TorchFunctionMode):
    """Counts the calls of convolutions, norms, activations and their parts, and hands on what they put out.

    A model that runs again on inputs of the same shape makes the same calls in the same order: a call's number names
    the place. Entered inside a :class:`Recording`, it sees the tensors as they are in the recorded graph.
    """

    def __init__(self, notice: Notice) -> None:
        super().__init__()
        self._notice = notice
        self._count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name, _ = canonical(func)
        if name in WATCHED and isinstance(result, Tensor):
            self._notice(self._count, name, result)
            self._count += 1
        return result
