"""Ultralytics models (YOLO of all versions, RT-DETR) as detectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .detections import Detections
from .detector import Detector, check_eval, check_images, class_names
from .letterbox import canvas_size, letterbox
from .selection import best, candidates

_RT_DETR = "RTDETRDecoder"


class UltralyticsDetector(Detector):
    """An Ultralytics detection model, asked before its non-maximum suppression, so that each box has all class scores.

    Images are letterboxed as ``YOLO.predict`` does it (RT-DETR's: stretched). ``predict`` itself is never called: it
    fuses the caller's layers. Heads that suppress by themselves (``end2end``) tell one class of each box; their class
    scores are looked up in what they return beside it, and ``class_probs`` is None where it is not there.

    Args:
        model: ``ultralytics.YOLO`` or ``RTDETR``, or the module inside, in eval mode.
        size: pixels of the longer side, the other one as short as the model's stride allows; or (h, w) exactly.
        min_score, overlap, proposals: least score, greatest IoU of two boxes of one class, and most boxes an image, for
            ``propose``.
        threshold, final_overlap: the first two for the model's own answers.
        categories: class names, if not the model's own.

    Raises:
        TypeError: no PyTorch model.
        ValueError: a model of another task, in train mode, or a size that its stride does not divide.

    Source:
        https://docs.ultralytics.com

    Example:
        >>> class OneAnchor(nn.Module):  # as ultralytics.YOLO("yolo11n.pt") has 8400
        ...     names = {0: "cat", 1: "dog"}
        ...     def forward(self, x):
        ...         return torch.tensor([[[32.0], [16], [32], [16], [0.1], [0.9]]])
        >>> detector = UltralyticsDetector(OneAnchor().eval(), size=64)
        >>> found = detector(torch.rand(1, 3, 32, 64))[0]
        >>> found.boxes.tolist(), detector.label(int(found.labels))
        ([[16.0, 8.0, 48.0, 24.0]], 'dog')
    """

    image_range = (0.0, 1.0)

    def __init__(
        self,
        model: Any,
        *,
        size: int | Sequence[int] = 640,
        min_score: float = 0.01,
        overlap: float = 0.7,
        proposals: int = 300,
        threshold: float = 0.25,
        final_overlap: float = 0.7,
        categories: Sequence[str] | None = None,
    ) -> None:
        self.model = _inner(model)
        self.name = type(model).__name__
        inner = getattr(self.model, "model", None)
        self._head = inner[-1] if isinstance(inner, nn.Sequential) else self.model
        if any("OBB" in cls.__name__ for cls in type(self._head).__mro__):
            raise ValueError("expected a model with upright boxes, got one with oriented boxes (OBB)")
        names = getattr(self.model, "names", None)
        self.categories = class_names(names) if categories is None else tuple(categories)
        self._classes = getattr(self._head, "nc", None) or len(self.categories or ())
        if not self._classes:
            raise ValueError(f"{self.name} tells neither its number of classes nor their names: pass categories=")
        self._stretch = type(self._head).__name__ == _RT_DETR
        self._stride = int(torch.as_tensor(getattr(self.model, "stride", 32)).max())
        self.size = size
        if any(side % self._stride for side in canvas_size(size)):
            raise ValueError(f"expected a size that the model's stride {self._stride} divides, got {size}")
        self.min_score, self.overlap, self.proposals = min_score, overlap, proposals
        self.threshold, self.final_overlap = threshold, final_overlap

    def __call__(self, images: Tensor) -> list[Detections]:
        """At most 300 boxes an image, which is Ultralytics' own limit."""
        return self._ask(images, self.threshold, self.final_overlap, 300)

    def propose(self, images: Tensor) -> list[Detections]:
        return self._ask(images, self.min_score, self.overlap, self.proposals)

    def _ask(self, images: Tensor, min_score: float, overlap: float, limit: int) -> list[Detections]:
        check_images(images, self.image_range)
        check_eval(self.model, self.name)
        height, width = images.shape[-2:]
        canvas, placed = letterbox(images, self._canvas(height, width), stretch=self._stretch)
        first = next(self.model.parameters(), canvas)
        with torch.no_grad(), _kept(self._head):
            output = self.model(canvas.to(first.device, first.dtype))
        suppressed, found = self._decode(output, canvas)
        allowed = None if suppressed else overlap
        return [placed.place(best(each, min_score, limit, allowed).to(images.device)) for each in found]

    def _canvas(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.size, int) or self._stretch:
            return canvas_size(self.size)
        ratio = self.size / max(height, width)
        h, w = (-(-max(round(side * ratio), 1) // self._stride) * self._stride for side in (height, width))
        return h, w

    def _decode(self, output: Any, canvas: Tensor) -> tuple[bool, list[Detections]]:
        """Whether the head has suppressed overlapping boxes, and the boxes of each image in pixels of the canvas."""
        k = self._classes
        if self._stretch:
            boxes, logits = (part[-1].float() for part in output[1][:2])  # of the last decoder layer
            pixels = boxes.new_tensor([canvas.shape[-1], canvas.shape[-2]] * 2)
            return True, [candidates(box * pixels, p) for box, p in zip(boxes, logits.sigmoid(), strict=True)]
        raw = _first(output)
        if getattr(self._head, "end2end", False) or (raw.dim() == 3 and raw.shape[2] == 6 and raw.shape[1] != 4 + k):
            probs = _class_scores(output, raw)
            rows = [(r[:, :4].float(), r[:, 4].float(), r[:, 5].long()) for r in raw]
            return True, [
                Detections(boxes, scores, p, labels=labels)
                for (boxes, scores, labels), p in zip(rows, probs, strict=True)
            ]
        if raw.dim() != 3 or raw.shape[1] < 4 + k:
            raise ValueError(
                f"expected {self.name} to return boxes and {k} class scores, (B, {4 + k}, A), got {tuple(raw.shape)}: "
                "is it a detection model?"
            )
        # Masks' coefficients or keypoints come after the class scores.
        return False, [candidates(columns[:4].T, columns[4 : 4 + k].T) for columns in raw.float()]


def detections_of(results: Iterable[Any], device: torch.device | str | None = None) -> list[Detections]:
    """What ``YOLO.predict`` returned, a `Results` for each image, as detections; labels only.

    Args:
        results: objects with ``boxes.xyxy`` (M, 4), ``boxes.conf`` (M,) and ``boxes.cls`` (M,), tensors or arrays.
        device: where the detections go; None: where they are.

    Raises:
        ValueError: results without boxes, of a model for another task.

    Example:
        >>> from types import SimpleNamespace
        >>> boxes = SimpleNamespace(xyxy=[[0.0, 0, 8, 8]], conf=[0.5], cls=[3.0])
        >>> detections_of([SimpleNamespace(boxes=boxes)])[0].labels.tolist()
        [3]
    """
    found = []
    for result in results:
        boxes = getattr(result, "boxes", None)
        if boxes is None:
            raise ValueError(
                f"expected results with boxes, got a {type(result).__name__} without: detection models only"
            )
        xyxy, scores, labels = (
            torch.as_tensor(part, dtype=dtype, device=device)
            for part, dtype in ((boxes.xyxy, torch.float32), (boxes.conf, torch.float32), (boxes.cls, torch.int64))
        )
        keep = ~scores.isnan()
        found.append(Detections(xyxy.reshape(-1, 4)[keep], scores[keep], labels=labels[keep]))
    return found


def _class_scores(output: Any, rows: Tensor) -> list[Tensor | None]:
    """For each image's rows (R, 6) of an end-to-end head the class scores (R, K) that they were chosen from.

    The head sorts twice: the R anchors with the best class scores, then the R best scores of these, of any class.
    An image for which that does not give the same rows again has None.
    """
    nothing: list[Tensor | None] = [None] * len(rows)
    beside = output[1] if isinstance(output, (tuple, list)) and len(output) > 1 else None
    logits = beside.get("one2one", beside) if isinstance(beside, dict) else None
    logits = logits.get("scores") if isinstance(logits, dict) else None
    if not isinstance(logits, Tensor) or logits.shape[2] < rows.shape[1]:
        return nothing
    found = nothing
    for index, probs in enumerate(logits.sigmoid().transpose(1, 2)):  # (A, K)
        anchors = probs.amax(1).topk(rows.shape[1]).indices
        top = probs[anchors].flatten().topk(rows.shape[1])
        again = torch.stack([top.values, (top.indices % probs.shape[1]).to(rows.dtype)], 1)
        if torch.equal(again, rows[index, :, 4:6]):
            found[index] = probs[anchors[top.indices // probs.shape[1]]].float()
    return found


@contextmanager
def _kept(head: nn.Module) -> Iterator[None]:
    """The head's attributes as they were: it keeps the last images' anchors."""
    before = dict(vars(head))
    try:
        yield
    finally:
        vars(head).clear()
        vars(head).update(before)


def _inner(model: Any) -> nn.Module:
    inner = getattr(model, "model", None)
    if isinstance(inner, nn.Module) and not isinstance(inner, nn.Sequential):
        return inner
    if not isinstance(model, nn.Module) or isinstance(inner, str):
        raise TypeError(
            f"expected an Ultralytics model in PyTorch, got {type(model).__name__}{f' of {inner}' if inner else ''}: "
            "for an ONNX file take OnnxDetector, for others wrap detections_of(model(images)) in a function"
        )
    return model


def _first(output: Any) -> Tensor:
    """The predictions: what comes first, however deep."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(f"expected the model to return predictions as a tensor first, got {type(output).__name__}")
    return output
