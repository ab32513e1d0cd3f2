"""Maps made visible: scaled, laid over a photo, cut into boxes, set in a panel."""

from .localize import Localization, localize
from .normalize import normalize, to_heat
from .overlay import overlay
from .panel import panel

__all__ = ["Localization", "localize", "normalize", "overlay", "panel", "to_heat"]
