"""What there is to explain: a detector's own answers for one image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drnet_captum.engine.state import kept

from .adapt import as_detector
from .detections import Detections
from .detector import answers, check_images


def find_detections(
    detector: Any, image: Tensor, min_score: float = 0.3, max_detections: int | None = None
) -> Detections:
    """The detector's answers with a score of at least ``min_score``, best first.

    Args:
        detector: anything that :func:`as_detector` takes.
        image: (3, H, W) or (1, 3, H, W), in the detector's range.
        min_score: least score, in the detector's own scale.
        max_detections: the most of them; None: all.

    Returns:
        M detections, boxes in pixels of the image; M may be 0.

    Raises:
        ValueError: several images, values outside the detector's range, a detector with another number of results.

    Example:
        >>> import torch
        >>> def detector(images):
        ...     boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 8, 8]])
        ...     scores, labels = torch.tensor([0.4, 0.9]), torch.tensor([0, 3])
        ...     return [{"boxes": boxes, "scores": scores, "labels": labels} for x in images]
        >>> find_detections(detector, torch.rand(3, 8, 8)).labels.tolist()
        [3, 0]
    """
    asked = as_detector(detector)
    batch = image[None] if isinstance(image, Tensor) and image.dim() == 3 else image
    check_images(batch, asked.image_range)
    if len(batch) != 1:
        raise ValueError(f"expected one image, (3, H, W), got a batch of {len(batch)}: ask for each by itself")
    with torch.no_grad(), kept(asked.model, {batch.device}):
        (found,) = answers(asked(batch.detach().clone()), 1)
    order = found.scores.argsort(descending=True, stable=True)
    order = order[found.scores[order] >= min_score]  # NaN is not
    return found[order if max_detections is None else order[:max_detections]]
