"""Labelled photos in folders, as batches that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm.data
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from drnet_captum.data.card import ModelCard
from drnet_captum.data.images import find_images, load_image

_IMAGENET: Any = timm.data  # by way of Any: it types few of its functions


class PhotoFolder(Dataset[tuple[Tensor, int]]):
    """Photos in a folder, one subfolder a class: (model input, class); or flat, of class −1: not known.

    A subfolder is a class by its name (in any case, "_" for a space), its number, or its WordNet number
    (``n02123045``); where none is, and there are as many subfolders as classes, they are the classes in sorted order,
    as torchvision's ``ImageFolder`` has it.

    Args:
        folder: where the photos are.
        card: how the model sees a photo, and its classes' names.
        classes: how many classes the model has.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no photos, or subfolders that are not the model's classes.
    """

    def __init__(self, folder: str | Path, card: ModelCard, classes: int) -> None:
        root = Path(folder)
        self.card, self.paths = card, find_images(root)
        names = sorted({path.relative_to(root).parts[0] for path in self.paths if path.parent != root})
        if names and any(path.parent == root for path in self.paths):
            raise ValueError(f"expected photos in {root} itself or in one subfolder a class, got both")
        numbers = classes_of(names, card.categories, classes, root)
        self.labels = [numbers[p.relative_to(root).parts[0]] if names else -1 for p in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.card.transform(load_image(self.paths[index])), self.labels[index]

    def batches(self, batch_size: int) -> DataLoader[tuple[Tensor, int]]:
        """A DataLoader of them, in order."""
        return DataLoader(self, batch_size=batch_size, generator=torch.Generator())  # the caller's is not drawn from


def classes_of(names: Sequence[str], categories: Sequence[str] | None, count: int, root: Path) -> dict[str, int]:
    """Subfolder → class."""
    known = {plain(name): number for number, name in reversed(list(enumerate(categories or ())))}
    if count == 1000:
        info = _IMAGENET.ImageNetInfo("imagenet-1k")
        known |= {name: number for number, name in enumerate(info.label_names())}
    found = {
        name: known.get(plain(name), int(name) if name.isdecimal() and int(name) < count else -1) for name in names
    }
    unknown = [name for name, number in found.items() if number < 0]
    if len(unknown) == len(names) == count:
        return {name: number for number, name in enumerate(names)}
    if unknown:
        raise ValueError(
            f"the subfolders {', '.join(unknown[:5])} of {root} are none of the model's {count} classes: name them by "
            "class name or number"
        )
    return found


def plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def check_batch(batch: Any) -> tuple[Tensor, Tensor | None]:
    """(images, labels) of what a loader gave; labels None where it gave images alone, or −1 for all."""
    images, labels = batch[:2] if isinstance(batch, (tuple, list)) and len(batch) >= 2 else (batch, None)
    if isinstance(images, (tuple, list)) and len(images) == 1:
        (images,) = images
    if not isinstance(images, Tensor):
        raise TypeError(f"expected batches of (images, labels) tensors, got {type(images).__name__}")
    if labels is not None and not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"expected labels that are integers, got {labels!r:.80}") from error
    if labels is not None and not labels.is_floating_point() and bool((labels == -1).all()):
        labels = None
    return images, labels
