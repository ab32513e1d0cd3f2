"""The one table: how the tests make each method of the registry, keep it fast, and what Captum calls it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import captum.attr as ca
from torch import nn

import drnet_captum as dc

LAYER = "relu2"  # of models.ConvNet, before the average over positions


@dataclass(frozen=True)
class Case:
    """One method.

    Attributes:
        init: keywords of the constructor, beside the model.
        fast: keywords of ``attribute`` that keep it to a few passes.
        twin: the class of Captum that it equals, if there is one.
        output: "input" for maps of the input's shape, "pixels" for (N, 1, H, W), "layer" for (N, 1, h, w).
        several: whether it takes a tuple of inputs.
    """

    output: str
    init: dict[str, Any] = field(default_factory=dict)
    fast: dict[str, Any] = field(default_factory=dict)
    twin: type[ca.Attribution] | None = None
    several: bool = True


AT_LAYER = {"layer": LAYER}

CASES = {
    "saliency": Case("input", twin=ca.Saliency),
    "grad_x_image": Case("input", twin=ca.InputXGradient),
    "smooth_grad": Case("input", fast={"n_samples": 3}),
    "deconvnet": Case("input", twin=ca.Deconvolution),
    "guided_backprop": Case("input", twin=ca.GuidedBackprop),
    "cam": Case("layer", AT_LAYER),
    "grad_cam": Case("layer", AT_LAYER, twin=ca.LayerGradCam),
    "grad_cam_plus_plus": Case("layer", AT_LAYER),
    "layer_cam": Case("layer", AT_LAYER),
    "hires_cam": Case("layer", AT_LAYER),
    "xgrad_cam": Case("layer", AT_LAYER),
    "eigen_cam": Case("layer", AT_LAYER),
    "score_cam": Case("layer", AT_LAYER, several=False),
    "guided_grad_cam": Case("input", AT_LAYER, twin=ca.GuidedGradCam),
    "rise": Case("input", fast={"n_masks": 60, "grid": (4, 4)}, several=False),
    "drnet": Case("pixels"),
}
NAMES = sorted(CASES)
OURS = [name for name in NAMES if name != "saliency"]  # Saliency is Captum's own class, handed on
TWINS = [name for name in OURS if CASES[name].twin]
INPUT_SIZE = [name for name in NAMES if CASES[name].output == "input"]
LAYER_SIZE = [name for name in NAMES if CASES[name].output == "layer"]


def shape_of(name: str, x: Any, grid: tuple[int, ...] = (6, 5)) -> tuple[int, ...]:
    """The shape of a method's maps of an input; ``grid`` is the layer's."""
    return {"input": tuple(x.shape), "pixels": (len(x), 1, *x.shape[2:]), "layer": (len(x), 1, *grid)}[
        CASES[name].output
    ]


def make(name: str, model: Any, **options: Any) -> Any:
    """The method on a model that has the layer of the table (or the one given)."""
    return dc.methods()[name].cls(model, **{**CASES[name].init, **options})


def make_twin(name: str, model: nn.Module, layer: nn.Module | None = None) -> Any:
    """Captum's class for the method."""
    twin = CASES[name].twin
    if not CASES[name].init:
        return twin(model)
    return twin(model, layer if layer is not None else model.get_submodule(LAYER))


def attribute(name: str, model: Any, inputs: Any, target: Any = None, **options: Any) -> Any:
    """One fast call of the method."""
    return make(name, model).attribute(inputs, target=target, **{**CASES[name].fast, **options})
