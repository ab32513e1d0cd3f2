"""Images of any size for detectors that take one size only, and boxes back from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .detections import Detections
from .detector import CallableDetector, Detector

GREY = 114 / 255  # what the YOLO family is trained with around an image


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies on the canvas that a detector saw: canvas = image · scale + offset, for x and for y.

    Args:
        scale: (horizontal, vertical). They differ by the rounding to whole pixels alone, unless stretched.
        offset: (left, top), in pixels of the canvas.
        size: (height, width) of the image.

    Example:
        >>> import torch
        >>> placed = Letterbox(scale=(2.0, 2.0), offset=(0, 10), size=(40, 50))
        >>> placed.back(torch.tensor([[20.0, 30.0, 60.0, 200.0]])).tolist()
        [[10.0, 10.0, 30.0, 40.0]]
    """

    scale: tuple[float, float]
    offset: tuple[int, int]
    size: tuple[int, int]

    def back(self, boxes: Tensor) -> Tensor:
        """Boxes (…, 4), xyxy in pixels of the canvas, in pixels of the image; cut off at its border.

        Raises:
            ValueError: a last dimension other than 4.
        """
        if boxes.dim() == 0 or boxes.shape[-1] != 4:
            raise ValueError(f"expected boxes of shape (…, 4) in xyxy pixels of the canvas, got {tuple(boxes.shape)}")
        boxes = boxes.float()
        limits = boxes.new_tensor([self.size[1], self.size[0]] * 2)
        back = (boxes - boxes.new_tensor(self.offset * 2)) / boxes.new_tensor(self.scale * 2)
        return torch.minimum(back.clamp(min=0), limits)

    def place(self, found: Detections) -> Detections:
        """The same detections with their boxes brought back."""
        return replace(found, boxes=self.back(found.boxes))


def letterbox(
    images: Tensor,
    size: int | Sequence[int],
    *,
    fill: float = GREY,
    centred: bool = True,
    antialias: bool = False,
    stretch: bool = False,
) -> tuple[Tensor, Letterbox]:
    """Images brought to a size at their own aspect, with a border in one colour.

    The image is as large as fits: scaled by r = min(h / H, w / W), its sides rounded to whole pixels.

    Args:
        images: (B, 3, H, W), floats.
        size: (h, w) of the canvas; one number is a square.
        fill: the border's value, in the images' own range. The YOLO family's grey for images in [0, 1].
        centred: the image in the middle, an odd pixel to the right and below; False: at the top left.
        antialias: low-pass before reducing. The YOLO family does not.
        stretch: fill the canvas at the cost of the aspect, as RT-DETR is used.

    Returns:
        (B, 3, h, w), and where the image lies on it.

    Raises:
        TypeError: no floating-point tensor.
        ValueError: images of another shape, a size that is not positive.

    Example:
        >>> import torch
        >>> canvas, placed = letterbox(torch.ones(1, 3, 40, 80), (64, 64), fill=0.0)
        >>> canvas.shape, placed.offset, placed.scale
        (torch.Size([1, 3, 64, 64]), (0, 16), (0.8, 0.8))
    """
    if not isinstance(images, Tensor) or not images.dtype.is_floating_point:
        got = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"expected images as a floating-point tensor (B, 3, H, W), got {got}")
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
    h, w = canvas_size(size)
    height, width = int(images.shape[-2]), int(images.shape[-1])
    ratio = min(h / height, w / width)
    # A very thin image keeps one pixel.
    new_h, new_w = (h, w) if stretch else (max(round(height * ratio), 1), max(round(width * ratio), 1))
    left, top = ((w - new_w) // 2, (h - new_h) // 2) if centred else (0, 0)
    resized = images
    if (new_h, new_w) != (height, width):
        resized = interpolate(images, size=(new_h, new_w), mode="bilinear", align_corners=False, antialias=antialias)
    placed = Letterbox((new_w / width, new_h / height), (left, top), (height, width))
    if (new_h, new_w) == (h, w):
        return resized, placed
    canvas = images.new_full((*images.shape[:2], h, w), fill)
    canvas[..., top : top + new_h, left : left + new_w] = resized
    return canvas, placed


def canvas_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(h, w) of a canvas from that, or from one number for both.

    Raises:
        ValueError: anything else, or not positive.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"expected size as (height, width) in pixels, two positive integers, got {size}")
    return sides[0], sides[1]


class Letterboxed(Detector):
    """A detector of one input size, for images of any: each call letterboxes, asks, and brings the boxes back.

    Args:
        detector: a `Detector`, or a function as `CallableDetector` takes one.
        size: (h, w) that it wants; one number is a square.
        fill: the border's value; None: a grey at 114/255 of the detector's ``image_range`` ([0, 1] if it tells none).
        centred, antialias, stretch: as for `letterbox`.

    Raises:
        TypeError: a detector that cannot be called.
        ValueError: a size that is not positive.

    Example:
        >>> import torch
        >>> def whole(images):
        ...     (h, w) = images.shape[-2:]
        ...     return [{"boxes": torch.tensor([[0.0, 0, w, h]]), "scores": torch.ones(1), "labels": torch.zeros(1)}
        ...             for _ in images]
        >>> Letterboxed(whole, (64, 64))(torch.rand(1, 3, 40, 80))[0].boxes.tolist()
        [[0.0, 0.0, 80.0, 40.0]]
    """

    def __init__(
        self,
        detector: Detector | Callable[[Tensor], Sequence[Any]],
        size: int | Sequence[int],
        *,
        fill: float | None = None,
        centred: bool = True,
        antialias: bool = False,
        stretch: bool = False,
    ) -> None:
        if not callable(detector):
            raise TypeError(f"expected a detector that can be called with images, got {type(detector).__name__}")
        self.detector = detector if isinstance(detector, Detector) else CallableDetector(detector)
        self.name = self.detector.name
        self.categories = self.detector.categories
        self.image_range = self.detector.image_range
        self.model = self.detector.model
        self.size = canvas_size(size)
        low, high = self.image_range or (0.0, 1.0)
        self._options: dict[str, Any] = {
            "fill": low + (high - low) * GREY if fill is None else fill,
            "centred": centred,
            "antialias": antialias,
            "stretch": stretch,
        }

    def __call__(self, images: Tensor) -> list[Detections]:
        canvas, placed = letterbox(images, self.size, **self._options)
        return [placed.place(found) for found in self.detector(canvas)]

    def propose(self, images: Tensor) -> list[Detections]:
        canvas, placed = letterbox(images, self.size, **self._options)
        return [placed.place(found) for found in self.detector.propose(canvas)]
