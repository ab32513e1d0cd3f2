"""Object detectors as one kind of thing: what they find (`Detections`), and adapters that make one of any of them.

Each adapter is a file, and imports its package where it is used. Nothing here knows of attribution.
"""

from .adapt import as_detector
from .detections import Detections
from .detector import CallableDetector, Detector
from .find import find_detections

__all__ = ["CallableDetector", "Detections", "Detector", "as_detector", "find_detections"]
