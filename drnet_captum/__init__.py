"""Explain vision networks: every classical method as Captum attribution classes, on one recorded forward pass."""

from drnet_captum.attr.backprop import DeconvNet, GuidedBackprop
from drnet_captum.attr.cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from drnet_captum.attr.exact_cam import CAM
from drnet_captum.attr.gradient import GradXImage, Saliency, SmoothGrad
from drnet_captum.attr.gradient_free import EigenCAM, ScoreCAM
from drnet_captum.attr.guided_grad_cam import GuidedGradCAM
from drnet_captum.data.card import ModelCard, model_card
from drnet_captum.data.models import load_model
from drnet_captum.engine.tape import Tape
from drnet_captum.explain import explain
from drnet_captum.layers.discovery import LayerDiscoveryError, TargetLayer, find_cut_layers, find_target_layer
from drnet_captum.registry import Method, methods, register_with_captum

__version__ = "0.1.0"

__all__ = [
    "CAM",
    "DeconvNet",
    "EigenCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradXImage",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "LayerCAM",
    "LayerDiscoveryError",
    "Method",
    "ModelCard",
    "Saliency",
    "ScoreCAM",
    "SmoothGrad",
    "Tape",
    "TargetLayer",
    "XGradCAM",
    "explain",
    "find_cut_layers",
    "find_target_layer",
    "load_model",
    "methods",
    "model_card",
    "register_with_captum",
]
