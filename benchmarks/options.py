"""What a run of the benchmarks is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.pairs import RESULTS

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
MODES = ("same", "captured", "best")
DETECTOR = "torchvision:ssdlite320_mobilenet_v3_large"


class UnsuitableError(ValueError):
    """What is asked for cannot be measured here, or not written there."""


@dataclass(frozen=True)
class Options:
    """The command line's options, as every suite gets them.

    Attributes:
        device: "cpu" or "cuda".
        dtype: of the same-precision mode: "float32", "float64" or "bfloat16".
        models: timm's names; empty: those that a suite comes with.
        batch_sizes: empty: those that a suite comes with, for the device.
        pairs: how many pairs a row has at most.
        seconds: about how long a row may take; it has at least three pairs.
        quick: tiny models and one or two pairs, to try it out.
        out: folder of the results.
        peers: whether libraries other than Captum are asked.
        modes: "same" precision on both sides, ours also with its passes "captured", "best" for each side's fastest.
        detector: of D-RISE; random weights.
        seed: of weights and images.

    Raises:
        UnsuitableError: a device that is not there, an unknown dtype or mode.

    Example:
        >>> Options(quick=True).pairs_at_most
        1
    """

    device: str = "cpu"
    dtype: str = "float32"
    models: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    pairs: int = 15
    seconds: float = 60.0
    quick: bool = False
    out: Path = RESULTS
    peers: bool = True
    modes: tuple[str, ...] = MODES
    detector: str = DETECTOR
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UnsuitableError(f"expected a dtype of {', '.join(DTYPES)}, got {self.dtype!r}")
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown:
            raise UnsuitableError(f"expected modes of {', '.join(MODES)}, got {', '.join(unknown)}")
        if self.is_cuda and not torch.cuda.is_available():
            raise UnsuitableError(
                f"no CUDA device is there for {self.device!r}: pass --device cpu, or run it where one is"
            )

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def pairs_at_most(self) -> int:
        return 1 if self.quick else self.pairs

    def batches(self, cpu: tuple[int, ...], cuda: tuple[int, ...]) -> tuple[int, ...]:
        """The batch sizes that were asked for, or a suite's own for the device."""
        return self.batch_sizes or ((2,) if self.quick else cuda if self.is_cuda else cpu)
