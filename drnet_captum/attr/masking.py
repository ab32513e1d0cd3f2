"""What RISE and D-RISE share: estimates on the way, and maps in the form in which the images came."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drnet_captum.masking.run import EVERY, MaskedRun, MaskingOptions, relative_error, run_through

__all__ = ["EVERY", "Estimate", "MaskedRun", "MaskingOptions", "estimate", "run_through"]


@dataclass(frozen=True)
class Estimate:
    """The maps so far.

    Attributes:
        maps: for each image (M_i, H, W), a map of each of its targets.
        standard_errors: of the same shapes, in the maps' units.
        relative_error: the largest over the targets: the median over pixels of the standard error, divided by the map's
            max − min.
        n_masks: masks so far.
    """

    maps: list[Tensor]
    standard_errors: list[Tensor]
    relative_error: float
    n_masks: int

    def reaches(self, stop_at: float | None) -> bool:
        """Whether it is as exact as was asked for; fewer than 250 masks are too few to tell."""
        return stop_at is not None and self.n_masks >= EVERY and self.relative_error < stop_at


def estimate(run: MaskedRun, counts: list[int], dtype: torch.dtype) -> Estimate:
    """What a run has found so far, split by images."""
    maps, errors = (
        values.to(dtype).split(counts)
        for values in (run.sums.maps(run.options.normalize), run.sums.standard_errors(run.options.normalize))
    )
    return Estimate(list(maps), list(errors), relative_error(run.sums, run.options.normalize), run.done)
