"""A data-set run in numbers and examples: what each class's explanations have in common, and which stand out.

Everything is read some rows at a time. What is kept are sums by class and method, and the few images shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drnet_captum.scale.class_maps import ClassMaps, border_share
from drnet_captum.scale.summary_counts import Counts
from drnet_captum.scale.summary_rows import Explanations

Floats = npt.NDArray[np.float64]

WRONG = 3  # answers of a class that are named
_SHOWN = ("path", "label", "predicted", "probability")


@dataclass(frozen=True)
class Example:
    """One image of a run.

    Attributes:
        index, path: its row in the source, and its name.
        label: its class; None where it is not known.
        predicted, probability: the model's answer.
        score: what it was chosen by: the correlation with the class's mean map, or inside / box_share.
        inside: the share of the map's positive values in the boxes; None where no boxes were given.
        box_share: the boxes' share of the crop's area; likewise.
    """

    index: int
    path: str
    label: int | None
    predicted: int
    probability: float
    score: float
    inside: float | None = None
    box_share: float | None = None


@dataclass(frozen=True)
class MethodSummary:
    """One method's maps of one class.

    Attributes:
        mean_map: (14, 14), the mean of the pooled maps, each divided by its largest magnitude.
        border: the share of the mean map's positive values in its outermost ring; None where none is positive.
            An even map has 52 / 196 there.
        inside: mean share of the maps' positive values in the boxes; None where no boxes were given.
        typical: the images whose pooled maps correlate most with the mean map, best first.
        atypical: those that do least, worst first; none that is typical.
    """

    mean_map: Floats
    border: float | None
    inside: float | None
    typical: tuple[Example, ...]
    atypical: tuple[Example, ...]


@dataclass(frozen=True)
class ClassSummary:
    """The images of one class: those labelled so, and those without a label that the model takes for it.

    Attributes:
        index, name: the class.
        images: how many.
        accuracy: the share of right answers among those with a label; None where none has one.
        probability: mean probability of the class explained.
        wrong: (class, images) of the most frequent wrong answers, at most three.
        box_share: mean share of the crop that lies in boxes; None where no boxes were given.
        methods: by method.
        sample: rows spread evenly over the class, at most 32.
    """

    index: int
    name: str
    images: int
    accuracy: float | None
    probability: float | None
    wrong: tuple[tuple[int, int], ...]
    box_share: float | None
    methods: Mapping[str, MethodSummary]
    sample: tuple[int, ...]


@dataclass(frozen=True)
class Outside:
    """How one method's maps lie to the boxes, by r = inside / box_share: 1 is chance, an even map has it.

    Attributes:
        images: those with boxes in the crop and a map that is positive somewhere.
        below: the share of them with r < 1, less in the boxes than by chance.
        worst: the images of the lowest r; of equal ones those with larger boxes.
    """

    images: int
    below: float | None
    worst: tuple[Example, ...]


@dataclass(frozen=True)
class Reason:
    """Why images could not be explained, how many, and one of them. Its name in the reason is "…"."""

    reason: str
    images: int
    path: str


@dataclass(frozen=True)
class Summary:
    """What `summarize` found.

    Attributes:
        folder, manifest: the run.
        model: the model's name.
        methods: those summed up.
        images, labelled: explained, and how many of them have a label.
        accuracy: the share of right answers among the labelled; None where there are none.
        classes: by number, those with images.
        outside: by method; empty where no boxes were given.
        left_out: by method, images whose map has NaN or infinite values; they are in no mean map.
        reasons: why images failed, the most frequent first.
        categories: the names of the model's classes; None where they are not known.
    """

    folder: Path
    manifest: Mapping[str, Any]
    model: str
    methods: tuple[str, ...]
    images: int
    labelled: int
    accuracy: float | None
    classes: tuple[ClassSummary, ...]
    outside: Mapping[str, Outside]
    left_out: Mapping[str, int]
    reasons: tuple[Reason, ...]
    categories: tuple[str, ...] | None = None

    def label(self, index: int) -> str:
        """The name of a class, or "class 12" where there is none."""
        return _label(self.categories, index)

    def by_border(self, method: str) -> list[ClassSummary]:
        """Classes by how much of their mean map's positive values is at the border, most first.

        A class whose evidence is there is a candidate for a shortcut: a watermark, a frame, a date.
        """
        known = [(one, one.methods[method].border) for one in self.classes]
        found = [(one, border) for one, border in known if border is not None]
        return [one for one, _ in sorted(found, key=lambda pair: (-pair[1], -pair[0].images, pair[0].index))]


def summarize(out: str | Path, methods: Sequence[str] | None = None, top: int = 8) -> Summary:
    """Sum up the folder that ``explain_dataset`` wrote, whole or so far.

    Args:
        out: the folder.
        methods: of those in the run; None takes all.
        top: how many typical and atypical images of a class, and how many outside the boxes.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder that holds no explanations, damaged ones, a method that is not in it, ``top`` below 1.
        ImportError: without pyarrow, which the extra ``distributed`` brings.

    Example:
        >>> import json, tempfile
        >>> from drnet_captum.scale.summary import summarize
        >>> model = {"name": "resnet18", "classes": 1000}
        >>> run = {"content": "drnet_captum explanations", "format": 1, "complete": False, "model": model}
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = Path(out, "manifest.json").write_text(json.dumps(run | {"methods": ["grad_cam"]}))
        ...     summary = summarize(out)
        >>> summary.model, summary.methods, summary.images, summary.accuracy
        ('resnet18', ('grad_cam',), 0, None)
    """
    if top < 1:
        raise ValueError(f"expected top to be at least 1, the images shown of each kind, got {top}")
    run = Explanations(out)
    chosen = _chosen(methods, run)
    counts = Counts(run, chosen, top)
    maps = ClassMaps(run, chosen, np.flatnonzero(counts.images), top)
    rows = run.rows({*maps.shown(), *counts.outside.rows()}, _SHOWN)
    classes = tuple(
        ClassSummary(
            index=index,
            name=_label(run.categories, index),
            images=int(counts.images[index]),
            accuracy=counts.right.of(index),
            probability=counts.probability.of(index),
            wrong=tuple(sorted(counts.wrong[index].items(), key=lambda pair: (-pair[1], pair[0]))[:WRONG]),
            box_share=counts.box_share.of(index),
            methods={
                name: _of_method(maps, index, number, counts.inside[name].of(index), rows)
                for number, name in enumerate(chosen)
            },
            sample=tuple(sorted(row for row, _ in counts.sample.of(index))),
        )
        for index in np.flatnonzero(counts.images).tolist()
    )
    return Summary(
        folder=run.folder,
        manifest=run.manifest,
        model=run.model,
        methods=chosen,
        images=int(counts.images.sum()),
        labelled=int(counts.right.counts.sum()),
        accuracy=counts.right.overall(),
        classes=classes,
        outside={
            name: found for i, name in enumerate(chosen) if (found := _outside(counts, i, name, run, rows)).images
        },
        left_out={name: n for name, n in zip(chosen, maps.left_out.tolist(), strict=True) if n},
        reasons=_reasons(run),
        categories=run.categories,
    )


def _chosen(methods: Sequence[str] | None, run: Explanations) -> tuple[str, ...]:
    """The methods asked for, each once."""
    chosen = run.methods if methods is None else tuple(dict.fromkeys(methods))
    if unknown := [name for name in chosen if name not in run.methods]:
        raise ValueError(f"{run.folder} has no method {unknown[0]!r}: there are {', '.join(run.methods)}")
    return chosen


def _of_method(
    maps: ClassMaps, index: int, number: int, inside: float | None, rows: Mapping[int, Mapping[str, Any]]
) -> MethodSummary:
    mean, (most, least) = maps.mean(index, number), maps.extremes(index, number)
    return MethodSummary(
        mean_map=mean,
        border=border_share(mean),
        inside=inside,
        typical=tuple(_example(row, score, rows[row]) for row, score in most),
        atypical=tuple(_example(row, score, rows[row]) for row, score in least),
    )


def _outside(
    counts: Counts, number: int, name: str, run: Explanations, rows: Mapping[int, Mapping[str, Any]]
) -> Outside:
    worst = [(row, -score) for row, score in counts.outside.of(number)]
    column = f"{name}_inside"
    boxes = run.rows([row for row, _ in worst], ["box_share", column])
    return Outside(
        images=int(counts.below[name].counts[0]),
        below=counts.below[name].of(0),
        worst=tuple(
            replace(_example(row, r, rows[row]), inside=boxes[row][column], box_share=boxes[row]["box_share"])
            for row, r in worst
        ),
    )


def _example(index: int, score: float, row: Mapping[str, Any]) -> Example:
    return Example(index, row["path"], row["label"], row["predicted"], row["probability"], score)


def _reasons(run: Explanations) -> tuple[Reason, ...]:
    counts: Counter[str] = Counter()
    paths: dict[str, str] = {}
    for path, text in run.failures():
        reason = text.replace(path, "…") if path else text
        counts[reason] += 1
        paths.setdefault(reason, path)
    return tuple(Reason(reason, images, paths[reason]) for reason, images in counts.most_common())


def _label(categories: Sequence[str] | None, index: int) -> str:
    return categories[index] if categories is not None and index < len(categories) else f"class {index}"
