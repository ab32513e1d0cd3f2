"""ROAD: the score as pixels are removed and filled in from around them, so that their shape tells nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drnet_captum.engine.targets import Target

from .imputation import TOLERANCE, impute
from .maps import check_images, check_shares, heat_of, places
from .scoring import Score, scored

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NOISE = 0.01


@dataclass(frozen=True)
class Road:
    """Scores with pixels removed.

    Attributes:
        shares: of the pixels that are removed, S of them.
        morf: (N, S), the most relevant removed first.
        lerf: (N, S), the least relevant removed first.

    Example:
        >>> Road((0.5,), torch.tensor([[0.2]]), torch.tensor([[0.8]])).difference
        tensor([0.6000])
    """

    shares: tuple[float, ...]
    morf: Tensor
    lerf: Tensor

    @property
    def difference(self) -> Tensor:
        """LeRF − MoRF, the mean over the shares: (N,), the higher the better; 0 for a map that knows nothing.

        pytorch-grad-cam's ``ROADCombined`` is half of it.
        """
        return (self.lerf - self.morf).mean(1)


def road(
    model: Callable[[Tensor], Any],
    inputs: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = NOISE,
    score: Score = "probability",
    perturbations_per_eval: int = 32,
    tolerance: float = TOLERANCE,
    generator: torch.Generator | None = None,
) -> Road:
    """Remove and debias: what the score is with the most, and with the least relevant share of the pixels filled in.

    Removed pixels get the linear imputation of `impute` plus gaussian noise, without which a network could tell them
    by their smoothness. Of pixels of equal values, the first in reading order counts as the more relevant.

    Args:
        model: images (m, C, H, W) -> scores.
        inputs: images (N, C, H, W).
        maps: (N, H, W) or (N, C, H, W), channels summed.
        target: a class, or one for each image.
        shares: each above 0 and below 1; the number of pixels is rounded, and at least one is kept.
        noise: standard deviation, in the inputs' units; .01 is that of the authors' code.
        score: the class's "probability" or "log_prob", or "logit": what the model returns.
        perturbations_per_eval: images in one forward pass; the result does not depend on it.
        tolerance: of the solver, as for `impute`.
        generator: of the noise, on the CPU. None: seed 0.

    Returns:
        `Road` of (N, S) each.

    Raises:
        ValueError: sizes that do not fit, shares outside of (0, 1), negative noise, NaN.

    Source: Rong et al. 2022, arXiv 2202.00449.

    Example:
        >>> model = lambda x: x[:, 0, 0, 0]
        >>> x = torch.tensor([[[[8.0, 0.0, 0.0, 0.0]]]])
        >>> found = road(model, x, x, shares=[0.25], noise=0.0, score="logit")
        >>> found.morf.item(), found.lerf.item(), found.difference.item()
        (0.0, 8.0, 8.0)
    """
    x, shares = check_images(inputs), check_shares(shares)
    if not noise >= 0:
        raise ValueError(f"expected noise of at least 0, got {noise}")
    place = places(heat_of(maps, x))
    pixels = place.shape[1] * place.shape[2]
    counts = torch.tensor([min(round(share * pixels), pixels - 1) for share in shares])
    cases = 2 * len(shares)  # of an image: MoRF of every share, LeRF of every share
    owners = torch.arange(len(x)).repeat_interleave(cases)
    drawn = generator if generator is not None else torch.Generator().manual_seed(0)

    def copies(rows: Tensor) -> Tensor:
        of, case = owners[rows].to(x.device), rows % cases
        count = counts[case % len(shares)].to(x.device)[:, None, None]
        least = (case >= len(shares)).to(x.device)[:, None, None]
        removed = torch.where(least, place[of] >= pixels - count, place[of] < count)
        filled = impute(x[of], removed, tolerance=tolerance)
        if noise:
            # Image by image: what a generator gives depends on how much is asked for at once.
            each = [torch.randn(x.shape[1:], generator=drawn, device=drawn.device) for _ in rows]
            filled = torch.where(removed[:, None], filled + noise * torch.stack(each).to(filled), filled)
        return filled

    found = scored(model, copies, owners, x, target, score, perturbations_per_eval).view(len(x), 2, len(shares))
    return Road(shares, found[:, 0], found[:, 1])
