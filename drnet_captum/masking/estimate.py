"""Maps that are not finished, and how exact they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .sums import MaskSums, Normalize

EVERY = 250  # masks between two looks; fewer may all have missed the object


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

    @classmethod
    def of(cls, sums: MaskSums, normalize: Normalize, counts: list[int], dtype: torch.dtype) -> Estimate:
        """What has been summed so far, split by images."""
        maps, errors = (values.to(dtype) for values in (sums.maps(normalize), sums.standard_errors(normalize)))
        return cls(list(maps.split(counts)), list(errors.split(counts)), relative_error(sums, normalize), sums.n)


def relative_error(sums: MaskSums, normalize: Normalize) -> float:
    """The largest over the targets: the median over pixels of the standard error, over the map's range."""
    maps, errors = sums.maps(normalize).flatten(1), sums.standard_errors(normalize).flatten(1)
    spread = maps.amax(1) - maps.amin(1)
    typical = errors.median(1).values
    relative = torch.where(typical > 0, typical / spread.clamp_min(1e-30), 0.0)  # a map of no detection at all is exact
    return float(relative.max())
