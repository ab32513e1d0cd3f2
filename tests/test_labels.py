"""Units whose weights say what they detect, and the label rule in numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from drnet_captum.dissect.labels import UNLABELLED, LabelAccuracy, UnitLabel, label_accuracy, label_units, pooled
from drnet_captum.dissect.stimuli import StimulusBank, stimulus_bank

SIZE = (96, 96)
LUMA = torch.tensor([0.299, 0.587, 0.114])
X = torch.arange(-15.0, 16.0).expand(31, 31)
Y = -X.T  # upwards


def bell(sigma: float) -> Tensor:
    return torch.exp(-(X**2 + Y**2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)


def sobel(degrees: float) -> Tensor:
    """The derivative across lines at an angle, blurred: which excite it."""
    angle = math.radians(degrees)
    return (Y * math.cos(angle) - X * math.sin(angle)) * bell(1.5)


def gabor(degrees: float, period: float) -> Tensor:
    angle = math.radians(degrees)
    wave = torch.cos(2 * math.pi * (Y * math.cos(angle) - X * math.sin(angle)) / period) * bell(period)
    return wave - bell(period) * wave.sum() / bell(period).sum()


def disc() -> Tensor:
    """The matched filter of a disc of radius 12, its mean over the ring around it taken away."""
    distance = (X**2 + Y**2).sqrt()
    inside, around = (distance <= 12).float(), ((distance > 12) & (distance <= 15)).float()
    return inside / inside.sum() - around / around.sum()


def colour(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue])[:, None, None] * bell(1.5)


def grey(kernel: Tensor) -> Tensor:
    return LUMA[:, None, None] * kernel


KNOWN = {
    "vertical edges": grey(sobel(90)),
    "horizontal edges": grey(sobel(0)),
    "diagonal edges (45°)": grey(sobel(45)),
    "diagonal edges (135°)": grey(sobel(135)),
    "medium vertical stripes": grey(gabor(90, 9)),
    "medium diagonal stripes (45°)": grey(gabor(45, 9)),
    "red": colour(1, -0.5, -0.5),
    "green": colour(-0.5, 1, -0.5),
    "blue": colour(-0.5, -0.5, 1),
    "yellow": colour(0.5, 0.5, -1),
    "white": colour(1, 1, 1),
    "discs": grey(disc()),
    "red-green edges": torch.tensor([0.587, -0.299, 0.0])[:, None, None] * sobel(70),
}


@pytest.fixture(scope="module")
def banks() -> tuple[StimulusBank, StimulusBank]:
    return stimulus_bank(SIZE), stimulus_bank(SIZE, split="held-out")


def responses(filters: list[Tensor], bank: StimulusBank, bias: Tensor | None = None) -> Tensor:
    size = filters[0].shape[-1]
    net = nn.Sequential(nn.Conv2d(3, len(filters), size, padding=size // 2), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.stack(filters))
        net[0].bias.copy_(torch.zeros(len(filters)) if bias is None else bias)
        return torch.cat([pooled(net(images)) for images in bank.images.split(64)])


def test_units_of_known_filters(banks: tuple[StimulusBank, StimulusBank]) -> None:
    filters = [k.clone() for k in KNOWN.values()]
    found = [responses(filters, bank) for bank in banks]
    labels = label_units(found[0], banks[0])
    held = label_units(found[1], banks[1])
    for l, h, n in zip(labels, held, KNOWN): print(n, '|', l, h)
    print(label_accuracy(labels, found[1], banks[1]))
