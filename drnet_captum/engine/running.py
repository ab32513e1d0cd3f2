"""How a model is run: in which memory layout and precision, and whether the passes are captured."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import torch

from drnet_captum.engine.inputs import MemoryFormat, check_memory_format

Precision = Literal["float32", "bfloat16"]


class RunOptions(TypedDict, total=False):
    """The keywords of every class that runs a model, and of ``explain``.

    Attributes:
        memory_format: "auto" runs images channels last on a CPU; "preserve" leaves them as they are; "channels_last".
        precision: "bfloat16" runs the model under autocast, and works the maps out in the inputs' own dtype;
            "float32" switches the caller's autocast off. None: as it is.
        compile: capture the passes at the first call for a shape of inputs, with weights prepared, and replay them at
            the next ones.
    """

    memory_format: MemoryFormat
    precision: Precision | None
    compile: bool


@dataclass(frozen=True)
class Running:
    """Those options, checked.

    Raises:
        ValueError: an unknown memory format or precision.

    Example:
        >>> Running(precision="bfloat16")
        Running(memory_format='auto', precision='bfloat16', compile=False)
    """

    memory_format: MemoryFormat = "auto"
    precision: Precision | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        check_memory_format(self.memory_format)
        if self.precision is not None and self.precision not in get_args(Precision):
            raise ValueError(
                f"expected precision to be None or one of {', '.join(get_args(Precision))}, got {self.precision!r}"
            )

    def casting(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """The autocast under which the model runs."""
        if self.precision is None or not torch.amp.is_autocast_available(device.type):
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")
