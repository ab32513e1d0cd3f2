"""How alike detections are: the three factors, by hand and against torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import box_iou

import drnet_captum as dc
from drnet_captum.attr.detection_similarity import Similarity, cosine, dot, iou


def random_boxes(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(n, 2, generator=generator) * 10
    return torch.cat([low, low + torch.rand(n, 2, generator=generator) * 10], 1)


def test_iou_is_torchvision_s():
    boxes, targets = random_boxes(40, 0), random_boxes(7, 1)
    assert_close(iou(boxes, targets), box_iou(boxes, targets))


def test_iou_of_boxes_without_area_is_zero():
    flat = torch.tensor([[3.0, 3, 3, 9], [5, 5, 2, 2], [4, 4, 4, 4]])
    assert not iou(flat, flat).any()
    assert not iou(flat, random_boxes(5, 0)).any()


def test_cosine_by_hand():
    rows = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.2, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [3.0, 4.0, 0.0]])
    # The last row tells one class alone: its score counts.
    assert_close(cosine(rows, targets), torch.tensor([[0.6, 0.8, 1.0], [0, 0, 0], [0, 0.2, 0.16]]))
    assert_close(dot(rows, targets), torch.tensor([[3.0, 4.0, 5.0], [0, 0, 0], [0, 0.2, 0.16]]))


def test_a_detector_of_one_class_is_compared_by_its_score():
    found = dc.Detections(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0.3]), torch.tensor([[0.3]]))
    assert_close(Similarity()(found, dc.Detections.drawn([[0, 0, 4, 4]], [0])), torch.tensor([[0.3]]))


def test_label_and_score_are_their_one_hot():
    """Told as labels or as score · one-hot, a detection is worth the same."""
    boxes, scores, labels = random_boxes(6, 3), torch.rand(6), torch.tensor([0, 4, 2, 2, 1, 0])
    told = dc.Detections(boxes, scores, labels=labels)
    spelt = dc.Detections(boxes, scores, torch.nn.functional.one_hot(labels, 5) * scores[:, None])
    targets = dc.Detections.drawn(random_boxes(3, 4), [0, 2, 4])
    assert_close(Similarity()(told, targets), Similarity()(spelt, targets))


def test_the_strongest_of_each_result():
    """Against a loop over results of all sizes, none among them."""
    targets = dc.Detections(random_boxes(3, 9), torch.ones(3), torch.rand(3, 4))
    found = [
        dc.Detections(random_boxes(m, m), torch.rand(m), torch.rand(m, 4), torch.rand(m)) for m in (5, 0, 1, 300, 0)
    ]
    expected = torch.zeros(5, 3)
    for i, one in enumerate(found):
        for t in range(3):
            for j in range(len(one)):
                overlap = box_iou(one.boxes[j : j + 1], targets.boxes[t : t + 1])
                alike = torch.cosine_similarity(one.class_probs[j], targets.class_probs[t], dim=0)
                expected[i, t] = max(expected[i, t], float(overlap * alike * one.objectness[j]))
    assert_close(Similarity().strongest(found, targets), expected)
    assert not Similarity().strongest([found[1], found[4]], targets).any()


def test_targets_with_a_distribution_and_detections_without():
    """The target's label is what is left to compare."""
    found = dc.Detections(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0.5]), labels=torch.tensor([1]))
    targets = dc.Detections(torch.tensor([[0.0, 0, 4, 4]]), torch.ones(1), torch.tensor([[0.4, 0.6]]))
    assert_close(Similarity()(found, targets), torch.tensor([[0.5]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_detectors_of_other_precisions(dtype):
    found = dc.Detections(torch.tensor([[0, 0, 400, 400]], dtype=dtype), torch.ones(1, dtype=dtype), torch.eye(2)[:1])
    found = Similarity()(found, dc.Detections.drawn([[0, 0, 400, 400]], [0]))
    assert_close(found.float(), torch.ones(1, 1))  # 160,000 square pixels are beyond half precision
