"""Quantiles of every unit's activations in one pass over the data, in memory that does not grow with it."""

from __future__ import annotations

from math import ceil, floor, log, log1p

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Smaller magnitudes count as zero, larger ones as this.
LEAST, MOST = 1e-6, 1e6


class QuantileSketch:
    r"""DDSketch: the quantiles of C units, each within a relative error of ``alpha``.

    .. math:: k = \lceil \log_\gamma |v| \rceil, \qquad \gamma = \frac{1 + \alpha}{1 - \alpha}, \qquad
              \hat v = \pm \frac{2 \gamma^k}{\gamma + 1}

    A value v is counted in the bin k of its sign, zeros in one of their own. What comes out for a quantile is v̂ of the
    bin that holds the value of rank ⌊q (n − 1)⌋, never outside what was seen: the smallest and the largest value are
    kept as they are. Neither the order of the values nor how they were cut into batches matters.

    Magnitudes below 1e-6 count as zero; of those above 1e6 only the smallest and the largest value are known. Bins are
    kept from the lowest to the highest one met by any unit: at most 5,529 of eight bytes a unit at the default
    ``alpha``, about 1,700 after a ReLU. Counts are 64 bit. Bins are computed in float32.

    Args:
        units: C.
        alpha: the relative error, in (0, 0.5).

    Raises:
        ValueError: no units, ``alpha`` out of its range.

    Source: Masson, Rim & Lee 2019, PVLDB 12(12), arXiv 1908.10693.

    Example:
        >>> import torch
        >>> sketch = QuantileSketch(units=2)
        >>> sketch.update(torch.stack([torch.arange(1001.0), -torch.ones(1001)]).unsqueeze(0))  # (N, C, positions)
        >>> sketch.quantile(0.995).round()  # exactly: 995, -1
        tensor([997.,  -1.])
    """

    def __init__(self, units: int, alpha: float = 0.005) -> None:
        if units < 1:
            raise ValueError(f"expected at least one unit, got {units}")
        if not 0 < alpha < 0.5:
            raise ValueError(f"expected a relative error alpha in (0, 0.5), got {alpha}")
        self.units = units
        self.alpha = alpha
        self._counts = torch.zeros(units, 0, dtype=torch.int64)
        self._first = 0  # the signed bin of column 0
        self._minimum = torch.full((units,), torch.inf)
        self._maximum = torch.full((units,), -torch.inf)

    @property
    def count(self) -> int:
        """How many values each unit has been given."""
        return int(self._counts[0].sum())

    def update(self, values: Tensor) -> None:
        """Count the values of a batch. The sketch moves to the device of the values.

        Args:
            values: (N, C, ...), any number of positions.

        Raises:
            TypeError: values that are not floating point.
            ValueError: another number of units, values that are NaN or infinite.
        """
        values = self._checked(values)
        if values.numel() == 0:
            return
        minimum, maximum = values.amin((0, 2)), values.amax((0, 2))
        if not bool((minimum.isfinite() & maximum.isfinite()).all()):  # NaN is every extreme of what holds it
            raise ValueError("expected finite activations, got NaN or infinite ones: run the model in float32")
        bins = self._bins(values)
        first = int(bins.min())
        width = int(bins.max()) - first + 1
        rows = torch.arange(self.units, device=values.device).mul_(width).sub_(first)
        flat = bins.add_(rows[:, None]).flatten()
        counts = torch.bincount(flat, minlength=self.units * width).view(self.units, width)
        self._absorb(counts, first, minimum, maximum)

    def quantile(self, q: float) -> Tensor:
        """The value, per unit, below which a share q of the values lies: (C,).

        Raises:
            ValueError: q outside [0, 1], a sketch that has seen nothing.

        Example:
            >>> import torch
            >>> sketch = QuantileSketch(units=1)
            >>> sketch.update(torch.tensor([[1.0], [2.0], [3.0]]))
            >>> sketch.quantile(1.0)
            tensor([3.])
            >>> sketch.quantile(0.5).round(decimals=2)
            tensor([2.])
        """
        if not 0 <= q <= 1:
            raise ValueError(f"expected a quantile in [0, 1], got {q}")
        if self.count == 0:
            raise ValueError("this sketch has seen no values: call update first")
        rank = floor(q * (self.count - 1))
        if rank == self.count - 1:
            return self._maximum.clone()
        if rank == 0:
            return self._minimum.clone()
        signed = (self._counts.cumsum(1) <= rank).sum(1) + self._first
        exponent = (signed.abs() - 1 + self._lowest()).float()
        estimate = torch.exp(exponent * self._log_gamma()) * (1 - self.alpha)  # 2 γ^k / (γ + 1)
        estimate = estimate * signed.sign()
        return estimate.clamp(self._minimum, self._maximum)

    def __add__(self, other: QuantileSketch) -> QuantileSketch:
        """The sketch of both's values, exactly: merging changes nothing compared with one pass over everything.

        Raises:
            ValueError: another number of units, another ``alpha``.
        """
        if not isinstance(other, QuantileSketch):
            return NotImplemented
        if (self.units, self.alpha) != (other.units, other.alpha):
            raise ValueError(
                f"cannot merge a sketch of {self.units} units at alpha {self.alpha} with one of {other.units} at "
                f"{other.alpha}: their bins differ"
            )
        merged = QuantileSketch(self.units, self.alpha)
        for part in (self, other):
            device = self._counts.device
            counts, minimum, maximum = (t.to(device) for t in (part._counts, part._minimum, part._maximum))
            merged._absorb(counts, part._first, minimum, maximum)
        return merged

    def to_tensors(self) -> dict[str, Tensor]:
        """What the sketch knows, as tensors on the CPU, for saving."""
        return {
            "counts": self._counts.cpu().clone(),
            "first": torch.tensor(self._first),
            "alpha": torch.tensor(self.alpha, dtype=torch.float64),
            "minimum": self._minimum.cpu().clone(),
            "maximum": self._maximum.cpu().clone(),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> QuantileSketch:
        """The sketch that `to_tensors` wrote.

        Raises:
            ValueError: tensors missing.
        """
        missing = {"counts", "first", "alpha", "minimum", "maximum"} - tensors.keys()
        if missing:
            raise ValueError(f"expected the tensors of QuantileSketch.to_tensors, {', '.join(sorted(missing))} missing")
        sketch = cls(len(tensors["counts"]), float(tensors["alpha"]))
        sketch._absorb(tensors["counts"], int(tensors["first"]), tensors["minimum"], tensors["maximum"])
        return sketch

    def _checked(self, values: Tensor) -> Tensor:
        """The values as (N, C, positions) in float32."""
        if not values.is_floating_point():
            raise TypeError(f"expected floating point activations, got {values.dtype}")
        if values.dim() < 2 or values.shape[1] != self.units:
            raise ValueError(f"expected activations of shape (N, {self.units}, ...), got {tuple(values.shape)}")
        return values.detach().float().flatten(2) if values.dim() > 2 else values.detach().float().unsqueeze(2)

    def _log_gamma(self) -> float:
        return log1p(self.alpha) - log1p(-self.alpha)

    def _lowest(self) -> int:
        """k of the smallest magnitude that is not zero."""
        return ceil(log(LEAST) / self._log_gamma())

    def _bins(self, values: Tensor) -> Tensor:
        """Bins in the order of the values, int64: 0 for zero, from 1 up for positive, from −1 down for negative."""
        magnitude = values.abs()
        zero = magnitude < LEAST
        bins = magnitude.clamp_(LEAST, MOST).log_().div_(self._log_gamma()).ceil_().sub_(self._lowest() - 1)
        # Rounding could put LEAST itself a bin too low.
        return bins.clamp_(min=1).mul_(values.sign()).masked_fill_(zero, 0).long()

    def _absorb(self, counts: Tensor, first: int, minimum: Tensor, maximum: Tensor) -> None:
        """Add counts whose first column is the signed bin ``first``."""
        if self._counts.shape[1] == 0:
            self._counts, self._first = counts.clone(), first
            self._minimum, self._maximum = minimum.clone(), maximum.clone()
        elif counts.shape[1]:
            low = min(first, self._first)
            high = max(first + counts.shape[1], self._first + self._counts.shape[1])
            whole = pad(self._counts.to(counts.device), (self._first - low, high - self._first - self._counts.shape[1]))
            whole[:, first - low : first - low + counts.shape[1]] += counts
            self._counts, self._first = whole, low
            self._minimum = torch.minimum(self._minimum.to(minimum.device), minimum)
            self._maximum = torch.maximum(self._maximum.to(maximum.device), maximum)
