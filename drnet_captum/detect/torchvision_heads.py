"""What the heads of torchvision's detectors say of every anchor or proposal, in one form for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.ops import clip_boxes_to_image

Sizes = list[tuple[int, int]]
Found = tuple[Tensor, Tensor, Tensor]  # boxes (M, 4), scores (M,), labels (M,)


@dataclass(frozen=True)
class HeadOutput:
    """One image's N anchors or proposals, none of them dropped yet.

    Args:
        scores: (N, K), every class that the head numbers, its background included.
        boxes: (N, 4), or (N, K, 4) where each class has its own; xyxy in pixels of the resized image.
    """

    scores: Tensor
    boxes: Tensor

    def without_background(self) -> HeadOutput:
        """The same without class 0."""
        return HeadOutput(self.scores[:, 1:], self.boxes if self.boxes.dim() == 2 else self.boxes[:, 1:])


@dataclass(frozen=True)
class Family:
    """One kind of detector.

    Args:
        read: the part of the model that owns ``postprocess_detections``, and that method's arguments -> one output an
            image.
        softmax: the classes exclude each other, and class 0 is background.
        count: where the head says how many classes it numbers.
    """

    read: Callable[..., list[HeadOutput]]
    softmax: bool
    count: str

    def class_count(self, model: Any) -> int | None:
        """How many classes the head numbers, its background included; None for a head that does not say."""
        try:
            return int(attrgetter(self.count)(model))
        except AttributeError:
            return None


def family_of(model: Any) -> Family | None:
    """The family of a model; None for what is no detector of torchvision's."""
    if isinstance(model, GeneralizedRCNN):
        usual = isinstance(model.roi_heads, RoIHeads) and isinstance(model.rpn, RegionProposalNetwork)
        return Family(_read_rcnn, True, "roi_heads.box_predictor.cls_score.out_features") if usual else None
    if isinstance(model, SSD):
        return Family(_read_ssd, True, "head.classification_head.num_columns")
    if isinstance(model, RetinaNet):
        return Family(_read_retinanet, False, "head.classification_head.num_classes")
    if isinstance(model, FCOS):
        return Family(_read_fcos, False, "head.classification_head.num_classes")
    return None


def unpack(found: Any) -> list[Found]:
    """What ``postprocess_detections`` returned, image by image: three lists of RoI heads, dicts of the others."""
    if isinstance(found, tuple):
        return list(zip(*found, strict=True))
    return [(one["boxes"], one["scores"], one["labels"]) for one in found]


def pack(found: list[Found], like: Any) -> Any:
    """The reverse of :func:`unpack`, as the module ``like`` has it."""
    if isinstance(like, RoIHeads):
        return tuple(list(column) for column in zip(*found, strict=True))
    return [dict(zip(("boxes", "scores", "labels"), one, strict=True)) for one in found]


# The scores come from the same operations on the same tensors as torchvision's, so that they are equal to the last bit.


def _read_rcnn(
    heads: Any, logits: Tensor, regression: Tensor, proposals: list[Tensor], sizes: Sizes
) -> list[HeadOutput]:
    counts = [len(p) for p in proposals]
    boxes = heads.box_coder.decode(regression, proposals).reshape(*logits.shape, 4)  # (ΣN, K, 4)
    per_image = zip(logits.softmax(-1).split(counts), boxes.split(counts), sizes, strict=True)
    return [HeadOutput(scores, clip_boxes_to_image(own, size)) for scores, own, size in per_image]


def _read_ssd(model: Any, outputs: dict[str, Tensor], anchors: list[Tensor], sizes: Sizes) -> list[HeadOutput]:
    per_image = zip(outputs["cls_logits"].softmax(-1), outputs["bbox_regression"], anchors, sizes, strict=True)
    return [
        HeadOutput(scores, clip_boxes_to_image(model.box_coder.decode_single(deltas, own), size))
        for scores, deltas, own, size in per_image
    ]


def _read_retinanet(
    model: Any, outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], sizes: Sizes
) -> list[HeadOutput]:
    def read(i: int) -> HeadOutput:
        scores = torch.cat([level[i].sigmoid() for level in outputs["cls_logits"]])
        deltas = torch.cat([level[i] for level in outputs["bbox_regression"]])
        boxes = model.box_coder.decode_single(deltas, torch.cat(anchors[i]))
        return HeadOutput(scores, clip_boxes_to_image(boxes, sizes[i]))

    return [read(i) for i in range(len(sizes))]


def _read_fcos(
    model: Any, outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], sizes: Sizes
) -> list[HeadOutput]:
    def read(i: int) -> HeadOutput:
        levels = zip(outputs["cls_logits"], outputs["bbox_ctrness"], strict=True)
        scores = torch.cat([(logits[i].sigmoid() * centre[i].sigmoid()).sqrt() for logits, centre in levels])
        deltas = torch.cat([level[i] for level in outputs["bbox_regression"]])
        boxes = model.box_coder.decode(deltas, torch.cat(anchors[i]))
        return HeadOutput(scores, clip_boxes_to_image(boxes, sizes[i]))

    return [read(i) for i in range(len(sizes))]
