r"""How alike two detections are: D-RISE's weights.

.. math:: s(d_t, d_j) = \mathrm{IoU}(L_t, L_j) \cdot \frac{P_t \cdot P_j}{\lVert P_t\rVert \lVert P_j\rVert} \cdot O_j

Source: Petsiuk et al. 2021, arXiv 2006.03204, equations 5 to 8. Each of the three is a plain function on tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drnet_captum.detect.detections import Detections

PairSimilarity = Callable[[Tensor, Tensor], Tensor]


def iou(boxes: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of boxes, xyxy in pixels: (P, 4) and (T, 4) -> (P, T); 0 for boxes without area.

    Example:
        >>> iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]]))
        tensor([[1.0000, 0.3333, 0.0000]])
    """
    low = torch.maximum(boxes[:, None, :2], targets[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], targets[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(2)
    union = _area(boxes)[:, None] + _area(targets)[None] - shared
    return torch.where(union > 0, shared / union, 0.0)


def cosine(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Cosine of class vectors: (P, K) and (T, K) -> (P, T); 0 where one is all zero.

    How sure the detector is does not count, only how its belief is shared out among the classes. A vector of one class
    alone (label and score, or a detector of one class) has nothing to share out: it is compared by its `dot` product.

    Example:
        >>> cosine(torch.tensor([[0.3, 0.4], [0.0, 0.4]]), torch.tensor([[0.0, 1.0]]))
        tensor([[0.8000],
                [0.4000]])
    """
    alone = (probabilities != 0).sum(1, keepdim=True) <= 1
    return torch.where(alone, probabilities, _unit(probabilities)) @ _unit(targets).mT


def dot(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Product of class vectors with the targets' brought to length 1, (P, T): how sure the detector is counts too."""
    return probabilities @ _unit(targets).mT


def given_objectness(found: Detections) -> Tensor | None:
    """The objectness that the detector gives beside its class scores, (P,); None, a factor of 1, where it gives none.

    Most detectors' score is the class probability already, and would count twice.
    """
    return found.objectness


@dataclass(frozen=True)
class Similarity:
    """The product of three factors, each replaceable, or left out with None.

    Args:
        box: boxes (P, 4) and targets' boxes (T, 4) -> (P, T), at least 0.
        classes: class vectors (P, K) and targets' (T, K) -> (P, T), at least 0. Where the detector tells only label
            and score, vectors are score · one-hot.
        objectness: detections -> (P,), or None for a factor of 1.

    Example:
        >>> found = Detections(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0.5]), torch.tensor([[0.3, 0.4]]))
        >>> Similarity()(found, Detections.drawn([[0, 0, 4, 8]], [1]))
        tensor([[0.4000]])
    """

    box: PairSimilarity | None = iou
    classes: PairSimilarity | None = cosine
    objectness: Callable[[Detections], Tensor | None] | None = given_objectness

    def __call__(self, found: Detections, targets: Detections) -> Tensor:
        """(P, T); 0 for detections whose score, or whose similarity, is not a number."""
        boxes = found.boxes.to(torch.promote_types(found.boxes.dtype, torch.float32))
        similar = boxes.new_ones(len(found), len(targets))
        if self.box is not None:
            similar = similar * self.box(boxes, targets.boxes.to(boxes))
        if self.classes is not None:
            mine, theirs = class_vectors(found, targets)
            similar = similar * self.classes(mine.to(boxes), theirs.to(boxes))
        objectness = None if self.objectness is None else self.objectness(found)
        if objectness is not None:
            similar = similar * objectness.to(boxes)[:, None]
        sound = torch.isfinite(found.scores)[:, None] & torch.isfinite(similar)
        return torch.where(sound, similar, 0.0)

    def strongest(self, found: Sequence[Detections], targets: Detections) -> Tensor:
        """The largest similarity in each of m results to each target, (m, T); 0 where there is no detection."""
        counts = torch.tensor([len(one) for one in found])
        device = targets.boxes.device
        weights = torch.zeros(len(found), len(targets), device=device)
        if not int(counts.sum()):
            return weights
        pairs = self(joined([one for one in found if len(one)], device), targets)  # (P, T)
        owner = torch.arange(len(found)).repeat_interleave(counts).to(device)[:, None].expand_as(pairs)
        return weights.to(pairs).scatter_reduce(0, owner, pairs, "amax")


def class_vectors(found: Detections, targets: Detections) -> tuple[Tensor, Tensor]:
    """(P, K) and (T, K): distributions where there are, else score · one-hot, and one-hot for the targets."""
    if found.class_probs is not None:
        k = found.class_probs.shape[1]
        theirs = targets.class_probs
        if theirs is None:
            theirs = torch.nn.functional.one_hot(targets.labels.long(), k)
        return found.class_probs, theirs
    both = torch.cat([found.labels, targets.labels.to(found.labels)])
    distinct, places = both.unique(return_inverse=True)  # whatever the labels are: vectors of those that occur
    vectors = torch.nn.functional.one_hot(places, len(distinct))
    return vectors[: len(found)] * found.scores[:, None], vectors[len(found) :]


def joined(found: Sequence[Detections], device: torch.device) -> Detections:
    """All detections in one, on a device."""

    def column(name: str) -> Tensor | None:
        values = [getattr(one, name) for one in found]
        return None if any(v is None for v in values) else torch.cat([v.to(device) for v in values])

    return Detections(**{name: column(name) for name in ("boxes", "scores", "class_probs", "objectness", "labels")})  # type: ignore[arg-type]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(1)


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.norm(dim=1, keepdim=True)
    return torch.where(length > 0, vectors / length, 0.0)
