"""D-RISE by ``vision-explanation-methods`` (PyPI, Microsoft), asked with one of our detectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from vision_explanation_methods.explanations.common import DetectionRecord, GeneralObjectDetectionModelWrapper
from vision_explanation_methods.explanations.drise import DRISE_saliency

from benchmarks.agreement import correlation
from benchmarks.detection_subjects import image_range
from drnet_captum.attr.drise import DRISE
from drnet_captum.detect import Detections, Detector


class Wrapped(GeneralObjectDetectionModelWrapper):  # type: ignore[misc]
    """A detector's proposals as their records."""

    def __init__(self, detector: Detector, classes: int) -> None:
        self.detector, self.classes = detector, classes

    def predict(self, x: Tensor) -> list[DetectionRecord]:
        """Images (B, 3, H, W) -> B records."""
        return [record(found, self.classes) for found in self.detector.propose(x)]


def record(found: Detections, classes: int) -> DetectionRecord:
    """Where the detector gives no distribution, a vector of the label alone, and where no objectness, ones: as ours."""
    vectors = found.class_probs
    if vectors is None:
        vectors = one_hot(found.labels.long(), classes).to(found.scores) * found.scores[:, None]
    given = found.scores.new_ones(len(found)) if found.objectness is None else found.objectness
    return DetectionRecord(found.boxes, given, vectors)


def theirs(detector: Detector, x: Tensor, target: Detections, n_masks: int) -> Tensor:
    """Their map (H, W) of one detection: hidden parts are 0, from 0 to 1."""
    classes = target.class_probs.shape[1] if target.class_probs is not None else len(detector.categories or ())
    wrapped = Wrapped(detector, max(classes, int(target.labels.max()) + 1))
    found = DRISE_saliency(wrapped, x, [record(target, wrapped.classes)], n_masks, device=str(x.device))
    heat: Tensor = found[0][0]["detection"][0]
    return heat


def agreement(
    detector: Detector, x: Tensor, target: Detections, n_masks: int, batch_size: int | None
) -> dict[str, float | None]:
    """Of maps of other masks: ours with theirs, ours with ours, theirs with theirs; None where a map is flat."""

    def mine(seed: int) -> Tensor:
        maps = DRISE(detector).attribute_detections(
            x,
            target,
            n_masks=n_masks,
            baselines=image_range(detector)[0],
            perturbations_per_eval=batch_size,
            generator=torch.Generator().manual_seed(seed),
        )
        return maps[0][0].cpu()

    def other(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return theirs(detector, x, target, n_masks).cpu()

    our, their = mine(0), other(0)
    found = {
        "correlation with theirs": correlation(our, their),
        "ours with ours": correlation(our, mine(1)),
        "theirs with theirs": correlation(their, other(1)),
    }
    return {name: value if abs(value) <= 1 else None for name, value in found.items()}
