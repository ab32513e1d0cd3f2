"""What the benchmarks of D-RISE explain: a detector by name, photos, and the detections in them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import ceil, sqrt
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from drnet_captum.data import load_image
from drnet_captum.detect import Detections, Detector, find_detections
from drnet_captum.detect.load import load_detector

EVERYTHING = "*"


@dataclass(frozen=True)
class Subject:
    """A photo as the detector gets it, and what is to be explained in it.

    Attributes:
        name: of the photo.
        image: (1, 3, H, W) in the detector's range, on its device.
        targets: M detections.
        labels: M class names.
        everything: all that was found, rather than what was asked for.
    """

    name: str
    image: Tensor
    targets: Detections
    labels: list[str]
    everything: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return (self.image.shape[2], self.image.shape[3])


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks ask of a detector."""
    parser.add_argument("--detector", required=True, metavar="SPEC", help="as for drnet_captum's load_detector")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights to load instead of the published ones")
    parser.add_argument("--random-weights", action="store_true", help="of a torchvision detector: none are fetched")
    parser.add_argument("--device", default="cpu")


def load(args: argparse.Namespace) -> Detector:
    """The detector of a command line, on its device."""
    pretrained = False if args.random_weights else None
    found = load_detector(args.detector, checkpoint=args.checkpoint, pretrained=pretrained)
    if isinstance(found.model, nn.Module):
        found.model.to(args.device)
    return found


def image_range(detector: Detector) -> tuple[float, float]:
    """The least and largest value of an image, as photos are given to the detector."""
    return detector.image_range or (0.0, 1.0)


def read(path: Path, detector: Detector, device: str) -> Tensor:
    """A photo, (1, 3, H, W) in the detector's range."""
    low, high = image_range(detector)
    return (pil_to_tensor(load_image(path))[None].float() / 255 * (high - low) + low).to(device)


def class_index(detector: Detector, name: str) -> int:
    """The index of a class by its name, or by its number.

    Raises:
        ValueError: no such class.
    """
    if name.isdigit():
        return int(name)
    names = detector.categories or ()
    if name not in names:
        near = ", ".join(get_close_matches(name, names, n=3)) or "its number"
        raise ValueError(f"the detector has no class {name!r}: try {near}")
    return names.index(name)


def subject(detector: Detector, name: str, image: Tensor, wanted: Sequence[str], min_score: float) -> Subject:
    """The best detection of each class that is wanted, or everything.

    Args:
        wanted: class names, or only "*".

    Raises:
        ValueError: a class of which nothing is found.
    """
    found = find_detections(detector, image, min_score)
    rows = list(range(len(found)))
    if list(wanted) != [EVERYTHING]:
        rows = []
        for one in wanted:
            places = (found.labels == class_index(detector, one)).nonzero()[:, 0].tolist()
            if not places:
                there = ", ".join(detector.label(label) for label in found.labels.tolist()) or "nothing"
                raise ValueError(f"expected a {one} in {name} of a score of at least {min_score:g}, found {there}")
            rows.append(places[0])  # the best comes first
    targets = found[rows]
    labels = [detector.label(label) for label in targets.labels.tolist()]
    return Subject(name, image, targets, labels, list(wanted) == [EVERYTHING])


def mosaic(images: Mapping[str, Tensor], margin: float) -> Tensor:
    """Photos side by side, each brought into a cell of the first one's size.

    Args:
        images: (1, 3, H, W) each.
        margin: the value around photos of another aspect.

    Returns:
        (1, 3, rows · H, columns · W) of about as many rows as columns.

    Example:
        >>> import torch
        >>> mosaic({"a": torch.ones(1, 3, 4, 8), "b": torch.ones(1, 3, 4, 4)}, margin=0.0)[0, 0, 2].tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """
    first = next(iter(images.values()))
    height, width = first.shape[2:]
    columns = ceil(sqrt(len(images)))
    canvas = first.new_full((1, 3, ceil(len(images) / columns) * height, columns * width), margin)
    for number, image in enumerate(images.values()):
        scale = min(height / image.shape[2], width / image.shape[3])
        h, w = round(image.shape[2] * scale), round(image.shape[3] * scale)
        small = F.interpolate(image, (h, w), mode="bilinear", align_corners=False, antialias=True)
        small = small.clamp(*image.aminmax())  # rounding may leave the detector's range
        row, column = divmod(number, columns)
        top, left = row * height + (height - h) // 2, column * width + (width - w) // 2
        canvas[:, :, top : top + h, left : left + w] = small
    return canvas


def subjects(
    detector: Detector, root: Path, specs: Sequence[str], min_score: float, device: str, with_mosaic: bool
) -> list[Subject]:
    """Every photo of a command line, ``PHOTO=CLASS,CLASS`` or ``PHOTO=*``; with a mosaic of those with classes.

    Raises:
        ValueError: another form.
    """
    found, images, classes = [], {}, []
    for spec in specs:
        name, _, wanted = spec.partition("=")
        if not name or not wanted:
            raise ValueError(f"expected PHOTO=CLASS or PHOTO=*, got {spec!r}")
        image = read(root / name, detector, device)
        found.append(subject(detector, name, image, wanted.split(","), min_score))
        if wanted != EVERYTHING:
            images[name] = image
            classes += [one for one in wanted.split(",") if one not in classes]
    if with_mosaic:
        low, high = image_range(detector)
        together = mosaic(images, (low + high) / 2)
        found.append(subject(detector, f"mosaic of {len(images)}", together, classes, min_score))
    return found
