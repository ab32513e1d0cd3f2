"""How the units of a layer vary together: running moments of their activations."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

_RESOLUTION = torch.finfo(torch.float32).eps


class ChannelMoments:
    r"""Count, mean and scatter of the activations of all units, over positions and images.

    .. math:: M = \sum_x (a(x) - \bar a)(a(x) - \bar a)^\top

    The scatter is centred as it grows: sums of squares would lose what varies little beside a large mean. Two
    parts add up to the whole, up to rounding:
    :math:`M = M_1 + M_2 + \tfrac{n_1 n_2}{n_1 + n_2} (\bar a_1 - \bar a_2)(\bar a_1 - \bar a_2)^\top`.

    Args:
        channels: C, the number of units. C² numbers are kept, in float64, on the device of the batches.

    Raises:
        ValueError: ``channels`` below 1.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".

    Example:
        >>> import torch
        >>> moments = ChannelMoments(channels=2)
        >>> moments.update(torch.tensor([[1.0, 6.0], [2.0, 4.0], [3.0, 2.0]]))
        >>> moments.mean().tolist(), moments.correlation().round(decimals=6).tolist()
        ([2.0, 4.0], [[1.0, -1.0], [-1.0, 1.0]])
    """

    def __init__(self, channels: int) -> None:
        if channels < 1:
            raise ValueError(f"expected at least one channel, got channels={channels}")
        self.channels = channels
        self.count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._scatter = torch.zeros(channels, channels, dtype=torch.float64)

    def update(self, activations: Tensor) -> None:
        """Add a batch.

        Args:
            activations: (N, C): of N positions, or of N images.

        Raises:
            ValueError: another shape, NaN or infinite activations; nothing is then added.
        """
        if activations.dim() != 2 or activations.shape[1] != self.channels:
            raise ValueError(f"expected activations of shape (N, {self.channels}), got {tuple(activations.shape)}")
        values = activations.detach()
        values = values.cpu().double() if values.device.type == "mps" else values.double()  # MPS has no float64
        if not values.isfinite().all():
            raise ValueError("the activations have NaN or infinite values: run the model in float32 or bfloat16")
        if len(values):
            mean = values.mean(0)
            self._add(len(values), mean, values - mean, None)

    def mean(self) -> Tensor:
        """(C,) float64. Raises ValueError before the first image."""
        self._expect(1)
        return self._mean.cpu().clone()

    def covariance(self) -> Tensor:
        """(C, C) float64, Σ (a − ā)(a − ā)ᵀ / (n − 1). Raises ValueError below two images."""
        self._expect(2)
        return self._scatter.cpu() / (self.count - 1)

    def correlation(self) -> Tensor:
        """(C, C) float64 in [−1, 1], 1 on the diagonal.

        A channel whose deviation is below float32's resolution of its mean is constant: 0 off the diagonal.

        Raises:
            ValueError: fewer than two images.
        """
        covariance = self.covariance()
        deviation = covariance.diagonal().sqrt()
        varies = deviation > _RESOLUTION * self._mean.cpu().abs()
        scale = torch.where(varies, 1 / deviation, 0.0)
        correlation = (covariance * scale[:, None] * scale).clamp(-1, 1)
        return correlation.fill_diagonal_(1.0)

    def __add__(self, other: ChannelMoments) -> ChannelMoments:
        if not isinstance(other, ChannelMoments):
            return NotImplemented
        if other.channels != self.channels:
            raise ValueError(f"expected moments of the same layer, got {self.channels} and {other.channels} units")
        total = ChannelMoments(self.channels)
        for part in (self, other):
            if part.count:
                nothing = torch.zeros(0, self.channels, dtype=torch.float64)
                total._add(part.count, part._mean.cpu(), nothing, part._scatter.cpu())
        return total

    def __repr__(self) -> str:
        return f"ChannelMoments({self.channels} units, {self.count} images)"

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors on the CPU: count (), mean (C,), scatter (C, C)."""
        return {
            "count": torch.tensor(self.count),
            "mean": self._mean.cpu().clone(),
            "scatter": self._scatter.cpu().clone(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ChannelMoments:
        """The same from `state`'s tensors.

        Raises:
            ValueError: tensors that do not belong together.
        """
        count, mean, scatter = (state[name] for name in ("count", "mean", "scatter"))
        if count.dim() or mean.dim() != 1 or scatter.shape != mean.shape * 2 or count < 0:
            shapes = [tuple(t.shape) for t in (count, mean, scatter)]
            raise ValueError(f"expected a count and moments of shapes (), (C,), (C, C), got {shapes}")
        loaded = cls(len(mean))
        loaded.count, loaded._mean, loaded._scatter = int(count), mean.double().clone(), scatter.double().clone()
        return loaded

    def _add(self, count: int, mean: Tensor, centred: Tensor, scatter: Tensor | None) -> None:
        self._mean, self._scatter = self._mean.to(mean.device), self._scatter.to(mean.device)
        total = self.count + count
        step = mean - self._mean
        # The last row makes the product carry the distance of the two means too: one pass over the C² numbers.
        rows = torch.cat([centred, step[None] * sqrt(self.count * count / total)])
        self._scatter.addmm_(rows.T, rows)
        if scatter is not None:
            self._scatter += scatter
        self._mean = self._mean + step * (count / total)
        self.count = total

    def _expect(self, images: int) -> None:
        if self.count < images:
            raise ValueError(f"expected at least {images} image{'s' * (images > 1)}, got {self.count}: update first")
