"""What the pooled maps of a class have in common: their mean, how much of it is at the border, who is like it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from drnet_captum.scale.best import Best
from drnet_captum.scale.measures import POOLED
from drnet_captum.scale.summary_counts import classes_of_rows
from drnet_captum.scale.summary_rows import Explanations

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ranked = list[tuple[int, float]]  # (row, correlation)

_FLAT = 1e-6  # of a map's largest magnitude: with less between its ends it is constant


class ClassMaps:
    """The mean map of each class by each method, and the rows whose maps are most and least like it; two passes.

    Every map is first divided by its largest magnitude, so that images count alike. A map with NaN or infinite values
    is left out.

    Args:
        run: what is read.
        methods: of those in the run.
        classes: those with images, ascending.
        top: how many rows of each kind.

    Attributes:
        left_out: (methods,), how many maps were.
    """

    def __init__(self, run: Explanations, methods: Sequence[str], classes: Array, top: int) -> None:
        self._run, self._methods = run, tuple(methods)
        self._slots = np.full(run.classes, -1)
        self._slots[classes] = np.arange(len(classes))
        self.left_out = np.zeros(len(methods), dtype=np.int64)
        shape = (len(classes), len(methods))
        self._means = np.zeros((*shape, POOLED * POOLED))
        counts = np.zeros(shape, dtype=np.int64)
        for number, slots, maps, _, left_out in self._maps():
            np.add.at(self._means[:, number], slots, maps)
            counts[:, number] += np.bincount(slots, minlength=len(counts))
            self.left_out[number] += left_out
        self._means /= np.maximum(counts, 1)[:, :, None]
        self._most, self._least = Best(counts.size, top), Best(counts.size, top)
        for number, slots, maps, rows, _ in self._maps():
            alike = correlations(maps, self._means[slots, number])
            self._most.add(slots * len(methods) + number, alike, rows)
            # The same order from its other end, so that equal rows are not in both.
            self._least.add(slots * len(methods) + number, -alike, rows, ties=rows)

    def mean(self, index: int, number: int) -> Floats:
        """The mean map (14, 14) of a class by the method of that number; zeros where it has no map."""
        mean: Floats = self._means[self._slots[index], number].reshape(POOLED, POOLED)
        return mean

    def extremes(self, index: int, number: int) -> tuple[Ranked, Ranked]:
        """The rows most like the mean map, best first; and those least like it, worst first, none of them twice."""
        group = int(self._slots[index]) * len(self._methods) + number
        most = self._most.of(group)
        taken = {row for row, _ in most}
        return most, [(row, -score) for row, score in self._least.of(group) if row not in taken]

    def shown(self) -> set[int]:
        """All rows that `extremes` can name."""
        return self._most.rows() | self._least.rows()

    def _maps(self) -> Iterator[tuple[int, Array, Floats, Array, int]]:
        """(method, slots, scaled maps, rows, how many were left out), some rows at a time."""
        for batch in self._run.batches(["index", "label", "predicted", *(f"{name}_pooled" for name in self._methods)]):
            slots = self._slots[classes_of_rows(batch, self._run.classes)]
            for number, name in enumerate(self._methods):
                maps = batch[f"{name}_pooled"]
                whole = np.isfinite(maps).all(1)
                yield number, slots[whole], scaled(maps[whole]), batch["index"][whole], int((~whole).sum())


def scaled(maps: Array) -> Floats:
    """Maps (n, size), each divided by its largest magnitude; a map of zeros stays one.

    Example:
        >>> scaled(np.array([[1.0, -4.0], [0.0, 0.0]]))
        array([[ 0.25, -1.  ],
               [ 0.  ,  0.  ]])
    """
    maps = maps.astype(np.float64)
    largest = np.abs(maps).max(1, keepdims=True)
    divided: Floats = maps / np.where(largest > 0, largest, 1)
    return divided


def correlations(maps: Array, others: Array) -> Floats:
    """Pearson's correlation of each map with the other in its row, (n,); NaN where one of the two is constant.

    Example:
        >>> correlations(np.array([[0.0, 1, 2], [5, 5, 5]]), np.array([[4.0, 2, 0], [0, 1, 2]]))
        array([-1., nan])
    """
    varies = np.ones(len(maps), dtype=bool)
    centred = []
    for values in (maps, others):
        varies &= np.ptp(values, axis=1) > _FLAT * np.abs(values).max(1)
        centred.append(values - values.mean(1, keepdims=True))
    a, b = centred
    norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    found: Floats = np.where(varies, (a * b).sum(1) / np.where(varies, norms, 1), np.nan)
    return found


def border_share(map: Array) -> float | None:
    """The share of a map's positive values (h, w) that lies in its outermost ring; None where none is positive.

    An even map has the ring's share of the area there, 1 − (h − 2)(w − 2) / hw.

    Example:
        >>> border_share(np.array([[0.0, 3, 0], [-9, 1, 0], [0, 0, 0]]))
        0.75
    """
    positive = map.clip(0)
    total = float(positive.sum())
    return 1 - float(positive[1:-1, 1:-1].sum()) / total if total > 0 else None
