"""A first network, from training to explanation.

The network is the one that PyTorch's CIFAR-10 tutorial builds. We train it for two rounds through the photos, measure
how often it is right on photos that it has not seen, and then ask: what in the photo made it say so?

    drnet-captum example simple-cnn --data DIR      # CIFAR-10, downloaded to DIR if it is not there
    drnet-captum example simple-cnn --data fake     # no network: coloured shapes instead of photos
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import CIFAR10

from drnet_captum.examples.shapes import SHAPE_CLASSES, shapes
from drnet_captum.explanation import explain
from drnet_captum.registry import methods
from drnet_captum.viz import panel

Loader = DataLoader[Any]

METHODS = ("grad_cam", "guided_backprop", "saliency", "grad_x_image", "deconvnet", "guided_grad_cam")
SHOWN = (1, 3, 8)  # a photo of each of these classes is explained
BATCH = 32


class SimpleCNN(nn.Module):
    """Two convolutions find patterns, three dense layers decide.

    Shapes for a photo of 32×32: (N, 3, 32, 32) → (N, 6, 14, 14) → (N, 16, 5, 5) → 120 → 84 → 10.

    Example:
        >>> SimpleCNN()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, classes) of photos (N, 3, 32, 32)."""
        x = self.pool(F.relu(self.conv1(x)))  # (N, 6, 14, 14)
        x = self.pool(F.relu(self.conv2(x)))  # (N, 16, 5, 5)
        x = torch.flatten(x, 1)  # (N, 400)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        scores: Tensor = self.fc3(x)
        return scores


def train(
    model: nn.Module,
    loader: Loader,
    epochs: int = 2,
    *,
    lr: float = 0.01,
    momentum: float = 0.9,
    max_steps: int | None = None,
) -> list[float]:
    """Train by stochastic gradient descent on the cross-entropy; returns the loss of every step.

    Args:
        model: left in train mode.
        loader: batches (images, classes).
        epochs: rounds through the loader.
        lr: how far a step goes. The tutorial's .001 is for batches of 4; ours are eight times as large.
        momentum: how much of the last step goes into the next.
        max_steps: stop after so many.

    Raises:
        ValueError: nothing to do.
    """
    steps = epochs * len(loader) if max_steps is None else min(max_steps, epochs * len(loader))
    if steps < 1:
        raise ValueError(f"expected at least one step of training, got epochs={epochs}, {len(loader)} batches")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    losses: list[float] = []
    model.train()
    with Progress(transient=True) as bar:
        task = bar.add_task("training", total=steps)
        for epoch in range(epochs):
            for images, classes in loader:
                if len(losses) == steps:
                    break
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), classes)
                loss.backward()  # how should each weight change …
                optimizer.step()  # … change it
                losses.append(loss.item())
                bar.update(task, advance=1, description=f"epoch {epoch + 1} of {epochs}, loss {losses[-1]:.2f}")
    return losses


def accuracy(model: nn.Module, loader: Loader) -> float:
    """The share of images whose likeliest class is the right one; leaves the model in eval mode."""
    model.eval()
    right = total = 0
    with torch.no_grad():
        for images, classes in loader:
            right += int((model(images).argmax(1) == classes).sum())
            total += len(classes)
    if total == 0:
        raise ValueError("expected a loader with images, got none: accuracy is not defined")
    return right / total


@dataclass(frozen=True)
class Outcome:
    """What `run` did: the loss of every step, the accuracy on the test set, the pictures; ``fake``: not on CIFAR-10."""

    losses: list[float]
    accuracy: float
    pictures: list[Path]
    fake: bool


def run(
    data_dir: str | Path,
    epochs: int = 2,
    out: str | Path = "simple-cnn-example",
    *,
    max_steps: int | None = None,
    seed: int = 0,
    written: list[Path] | None = None,
) -> Outcome:
    """The whole example: train, measure, explain, draw.

    Args:
        data_dir: the folder of CIFAR-10, or "fake" for drawn shapes.
        epochs, max_steps: as for `train`.
        out: the folder for the pictures.
        seed: of the first weights and of the order of the images; the caller's random numbers are not touched.
        written: the pictures' paths are added to it as they are written.

    Raises:
        OSError: CIFAR-10 is neither there nor to be downloaded.
    """
    fake = str(data_dir) == "fake"
    pictures = [] if written is None else written
    if fake:
        train_set, test_set, names, prefix = shapes(10_000, seed=1), shapes(1000, seed=2), SHAPE_CLASSES, "fake "
    else:
        train_set, test_set = cifar10(Path(data_dir), train=True), cifar10(Path(data_dir), train=False)
        names, prefix = tuple(test_set.classes), ""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    with torch.random.fork_rng(devices=[]):  # the first weights are random
        torch.default_generator.manual_seed(seed)
        model = SimpleCNN(len(names))
        order = torch.Generator().manual_seed(seed)
        losses = train(model, DataLoader(train_set, BATCH, shuffle=True, generator=order), epochs, max_steps=max_steps)
        share = accuracy(model, DataLoader(test_set, 250))

    for wanted in SHOWN:
        image = first_of(test_set, wanted)
        x = image[None]  # (1, 3, 32, 32): models take batches

        # What does the network think it is? Its two likeliest answers …
        with torch.no_grad():
            likely = model(x).softmax(1)[0].topk(2)
        answers = likely.indices.tolist()
        titles = [f"{names[c]} {p:.0%}" for c, p in zip(answers, likely.values.tolist(), strict=True)]

        # … and why? One map for each method and answer: (2, 1, C, 32, 32), C = 3 colours or 1.
        maps = explain(model, x, classes=answers, methods=METHODS)

        photo = (image * 0.5 + 0.5).permute(1, 2, 0)  # back to colours in [0, 1], (32, 32, 3)
        picture = panel(
            photo,
            {methods()[name].title: m[:, 0] for name, m in maps.items()},
            titles,
            title=f"{prefix}{names[wanted]}, seen by SimpleCNN ({share:.0%} right on the test set)",
            signed={
                "Grad-CAM": False
            },  # what speaks for the answer, as in the paper; without it also what speaks against
        )
        path = out / f"{prefix}{names[wanted]}.png".replace(" ", "_")
        picture.save(path)
        pictures.append(path)
    return Outcome(losses, share, list(pictures), fake)


def first_of(data: Dataset[Any], wanted: int) -> Tensor:
    """The first image of a class."""
    pairs = (data[index] for index in range(len(data)))  # type: ignore[arg-type]
    image: Tensor = next(image for image, label in pairs if label == wanted)
    return image


def cifar10(folder: Path, train: bool) -> CIFAR10:
    """CIFAR-10 from ``folder``, downloaded if it is not there: 50,000 photos to train on or 10,000 to test.

    Images come as (3, 32, 32) in [-1, 1].

    Raises:
        OSError: it is not there and cannot be downloaded.
    """
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    try:
        return CIFAR10(str(folder), train=train, transform=transform)
    except RuntimeError:  # torchvision's word for "not there"
        pass
    try:
        return CIFAR10(str(folder), train=train, transform=transform, download=True)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({error}): unpack cifar-10-python.tar.gz there, "
            "or try the example without it, on drawn shapes: --data fake"
        ) from error
