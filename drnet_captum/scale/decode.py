"""From encoded images to what a model takes, in bytes where nothing is lost by it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from drnet_captum.data.card import ModelCard
from drnet_captum.data.images import decode_image
from drnet_captum.scale.source import Record, Source

THUMBNAIL = 112  # pixels of the longer side
_QUALITY = 80


@dataclass
class Row:
    """One image of a batch, without its pixels.

    Attributes:
        index, path, label, target: as of its record.
        problem: why there are no pixels of it.
        thumbnail: JPEG of the crop that the model sees.
    """

    index: int
    path: str
    label: int | None
    target: int | None
    problem: str | None = None
    thumbnail: bytes | None = None


@dataclass
class Batch:
    """Decoded rows.

    Attributes:
        rows: all of them.
        pixels: (n, 3, H, W) uint8, or float32 as the model takes them: of the rows without a problem, in order.
        inside: (n, H, W) bool, where an object's box is; None where the source has no boxes.
        boxed: (n,) bool, whether any was given.
    """

    rows: list[Row]
    pixels: npt.NDArray[Any]
    inside: npt.NDArray[np.bool_] | None = None
    boxed: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    def without(self, problem_of: Callable[[Row], str | None]) -> Batch:
        """The same, without the pixels of rows that turn out to have a problem; it is noted of them."""
        readable = self.readable
        for row in readable:
            row.problem = problem_of(row)
        left = np.array([row.problem is None for row in readable], bool)
        inside = None if self.inside is None else self.inside[left]
        return Batch(self.rows, self.pixels[left], inside, self.boxed[left])

    @property
    def readable(self) -> list[Row]:
        """The rows that have pixels."""
        return [row for row in self.rows if row.problem is None]


class Decoder:
    """Reads rows of a source as a model sees them. The same on every worker, and cheap to send to one.

    The last step of most transforms is (u/255 − mean)/std of 8-bit pixels u. Where that holds, the pixels travel as u,
    a quarter of the bytes, and ``inputs`` makes of them exactly what the transform does.

    Args:
        source: the images.
        card: how the model sees a photo.
        thumbnails: whether to keep a small picture of each.
        boxes: whether the source has any.
    """

    def __init__(self, source: Source, card: ModelCard, *, thumbnails: bool = True, boxes: bool = False) -> None:
        self.source, self.card, self.thumbnails, self.boxes = source, card, thumbnails, boxes
        noise = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
        seen = card.transform(Image.fromarray(noise))
        self.is_exact = torch.equal(normalized(_bytes(seen, card)[None], card)[0], seen)

    def __call__(self, start: int, stop: int) -> Batch:
        """The rows from ``start`` up to ``stop``; what cannot be read of them has its ``problem``."""
        rows, pixels, inside, boxed = [], [], [], []
        for record in self.source.read(start, stop):
            row = Row(record.index, record.path, record.label, record.target, record.problem)
            rows.append(row)
            try:
                seen, mask = self._seen(record)
            except (ValueError, OSError) as error:
                row.problem = row.problem or str(error)
                continue
            except Exception as error:  # decoders and transforms raise of all kinds; one image must not end a run
                row.problem = f"could not read the image {record.path}: {type(error).__name__}: {error}"
                continue
            if self.thumbnails:
                row.thumbnail = _thumbnail(seen, self.card)
            pixels.append(_bytes(seen, self.card).numpy() if self.is_exact else seen.numpy())
            inside.append(mask)
            boxed.append(record.boxes is not None)
        shape = (0, *self.card.input_size)
        stacked = np.stack(pixels) if pixels else np.zeros(shape, np.uint8 if self.is_exact else np.float32)
        masks = (np.stack(inside) if inside else np.zeros((0, *shape[2:]), bool)) if self.boxes else None
        return Batch(rows, stacked, masks, np.array(boxed, bool))

    def _seen(self, record: Record) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        if record.problem is not None:
            raise ValueError(record.problem)
        photo = decode_image(record.data, record.path)
        seen = self.card.transform(photo)
        if not bool(seen.isfinite().all()):
            raise ValueError(f"{record.path} has NaN or infinite values after the model's transform")
        return seen, self._inside(photo, record) if self.boxes else np.zeros(0, bool)

    def _inside(self, photo: Image.Image, record: Record) -> npt.NDArray[np.bool_]:
        """The boxes brought to the model's crop by the transform itself, as a black photo with white boxes."""
        canvas = Image.new("RGB", photo.size)
        for x0, y0, x1, y1 in record.boxes or ():
            left, top = round(x0), round(y0)
            right, bottom = max(left, round(x1) - 1), max(top, round(y1) - 1)
            ImageDraw.Draw(canvas).rectangle((left, top, right, bottom), "white")
        white: npt.NDArray[np.bool_] = self.card.photo(self.card.transform(canvas)).mean(2) > 0.5
        return white


def inputs(pixels: npt.NDArray[Any], card: ModelCard, like: Tensor) -> Tensor:
    """What the model takes, (n, 3, H, W), on the device and in the dtype of one of its parameters."""
    values = torch.from_numpy(np.require(pixels, requirements="W")).to(like.device)
    return (normalized(values, card) if values.dtype == torch.uint8 else values).to(like.dtype)


def normalized(pixels: Tensor, card: ModelCard) -> Tensor:
    """(u/255 − mean)/std, in the order of torchvision's operations."""
    mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (card.mean, card.std))
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def _bytes(seen: Tensor, card: ModelCard) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (card.mean, card.std))
    return (seen * std + mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _thumbnail(seen: Tensor, card: ModelCard) -> bytes:
    picture = Image.fromarray(_bytes(seen, card).permute(1, 2, 0).numpy())
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
