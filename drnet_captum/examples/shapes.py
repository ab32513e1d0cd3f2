"""Fake photos: ten kinds of drawn shapes, for trying an example where CIFAR-10 cannot be had."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

SIZE = 32
_SHAPES = ("disc", "ring", "square", "triangle", "cross")
_COLOURS = {"red": (0.85, 0.2, 0.15), "blue": (0.15, 0.3, 0.85)}
SHAPE_CLASSES: tuple[str, ...] = tuple(f"{colour} {shape}" for shape in _SHAPES for colour in _COLOURS)


def shapes(count: int, seed: int) -> TensorDataset:
    """Pairs (image, class): one coloured shape on a grey, noisy ground, its place and size random.

    Args:
        count: how many; class i % 10 for the i-th.
        seed: the same seed gives the same images.

    Returns:
        A data set of images (3, 32, 32) in [-1, 1] and classes 0…9, named in ``SHAPE_CLASSES``.

    Example:
        >>> image, label = shapes(20, seed=0)[3]
        >>> image.shape, SHAPE_CLASSES[label]
        (torch.Size([3, 32, 32]), 'blue ring')
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand((count, *size), generator=generator)

    labels = torch.arange(count) % len(SHAPE_CLASSES)
    pixel = torch.arange(SIZE, dtype=torch.float32)
    radius = uniform(6, 10)[:, None, None]
    dx = (pixel[None, None, :] - uniform(10, 21)[:, None, None]) / radius  # (N, 32, 32), 1 = a radius
    dy = (pixel[None, :, None] - uniform(10, 21)[:, None, None]) / radius
    drawn = torch.stack(_masks(dx, dy), dim=1)[torch.arange(count), labels // len(_COLOURS)]  # (N, 32, 32)

    colours = torch.tensor(list(_COLOURS.values()))[labels % len(_COLOURS)] + uniform(-0.15, 0.15, 3)
    ground = uniform(0.2, 0.8, 1, 1, 1) + uniform(-0.15, 0.15, 1, SIZE, SIZE)
    images = torch.where(drawn[:, None], colours[:, :, None, None] + uniform(-0.1, 0.1, 1, SIZE, SIZE), ground)
    return TensorDataset(images.clamp(0, 1) * 2 - 1, labels)


def _masks(dx: Tensor, dy: Tensor) -> list[Tensor]:
    """Where each shape is, around (0, 0) with radius 1, in the order of ``_SHAPES``."""
    distance = dx.square() + dy.square()
    far, near = torch.maximum(dx.abs(), dy.abs()), torch.minimum(dx.abs(), dy.abs())
    return [
        distance <= 1,
        (distance <= 1) & (distance >= 0.35),
        far <= 0.85,
        (dy >= -1) & (dy <= 0.7) & (dx.abs() <= 0.6 * (dy + 1)),
        (near <= 0.3) & (far <= 1),
    ]
