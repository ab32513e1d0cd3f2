"""Insertion and deletion, one image at a time: the areas that the games on photos report.

Source: Petsiuk et al. 2018, arXiv 1806.07421.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drnet_captum.metrics.baselines import blurred
from drnet_captum.metrics.curves import Curve, curve
from drnet_captum.metrics.curves import between as images_between
from drnet_captum.metrics.maps import places

STEPS = 40
BATCH = 25


def between(start: Tensor, end: Tensor, importance: Tensor, steps: int) -> Tensor:
    """Inputs on the way from one to the other, the most important pixels first.

    Args:
        start, end: (C, H, W).
        importance: (H, W); of equals, the first in reading order goes first.
        steps: how many; the pixels are shared out evenly.

    Returns:
        (steps + 1, C, H, W), ``start`` first and ``end`` last.
    """
    return images_between(start[None], end[None], places(importance[None]), torch.arange(steps + 1), steps)


def area(values: Tensor) -> float:
    """Under a curve over [0, 1], by trapezoids.

    Example:
        >>> area(torch.tensor([0.0, 1.0, 1.0]))
        0.75
    """
    return float(Curve(values).area)


def curve_area(model: nn.Module, start: Tensor, end: Tensor, importance: Tensor, label: int) -> float:
    """The area under the class's probability as ``start`` becomes ``end``."""
    ends = start[None], end[None]
    return area(curve(model, *ends, importance[None], label, steps=STEPS, perturbations_per_eval=BATCH).values[0])


def curve_areas(model: nn.Module, x: Tensor, importance: Tensor, label: int) -> dict[str, float]:
    """Insertion into the blurred input (the higher the better); deletion to the mean and to the blurred (the lower).

    Args:
        x: (3, H, W), normalised, so that its mean is 0.
        importance: (H, W).
    """
    soft = blurred(x[None])[0]
    return {
        "insertion": curve_area(model, soft, x, importance, label),
        "deletion to mean": curve_area(model, x, torch.zeros_like(x), importance, label),
        "deletion to blur": curve_area(model, x, soft, importance, label),
    }
