"""One photo's detections: found or drawn by hand, explained, and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from drnet_captum.attr.drise import DRISE
from drnet_captum.detect.detections import Detections
from drnet_captum.detect.detector import Detector
from drnet_captum.detect.find import find_detections
from drnet_captum.masking.estimate import EVERY, Estimate
from drnet_captum.viz import detection_panel

from .explanation import percent
from .outputs import write

_PATIENCE = 2.0  # seconds on a CPU, until Ctrl-C is heard
_STEPS = (5, 10, 25, 50, 125, EVERY)  # they divide it, so that --stop-at is looked at where the library does

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Subject:
    """A photo as the detector gets it, and what is to be explained in it.

    Attributes:
        inputs: (1, 3, H, W) in the detector's range, on its device.
        photo: (H, W, 3) in [0, 1], the same.
        scale: its pixels for one of the file's.
        targets: M detections, boxes in its pixels.
        names: M class names.
        drawn: the boxes were drawn by hand.
        seconds: that the detector took for it.
    """

    inputs: Tensor
    photo: npt.NDArray[np.float32]
    scale: float
    targets: Detections
    names: list[str]
    drawn: bool
    seconds: float

    @property
    def labels(self) -> list[str]:
        """Classes with their scores, e.g. "cat 54%"."""
        if self.drawn:
            return [f"{name} (drawn)" for name in self.names]
        return [f"{name} {_score(score)}" for name, score in zip(self.names, self.targets.scores.tolist(), strict=True)]

    @property
    def lines(self) -> list[str]:
        """The same with their boxes, in the file's pixels, as ``--box`` takes them."""
        boxes = (self.targets.boxes / self.scale).round().int().tolist()
        return [f"{label} at {' '.join(map(str, box))}" for label, box in zip(self.labels, boxes, strict=True)]


def find_subject(
    detector: Detector,
    photo: Image.Image,
    place: torch.device,
    *,
    max_side: int,
    min_score: float,
    max_detections: int,
    drawn: tuple[Box, int] | None = None,
) -> Subject:
    """The detections of a photo, best first, or the box that was drawn on it.

    Args:
        detector: on ``place``.
        photo: RGB; brought down to ``max_side`` if it is larger.
        place: the device.
        max_side: pixels.
        min_score, max_detections: as for `find_detections`.
        drawn: xyxy in the photo's pixels, and a class.

    Raises:
        ValueError: a box without area or off the photo, no memory left, and as `find_detections`.
    """
    if drawn is not None:
        _check_box(drawn[0], photo.size)
    scale = min(1.0, max_side / max(photo.size))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in photo.size)
        photo = photo.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(photo, dtype=np.float32) / np.float32(255)
    low, high = detector.image_range or (0.0, 1.0)
    inputs = (torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous() * (high - low) + low).to(place)
    start = perf_counter()
    with _memory(place):
        targets = find_detections(detector, inputs, min_score, max_detections).to("cpu")
    seconds = perf_counter() - start
    if drawn is not None:
        targets = Detections.drawn([[scale * end for end in drawn[0]]], [drawn[1]])
    names = [detector.label(index) for index in targets.labels.tolist()]
    return Subject(inputs, pixels, scale, targets, names, drawn is not None, seconds)


def estimates(drise: DRISE, subject: Subject, *, batch_size: int | None, **options: Any) -> Iterator[Estimate]:
    """The maps as they come, often enough for Ctrl-C; ``options`` as for ``DRISE.attribute``.

    Raises:
        ValueError: no memory left, and as `DRISE`.
    """
    place = subject.inputs.device
    every = masks_between_looks(place, subject.seconds, batch_size)
    with _memory(place):
        yield from drise.attribute_iter(
            subject.inputs, subject.targets, perturbations_per_eval=batch_size, every=every, **options
        )


def masks_between_looks(place: torch.device, seconds: float, batch_size: int | None) -> int:
    """Masks that take about two seconds on a CPU, and no fewer than one forward pass has; many on other devices.

    Args:
        place: the device.
        seconds: that one image takes.
        batch_size: masks in a forward pass, if that is known.
    """
    if place.type != "cpu":
        return EVERY
    whole = [step for step in _STEPS if step >= (batch_size or 1)] or [EVERY]
    return max((step for step in whole if step * seconds <= _PATIENCE), default=whole[0])


def save(
    subject: Subject, found: Estimate, folder: Path, name: str, title: str, settings: Mapping[str, npt.ArrayLike]
) -> list[Path]:
    """Write ``name.png``, the picture, and ``name.npz``: maps, standard errors, boxes, classes and settings."""
    maps, errors = (values[0].float().cpu().numpy() for values in (found.maps, found.standard_errors))
    image = detection_panel(
        subject.photo,
        subject.targets.boxes,
        subject.labels,
        maps,
        title=title,
        notes=[f"standard error {_share(*each)}" for each in zip(errors, maps, strict=True)],
    )
    arrays: dict[str, npt.ArrayLike] = {
        "maps": maps,
        "standard_errors": errors,
        "boxes": subject.targets.boxes.numpy(),
        "scores": subject.targets.scores.numpy(),
        "labels": subject.targets.labels.numpy(),
        "label_names": np.array(subject.names),
        "scale": np.array(subject.scale),
        "n_masks": np.array(found.n_masks),
        **settings,
    }
    paths = [folder / f"{name}.png", folder / f"{name}.npz"]
    write(paths[0], lambda file: image.save(file, format="PNG"))
    write(paths[1], lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    return paths


def _check_box(box: Box, size: tuple[int, int]) -> None:
    x1, y1, x2, y2 = box
    shown = " ".join(f"{end:g}" for end in box)
    if not (x2 > x1 and y2 > y1):
        raise ValueError(f"expected --box X1 Y1 X2 Y2 with X2 > X1 and Y2 > Y1, in pixels, got {shown}")
    if x2 <= 0 or y2 <= 0 or x1 >= size[0] or y1 >= size[1]:
        raise ValueError(f"the box {shown} lies outside of the photo, which has {size[0]} × {size[1]} pixels")


def _share(errors: npt.NDArray[np.float32], map: npt.NDArray[np.float32]) -> str:
    """The standard error of a typical pixel, as a share of the map's range."""
    spread = float(np.ptp(map))
    return percent(float(np.median(errors)) / spread) if spread else "unknown"


def _score(score: float) -> str:
    return percent(score) if 0 <= score <= 1 else f"{score:.3g}"


@contextmanager
def _memory(place: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"no memory left on {place}: try --batch-size 1, a lower --max-side or --device cpu"
        ) from error
