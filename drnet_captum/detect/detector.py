"""What every adapter is: images in, detections out, and what must be known of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .detections import Detections

TOLERANCE = 1e-3  # by which resizing may leave the range of an image


class Detector:
    """A detector as D-RISE sees it. Adapters override ``__call__``, and ``propose`` where they can give more.

    Attributes:
        name: for titles.
        categories: class names, counted as ``Detections.labels``; None where they are not known.
        image_range: least and largest value of an image; None where it is not known, and nothing is checked.
        model: what runs; its modules' state is kept by those who call it many times.
    """

    name: str = "detector"
    categories: tuple[str, ...] | None = None
    image_range: tuple[float, float] | None = None
    model: Any = None

    def __call__(self, images: Tensor) -> list[Detections]:
        """The detector's answers, as it gives them itself.

        Args:
            images: (B, 3, H, W), values in ``image_range``.

        Returns:
            B detections; boxes in pixels of these images.
        """
        raise NotImplementedError

    def propose(self, images: Tensor) -> list[Detections]:
        """More than the answers: low scores and overlapping boxes too, which is what a masked image is compared by."""
        return self(images)

    def label(self, index: int) -> str:
        """The name of a class, or "class 12" where there is none."""
        if self.categories is not None and 0 <= index < len(self.categories):
            return self.categories[index]
        return f"class {index}"


class CallableDetector(Detector):
    """Any function of images that gives, for each, ``Detections`` or a dict of them.

    Args:
        function: (B, 3, H, W) -> B of them.
        image_range, categories: as in :class:`Detector`.

    Example:
        >>> import torch
        >>> def one_box(images):
        ...     return [{"boxes": torch.tensor([[0.0, 0, 8, 8]]), "scores": x.mean()[None], "labels": torch.tensor([0])}
        ...             for x in images]
        >>> CallableDetector(one_box)(torch.ones(2, 3, 8, 8))[1].scores.tolist()
        [1.0]
    """

    def __init__(
        self,
        function: Callable[[Tensor], Sequence[Any]],
        image_range: tuple[float, float] | None = None,
        categories: Sequence[str] | None = None,
    ) -> None:
        self.model = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self.image_range = image_range
        self.categories = None if categories is None else tuple(categories)

    def __call__(self, images: Tensor) -> list[Detections]:
        return answers(self.model(images), len(images))


def answers(found: Any, count: int) -> list[Detections]:
    """A detector's results for ``count`` images, checked.

    Raises:
        TypeError: no list.
        ValueError: more or fewer results than images.
    """
    if isinstance(found, (Tensor, str, dict, Detections)) or not isinstance(found, Sequence):
        raise TypeError(
            "expected the detector to return a list with Detections or a dict for each image, got "
            f"{type(found).__name__}"
        )
    if len(found) != count:
        raise ValueError(f"expected the detector to return {count} results, one for each image, got {len(found)}")
    return [Detections.of(result) for result in found]


def check_images(images: Any, image_range: tuple[float, float] | None = None) -> None:
    """Images (B, 3, H, W) of floats, within the range that the detector was told.

    Raises:
        TypeError: no floating-point tensor.
        ValueError: another shape, NaN, values outside.
    """
    if not isinstance(images, Tensor) or not images.dtype.is_floating_point:
        got = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"expected images as a floating-point tensor (B, 3, H, W), got {got}")
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
    low, high = (float(v) for v in images.detach().aminmax())
    if not torch.isfinite(torch.tensor([low, high])).all():
        raise ValueError("expected finite images, got NaN or infinite values: check how they were read and scaled")
    if image_range is not None and not (low >= image_range[0] - TOLERANCE and high <= image_range[1] + TOLERANCE):
        raise ValueError(
            f"expected images with values in [{image_range[0]:g}, {image_range[1]:g}], as the detector was told, got "
            f"{low:g} to {high:g}: rescale them, or give another image_range"
        )


def check_eval(model: Any, name: str) -> None:
    """A detector in train mode returns losses, or asks for targets.

    Raises:
        ValueError: in train mode.
    """
    if isinstance(model, nn.Module) and model.training:
        raise ValueError(f"{name} is in train mode, in which it detects nothing: call .eval() first")


def class_names(names: Mapping[Any, Any] | Sequence[Any] | None) -> tuple[str, ...] | None:
    """Class names from a list or a dict by index (or by its text), with "class 3" in a gap; None where there are none.

    Example:
        >>> class_names({"0": "cat", "2": "dog"})
        ('cat', 'class 1', 'dog')
    """
    if not names:
        return None
    if not isinstance(names, Mapping):
        return tuple(str(name) for name in names)
    by_index = {int(index): str(name) for index, name in names.items()}
    return tuple(by_index.get(index, f"class {index}") for index in range(max(by_index) + 1))
