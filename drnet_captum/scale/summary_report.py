"""A summary of a data-set run as the data of an HTML page."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from drnet_captum.registry import methods
from drnet_captum.scale.summary import ClassSummary, Example, Outside, Summary
from drnet_captum.scale.summary_rows import Explanations
from drnet_captum.viz.dataset_report import Case, ClassMap, DatasetReport, Failures, OutsideMaps, ReportClass

Pixels = npt.NDArray[np.uint8]
Rows = Mapping[int, Mapping[str, Any]]

DETAILED = 40  # classes with a section of their own
_TARGETS = {"predicted": "the model’s answer", "label": "the label"}


def report_of(summary: Summary, classes: Sequence[int] = (), detailed: int = DETAILED) -> DatasetReport:
    """What the page shows: all classes in its table, and in detail those with most to look into.

    Args:
        summary: what `summarize` found; pictures are read from its folder.
        classes: those shown in detail; none: those of the lowest accuracy, then those of most images.
        detailed: how many, at most.

    Raises:
        ValueError: a class without images.
    """
    chosen = in_detail(summary, classes, detailed)
    rows = _pictures(summary, chosen)
    return DatasetReport(
        title=f"Where {summary.model} looks",
        model=summary.model,
        classes=[_class(summary, one, rows, one.index in chosen) for one in summary.classes],
        detailed=chosen,
        outside=[_outside(summary, name, found, rows) for name, found in summary.outside.items()],
        failures=[Failures(one.reason, one.images, one.path) for one in summary.reasons],
        facts=_facts(summary),
        notes=_notes(summary),
        unfinished=_unfinished(summary),
        selection=_selection(summary, classes, len(chosen)),
    )


def in_detail(summary: Summary, classes: Sequence[int] = (), detailed: int = DETAILED) -> list[int]:
    """The classes that get a section, in its order: those asked for, or by lowest accuracy, then by most images.

    Raises:
        ValueError: a class without images.
    """
    there = {one.index for one in summary.classes}
    if absent := [index for index in classes if index not in there]:
        raise ValueError(
            f"no image of {summary.folder} is of the class {summary.label(absent[0])}: there are "
            f"{', '.join(one.name for one in summary.classes[:8])}{', …' if len(there) > 8 else ''}"
        )
    if classes:
        return list(classes)
    order = sorted(
        summary.classes,
        key=lambda one: (one.accuracy is None, one.accuracy if one.accuracy is not None else 0, -one.images, one.index),
    )
    return [one.index for one in order[:detailed]]


def mean_photo(jpegs: Sequence[bytes]) -> Pixels | None:
    """The mean of photos (h, w, 3), at the size of the first; None of none.

    What all photos of a class have in one place, such as a watermark, stays sharp in it.
    """
    photos = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in jpegs]
    if not photos:
        return None
    alike = [np.asarray(photo.resize(photos[0].size), dtype=np.float64) for photo in photos]
    mean: Pixels = np.mean(alike, axis=0).round().astype(np.uint8)
    return mean


def _pictures(summary: Summary, chosen: Collection[int]) -> Rows:
    """Thumbnail and pooled maps of every image that is shown."""
    shown = {example.index for found in summary.outside.values() for example in found.worst}
    for one in summary.classes:
        if one.index in chosen:
            shown.update(one.sample)
            shown.update(case.index for of in one.methods.values() for case in (*of.typical, *of.atypical))
    return Explanations(summary.folder).rows(shown, ["thumbnail", *(f"{name}_pooled" for name in summary.methods)])


def _class(summary: Summary, one: ClassSummary, rows: Rows, detailed: bool) -> ReportClass:
    jpegs = [rows[index]["thumbnail"] for index in one.sample] if detailed else []
    maps = []
    for name, of in one.methods.items():
        cases = [
            [_case(summary, name, case, rows, f"correlation {case.score:.2f}") for case in cases] if detailed else []
            for cases in (of.typical, of.atypical)
        ]
        maps.append(ClassMap(_title(name), of.mean_map, of.border, of.inside, cases[0], cases[1]))
    return ReportClass(
        index=one.index,
        name=one.name,
        images=one.images,
        accuracy=one.accuracy,
        probability=one.probability,
        wrong=[(summary.label(index), count) for index, count in one.wrong],
        box_share=one.box_share,
        maps=maps,
        photo=mean_photo([jpeg for jpeg in jpegs if jpeg is not None]),
        photos=sum(jpeg is not None for jpeg in jpegs),
    )


def _outside(summary: Summary, name: str, found: Outside, rows: Rows) -> OutsideMaps:
    cases = [
        _case(
            summary,
            name,
            one,
            rows,
            f"{one.score:.2f} × chance: {one.inside or 0:.0%} inside, boxes {one.box_share or 0:.0%}",
        )
        for one in found.worst
    ]
    return OutsideMaps(_title(name), found.images, found.below or 0.0, cases)


def _case(summary: Summary, method: str, one: Example, rows: Rows, note: str) -> Case:
    row = rows[one.index]
    jpeg, pooled = row["thumbnail"], np.asarray(row[f"{method}_pooled"], dtype=np.float64)
    side = round(pooled.size**0.5)
    return Case(
        path=one.path,
        predicted=summary.label(one.predicted),
        probability=one.probability,
        note=note,
        map=pooled.reshape(side, side),
        image=None if jpeg is None else np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")),
        label=None if one.label is None else summary.label(one.label),
    )


def _facts(summary: Summary) -> list[tuple[str, str]]:
    facts = [("Images", f"{summary.images:,}"), ("Classes", f"{len(summary.classes):,}")]
    if summary.accuracy is not None:
        facts.append(("Right answers", f"{summary.accuracy:.1%}"))
    if summary.reasons:
        facts.append(("Failed", f"{sum(one.images for one in summary.reasons):,}"))
    facts.append(("Method" if len(summary.methods) == 1 else "Methods", ", ".join(map(_title, summary.methods))))
    target = summary.manifest.get("arguments", {}).get("target")
    if target is not None:
        facts.append(("Class explained", _TARGETS.get(target, f"the column {target}")))
    when = summary.manifest.get("finished") or summary.manifest.get("started")
    if when is not None:
        facts.append(("Date", str(when)[:10]))
    return facts


def _unfinished(summary: Summary) -> str:
    """A line on what is missing of a run; empty where nothing is."""
    if summary.manifest["complete"]:
        return ""
    total = summary.manifest.get("source", {}).get("images")
    of = "" if total is None else f" of {total:,}"
    done = f"{summary.images:,}{of} images are explained so far"
    return f"This run is not complete: {done}. Start the same again to go on with it."


def _notes(summary: Summary) -> list[str]:
    return [
        f"Left out of the mean maps: {count:,} map{'s' * (count != 1)} of {_title(name)} with NaN or infinite values."
        for name, count in summary.left_out.items()
    ]


def _selection(summary: Summary, asked: Collection[int], shown: int) -> str:
    """What decided which classes are shown in detail; empty where all are."""
    if asked or shown == len(summary.classes):
        return ""
    least = "lowest accuracy" if summary.accuracy is not None else "most images"
    return f"Shown: {shown} of {len(summary.classes):,} classes, by {least}; --class names others."


def _title(method: str) -> str:
    known = methods().get(method)
    return method if known is None else known.title
