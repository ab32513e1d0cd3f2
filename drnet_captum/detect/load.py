"""Detectors by name: torchvision's, Hugging Face's, Ultralytics and ONNX files, and the caller's own code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from drnet_captum.data.checkpoint import StateDict, load_checkpoint, read_checkpoint

from .detector import Detector
from .own_code import own_detector

_FORMS = "torchvision:NAME, huggingface:NAME_OR_FOLDER, ultralytics:FILE.pt, onnx:FILE.onnx or python:FILE.py:NAME"
_OFFLINE = "without a network, pass checkpoint=FILE"


@dataclass(frozen=True)
class _Weights:
    """Where a model's weights come from: a file's, or else the published ones, or else at random."""

    state: StateDict | None
    source: str
    pretrained: bool


def load_detector(spec: str, *, checkpoint: str | Path | None = None, pretrained: bool | None = None) -> Detector:
    """A detector by name, in eval mode, on the CPU.

    - ``torchvision:NAME``: a builder of ``torchvision.models.detection``.
    - ``huggingface:NAME_OR_FOLDER``: an object-detection model of the hub, or one saved in a folder.
    - ``ultralytics:FILE.pt``: a detection model. The file is a pickle: reading it can run what is in it.
    - ``onnx:FILE.onnx``: a model for ONNX Runtime.
    - ``python:FILE.py:NAME`` or ``python:package.module:NAME``: the caller's own, as :func:`as_detector` takes it. This
      runs the file. A class is instantiated without arguments. The class names are its attribute ``categories``, or
      else ``categories`` or ``CLASSES`` of the file.

    Args:
        spec: one of these.
        checkpoint: a safetensors file, or torch weights (read with ``weights_only=True``), to load instead of the
            published ones. One with another number of classes gets a torchvision model with that number, whose class
            names are not known.
        pretrained: load the published weights; None means yes, unless there is a checkpoint. False without a checkpoint
            gives random weights.

    Raises:
        ValueError: an unknown name, a checkpoint that does not fit, ``checkpoint`` or ``pretrained`` for a file that
            has its own weights.
        FileNotFoundError: no such file.
        ImportError: a package that is not installed.
        OSError: the published weights could not be fetched.

    Example:
        >>> detector = load_detector("torchvision:ssdlite320_mobilenet_v3_large", pretrained=False)
        >>> detector.name, detector.label(0)
        ('ssdlite320_mobilenet_v3_large', 'person')
    """
    if checkpoint is not None and pretrained:
        raise ValueError("pretrained=True and checkpoint= exclude each other: pass one of them")
    kind, _, name = spec.partition(":")
    if not name or kind not in ("torchvision", "huggingface", "ultralytics", "onnx", "python"):
        near = get_close_matches(f"torchvision:{name or spec}", [f"torchvision:{n}" for n in _torchvision_names()], n=3)
        examples = near or ["torchvision:fasterrcnn_resnet50_fpn_v2"]
        raise ValueError(f"unknown detector {spec!r}: expected {_FORMS}, e.g. {', '.join(examples)}")
    if kind in ("ultralytics", "onnx", "python") and pretrained is not None:
        raise ValueError(f"pretrained={pretrained} is for published models: {spec} has the weights that it has")
    if kind in ("ultralytics", "onnx"):
        if checkpoint is not None:
            raise ValueError(f"{spec} names a file with its own weights: leave checkpoint out")
        if not Path(name).is_file():
            raise FileNotFoundError(f"no file at {name}: download the model first, or pass its path")
        return _ultralytics(name) if kind == "ultralytics" else _onnx(name)
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    weights = _Weights(state, f"the checkpoint {checkpoint}", pretrained is not False)
    if kind == "python":
        found = own_detector(name)
        if state is not None:
            if not isinstance(found.model, nn.Module):
                raise ValueError(f"{spec} is no PyTorch module that a checkpoint could be loaded into: leave it out")
            load_checkpoint(found.model, state, source=weights.source)
        return found
    return _torchvision(name, weights) if kind == "torchvision" else _huggingface(name, weights)


def _torchvision(name: str, weights: _Weights) -> Detector:
    from .torchvision import TorchvisionDetector

    names = _torchvision_names()
    if name not in names:
        near = get_close_matches(name, names, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(f'torchvision:{n}' for n in near)}?" if near else f"it has {', '.join(names)}"
        raise ValueError(f"torchvision has no detector called {name!r}: {hint}")
    published = torchvision.models.get_model_weights(name).DEFAULT
    labels = len(published.meta["categories"])
    count = labels

    def build(count: int) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=count)
        return model

    if weights.state is not None:
        model = build(labels)
        count = _label_count(model, weights.state, labels)
        model = model if count == labels else build(count)
        load_checkpoint(model, weights.state, source=weights.source)
    elif weights.pretrained:
        model = _fetched(f"torchvision:{name}", _OFFLINE, lambda: torchvision.models.get_model(name, weights=published))
    else:
        model = build(labels)
    categories = published.meta["categories"] if count == labels else None
    return _named(TorchvisionDetector(model.eval(), categories=categories), name)


def _label_count(model: nn.Module, state: StateDict, labels: int) -> int:
    """How many labels a checkpoint's model tells apart.

    Heads have one row a label, or several: where all that is shaped otherwise has rows in one and the same proportion
    to the model's, that tells. Elsewhere the model's own number, with which loading then says what does not fit.
    """
    own = model.state_dict()
    pairs = [(own[key].shape, state[key].shape) for key in own if key in state and own[key].shape != state[key].shape]
    if not pairs or not all(ours and ours[1:] == theirs[1:] for ours, theirs in pairs):
        return labels
    counts = {theirs[0] * labels / ours[0] for ours, theirs in pairs}
    count = counts.pop()
    return int(count) if not counts and count.is_integer() else labels


def _huggingface(name: str, weights: _Weights) -> Detector:
    from .huggingface import HuggingFaceDetector

    transformers = _package("transformers", "huggingface")
    hint = f"{_OFFLINE} and a folder with its config.json and preprocessor_config.json"

    def build() -> Any:
        if weights.state is None and weights.pretrained:
            return transformers.AutoModelForObjectDetection.from_pretrained(name)
        config = transformers.AutoConfig.from_pretrained(name)
        if hasattr(config, "use_pretrained_backbone"):
            config.use_pretrained_backbone = False
        return transformers.AutoModelForObjectDetection.from_config(config)

    model = _fetched(f"huggingface:{name}", hint, build)
    processor = _fetched(f"huggingface:{name}", hint, lambda: transformers.AutoImageProcessor.from_pretrained(name))
    if weights.state is not None:
        load_checkpoint(model, weights.state, source=weights.source)
    return _named(HuggingFaceDetector(model.eval(), processor), Path(name).name)


def _ultralytics(name: str) -> Detector:
    from .ultralytics import UltralyticsDetector

    model = _package("ultralytics", "ultralytics").YOLO(name)
    if isinstance(model.model, nn.Module):
        model.model.eval()
    return _named(UltralyticsDetector(model), Path(name).stem)


def _onnx(name: str) -> Detector:
    from .onnx import OnnxDetector

    return _named(OnnxDetector(name), Path(name).stem)


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models.detection)
    return names


def _fetched(spec: str, hint: str, fetch: Callable[[], Any]) -> Any:
    """What ``fetch`` gives, or an OSError that says what to do."""
    try:
        return fetch()
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise OSError(f"{spec} could not be fetched ({type(error).__name__}: {reason}): {hint}") from error


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'{error}: pip install "drnet-captum[{extra}]"') from error


def _named(detector: Detector, name: str) -> Detector:
    detector.name = name
    return detector
