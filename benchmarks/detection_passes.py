"""One image explained by D-RISE, and the bare passes of the detector that this takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.detection_subjects import add_detector_options, image_range, read
from drnet_captum.attr.drise import DRISE
from drnet_captum.detect import Detections, Detector

SEED = 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is asked in all measurements."""
    add_detector_options(parser)
    parser.add_argument("--photo", type=Path, help="in which the detector finds something; without it, noise")
    parser.add_argument("--large-size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--n-masks", type=int, default=64)
    parser.add_argument("--batch-size", type=int, help="masks in a forward pass")


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `ours` that a command line sets."""
    return {"n_masks": args.n_masks, "perturbations_per_eval": args.batch_size}


def photo(detector: Detector, size: Sequence[int], args: argparse.Namespace) -> Tensor:
    """(1, 3, H, W): the photo of the command line brought to a size, or noise."""
    low, high = image_range(detector)
    if args.photo is None:
        noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(SEED))
        return (noise * (high - low) + low).to(args.device)
    x = read(args.photo, detector, args.device)
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False, antialias=True).clamp(low, high)


def drawn(size: Sequence[int], count: int) -> Detections:
    """Boxes of half an image's sides, of class 0.

    Example:
        >>> drawn((4, 8), 2).boxes.tolist()
        [[0.0, 0.0, 4.0, 2.0], [2.0, 1.0, 6.0, 3.0]]
    """
    height, width = size
    corners = [(width * i / (2 * count), height * i / (2 * count)) for i in range(count)]
    return Detections.drawn([[x, y, x + width / 2, y + height / 2] for x, y in corners], [0] * count)


def surest(detector: Detector, x: Tensor) -> Detections:
    """The proposal for an image that scores highest.

    Raises:
        ValueError: no proposals.
    """
    with torch.no_grad():
        (found,) = detector.propose(x)
    if not len(found):
        raise ValueError("expected an image in which the detector proposes something: pass another --photo")
    return found[int(found.scores.argmax())]


class Recorded(Detector):
    """A detector that hands what it was asked to a function."""

    def __init__(self, detector: Detector, record: Callable[[Tensor], Any]) -> None:
        self.detector, self.record = detector, record
        self.categories, self.image_range = detector.categories, detector.image_range
        self.model = detector.model

    def propose(self, images: Tensor) -> list[Detections]:
        """As the detector."""
        self.record(images)
        return self.detector.propose(images)


def ours(detector: Detector, x: Tensor, targets: Detections, **options: Any) -> Tensor:
    """Our maps, (M, H, W)."""
    return DRISE(detector).attribute_detections(x, targets, **options)[0]


def masked(detector: Detector, x: Tensor, **options: Any) -> list[Tensor]:
    """The masked images that `ours` has proposals for, batch by batch."""
    parts: list[Tensor] = []
    ours(Recorded(detector, lambda images: parts.append(images.clone())), x, drawn(x.shape[2:], 1), **options)
    return parts[1:]  # the first is the image unmasked


def bare(detector: Detector, parts: Sequence[Tensor]) -> None:
    """The passes alone."""
    with torch.no_grad():
        for part in parts:
            detector.propose(part)
