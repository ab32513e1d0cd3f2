"""The report: everything found about one network, as one HTML file that needs nothing beside itself."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from .html import page, part
from .pictures import Image8, Pictures

_PATCH, _MAP, _PHOTO = 96, 320, 448  # pixels of the longer side, at most
_BARS = 8  # modules that get a bar of their own
_UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class ReportExemplar:
    """A patch (h, w, 3) uint8 that excited a unit, the unit's value there, and the photo it is from."""

    image: Image8
    value: float
    source: str


@dataclass(frozen=True)
class ReportUnit:
    """One unit of a layer.

    Attributes:
        index: its number in the layer.
        label, family, score: what it detects, the kind of thing that is, and its selectivity in [0, 1].
        concepts: further names by their source, e.g. {"masks": "wheel"}.
        served: (class name, importance), the most important first; negative speaks against the class.
        exemplars: strongest first; the first is the unit's picture where it has no filter.
        stimuli: (stimulus, response), strongest first.
        projection, filter: (h, w, 3) uint8: the first exemplar led back to pixels, the unit's own weights.
    """

    index: int
    label: str
    family: str = _UNLABELLED
    score: float = 0.0
    concepts: Mapping[str, str] = field(default_factory=dict)
    served: Sequence[tuple[str, float]] = ()
    exemplars: Sequence[ReportExemplar] = ()
    stimuli: Sequence[tuple[str, float]] = ()
    projection: Image8 | None = None
    filter: Image8 | None = None


@dataclass(frozen=True)
class ReportLayer:
    """One layer: its units in the order they are shown, and how many of *all* its units each family has."""

    name: str
    kind: str
    grid: tuple[int, int]
    units: Sequence[ReportUnit]
    families: Mapping[str, int]


@dataclass(frozen=True)
class ReportModule:
    """Units that work together.

    Attributes:
        members: (layer name, unit index), the most typical first.
        summary: a line about them, e.g. "12 units stand for 31".
        shares: one number a photo of the report: the module's part of the evidence, negative where it speaks against
            the answer. They add up to the whole map's.
        maps: one (H, W, 3) uint8 a photo of the report: the module's map laid over it.
    """

    name: str
    members: Sequence[tuple[str, int]]
    summary: str = ""
    shares: Sequence[float] = ()
    maps: Sequence[Image8] = ()


@dataclass(frozen=True)
class ReportPhoto:
    """One photo (H, W, 3) uint8, the model's answers to it, and the whole map of one answer laid over it."""

    name: str
    image: Image8
    answers: Sequence[tuple[str, float]]
    explained: str
    map: Image8


@dataclass(frozen=True)
class Report:
    """What `render` shows; parts that are empty are left out of the page. Facts are (name, value) pairs."""

    title: str
    model: str
    photos: Sequence[ReportPhoto] = ()
    layers: Sequence[ReportLayer] = ()
    modules: Sequence[ReportModule] = ()
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Bar:
    """A part of the whole as a bar that begins where the one before it ended, in per cent of the axis."""

    name: str
    share: float
    left: float
    width: float


def render(report: Report) -> str:
    """The report as one HTML page: no network, no file beside it, each distinct picture in it once.

    Names are shown literally, whatever characters they have. Patches are kept at no more than 96 pixels,
    maps at 320, photos at 448.

    Raises:
        ValueError: a picture that is not (h, w, 3) uint8, a number that is not finite, two layers of one name
            or two units of one number, a module without one share and one map for every photo.

    Example:
        >>> from drnet_captum.viz import Report, ReportLayer, ReportUnit, render
        >>> units = [ReportUnit(0, "vertical edges", "edges", 0.9), ReportUnit(1, "red", "colours", 0.7)]
        >>> layer = ReportLayer("conv1", "convolution", (112, 112), units, {"edges": 1, "colours": 1})
        >>> render(Report("What resnet18 sees", "resnet18", layers=[layer])).startswith("<!doctype html>")
        True
    """
    _check(report)
    pictures = Pictures()
    # Photos first: a picture that comes again as a patch is then kept at the larger size.
    photos = [_photo(index, report, pictures) for index in range(len(report.photos))]
    data = {
        "layers": [
            {"name": layer.name, "units": [_unit(unit, pictures) for unit in layer.units]} for layer in report.layers
        ],
        "modules": [[(name, int(index)) for name, index in module.members] for module in report.modules],
        "images": pictures.uris,
    }
    return page(
        "report.html.j2",
        filters={"percent": _percent},
        report=report,
        photos=photos,
        families=_families(report.layers),
        unit_count=sum(len(layer.units) for layer in report.layers),
        data=_script_safe(json.dumps(data, allow_nan=False, separators=(",", ":"))),
        style=part("report.css"),
        script=part("report.js"),
    )


