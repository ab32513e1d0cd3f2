"""Explain vision networks: every classical method as Captum attribution classes, on one recorded forward pass.

Names are imported when they are first used, so that the command line's help does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drnet_captum import data, metrics, viz
    from drnet_captum.attr.backprop import DeconvNet, GuidedBackprop
    from drnet_captum.attr.cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
    from drnet_captum.attr.drise import DRISE
    from drnet_captum.attr.drnet import DRNet
    from drnet_captum.attr.drnet_dissection import DRNetDissection
    from drnet_captum.attr.exact_cam import CAM
    from drnet_captum.attr.gradient import GradXImage, Saliency, SmoothGrad
    from drnet_captum.attr.gradient_free import EigenCAM, ScoreCAM
    from drnet_captum.attr.guided_grad_cam import GuidedGradCAM
    from drnet_captum.attr.rise import RISE
    from drnet_captum.data.card import ModelCard, model_card
    from drnet_captum.data.models import load_model
    from drnet_captum.detect.adapt import as_detector
    from drnet_captum.detect.detections import Detections
    from drnet_captum.detect.find import find_detections
    from drnet_captum.dissect.dissection import Dissection
    from drnet_captum.engine.tape import Tape
    from drnet_captum.explanation import explain
    from drnet_captum.layers.discovery import LayerDiscoveryError, TargetLayer, find_cut_layers, find_target_layer
    from drnet_captum.layers.layout import to_map
    from drnet_captum.logits import LogitsOf
    from drnet_captum.reconstruct.reconstruction import Reconstruction
    from drnet_captum.reconstruct.subnetwork import SubNetwork
    from drnet_captum.registry import Method, methods, register_with_captum
    from drnet_captum.scale.dissection_run import dissect_dataset
    from drnet_captum.scale.explanation_run import explain_dataset

__version__ = "0.1.0"

_HOMES = {
    "attr.backprop": ("DeconvNet", "GuidedBackprop"),
    "attr.cam": ("GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM", "XGradCAM"),
    "attr.drise": ("DRISE",),
    "attr.drnet": ("DRNet",),
    "attr.drnet_dissection": ("DRNetDissection",),
    "attr.exact_cam": ("CAM",),
    "attr.gradient": ("GradXImage", "Saliency", "SmoothGrad"),
    "attr.gradient_free": ("EigenCAM", "ScoreCAM"),
    "attr.guided_grad_cam": ("GuidedGradCAM",),
    "attr.rise": ("RISE",),
    "data.card": ("ModelCard", "model_card"),
    "data.models": ("load_model",),
    "detect.adapt": ("as_detector",),
    "detect.detections": ("Detections",),
    "detect.find": ("find_detections",),
    "dissect.dissection": ("Dissection",),
    "engine.tape": ("Tape",),
    "explanation": ("explain",),
    "layers.discovery": ("LayerDiscoveryError", "TargetLayer", "find_cut_layers", "find_target_layer"),
    "layers.layout": ("to_map",),
    "logits": ("LogitsOf",),
    "reconstruct.reconstruction": ("Reconstruction",),
    "reconstruct.subnetwork": ("SubNetwork",),
    "registry": ("Method", "methods", "register_with_captum"),
    "scale.dissection_run": ("dissect_dataset",),
    "scale.explanation_run": ("explain_dataset",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CAM",
    "DRISE",
    "RISE",
    "DRNet",
    "DRNetDissection",
    "DeconvNet",
    "Detections",
    "Dissection",
    "EigenCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradXImage",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "LayerCAM",
    "LayerDiscoveryError",
    "LogitsOf",
    "Method",
    "ModelCard",
    "Reconstruction",
    "Saliency",
    "ScoreCAM",
    "SmoothGrad",
    "SubNetwork",
    "Tape",
    "TargetLayer",
    "XGradCAM",
    "as_detector",
    "data",
    "dissect_dataset",
    "explain",
    "explain_dataset",
    "find_cut_layers",
    "find_detections",
    "find_target_layer",
    "load_model",
    "methods",
    "metrics",
    "model_card",
    "register_with_captum",
    "to_map",
    "viz",
]


def __getattr__(name: str) -> Any:
    if name in ("data", "metrics", "viz"):
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
