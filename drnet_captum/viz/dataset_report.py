"""The report of a data-set run: where a model looks, class by class, as one HTML file with nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .html import page, part
from .overlay import LUMA, overlay
from .pictures import Image8, Pictures

Heat = npt.NDArray[Any]

_TILE, _CASE, _MEAN = 32, 112, 224  # pixels of the longer side, at most
_BORDER = 8  # classes shown with most at the border
_WHITE = 255


@dataclass(frozen=True)
class Case:
    """One image that a reader should see.

    Attributes:
        path: its name.
        predicted, probability: the model's answer.
        note: what it was chosen by, in a few words.
        map: (h, w), any size: it is laid over the whole image.
        image: (H, W, 3) uint8; None where no thumbnails were kept.
        label: its class; None where it is not known.
    """

    path: str
    predicted: str
    probability: float
    note: str
    map: Heat
    image: Image8 | None = None
    label: str | None = None


@dataclass(frozen=True)
class ClassMap:
    """One method's maps of a class.

    Attributes:
        method: its title.
        map: (h, w), the mean.
        border: the share of its positive values in the outermost ring; None where none is positive.
        inside: mean share of the maps' positive values in the boxes; None where no boxes were given.
        typical, atypical: images most and least like the mean.
    """

    method: str
    map: Heat
    border: float | None
    inside: float | None = None
    typical: Sequence[Case] = ()
    atypical: Sequence[Case] = ()

    @property
    def times_even(self) -> float | None:
        """The border's share, by that of an even map."""
        height, width = self.map.shape
        ring = 1 - max(height - 2, 0) * max(width - 2, 0) / (height * width)
        return None if self.border is None else self.border / ring


@dataclass(frozen=True)
class ReportClass:
    """One class.

    Attributes:
        index, name, images: the class, and how many images it has.
        accuracy, probability: share of right answers, mean probability of the class explained; None: not known.
        wrong: (class, images), the most frequent first.
        box_share: mean share of the picture that lies in boxes; None where no boxes were given.
        maps: one a method, in the same order for all classes.
        photo: (H, W, 3) uint8, the mean of ``photos`` of its photos; None without thumbnails.
    """

    index: int
    name: str
    images: int
    accuracy: float | None
    probability: float | None
    wrong: Sequence[tuple[str, int]]
    box_share: float | None
    maps: Sequence[ClassMap]
    photo: Image8 | None = None
    photos: int = 0


@dataclass(frozen=True)
class OutsideMaps:
    """How one method's maps lie to the boxes: of how many images, the share below chance, and the worst of them."""

    method: str
    images: int
    below: float
    cases: Sequence[Case]


@dataclass(frozen=True)
class Failures:
    """Images that could not be explained: why, how many, and the name of one."""

    reason: str
    images: int
    path: str


@dataclass(frozen=True)
class DatasetReport:
    """What `render_dataset` shows; parts that are empty are left out of the page.

    Attributes:
        title, model: for the head of the page.
        classes: in the order of its table.
        detailed: their numbers, of those with a section of their own, in its order.
        outside: by method.
        failures: the most frequent first.
        facts: (name, value) pairs.
        notes: what a reader should know.
        unfinished: what is missing of the run; empty where nothing is.
        selection: why some classes have a section of their own and others none.
    """

    title: str
    model: str
    classes: Sequence[ReportClass] = ()
    detailed: Sequence[int] = ()
    outside: Sequence[OutsideMaps] = ()
    failures: Sequence[Failures] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    unfinished: str = ""
    selection: str = ""