def save(report: Report, path: str | Path) -> Path:
    """Write the page of `render` to ``path``, under that name only when it is complete.

    Raises:
        ValueError: as `render`.
        OSError: it may not be written there.

    Example:
        >>> import tempfile
        >>> from drnet_captum.viz import Report, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Report("Nothing yet", "resnet18"), f"{folder}/report.html").stat().st_size > 0
        True
    """
    path, whole = Path(path), render(report)
    begun = path.with_name(path.name + ".part")
    try:
        # File names can hold bytes that are no text; they are not worth losing the page.
        begun.write_text(whole, encoding="utf-8", errors="replace", newline="\n")
        begun.replace(path)
    finally:
        begun.unlink(missing_ok=True)
    return path


def waterfall(parts: Sequence[tuple[str, float]]) -> list[Bar]:
    """Bars for parts of a whole: each begins where the one before it ended, negative ones go back.

    The last bar is the whole, their sum. The axis goes from the lowest to the highest end of a bar.

    Example:
        >>> [(bar.left, bar.width) for bar in waterfall([("a", 0.75), ("b", 0.5), ("c", -0.25)])]
        [(0.0, 60.0), (60.0, 40.0), (80.0, 20.0), (0.0, 80.0)]
    """
    ends = np.cumsum([0.0, *(share for _, share in parts)]).tolist()
    low, length = min(ends), max(max(ends) - min(ends), 1e-9)
    starts = [*(min(pair) for pair in pairwise(ends)), min(0.0, ends[-1])]
    return [
        Bar(name, share, 100 * (start - low) / length, 100 * abs(share) / length)
        for (name, share), start in zip([*parts, ("the whole map", ends[-1])], starts, strict=True)
    ]


def _unit(unit: ReportUnit, pictures: Pictures) -> dict[str, Any]:
    what = f"the picture of unit {unit.index}"
    return {
        "index": int(unit.index),
        "label": unit.label,
        "family": unit.family,
        "score": _short(unit.score),
        "concepts": list(unit.concepts.items()),
        "served": [(name, _short(value)) for name, value in unit.served],
        "stimuli": [(name, _short(value)) for name, value in unit.stimuli],
        "exemplars": [(pictures.add(one.image, _PATCH, what), _short(one.value), one.source) for one in unit.exemplars],
        "projection": None if unit.projection is None else pictures.add(unit.projection, _PATCH, what),
        "filter": None if unit.filter is None else pictures.add(unit.filter, _PATCH, what),
    }


def _photo(index: int, report: Report, pictures: Pictures) -> dict[str, Any]:
    photo = report.photos[index]
    image, whole = pictures.add(photo.image, _PHOTO, "the photo"), pictures.add(photo.map, _MAP, "the map")
    modules = sorted(report.modules, key=lambda module: -abs(module.shares[index]))
    maps = [
        (module.name, module.shares[index], pictures.add(module.maps[index], _MAP, "the map")) for module in modules
    ]
    parts = [(module.name, module.shares[index]) for module in modules[:_BARS]]
    parts.sort(key=lambda part: -part[1])
    if rest := modules[_BARS:]:
        name = "1 smaller module" if len(rest) == 1 else f"{len(rest)} smaller modules"
        parts.append((name, sum(module.shares[index] for module in rest)))
    return {"photo": photo, "image": image, "map": whole, "maps": maps, "bars": waterfall(parts) if modules else []}


def _families(layers: Sequence[ReportLayer]) -> list[str]:
    """Families by the number of their units, most first; units without a label last."""
    counts: Counter[str] = Counter()
    for layer in layers:
        counts.update({unit.family: 0 for unit in layer.units} | dict(layer.families))
    return sorted(counts, key=lambda family: (family == _UNLABELLED, -counts[family], family))


def _check(report: Report) -> None:
    if names := _repeated(layer.name for layer in report.layers):
        raise ValueError(f"expected every layer once, got {names[0]!r} twice")
    for layer in report.layers:
        if indices := _repeated(unit.index for unit in layer.units):
            raise ValueError(f"expected every unit of {layer.name} once, got {indices[0]} twice")
        for unit in layer.units:
            numbers = [unit.score, *(value for _, value in (*unit.served, *unit.stimuli))]
            _finite([*numbers, *(one.value for one in unit.exemplars)], f"unit {unit.index} of {layer.name}")
    for photo in report.photos:
        _finite([probability for _, probability in photo.answers], f"the answers to {photo.name}")
    for module in report.modules:
        if not len(module.shares) == len(module.maps) == len(report.photos):
            raise ValueError(
                f"expected a share and a map of module {module.name!r} for each of {len(report.photos)} photos, "
                f"got {len(module.shares)} and {len(module.maps)}"
            )
        _finite(module.shares, f"the shares of module {module.name!r}")


def _finite(numbers: Iterable[float], what: str) -> None:
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"expected finite numbers for {what}, got NaN or infinity")


def _repeated(names: Iterable[Any]) -> list[Any]:
    return [name for name, times in Counter(names).items() if times > 1]


def _short(number: float) -> float:
    """As many digits as the page shows; numbers of numpy become plain ones."""
    return float(f"{number:.4g}")


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("-", "−")


def _script_safe(text: str) -> Markup:
    """JSON that a script element holds whole: no character in it can end or comment out the element."""
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
