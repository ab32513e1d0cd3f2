"""Deletion and insertion: how fast a class's probability goes and comes with the pixels that a map ranks first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from drnet_captum.engine.targets import Target

from .baselines import Baselines, filling
from .maps import check_images, heat_of, places
from .scoring import Score, scored

STEPS = 50
PERTURBATIONS = 32


class CurveOptions(TypedDict, total=False):
    """Options of `curve` that deletion and insertion hand on."""

    steps: int
    score: Score
    perturbations_per_eval: int


@dataclass(frozen=True)
class Curve:
    """The score on the way from one image to another.

    Attributes:
        values: (N, steps + 1), from no pixel exchanged to all of them.

    Example:
        >>> Curve(torch.tensor([[0.0, 1.0, 1.0]])).area
        tensor([0.7500])
    """

    values: Tensor

    @property
    def area(self) -> Tensor:
        """Under the curve over [0, 1], by trapezoids: (N,)."""
        return torch.trapezoid(self.values, dim=-1) / (self.values.shape[-1] - 1)


def between(start: Tensor, end: Tensor, place: Tensor, step: Tensor, steps: int) -> Tensor:
    """The images at some steps on the way: at step k, the first k·P/steps of the P pixels (rounded up) are exchanged.

    Args:
        start, end: (m, C, H, W).
        place: (m, H, W), each pixel's place in the order of exchange.
        step: (m,), from 0 to ``steps``.
        steps: how many there are.

    Returns:
        (m, C, H, W).

    Example:
        >>> ends = torch.zeros(3, 1, 1, 2), torch.ones(3, 1, 1, 2)
        >>> between(*ends, torch.tensor([[[1, 0]]]).expand(3, -1, -1), torch.arange(3), 2).flatten(1).tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    pixels = place.shape[1] * place.shape[2]
    exchanged = place * steps < (step.to(place.device) * pixels)[:, None, None]
    return torch.where(exchanged[:, None], end, start)


def curve(
    model: Callable[[Tensor], Any],
    start: Tensor,
    end: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    steps: int = STEPS,
    score: Score = "probability",
    perturbations_per_eval: int = PERTURBATIONS,
) -> Curve:
    """The class's score as one image becomes another, the pixels of the highest values first.

    All channels of a pixel go together; of pixels of equal values, the first in reading order goes first.

    Args:
        model: images (m, C, H, W) -> scores.
        start, end: (N, C, H, W).
        maps: (N, H, W) or (N, C, H, W), channels summed.
        target: a class, or one for each image.
        steps: the pixels are shared out evenly over them.
        score: the class's "probability" or "log_prob", or "logit": what the model returns.
        perturbations_per_eval: images in one forward pass; the result does not depend on it.

    Returns:
        `Curve` of (N, steps + 1).

    Raises:
        ValueError: sizes that do not fit, fewer than one step, NaN.

    Example:
        >>> model = lambda x: x.sum((1, 2, 3))
        >>> ends = torch.zeros(1, 1, 1, 4), torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
        >>> curve(model, *ends, ends[1], steps=2, score="logit").values
        tensor([[ 0.,  7., 10.]])
    """
    start, end = check_images(start), check_images(end)
    if start.shape != end.shape:
        raise ValueError(f"expected two images of one shape, got {tuple(start.shape)} and {tuple(end.shape)}")
    if steps < 1:
        raise ValueError(f"expected at least 1 step, got {steps}")
    place = places(heat_of(maps, start))
    owners = torch.arange(len(start)).repeat_interleave(steps + 1)

    def copies(rows: Tensor) -> Tensor:
        of = owners[rows].to(start.device)
        return between(start[of], end[of], place[of], rows % (steps + 1), steps)

    found = scored(model, copies, owners, start, target, score, perturbations_per_eval)
    return Curve(found.view(len(start), steps + 1))


def deletion(
    model: Callable[[Tensor], Any],
    inputs: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    baselines: Baselines = "mean",
    **options: Unpack[CurveOptions],
) -> Curve:
    """The class's probability as its pixels are taken away, most important first: the smaller the area the better.

    Args:
        inputs: images (N, C, H, W).
        baselines: what is put in their place: a number, a tensor, "mean" (of each image and channel) or "blur" (a
            gaussian of sigma 5).
        model, maps, target, and the options steps, score, perturbations_per_eval: as for `curve`.

    Returns:
        `Curve` of (N, steps + 1); the first value is that of the image.

    Source: Petsiuk et al. 2018, arXiv 1806.07421.

    Example:
        >>> model = lambda x: x.sum((1, 2, 3))
        >>> x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
        >>> deletion(model, x, x, steps=4, baselines=0.0, score="logit").values
        tensor([[10.,  6.,  3.,  1.,  0.]])
    """
    x = check_images(inputs)
    return curve(model, x, filling(x, baselines), maps, target, **options)


def insertion(
    model: Callable[[Tensor], Any],
    inputs: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    baselines: Baselines = "blur",
    **options: Unpack[CurveOptions],
) -> Curve:
    """The class's probability as its pixels are shown, most important first: the larger the area the better.

    Args:
        baselines: what they are shown upon; as for `deletion`.
        model, inputs, maps, target, options: as for `deletion`.

    Returns:
        `Curve` of (N, steps + 1); the last value is that of the image.

    Source: Petsiuk et al. 2018, arXiv 1806.07421.

    Example:
        >>> model = lambda x: x.sum((1, 2, 3))
        >>> x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
        >>> insertion(model, x, x, steps=4, baselines=0.0, score="logit").area
        tensor([6.2500])
    """
    x = check_images(inputs)
    return curve(model, filling(x, baselines), x, maps, target, **options)
