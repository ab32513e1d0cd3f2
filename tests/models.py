"""Small networks that the tests explain. Weights are drawn from a seed, so every test sees the same ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = (12, 10)  # of the images; not square, so that a mix-up of h and w shows
CLASSES = 5


def seeded(make: Callable[..., nn.Module], *args: Any, seed: int = 0, **options: Any) -> nn.Module:
    """A model in eval mode with weights from a seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*args, **options).eval()


def images(n: int = 2, *, seed: int = 1, dtype: torch.dtype = torch.float32, size: tuple[int, ...] = SIZE) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class ConvNet(nn.Module):
    """conv, ReLU, max-pool, conv, ReLU, average over positions, linear: every method is defined for it."""

    def __init__(self, inplace: bool = False, outputs: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.relu1 = nn.ReLU(inplace)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.relu2 = nn.ReLU(inplace)
        self.fc = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.conv1(x)))
        return self.fc(self.relu2(self.conv2(x)).mean((2, 3)))


class FunctionalConvNet(ConvNet):
    """The same network with activations that no module hook sees."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(torch.relu_(self.conv2(x)).mean((2, 3)))


class NormedConvNet(ConvNet):
    """With a batch norm and dropout, whose buffers and random numbers a call must not touch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.norm(self.conv1(x))))
        return self.fc(self.dropout(self.relu2(self.conv2(x)).mean((2, 3))))


class TwoInputs(ConvNet):
    """Two images that are added with weights, and an additional argument."""

    def forward(self, x: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x + 0.5 * scale * other)


class ManyScores(ConvNet):
    """Scores (N, 5, 2): targets are tuples."""

    def __init__(self) -> None:
        super().__init__(outputs=2 * CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(-1, CLASSES, 2)


class Raising(ConvNet):
    """Breaks half-way through its forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.relu1(self.conv1(x))
        raise RuntimeError("broken model")


class WritesIntoItsInput(ConvNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2.0))


class ParallelBranches(nn.Module):
    """One nn.ReLU that serves two branches of the same layer, in one call after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 6)
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 5)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc1(x)
        return self.fc2(self.left(self.relu(z)) - self.right(self.relu(-z)))


class Answers(nn.Module):
    """A model that hands its scores on in another form: in a dict, a tuple, an object, as indices."""

    def __init__(self, model: nn.Module, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.model(x))


def pool_linear(*between: nn.Module, features: int = 6) -> nn.Sequential:
    """conv, ReLU, average pool, then what is given, then the classifier."""
    return nn.Sequential(
        nn.Conv2d(3, features, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        *between,
        nn.Linear(features, CLASSES),
    )


def max_pool_linear() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)
    )


def flatten_linear() -> nn.Sequential:
    height, width = SIZE
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * height * width, CLASSES))


def conv_pool() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def conv_relu_pool() -> nn.Sequential:
    """SqueezeNet's head."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, CLASSES, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def signal_net() -> nn.Sequential:
    """Signals (N, 2, t)."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, CLASSES)
    )


def volume_net() -> nn.Sequential:
    """Volumes (N, 1, d, h, w)."""
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, CLASSES)
    )


class ChannelsLast(nn.Module):
    """Works on (N, …, C) inside, as Swin and its 3-D variant for video do."""

    def __init__(self, dimensions: int, channels: int = 3) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
        self.conv = conv(channels, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.conv(x).movedim(1, -1))  # (N, …, C)
        return self.fc(x.flatten(1, -2).mean(1))


class TokenNet(nn.Module):
    """Integer tokens (N, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        self.fc1 = nn.Linear(4, 6)
        self.fc2 = nn.Linear(6, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.embedding(tokens))).mean(1))
