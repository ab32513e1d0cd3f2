"""torchvision's detectors: Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .detections import Detections
from .detector import Detector, check_eval
from .selection import at, rows_of, select
from .torchvision_heads import Family, Found, HeadOutput, family_of, pack, unpack

_BACKGROUND = "__background__"
_COCO = 91  # what torchvision's published detectors number, background included
_Traced = tuple[Found, Tensor]  # what was found in an image, and the row of the head's scores that each came from


class TorchvisionDetector(Detector):
    """A detection model of torchvision's, with the full class distribution of every detection.

    The model runs as it is, up to the scores of its last head; ``detector(images)`` gives the answers of its own
    post-processing, and ``propose`` those of a looser one. Masks and keypoints are not computed. The model is not
    changed, not even for the time of a call, so several threads may share it.

    ``class_probs`` are those of the anchor or proposal that a detection comes from: a softmax over background and
    classes, without the column of background (R-CNN, SSD); the sigmoid of each class's logit (RetinaNet);
    sqrt(sigmoid(class) · sigmoid(centre-ness)) (FCOS). A detection's score is the entry of its label.

    Class c is torchvision's label c + 1 where label 0 is background. R-CNN and SSD always have it. RetinaNet and FCOS
    are published with a label 0 that stands for nothing, but trained on other data they may use it: ``background``.

    Args:
        model: in eval mode, on any device; images must be there too, with values in [0, 1].
        min_score: proposals score above it, whatever the model's own threshold is.
        overlap: of two proposals of one class with a greater IoU, only the better is given.
        proposals: the most of them in an image.
        categories: class names, as in the published weights' ``meta["categories"]``, or without the background's.
        background: whether label 0 is background; a detection with that label is dropped. None: for RetinaNet and FCOS
            yes where its name is "__background__", where there is one name less than labels, and where there are 91
            labels (COCO's) without names.

    Raises:
        TypeError: no detection model of torchvision's.
        ValueError: numbers out of range, more or fewer names than classes; when called: a model in train mode, or one
            whose own post-processing gives other scores than the head's.

    Example:
        >>> import torch
        >>> from torchvision.models.detection import ssdlite320_mobilenet_v3_large
        >>> model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
        >>> detector = TorchvisionDetector(model, categories=["cat", "dog"])
        >>> found = detector(torch.rand(1, 3, 64, 80))[0]
        >>> found.class_probs.shape[1], detector.label(1)
        (2, 'dog')
    """

    image_range = (0.0, 1.0)

    def __init__(
        self,
        model: nn.Module,
        *,
        min_score: float = 0.05,
        overlap: float = 0.7,
        proposals: int = 300,
        categories: Sequence[str] | None = None,
        background: bool | None = None,
    ) -> None:
        self.model = model.module if isinstance(model, nn.DataParallel) else model
        self.name = type(self.model).__name__
        family = family_of(self.model)
        if family is None:
            raise TypeError(
                "expected torchvision's FasterRCNN, MaskRCNN, KeypointRCNN, RetinaNet, FCOS or SSD, got "
                f"{self.name}: give another detector as a function, images -> a list of dicts"
            )
        if not 0 <= min_score < 1:
            raise ValueError(f"expected min_score in [0, 1), got {min_score}")
        if not 0 < overlap <= 1:
            raise ValueError(f"expected overlap in (0, 1], got {overlap}")
        if proposals < 1:
            raise ValueError(f"expected at least one of proposals, got {proposals}")
        self.min_score, self.overlap, self.proposals = min_score, overlap, proposals
        self._family = family
        names = None if categories is None else tuple(categories)
        labels = family.class_count(self.model)
        self.background = _has_background(family, labels, names, background)
        self.categories = _without_background(labels, names, self.background)

    def __call__(self, images: Tensor) -> list[Detections]:
        """The model's own answers, in its own order.

        Args:
            images: (B, 3, H, W), values in [0, 1].

        Returns:
            B detections; boxes in pixels of these images.
        """
        return self._run(images, loosened=False)

    def propose(self, images: Tensor) -> list[Detections]:
        """Every box above ``min_score`` that is no double by ``overlap``, best first, at most ``proposals`` an image.

        The anchors of RetinaNet, FCOS and SSD come once each; a proposal of an R-CNN once for each class above
        ``min_score``, as each has a box of its own. What the R-CNN's first stage proposes stays as it is.

        Args:
            images: (B, 3, H, W), values in [0, 1].

        Returns:
            B detections; boxes in pixels of these images.
        """
        return self._run(images, loosened=True)

    def _run(self, images: Tensor, *, loosened: bool) -> list[Detections]:
        check_eval(self.model, self.name)
        probs: list[Tensor] = []
        twin, host, source = _twin(self.model)

        # It knows the model's own part, not the twin's: a cycle would keep the tensors until garbage is collected.
        def postprocess(*args: Any) -> Any:
            outputs = self._family.read(source, *args)
            if self.background:
                outputs = [output.without_background() for output in outputs]
            if loosened:
                answers = [self._select(output) for output in outputs]
            else:
                own = unpack(source.postprocess_detections(*args))
                answers = [self._trace(output, *found) for output, found in zip(outputs, own, strict=True)]
            probs.extend(output.scores[rows] for output, (_, rows) in zip(outputs, answers, strict=True))
            return pack([found for found, _ in answers], source)

        host.postprocess_detections = postprocess
        with torch.no_grad():
            found = twin(list(images))
        return [
            Detections(one["boxes"], one["scores"], own, labels=one["labels"])
            for one, own in zip(found, probs, strict=True)
        ]

    def _trace(self, output: HeadOutput, boxes: Tensor, scores: Tensor, labels: Tensor) -> _Traced:
        classes = labels - int(self.background)
        named = classes >= 0
        found = (boxes[named], scores[named], classes[named])
        return found, rows_of(*found, output.scores, output.boxes)

    def _select(self, output: HeadOutput) -> _Traced:
        rows, classes = select(
            output.scores, output.boxes, min_score=self.min_score, overlap=self.overlap, most=self.proposals
        )
        return (at(output.boxes, rows, classes), output.scores[rows, classes], classes), rows


def _twin(model: Any) -> tuple[Any, Any, Any]:
    """A model that shares its parts but for those that change; its part that post-processes; and the model's such part.

    Anchor generators and RoI pools remember something of the images they see, so they are not shared either.
    """
    twin = _shallow(model)
    if not hasattr(model, "roi_heads"):
        twin.anchor_generator = _shallow(model.anchor_generator)
        return twin, twin, model
    twin.rpn = _shallow(model.rpn)
    twin.rpn.anchor_generator = _shallow(model.rpn.anchor_generator)
    twin.roi_heads = _shallow(model.roi_heads)
    twin.roi_heads.box_roi_pool = _shallow(model.roi_heads.box_roi_pool)
    twin.roi_heads.mask_roi_pool = twin.roi_heads.keypoint_roi_pool = None  # torchvision's own sign of having none
    return twin, twin.roi_heads, model.roi_heads


def _shallow(module: nn.Module) -> Any:
    twin = object.__new__(type(module))  # copy.copy refuses parametrised modules
    twin.__dict__.update(module.__dict__, _modules=dict(module._modules))
    return twin


def _has_background(family: Family, labels: int | None, names: tuple[str, ...] | None, given: bool | None) -> bool:
    if family.softmax:
        if given is False:
            raise ValueError("background=False is for RetinaNet and FCOS: label 0 of an R-CNN or SSD is background")
        return True
    if given is not None:
        return given
    if names is None:
        return labels == _COCO
    return names[:1] == (_BACKGROUND,) or len(names) + 1 == labels


def _without_background(labels: int | None, names: tuple[str, ...] | None, background: bool) -> tuple[str, ...] | None:
    if names is None:
        return None
    kept = names[1:] if background and (len(names) == labels or names[:1] == (_BACKGROUND,)) else names
    classes = len(kept) if labels is None else labels - int(background)
    if len(kept) != classes:
        raise ValueError(
            f"expected {classes} categories, a name for each class, or one more where the first is the background's, "
            f"got {len(names)}"
        )
    return kept
