"""Hugging Face models of the DETR family as detectors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torchvision.ops import box_convert

from .detections import Detections
from .detector import Detector, check_eval, check_images, class_names

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


class HuggingFaceDetector(Detector):
    """A transformers model for object detection with queries: DETR, Deformable DETR, RT-DETR, YOLOS and their like.

    The image is resized, normalised and padded as the image processor says, but on its own device and without rounding
    to bytes. A query's class scores are softmax(logits) without the last column, "no object", or sigmoid(logits).

    Args:
        model: it gives ``logits`` (B, Q, K or K + 1) and ``pred_boxes`` (B, Q, 4), for images alone.
        processor: its image processor. None: images keep their size, and are normalised with ImageNet's mean and
            deviation.
        min_score, proposals: least score and most boxes an image, for ``propose``: a box for each query, with its best
            class. These models suppress nothing afterwards.
        threshold, max_detections: the same for the model's own answers, in which a query scored by sigmoid may answer
            with several classes, each a detection.
        scores: "softmax" or "sigmoid"; None: softmax where there is a logit more than the configuration has labels.
        categories: class names, if not the configuration's.

    Raises:
        TypeError: no model with a configuration.
        ValueError: a model that takes text too, is in train mode, or returns something else; a processor's size or
            resampling that is not known here.

    Source:
        https://huggingface.co/docs/transformers/tasks/object_detection

    Example:
        >>> from types import SimpleNamespace
        >>> class OneQuery(nn.Module):  # as DetrForObjectDetection.from_pretrained("facebook/detr-resnet-50") has 100
        ...     config = SimpleNamespace(id2label={0: "cat", 1: "dog"})
        ...     def forward(self, pixel_values):
        ...         logits, boxes = torch.tensor([[[0.0, 5, 1]]]), torch.tensor([[[0.5, 0.5, 1, 0.5]]])
        ...         return SimpleNamespace(logits=logits, pred_boxes=boxes)
        >>> detector = HuggingFaceDetector(OneQuery().eval())
        >>> found = detector(torch.rand(1, 3, 40, 60))[0]
        >>> found.boxes.tolist(), detector.label(int(found.labels))
        ([[0.0, 10.0, 60.0, 30.0]], 'dog')
    """

    image_range = (0.0, 1.0)

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        min_score: float = 0.01,
        proposals: int = 300,
        threshold: float = 0.5,
        max_detections: int = 100,
        scores: Literal["softmax", "sigmoid"] | None = None,
        categories: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module) or not hasattr(model, "config"):
            raise TypeError(f"expected a transformers model for object detection, got {type(model).__name__}")
        if scores not in (None, "softmax", "sigmoid"):
            raise ValueError(f'expected scores as "softmax", "sigmoid" or None, got {scores!r}')
        wanted = inspect.signature(model.forward).parameters
        if "input_ids" in wanted:
            raise ValueError(
                f"expected a detector of images alone, {type(model).__name__} takes text too: wrap it with its "
                "words in a function of images"
            )
        self.model = model
        self.name = type(model).__name__
        labels = getattr(model.config, "id2label", None)
        self.categories = class_names(labels) if categories is None else tuple(categories)
        self._labels = len(labels) if labels else None
        self._mask = "pixel_mask" in wanted
        self._preparation = _Preparation(processor)
        self._scores = scores
        self.min_score, self.proposals = min_score, proposals
        self.threshold, self.max_detections = threshold, max_detections

    def __call__(self, images: Tensor) -> list[Detections]:
        softmax, found = self._ask(images)
        return [self._best(boxes, probs, self.threshold, self.max_detections, not softmax) for boxes, probs in found]

    def propose(self, images: Tensor) -> list[Detections]:
        return [self._best(*each, self.min_score, self.proposals, False) for each in self._ask(images)[1]]

    def _ask(self, images: Tensor) -> tuple[bool, list[tuple[Tensor, Tensor]]]:
        """Whether scores are a softmax's, and for each image its boxes (Q, 4) and class scores (Q, K)."""
        check_images(images, self.image_range)
        check_eval(self.model, self.name)
        pixels, mask = self._preparation(images)
        first = next(self.model.parameters(), pixels)
        inputs = {"pixel_values": pixels.to(first.device, first.dtype)}
        if self._mask:
            inputs["pixel_mask"] = mask.to(first.device)
        with torch.no_grad():
            output = self.model(**inputs)
        logits, boxes = getattr(output, "logits", None), getattr(output, "pred_boxes", None)
        if not isinstance(logits, Tensor) or not isinstance(boxes, Tensor) or logits.dim() != 3:
            raise ValueError(
                f"expected {self.name} to return logits (B, Q, K) and pred_boxes (B, Q, 4), got "
                f"{type(output).__name__}: is it a model for object detection, with return_dict?"
            )
        softmax = self._softmax(logits.shape[2])
        logits = logits.to(images.device).float()
        probs = logits.softmax(-1)[..., :-1] if softmax else logits.sigmoid()
        probs = probs.where(~probs.isnan().any(-1, keepdim=True), -torch.inf)  # below any score
        height, width = images.shape[-2:]
        sides = torch.tensor([width, height, width, height], device=images.device)
        boxes = box_convert(boxes.to(images.device).float(), "cxcywh", "xyxy") * sides
        return softmax, list(zip(boxes, probs, strict=True))

    def _softmax(self, columns: int) -> bool:
        if self._scores is not None:
            return self._scores == "softmax"
        if self._labels is None or columns - self._labels not in (0, 1):
            raise ValueError(
                f"expected a logit for each of {self._labels} labels, or one more for no object, got {columns}: pass "
                'scores="softmax" if the last one is no object, scores="sigmoid" if there is none'
            )
        return columns == self._labels + 1

    @staticmethod
    def _best(boxes: Tensor, probs: Tensor, least: float, limit: int, several: bool) -> Detections:
        """The best queries; or the best pairs of query and class, where a query may give several."""
        if several:
            flat = probs.flatten()
            scores, order = flat.topk(min(limit, len(flat)))
            query, labels = order // probs.shape[1], order % probs.shape[1]
        else:
            scores, query = probs.amax(1).topk(min(limit, len(probs)))
            labels = probs[query].argmax(1)
        found = Detections(boxes[query], scores, probs[query], labels=labels)
        return found[(scores >= least) & found.boxes.isfinite().all(1)]


