"""Captum's classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captum.attr as captum_attr
import torch

from benchmarks.agreement import Reach
from benchmarks.sides import Call, Side
from benchmarks.subjects import Subject

REACH = Reach(relu_modules=True, channels_first=True)
CLASSES: dict[str, Callable[[Subject], Any]] = {
    "saliency": lambda s: captum_attr.Saliency(s.model),
    "grad_x_image": lambda s: captum_attr.InputXGradient(s.model),
    "guided_backprop": lambda s: captum_attr.GuidedBackprop(s.model),
    "deconvnet": lambda s: captum_attr.Deconvolution(s.model),
    "grad_cam": lambda s: captum_attr.LayerGradCam(s.model, s.layer),
    "guided_grad_cam": lambda s: captum_attr.GuidedGradCam(s.model, s.layer),
}


def captum(method: str) -> Side:
    """One method of Captum."""

    def prepare(subject: Subject) -> Call:
        made = CLASSES[method](subject)
        return lambda: made.attribute(subject.x, target=subject.targets)

    return Side("captum", prepare, REACH)


def captum_panel(subject: Subject, methods: tuple[str, ...], classes: int) -> Call:
    """Many methods' maps of the first classes, one class of one method after another."""
    made = {method: CLASSES[method](subject) for method in methods}

    def run() -> Any:
        return {
            method: torch.stack([one.attribute(subject.x, target=c) for c in range(classes)])
            for method, one in made.items()
        }

    return run
