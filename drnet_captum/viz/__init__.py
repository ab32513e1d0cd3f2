"""Maps made visible: scaled, laid over a photo, cut into boxes, set in panels, bound into a report."""

from .detections import detection_panel
from .filters import feature_grid, filter_grid
from .localize import Localization, localize
from .normalize import normalize, to_heat
from .overlay import overlay
from .panel import panel
from .report import (
    Report,
    ReportExemplar,
    ReportLayer,
    ReportModule,
    ReportPhoto,
    ReportUnit,
    render,
    save,
)

__all__ = [
    "Localization",
    "Report",
    "ReportExemplar",
    "ReportLayer",
    "ReportModule",
    "ReportPhoto",
    "ReportUnit",
    "detection_panel",
    "feature_grid",
    "filter_grid",
    "localize",
    "normalize",
    "overlay",
    "panel",
    "render",
    "save",
    "to_heat",
]
