"""How images are masked, and what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .sums import Normalize, check_normalize


@dataclass(frozen=True)
class MaskingOptions:
    """The keywords that ``RISE.attribute`` and ``DRISE.attribute`` share, checked."""

    n_masks: int = 5000
    grid: tuple[int, ...] = (16, 16)
    keep_probability: float = 0.5
    baselines: Any = None
    perturbations_per_eval: int | None = None
    normalize: Normalize = "mean"
    generator: torch.Generator | None = None
    show_progress: bool = False
    stop_at: float | None = None

    def __post_init__(self) -> None:
        check_normalize(self.normalize)
        if self.perturbations_per_eval is not None and self.perturbations_per_eval < 1:
            raise ValueError(f"expected perturbations_per_eval of at least 1, got {self.perturbations_per_eval}")
        if self.stop_at is not None and not self.stop_at > 0:
            raise ValueError(f"expected stop_at, a relative standard error, above 0, got {self.stop_at}")
        if self.generator is not None and self.generator.device.type != "cpu":
            raise ValueError(
                f"expected a generator on the CPU, got one on {self.generator.device}: the masks are then the same on "
                "every device"
            )

    def grid_of(self, dimensions: int) -> tuple[int, ...]:
        """The grid for so many dimensions: a square one is taken along each, of signals and volumes too."""
        square = len(self.grid) == 2 and self.grid[0] == self.grid[1]
        return (self.grid[0],) * dimensions if square else tuple(self.grid)