def render_dataset(report: DatasetReport) -> str:
    """The report as one HTML page: no network, no file beside it, names shown literally.

    Raises:
        ValueError: a map that is not (h, w) or not finite, a picture that is not (H, W, 3) uint8.

    Example:
        >>> import numpy as np
        >>> from drnet_captum.viz.dataset_report import ClassMap, DatasetReport, ReportClass, render_dataset
        >>> mean = ClassMap("Grad-CAM", np.eye(14), border=2 / 14)
        >>> cat = ReportClass(281, "tabby", 10, 0.9, 0.8, [("Egyptian cat", 1)], None, [mean])
        >>> page = render_dataset(DatasetReport("Where resnet18 looks", "resnet18", [cat]))
        >>> page.startswith("<!doctype html>"), "Egyptian cat" in page
        (True, True)
    """
    shown, by_number = _Shown(_signed(report)), {one.index: one for one in report.classes}
    filters = {name: getattr(shown, name) for name in ("tile", "mean", "case", "photo")}
    return page(
        "dataset.html.j2",
        filters=filters | {"percent": _percent},
        report=report,
        detailed=[by_number[index] for index in report.detailed],
        methods=[one.method for one in report.classes[0].maps] if report.classes else [],
        border=_at_the_border(report),
        signs=set(shown.signed.values()),
        known={
            name: any(getattr(one, name) is not None for one in report.classes)
            for name in ("accuracy", "probability", "box_share")
        },
        style=part("report.css", "dataset.css"),
        script=part("dataset.js"),
    )


class _Shown:
    """Pictures of the page as data URIs."""

    def __init__(self, signed: Mapping[str, bool]) -> None:
        self.signed = signed
        self._pictures = Pictures()

    def tile(self, of: ClassMap) -> str:
        """A mean map alone, one pixel a position."""
        blank = np.full((*of.map.shape, 3), _WHITE, np.uint8)
        return self._uri(self._laid_over(blank, of.map, of.method, 1.0), _TILE)

    def mean(self, of: ClassMap, one: ReportClass) -> str:
        """A mean map over the class's mean photo in grey."""
        if one.photo is None:
            return self._uri(self._laid_over(_blank(_CASE), of.map, of.method, 1.0), _MEAN)
        grey = (one.photo @ LUMA).round().clip(0, _WHITE).astype(np.uint8)
        return self._uri(self._laid_over(np.repeat(grey[..., None], 3, axis=2), of.map, of.method, 0.75), _MEAN)

    def photo(self, one: ReportClass) -> str:
        """The mean photo of a class that has one."""
        return "" if one.photo is None else self._uri(one.photo, _MEAN)

    def case(self, case: Case, method: str) -> str:
        """An image with its map."""
        image = _blank(_CASE) if case.image is None else case.image
        return self._uri(self._laid_over(image, case.map, method, 0.5), _CASE)

    def _laid_over(self, image: Image8, map: Heat, method: str, alpha: float) -> Image8:
        """A map over a picture, whatever the two sizes; the picture itself where the map is all zero."""
        if map.ndim != 2 or not map.size or not np.isfinite(map).all():
            raise ValueError(f"expected a map of shape (h, w) with finite values, got {map.shape}, or NaN in it")
        if not map.any():
            return image
        height, width = image.shape[:2]
        enlarged = Image.fromarray(map.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        mixed = overlay(image, np.asarray(enlarged), alpha=alpha, signed=self.signed[method])
        return (mixed * _WHITE).round().astype(np.uint8)

    def _uri(self, picture: Image8, edge: int) -> str:
        return self._pictures.uris[self._pictures.add(picture, edge, "a picture of the report")]


def _signed(report: DatasetReport) -> dict[str, bool]:
    """By method, whether a map has negative values: all of a method are then drawn in one way."""
    maps = [(of.method, of.map) for one in report.classes for of in one.maps]
    maps += [(of.method, case.map) for one in report.classes for of in one.maps for case in (*of.typical, *of.atypical)]
    maps += [(found.method, case.map) for found in report.outside for case in found.cases]
    signed: dict[str, bool] = {}
    for method, map in maps:
        signed[method] = signed.get(method, False) or bool((map < 0).any())
    return signed


def _blank(side: int) -> Image8:
    return np.full((side, side, 3), _WHITE, np.uint8)


def _at_the_border(report: DatasetReport) -> list[tuple[str, list[tuple[ReportClass, ClassMap]]]]:
    """By method, the classes with the largest share of their mean map in the outermost ring."""
    found: dict[str, list[tuple[float, ReportClass, ClassMap]]] = {}
    for one in report.classes:
        for of in one.maps:
            if of.border is not None:
                found.setdefault(of.method, []).append((of.border, one, of))
    return [
        (method, [(one, of) for _, one, of in sorted(rows, key=lambda row: -row[0])[:_BORDER]])
        for method, rows in found.items()
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}".replace("-", "−")
