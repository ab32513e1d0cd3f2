"""The numbers of a data-set run, class by class: what one pass over its rows counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from drnet_captum.scale.best import Best
from drnet_captum.scale.summary_rows import Explanations

Array = npt.NDArray[Any]

SAMPLE = 32  # images of a class that its mean photo is of


class Means:
    """Means by group; NaN is left out.

    Example:
        >>> means = Means(2)
        >>> means.add(np.array([0, 0, 0]), np.array([1.0, 2.0, np.nan]))
        >>> means.of(0), means.of(1), means.overall()
        (1.5, None, 1.5)
    """

    def __init__(self, groups: int) -> None:
        self.sums = np.zeros(groups)
        self.counts = np.zeros(groups, dtype=np.int64)

    def add(self, groups: Array, values: Array) -> None:
        """Values (n,) of groups (n,)."""
        known = ~np.isnan(values)
        self.sums += np.bincount(groups[known], values[known], minlength=len(self.sums))
        self.counts += np.bincount(groups[known], minlength=len(self.counts))

    def of(self, group: int) -> float | None:
        """One group's mean; None where nothing was known."""
        return float(self.sums[group] / self.counts[group]) if self.counts[group] else None

    def overall(self) -> float | None:
        """The mean of all groups' values."""
        count = int(self.counts.sum())
        return float(self.sums.sum()) / count if count else None


class Counts:
    """What a pass over the rows of a run counts; an image is of its label's class, else of the predicted one.

    Attributes:
        images: (classes,) images of each class.
        right: whether the answer was the label, by class.
        probability: of the explained class.
        box_share: of the crop's area.
        wrong: label → answer → images.
        inside: by method, the share of positive values in the boxes, by class.
        below: by method, of one group: whether that share is below the boxes' own share of the crop.
        outside: by the method's number, rows of the lowest inside / box_share.
        sample: by class, rows spread over it.

    Raises:
        ValueError: a row of a class that the model does not have.
    """

    def __init__(self, run: Explanations, methods: Sequence[str], top: int) -> None:
        self.images = np.zeros(run.classes, dtype=np.int64)
        self.right, self.probability, self.box_share = (Means(run.classes) for _ in range(3))
        self.wrong: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self.inside = {name: Means(run.classes) for name in methods}
        self.below = {name: Means(1) for name in methods}
        self.outside = Best(len(methods), top)
        self.sample = Best(run.classes, SAMPLE)
        columns = ["index", "label", "predicted", "target_probability", "box_share"]
        for batch in run.batches([*columns, *(f"{name}_inside" for name in methods)]):
            classes = classes_of_rows(batch, run.classes)
            self._count(classes, batch)
            for number, name in enumerate(methods):
                self._compare(number, name, classes, batch)

    def _count(self, classes: Array, batch: dict[str, Array]) -> None:
        label, predicted = batch["label"], batch["predicted"]
        right = np.where(label < 0, np.nan, label == predicted)
        self.images += np.bincount(classes, minlength=len(self.images))
        self.right.add(classes, right)
        self.probability.add(classes, batch["target_probability"])
        self.box_share.add(classes, batch["box_share"])
        for true, answer in zip(label[right == 0].tolist(), predicted[right == 0].tolist(), strict=True):
            self.wrong[true][answer] += 1
        self.sample.add(classes, spread(batch["index"]), batch["index"])

    def _compare(self, number: int, name: str, classes: Array, batch: dict[str, Array]) -> None:
        inside, area = batch[f"{name}_inside"].astype(np.float64), batch["box_share"].astype(np.float64)
        ratio = inside / np.where(area > 0, area, np.nan)
        same = np.zeros(len(classes), dtype=np.int64)
        self.inside[name].add(classes, inside)
        self.below[name].add(same, np.where(np.isnan(ratio), np.nan, ratio < 1))
        # Of two maps with nothing inside, the one that missed the larger object lies more outside.
        self.outside.add(same + number, -ratio, batch["index"], ties=area)


def classes_of_rows(batch: dict[str, Array], count: int) -> Array:
    """(n,): the label where it is known, else the predicted class.

    Raises:
        ValueError: one that the model does not have.
    """
    label, predicted = batch["label"], batch["predicted"]
    for what, numbers, least in (("labels", label, -1), ("answers", predicted, 0)):
        if len(numbers) and not (least <= numbers.min() and numbers.max() < count):
            raise ValueError(
                f"expected {what} below {count}, the model's classes, got {numbers.min()} to {numbers.max()}: "
                "the rows are not of this manifest, explain again"
            )
    classes: Array = np.where(label < 0, predicted, label)
    return classes


def spread(rows: Array) -> Array:
    """Numbers in [0, 1) of rows that fall evenly over any stretch of them: a sample without randomness.

    Example:
        >>> spread(np.arange(4)).round(2)
        array([0.  , 0.62, 0.24, 0.85])
    """
    golden = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / φ; products wrap around
    fractions: Array = (rows.astype(np.uint64) * golden) / 2.0**64
    return fractions
