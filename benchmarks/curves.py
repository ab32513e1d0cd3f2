"""Insertion and deletion: how fast a class's probability comes and goes with the pixels that a map ranks first.

Source: Petsiuk et al. 2018, arXiv 1806.07421.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

STEPS = 40
BATCH = 25
BLUR_SIZE, BLUR_SIGMA = 11, 5.0  # the paper's


def blurred(x: Tensor) -> Tensor:
    """(3, H, W) without its detail."""
    return gaussian_blur(x[None], [BLUR_SIZE, BLUR_SIZE], [BLUR_SIGMA, BLUR_SIGMA])[0]


def between(start: Tensor, end: Tensor, importance: Tensor, steps: int) -> Tensor:
    """Inputs on the way from one to the other, the most important pixels first.

    Args:
        start, end: (C, H, W).
        importance: (H, W); of equals, the first in reading order goes first.
        steps: how many; the pixels are shared out evenly.

    Returns:
        (steps + 1, C, H, W), ``start`` first and ``end`` last.
    """
    rank = importance.flatten().argsort(descending=True, stable=True).argsort()
    most = torch.arange(steps + 1) * rank.numel() / steps  # pixels exchanged so far
    exchanged = (rank[None] < most[:, None]).view(-1, 1, *importance.shape)
    return torch.where(exchanged, end, start)


def area(values: Tensor) -> float:
    """Under a curve over [0, 1], by trapezoids.

    Example:
        >>> area(torch.tensor([0.0, 1.0, 1.0]))
        0.75
    """
    return float(torch.trapezoid(values) / (len(values) - 1))


def curve_area(model: nn.Module, start: Tensor, end: Tensor, importance: Tensor, label: int) -> float:
    """The area under the class's probability as ``start`` becomes ``end``."""
    inputs = between(start, end, importance, STEPS).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = torch.cat([model(part).softmax(1)[:, label] for part in inputs.split(BATCH)])
    return area(found)


def curve_areas(model: nn.Module, x: Tensor, importance: Tensor, label: int) -> dict[str, float]:
    """Insertion into the blurred input (the higher the better); deletion to the mean and to the blurred (the lower).

    Args:
        x: (3, H, W), normalised, so that its mean is 0.
        importance: (H, W).
    """
    soft = blurred(x)
    return {
        "insertion": curve_area(model, soft, x, importance, label),
        "deletion to mean": curve_area(model, x, torch.zeros_like(x), importance, label),
        "deletion to blur": curve_area(model, x, soft, importance, label),
    }
