"""How much each unit matters to each class: running sums over labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

_SHOWN = 12


class ClassImportance:
    r"""Means over the images of a class of what each unit adds to the class's score.

    .. math:: \text{signed}_{c,k} = \operatorname{mean}_{x \in c} s_k(x), \qquad
              \text{absolute}_{c,k} = \operatorname{mean}_{x \in c} |s_k(x)|

    Kept as sums in float64, one row a class that was seen: the size depends on classes and channels, not on the
    number of images, and ``a + b`` is the same as one pass over the images of both, up to rounding.

    Args:
        channels: C, the number of units.

    Raises:
        ValueError: ``channels`` below 1.

    Source: Hu 2019 (DRNet): importance of channels to a class.

    Example:
        >>> import torch
        >>> importance = ClassImportance(channels=2)
        >>> importance.update(torch.tensor([[1.0, -2.0], [3.0, 2.0]]), torch.tensor([7, 7]))
        >>> importance.signed.tolist(), importance.absolute.tolist()
        ([[2.0, 0.0]], [[2.0, 2.0]])
        >>> (importance + importance).counts.tolist()
        [4]
    """

    def __init__(self, channels: int) -> None:
        if channels < 1:
            raise ValueError(f"expected at least one channel, got channels={channels}")
        self.channels = channels
        # Rows in the order in which classes came, and more of them than are in use: a new class then copies nothing.
        self._rows: dict[int, int] = {}
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._signed = torch.zeros(0, channels, dtype=torch.float64)
        self._absolute = torch.zeros(0, channels, dtype=torch.float64)

    def update(self, s: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            s: (N, C) each image's importances, in units of the score.
            labels: (N,) integer classes.

        Raises:
            TypeError: labels that are no integers.
            ValueError: other shapes, negative labels, NaN or infinite importances; nothing is then added.
        """
        if s.dim() != 2 or s.shape[1] != self.channels:
            raise ValueError(f"expected importances of shape (N, {self.channels}), got {tuple(s.shape)}")
        if labels.shape != s.shape[:1]:
            raise ValueError(f"expected one label for each of {s.shape[0]} images, got shape {tuple(labels.shape)}")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"expected integer labels, got {labels.dtype}")
        values = s.detach().cpu().double()
        if not values.isfinite().all():
            raise ValueError("the importances have NaN or infinite values: run the model in float32 or bfloat16")
        classes = labels.detach().cpu().long()
        if (classes < 0).any():
            raise ValueError(f"expected labels of at least 0, got {int(classes.min())}: leave such images out")
        self._add(classes, torch.ones_like(classes), values, values.abs())

    @property
    def classes(self) -> Tensor:
        """(K,) int64: the classes seen, sorted."""
        return torch.tensor(sorted(self._rows), dtype=torch.int64)

    @property
    def counts(self) -> Tensor:
        """(K,) int64: the images of each class."""
        return self._counts[self._order()]

    @property
    def signed(self) -> Tensor:
        """(K, C) float64: mean of s_k over the images of each class."""
        return self._signed[self._order()] / self.counts[:, None]

    @property
    def absolute(self) -> Tensor:
        """(K, C) float64: mean of |s_k| over the images of each class."""
        return self._absolute[self._order()] / self.counts[:, None]

    def of(self, c: int) -> tuple[Tensor, Tensor]:
        """One class: signed (C,), absolute (C,).

        Raises:
            ValueError: no image of this class was seen (says which classes there are).
        """
        row = self._row(c)
        return self._signed[row] / self._counts[row], self._absolute[row] / self._counts[row]

    def absolute_of(self, classes: Sequence[int]) -> Tensor:
        """(len(classes), C) float64: of each of these classes the mean of |s_k|.

        Raises:
            ValueError: no image of one of them was seen.
        """
        rows = [self._row(c) for c in classes]
        return self._absolute[rows] / self._counts[rows][:, None]

    def __contains__(self, c: int) -> bool:
        """Whether an image of class c was seen."""
        return c in self._rows

    def top(self, c: int, n: int) -> list[tuple[int, float]]:
        """The n units that add most to class c: (unit, signed mean), strongest first, equal ones by number.

        Raises:
            ValueError: no image of this class was seen.
        """
        values, units = self.of(c)[0].sort(descending=True, stable=True)
        return list(zip(units[:n].tolist(), values[:n].tolist(), strict=True))

    def served(self, n: int) -> list[list[tuple[int, float]]]:
        """For each unit the n classes that it adds most to: (class, signed mean), strongest first.

        Classes to which a unit adds nothing, or from which it takes, are none that it serves.
        """
        left = self.signed.numpy()
        classes = self.classes.tolist()
        served: list[list[tuple[int, float]]] = [[] for _ in range(self.channels)]
        units = np.arange(self.channels)
        for _ in range(min(n, len(classes))):
            rows = left.argmax(axis=0)
            for found, row, value in zip(served, rows.tolist(), left[rows, units].tolist(), strict=True):
                if value > 0:
                    found.append((classes[row], value))
            left[rows, units] = -np.inf
        return served

    def __add__(self, other: ClassImportance) -> ClassImportance:
        if not isinstance(other, ClassImportance):
            return NotImplemented
        if other.channels != self.channels:
            raise ValueError(f"expected importances of the same layer, got {self.channels} and {other.channels} units")
        total = ClassImportance(self.channels)
        for part in (self, other):
            order = part._order()
            total._add(part.classes, part._counts[order], part._signed[order], part._absolute[order])
        return total

    def __repr__(self) -> str:
        images = int(self._counts.sum())
        return f"ClassImportance({self.channels} units, {len(self._rows)} classes, {images} images)"

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors: classes and counts (K,), sums signed and absolute (K, C), classes sorted."""
        order = self._order()
        return {
            "classes": self.classes,
            "counts": self._counts[order],
            "signed": self._signed[order],
            "absolute": self._absolute[order],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ClassImportance:
        """The same from `state`'s tensors.

        Raises:
            ValueError: tensors that do not belong together.
        """
        classes, counts, signed, absolute = (state[name] for name in ("classes", "counts", "signed", "absolute"))
        k = classes.numel()
        shapes = [tuple(t.shape) for t in (classes, counts, signed, absolute)]
        if signed.dim() != 2 or shapes != [(k,), (k,), (k, signed.shape[1]), (k, signed.shape[1])]:
            raise ValueError(f"expected importances of shapes (K,), (K,), (K, C), (K, C), got {shapes}")
        if classes.unique().numel() != k or (counts < 1).any() or (classes < 0).any():
            raise ValueError("expected each class once, with at least one image")
        loaded = cls(signed.shape[1])
        loaded._add(classes, counts.long(), signed.double(), absolute.double())
        return loaded

    def _row(self, c: int) -> int:
        row = self._rows.get(c)
        if row is None:
            known = sorted(self._rows)
            more = f", … {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
            there = ", ".join(map(str, known[:_SHOWN])) + more if known else "none yet"
            raise ValueError(f"no image of class {c} was seen; the classes seen are: {there}")
        return row

    def _order(self) -> list[int]:
        return [self._rows[c] for c in sorted(self._rows)]

    def _add(self, classes: Tensor, counts: Tensor, signed: Tensor, absolute: Tensor) -> None:
        rows = torch.tensor([self._rows.setdefault(c, len(self._rows)) for c in classes.tolist()], dtype=torch.int64)
        if len(self._rows) > len(self._counts):
            more = max(len(self._rows), 2 * len(self._counts)) - len(self._counts)
            self._counts = torch.cat([self._counts, self._counts.new_zeros(more)])
            self._signed = torch.cat([self._signed, self._signed.new_zeros(more, self.channels)])
            self._absolute = torch.cat([self._absolute, self._absolute.new_zeros(more, self.channels)])
        self._counts.index_add_(0, rows, counts)
        self._signed.index_add_(0, rows, signed)
        self._absolute.index_add_(0, rows, absolute)
