"""What grows in the growth benchmark: its series, the lines of each, and what is run at every value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import drnet_captum as dc
from benchmarks.detection_memory import cheap
from benchmarks.detection_passes import drawn
from benchmarks.growth_fit import Law
from benchmarks.options import DTYPES
from benchmarks.side_captum import captum_panel
from benchmarks.sides import SIX, Call, our_panel
from benchmarks.subjects import Subject, build

OURS, CAPTUM = "drnet_captum", "captum"
CAMS = ("grad_cam_plus_plus", "layer_cam", "hires_cam", "xgrad_cam", "eigen_cam")
METHODS = (*SIX, *CAMS)  # in the order in which they are added
ASKED = {"Grad-CAM": ("grad_cam",), "Guided Backprop": ("guided_backprop",), "six methods": SIX}


@dataclass(frozen=True)
class Series:
    """What the values of some lines are.

    Attributes:
        name: of the series.
        unit: what one of the values is called.
        units: and several of them.
        law: how it is expected to grow.
    """

    name: str
    unit: str
    units: str
    law: Law = "line"


BATCH = Series("batch size", "image", "images")
SIDE = Series("image side", "side", "pixels", "power")
CLASSES = Series("classes", "class", "classes")
COUNT = Series("methods", "method", "methods", "steps")
LAYERS = Series("layers dissected", "layer", "layers")
MASKS = Series("D-RISE masks", "mask", "masks")


@dataclass(frozen=True)
class Line:
    """One line of a picture: what is run, by which library, at which values."""

    series: Series
    what: str
    library: str
    values: tuple[int, ...]

    @property
    def title(self) -> str:
        """As sentences and legends call it."""
        return self.what if self.library == OURS else f"{self.what}, Captum's loop"


@dataclass(frozen=True)
class Setting:
    """Where all lines are measured.

    Attributes:
        model: a timm name.
        device: where it runs.
        dtype: of the weights and images.
        seed: of the weights and images.
        side: of the images, in pixels, where it does not grow.
    """

    model: str
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    side: int = 224


def lines_of(setting: Setting, quick: bool = False) -> list[list[Line]]:
    """The lines, series by series. What does not grow is one: one image, one class."""
    depth = len(unit_names(setting))
    full = {
        BATCH: (1, 4, 8, 32),
        SIDE: (128, 224, 320, 512),
        CLASSES: (1, 5, 10, 20),
        COUNT: (1, 2, 3, 4, len(SIX), len(METHODS)),
        LAYERS: tuple(sorted({1, max(1, depth // 4), max(1, depth // 2), depth})),
        MASKS: (250, 500, 1000, 2000),
    }
    short = {BATCH: (1, 2), SIDE: (64, 96), CLASSES: (1, 2), COUNT: (1, 6), LAYERS: (1, depth), MASKS: (20, 40)}
    values = short if quick else full
    found = [[Line(series, what, OURS, values[series]) for what in ASKED] for series in (BATCH, SIDE, CLASSES)]
    # A loop is straight enough to be seen on fewer classes, and slow.
    few = {what: values[CLASSES][: 2 if what == "six methods" else 3] for what in ASKED}
    found[-1] += [Line(CLASSES, what, CAPTUM, few[what]) for what in ASKED]
    captums = tuple(value for value in values[COUNT] if value <= len(SIX))
    found.append([Line(COUNT, "one call", OURS, values[COUNT]), Line(COUNT, "one by one", CAPTUM, captums)])
    found.append([Line(LAYERS, "DRNet dissection", OURS, values[LAYERS])])
    found.append([Line(MASKS, "D-RISE", OURS, values[MASKS])])
    return found


def run_of(setting: Setting, line: Line, value: int) -> Call:
    """What is measured at a value of a line."""
    series = line.series
    x = images(setting, value if series == BATCH else 1, value if series == SIDE else setting.side)
    if series == MASKS:
        drise, target = dc.DRISE(cheap()), drawn(x.shape[2:], 1)
        x = x.float().sigmoid()  # colours, from 0 to 1
        return lambda: drise.attribute_detections(x, target, n_masks=value)
    subject = replace(subject_of(setting), x=x)
    if series == LAYERS:
        dissection = dc.DRNetDissection(subject.model, spread(unit_names(setting), value))
        dissection.unit_layers(x)  # looked up once for a model and size, whatever is then asked
        return lambda: dissection.attribute(x, target=0)
    classes = value if series == CLASSES else 1
    methods = METHODS[:value] if series == COUNT else ASKED[line.what]
    return our_panel(subject, methods, classes) if line.library == OURS else looped(subject, methods, classes)


def warmed_run(setting: Setting, line: Line, value: int) -> Call:
    """The same for a fresh process: the line's least value was run once, so that kernels and caches are there."""
    run_of(setting, line, line.values[0])()
    return run_of(setting, line, value)


def looped(subject: Subject, methods: tuple[str, ...], classes: int) -> Call:
    """Captum's classes one after another, without the graphs that some of its maps come with, and would keep."""
    call = captum_panel(subject, methods, classes)

    def run() -> Any:
        with torch.no_grad():
            return call()

    return run


@lru_cache(maxsize=1)
def subject_of(setting: Setting) -> Subject:
    """The model, with one image."""
    found = build(setting.model, setting.device, DTYPES[setting.dtype], setting.seed)
    return replace(found, x=images(setting, 1, setting.side))


def images(setting: Setting, count: int, side: int) -> Tensor:
    """(count, 3, side, side) of noise."""
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(setting.seed))
    return noise.to(setting.device, DTYPES[setting.dtype])


@lru_cache(maxsize=1)
def unit_names(setting: Setting) -> tuple[str, ...]:
    """All layers that can be dissected, input to output."""
    subject = subject_of(setting)
    return tuple(layer.name for layer in dc.DRNetDissection(subject.model).unit_layers(subject.x))


def spread(names: Sequence[str], count: int) -> list[str]:
    """``count`` of the names, evenly over all of them, the first always among them: each has the whole backward pass.

    Example:
        >>> spread("abcdefg", 1), spread("abcdefg", 3), spread("abc", 3)
        (['a'], ['a', 'd', 'g'], ['a', 'b', 'c'])
    """
    last = len(names) - 1
    return [names[round(last * i / max(1, count - 1))] for i in range(count)]
