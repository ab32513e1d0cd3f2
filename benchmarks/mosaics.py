"""Mosaics of four photos that a model knows, and how much of a map lies in the right cell: the grid pointing game.

Source: Böhle et al. 2021, arXiv 2104.00032; Rao et al. 2022, arXiv 2205.10435.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import drnet_captum as dc
from drnet_captum.data import embedded_photo, load_image
from drnet_captum.metrics.grid_pointing import cell_shares
from drnet_captum.metrics.grid_pointing import mosaic as mosaic_of

__all__ = ["cell_shares"]

CHANCE = 0.25
LEAST_PROBABILITY = 0.15
SMALLEST_CROP = 0.75  # of a side
TRIES = 20
EMBEDDED = {"chelsea": (281, 282, 285), "coffee": (504, 967), "rocket": (657,)}  # the labels that are right


@dataclass(frozen=True)
class Photo:
    """A photo, or a crop of one, as the model sees it, and what the model answers.

    Attributes:
        name: of the photo.
        label: the class of the highest probability.
        probability: of that class.
        x: (3, H, W), a model input.
    """

    name: str
    label: int
    probability: float
    x: Tensor


@dataclass(frozen=True)
class Mosaic:
    """Four crops of four classes, top left, top right, bottom left, bottom right: one input of twice the size."""

    cells: tuple[Photo, ...]

    @property
    def x(self) -> Tensor:
        """(3, 2H, 2W)."""
        return mosaic_of(torch.stack([cell.x for cell in self.cells]))

    @property
    def labels(self) -> list[int]:
        return [cell.label for cell in self.cells]


def labelled_images(folder: Path | None) -> Iterable[tuple[str, tuple[int, ...], Image.Image]]:
    """(name, labels that are right, photo) of a folder's ``*_LABEL.jpg`` or ``.png``, and of the embedded photos."""
    for path in () if folder is None else sorted(folder.iterdir()):
        if found := re.search(r"_(\d+)\.(?:jpg|png)$", path.name):
            yield path.name, (int(found[1]),), load_image(path)
    for name, labels in EMBEDDED.items():
        yield name, labels, embedded_photo(name)


def answer(model: nn.Module, name: str, x: Tensor) -> Photo:
    """The model's answer for one input (3, H, W)."""
    with torch.inference_mode():
        p, label = model(x[None]).softmax(1)[0].max(0)
    return Photo(name, int(label), float(p), x)


def known_photos(model: nn.Module, folder: Path | None) -> tuple[list[Photo], list[str]]:
    """The photos that the model names right and with some confidence, one for each class; the names of the others."""
    transform = dc.model_card(model).transform
    known: dict[int, Photo] = {}
    others = []
    for name, labels, image in labelled_images(folder):
        photo = answer(model, name, transform(image))
        if photo.label in labels and photo.probability >= LEAST_PROBABILITY and photo.label not in known:
            known[photo.label] = photo
        else:
            others.append(name)
    return list(known.values()), others


def random_crop(model: nn.Module, photo: Photo, generator: torch.Generator) -> Photo:
    """A square of 0.75 to 1 of the side, perhaps flipped, that the model still names right; else the photo itself."""
    side = photo.x.shape[-1]
    for _ in range(TRIES):
        scale, top, left, flip = torch.rand(4, generator=generator).tolist()
        size = round(side * (SMALLEST_CROP + (1 - SMALLEST_CROP) * scale))
        i, j = round(top * (side - size)), round(left * (side - size))
        part = photo.x[None, :, i : i + size, j : j + size]
        x = F.interpolate(part, (side, side), mode="bilinear", antialias=True)[0]
        crop = answer(model, photo.name, x.flip(2) if flip < 0.5 else x)
        if crop.label == photo.label and crop.probability >= LEAST_PROBABILITY:
            return crop
    return photo


def two_folds(photos: Sequence[Photo], generator: torch.Generator) -> tuple[list[Photo], list[Photo]]:
    """The photos in two halves by chance; no photo is in both."""
    order = torch.randperm(len(photos), generator=generator).tolist()
    half = len(photos) // 2
    return [photos[i] for i in sorted(order[:half])], [photos[i] for i in sorted(order[half:])]


def make_mosaics(model: nn.Module, photos: Sequence[Photo], count: int, generator: torch.Generator) -> list[Mosaic]:
    """Random choices and arrangements of four of the photos, each cropped anew."""
    if len(photos) < 4:
        raise ValueError(f"expected at least four photos of four classes, got {len(photos)}")
    found = []
    for _ in range(count):
        chosen = torch.randperm(len(photos), generator=generator)[:4].tolist()
        found.append(Mosaic(tuple(random_crop(model, photos[i], generator) for i in chosen)))
    return found


def first_crops(mosaics: Iterable[Mosaic], count: int) -> list[Photo]:
    """The first ``count`` crops of each photo."""
    found: dict[str, list[Photo]] = {}
    for cell in (cell for mosaic in mosaics for cell in mosaic.cells):
        crops = found.setdefault(cell.name, [])
        if len(crops) < count:
            crops.append(replace(cell))
    return [crop for crops in found.values() for crop in crops]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(differences: Sequence[float], seed: int, resamples: int = 10_000) -> Interval:
    """Of paired differences, drawn again with replacement: the mean, and the middle 95 % of the resamples' means."""
    values = torch.tensor(differences, dtype=torch.float64)
    draws = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(seed))
    low, high = values[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(values.mean()), low, high)


def by_name(names: Sequence[str], differences: Sequence[float]) -> list[float]:
    """The mean difference of each name, in order of first appearance.

    Example:
        >>> by_name(["cat", "cup", "cat"], [1.0, 0.0, 2.0])
        [1.5, 0.0]
    """
    groups: dict[str, list[float]] = {}
    for name, difference in zip(names, differences, strict=True):
        groups.setdefault(name, []).append(difference)
    return [sum(group) / len(group) for group in groups.values()]
