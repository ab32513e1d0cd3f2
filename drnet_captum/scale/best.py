"""The rows that stand out in a group, found while all rows go by."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Best:
    """Of each group the rows with the highest scores, kept while all go by.

    Of equal scores the row of the higher ``ties`` is kept, then the lower row; the order of coming has no part in it.

    Example:
        >>> best = Best(groups=2, count=2)
        >>> best.add(np.array([0, 0, 1, 0]), np.array([0.5, 0.25, 1.0, np.nan]), np.array([7, 8, 9, 10]))
        >>> best.add(np.array([0]), np.array([0.75]), np.array([11]))
        >>> best.of(0), best.of(1)
        ([(11, 0.75), (7, 0.5)], [(9, 1.0)])
    """

    def __init__(self, groups: int, count: int) -> None:
        self.count = count
        self._kept: dict[int, list[tuple[float, float, int]]] = {}
        self._least = np.full(groups, -np.inf)  # the score to reach

    def add(self, groups: Array, scores: Array, rows: Array, ties: Array | None = None) -> None:
        """Rows by group, score and index, each (n,); a score of NaN is left out."""
        ties = np.zeros(len(rows)) if ties is None else ties
        reached = scores >= self._least[groups]
        columns = (groups, scores, ties, rows)
        for group, score, tie, row in zip(*(column[reached].tolist() for column in columns), strict=True):
            heap, entry = self._kept.setdefault(group, []), (score, tie, -row)
            if len(heap) < self.count:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
            if len(heap) == self.count:
                self._least[group] = heap[0][0]

    def of(self, group: int) -> list[tuple[int, float]]:
        """(row, score), the best first."""
        return [(-row, score) for score, _, row in sorted(self._kept.get(group, ()), reverse=True)]

    def rows(self) -> set[int]:
        """All rows kept, of any group."""
        return {-row for heap in self._kept.values() for _, _, row in heap}
