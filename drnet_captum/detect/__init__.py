"""Object detectors as one kind of thing: what they find (`Detections`), and adapters that make one of any of them.

Each adapter is a file, and imports its package where it is used. Nothing here knows of attribution.
"""

from .adapt import as_detector
from .detections import Detections
from .detector import CallableDetector, Detector
from .find import find_detections
from .huggingface import HuggingFaceDetector
from .letterbox import Letterbox, Letterboxed, letterbox
from .load import load_detector
from .onnx import OnnxDetector
from .torchvision import TorchvisionDetector
from .ultralytics import UltralyticsDetector, detections_of

__all__ = [
    "CallableDetector",
    "Detections",
    "Detector",
    "HuggingFaceDetector",
    "Letterbox",
    "Letterboxed",
    "OnnxDetector",
    "TorchvisionDetector",
    "UltralyticsDetector",
    "as_detector",
    "detections_of",
    "find_detections",
    "letterbox",
    "load_detector",
]
