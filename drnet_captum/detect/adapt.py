"""Any detector as a :class:`Detector`, by what it is."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from .detector import CallableDetector, Detector

# The package that a class of the detector comes from → its adapter: none of them is imported to ask.
_ADAPTERS = {
    "torchvision.models.detection": ("torchvision", "TorchvisionDetector"),
    "transformers": ("huggingface", "HuggingFaceDetector"),
    "ultralytics": ("ultralytics", "UltralyticsDetector"),
    "onnxruntime": ("onnx", "OnnxDetector"),
}


def as_detector(
    detector: Any, *, image_range: tuple[float, float] | None = None, categories: Sequence[str] | None = None
) -> Detector:
    """A detector that D-RISE can ask: itself, or inside the adapter for its kind.

    torchvision's detection models, Hugging Face's for object detection, Ultralytics models and ONNX Runtime sessions
    have adapters of their own (with options, where they are constructed by hand); anything else that can be called with
    images is taken to return, for each, ``Detections`` or a dict with boxes, scores, and labels or class_probs.

    Args:
        detector: any of them.
        image_range: least and largest value of an image, for a function of the caller's.
        categories: class names, in the order of the class indices.

    Raises:
        TypeError: something that cannot be called.
        ValueError: ``image_range`` for a detector whose adapter knows it.

    Example:
        >>> import torch
        >>> detector = as_detector(lambda images: [{}] * len(images), image_range=(0, 1))
        >>> detector.image_range
        (0, 1)
    """
    own = isinstance(detector, Detector)
    adapter = None if own else _adapter(detector)
    if own or adapter is not None:
        if image_range is not None:
            raise ValueError(f"image_range is for functions: {type(detector).__name__} has a range of its own")
        if own:
            if categories is not None:
                raise ValueError(
                    "categories are given where the detector is constructed, got a Detector and categories"
                )
            found: Detector = detector
            return found
        module, name = adapter  # type: ignore[misc]
        made: Detector = getattr(importlib.import_module(f".{module}", __package__), name)(
            detector, categories=categories
        )
        return made
    if not callable(detector):
        raise TypeError(f"expected a detector, images (B, 3, H, W) -> a list, got {type(detector).__name__}")
    return CallableDetector(detector, image_range, categories)


def _adapter(detector: Any) -> tuple[str, str] | None:
    if isinstance(detector, nn.DataParallel):
        detector = detector.module
    homes = [cls.__module__ for cls in type(detector).__mro__]
    for package, adapter in _ADAPTERS.items():
        if any(home == package or home.startswith(f"{package}.") for home in homes):
            return adapter
    return None
