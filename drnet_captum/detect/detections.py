"""What a detector found in one image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FIELDS = ("boxes", "scores", "class_probs", "objectness", "labels")


@dataclass(frozen=True, eq=False)
class Detections:
    """M detections of one image: what a detector answers, and what is to be explained.

    Classes are numbered without a background class: ``labels`` and the columns of ``class_probs`` count alike.

    Args:
        boxes: (M, 4), xyxy in pixels of the image that the detector was given.
        scores: (M,), what the detector ranks by.
        class_probs: (M, K), a distribution over the classes or a score for each; None where the detector tells only the
            winner.
        objectness: (M,), where the detector has it beside the class scores.
        labels: (M,) integers; None: the likeliest of ``class_probs``.

    Raises:
        ValueError: shapes that do not belong together; neither ``class_probs`` nor ``labels``.
        TypeError: something that is no tensor.

    Example:
        >>> import torch
        >>> found = Detections(torch.tensor([[4.0, 4, 20, 12]]), torch.tensor([0.9]), torch.tensor([[0.1, 0.8]]))
        >>> len(found), found.labels.tolist()
        (1, [1])
        >>> why_not_there = Detections.drawn([[2, 2, 30, 30]], labels=[0])
        >>> why_not_there.boxes.shape
        torch.Size([1, 4])
    """

    boxes: Tensor
    scores: Tensor
    class_probs: Tensor | None = None
    objectness: Tensor | None = None
    labels: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in _FIELDS:
            value = getattr(self, name)
            if not isinstance(value, Tensor) and (value is not None or name in ("boxes", "scores")):
                raise TypeError(f"expected {name} as a tensor, got {type(value).__name__}")
        if self.boxes.dim() != 2 or self.boxes.shape[1] != 4:
            hint = ": add a dimension" if tuple(self.boxes.shape) == (4,) else ""
            raise ValueError(f"expected boxes of shape (M, 4) in xyxy pixels, got {tuple(self.boxes.shape)}{hint}")
        m = len(self.boxes)
        if self.class_probs is not None and (self.class_probs.dim() != 2 or len(self.class_probs) != m):
            raise ValueError(
                f"expected class_probs of shape ({m}, K), a row for each box, got {tuple(self.class_probs.shape)}"
            )
        if self.labels is None:
            if self.class_probs is None:
                raise ValueError("expected class_probs (M, K) or labels (M,), got neither")
            empty = self.class_probs.new_zeros(0, dtype=torch.int64)
            object.__setattr__(self, "labels", self.class_probs.argmax(1) if m else empty)
        for name in ("scores", "objectness", "labels"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (m,):
                raise ValueError(f"expected {name} of shape ({m},), one for each box, got {tuple(value.shape)}")

    @classmethod
    def drawn(cls, boxes: Any, labels: Any) -> Detections:
        """Boxes drawn by hand, each with a class: to ask why something was, or was not, found.

        Args:
            boxes: (M, 4), xyxy in pixels; a tensor or lists.
            labels: M class indices.
        """
        made = torch.as_tensor(boxes, dtype=torch.float32)
        return cls(
            made, made.new_ones(len(made)), labels=torch.as_tensor(labels, dtype=torch.int64, device=made.device)
        )

    @classmethod
    def of(cls, found: Detections | Mapping[str, Any]) -> Detections:
        """Detections, or the dict that most detectors give: "boxes", "scores", and "labels" or "class_probs"."""
        if isinstance(found, Detections):
            return found
        if not isinstance(found, Mapping):
            raise TypeError(
                "expected Detections or a dict with boxes, scores, and labels or class_probs, got "
                f"{type(found).__name__}"
            )
        missing = [name for name in ("boxes", "scores") if name not in found]
        if missing:
            raise ValueError(f"expected a dict with boxes and scores, got the keys {', '.join(map(str, found))}")
        return cls(**{name: found[name] for name in _FIELDS if name in found})

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Detections:
        """Some of them, in any of a tensor's ways to index rows; an integer gives one detection, still with M = 1."""
        if isinstance(index, int):
            index = [index]
        return self._each(lambda value: value[index])

    def to(self, device: torch.device | str) -> Detections:
        """The same on a device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Detections:
        values: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in values.items()}
        return Detections(**changed)