class _Preparation:
    """What an image processor does to images in [0, 1], and the mask of its padding."""

    def __init__(self, processor: Any) -> None:
        def of(name: str, default: Any = None) -> Any:
            return getattr(processor, name, default)

        self.size: dict[str, int] = {}
        if of("do_resize", False):
            self.size = _sides(of("size"))
            kinds = (
                {"height", "width"},
                {"max_height", "max_width"},
                {"shortest_edge"},
                {"shortest_edge", "longest_edge"},
            )
            if set(self.size) not in kinds:
                raise ValueError(
                    "expected a processor whose size has height and width, max_height and max_width, or shortest_edge "
                    f"with or without longest_edge, got {of('size')}"
                )
            resampling = int(of("resample", 2))
            if resampling not in _RESAMPLING:
                raise ValueError(f"expected nearest, bilinear or bicubic resampling (PIL's 0, 2, 3), got {resampling}")
            self.mode = _RESAMPLING[resampling]
        # The processor was written for bytes.
        self.gain = (
            1.0 if processor is None else 255 * of("rescale_factor", 1 / 255) if of("do_rescale", True) else 255.0
        )
        self.normalise = bool(of("do_normalize", True))
        self.mean, self.std = of("image_mean") or _MEAN, of("image_std") or _STD
        self.pad = _sides(of("pad_size")) if of("do_pad", False) else {}
        # YOLOS cuts sides to whole patches.
        self.multiple = 16 if "Yolos" in type(processor).__name__ else 1

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float()
        size = self.target(x.shape[-2], x.shape[-1])
        if size != tuple(x.shape[-2:]):
            smooth = self.mode != "nearest-exact"
            x = interpolate(x, size, mode=self.mode, antialias=smooth).clamp(0, 1)
        x = x * self.gain
        if self.normalise:
            x = (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.std)[:, None, None]
        mask = x.new_ones((len(x), *x.shape[-2:]), dtype=torch.int64)
        if self.pad:
            right, below = self.pad["width"] - x.shape[-1], self.pad["height"] - x.shape[-2]
            x, mask = pad(x, (0, right, 0, below)), pad(mask, (0, right, 0, below))
        return x, mask

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the image after resizing, by the rounding that transformers has."""
        if not self.size:
            return height, width
        if "height" in self.size:
            return self.size["height"], self.size["width"]
        if "max_height" in self.size:
            ratio = min(self.size["max_height"] / height, self.size["max_width"] / width)
            return int(height * ratio), int(width * ratio)
        short, long = min(height, width), max(height, width)
        edge: float = self.size["shortest_edge"]
        longest = self.size.get("longest_edge")
        if longest is not None and long / short * edge > longest:
            edge = longest * short / long
        new_short = round(edge)
        new_long = long if short == new_short else int(edge * long / short)
        h, w = (new_short, new_long) if height <= width else (new_long, new_short)
        return h - h % self.multiple, w - w % self.multiple


def _sides(size: Any) -> dict[str, int]:
    """What a processor's size says, a dict or an object with the same names."""
    names = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
    values = {n: size.get(n) if isinstance(size, Mapping) else getattr(size, n, None) for n in names}
    return {name: int(value) for name, value in values.items() if value}
