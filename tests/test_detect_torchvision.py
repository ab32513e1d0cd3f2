"""torchvision's detectors with random weights: their own answers to the bit, distributions, proposals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import keypoint_rcnn, mask_rcnn
from torchvision.ops import MultiScaleRoIAlign, box_iou
from torchvision_models import CLASSES, FAMILIES, SIZE, build, first_class, images, own_answers, rcnn

from drnet_captum.detect import Detections
from drnet_captum.detect.torchvision import TorchvisionDetector

every_family = pytest.mark.parametrize("family", FAMILIES)


def with_area(found: Detections) -> Detections:
    """Without what was cut away at the image's edge, of which nothing is proposed."""
    return found[(found.boxes[:, 2:] - found.boxes[:, :2] > 0.02).all(1)]


# The model's own answers


@every_family
@pytest.mark.parametrize("options", [{}, {"cap": 3}, {"topk": 4}, {"threshold": 0.5}, {"cap": 7, "threshold": 0.001}])
def test_answers_are_the_models_own_to_the_bit(family: str, options: dict[str, Any]) -> None:
    names = {"cap": "detections_per_img", "topk": "topk_candidates", "threshold": "score_thresh"}
    if family == "rcnn":
        names = {"cap": "box_detections_per_img", "topk": "rpn_post_nms_top_n_test", "threshold": "box_score_thresh"}
    given = {names[name]: value for name, value in options.items()}
    model, free = build(family, **given), build(family)
    x = images()
    expected = own_answers(model, x)
    for one, other, found in zip(expected, own_answers(free, x), TorchvisionDetector(model)(x), strict=True):
        assert len(found) == len(one["boxes"]) > 0
        assert ("cap" in options or "topk" in options) <= (len(found) < len(other["boxes"]))  # it bites
        assert torch.equal(found.boxes, one["boxes"])
        assert torch.equal(found.scores, one["scores"])
        assert torch.equal(found.labels, one["labels"] - first_class(family))
        assert found.class_probs is not None
        assert found.class_probs.shape == (len(found), CLASSES - first_class(family))
        assert torch.equal(found.class_probs.gather(1, found.labels[:, None])[:, 0], found.scores)


@every_family
def test_distributions_are_those_of_the_heads_own_outputs(family: str) -> None:
    model = build(family)
    seen: dict[str, Any] = {}
    head = model.roi_heads.box_predictor if family == "rcnn" else model.head
    with torch.no_grad():
        handle = head.register_forward_hook(lambda module, args, output: seen.update(output=output))
        (found,) = TorchvisionDetector(model)(images(1))
        (proposed,) = TorchvisionDetector(model).propose(images(1))
        handle.remove()
    logits = seen["output"][0] if family == "rcnn" else seen["output"]["cls_logits"][0]
    logits = logits.double()
    if family == "retinanet":
        rows = 1 / (1 + (-logits).exp())
    elif family == "fcos":
        rows = (1 / (1 + (-logits).exp()) / (1 + (-seen["output"]["bbox_ctrness"][0].double()).exp())) ** 0.5
    else:
        rows = (logits.exp() / logits.exp().sum(1, keepdim=True))[:, 1:]
    for some in (found, proposed):
        assert some.class_probs is not None
        nearest = torch.cdist(some.class_probs.double(), rows, p=torch.inf).min(1)
        torch.testing.assert_close(nearest.values, torch.zeros(len(some), dtype=torch.float64), atol=1e-6, rtol=0)
        assert len(set(nearest.indices.tolist())) > 3  # not one for all


@every_family
def test_distribution_is_that_of_the_anchor_which_has_the_box(family: str) -> None:
    """Two anchors with one score for a class differ in the others: the box decides."""
    model = build(family)
    found = with_area(TorchvisionDetector(model)(images(1))[0])
    (proposed,) = TorchvisionDetector(model, overlap=1.0, min_score=0.0, proposals=100_000).propose(images(1))
    same = (found.boxes[:, None] - proposed.boxes).abs().amax(2) < 1e-3
    assert found.class_probs is not None and proposed.class_probs is not None
    equal = (found.class_probs[:, None] == proposed.class_probs).all(2)
    assert (same & equal).any(1).all()


@pytest.mark.parametrize("kind", [detection.MaskRCNN, detection.KeypointRCNN])
def test_masks_and_keypoints_are_not_computed(kind: type[nn.Module]) -> None:
    class Refuses(nn.Module):
        def forward(self, *args: Any) -> None:
            raise AssertionError("asked")

    torch.manual_seed(0)
    name = "mask" if kind is detection.MaskRCNN else "keypoint"
    small = {
        "mask_head": mask_rcnn.MaskRCNNHeads(32, (256,), 1),
        "keypoint_head": keypoint_rcnn.KeypointRCNNHeads(32, (8,)),
        "keypoint_predictor": keypoint_rcnn.KeypointRCNNPredictor(8, 2),
    }
    extra = {part: module for part, module in small.items() if part.startswith(name)}
    extra[f"{name}_roi_pool"] = MultiScaleRoIAlign(["0", "1"], 7, 2)
    model = rcnn(kind, box_score_thresh=0.01, **extra).eval()
    expected = own_answers(model, images())
    assert {"masks", "keypoints"} & set(expected[0])
    setattr(model.roi_heads, f"{name}_head", Refuses())
    for one, found in zip(expected, TorchvisionDetector(model)(images()), strict=True):
        assert torch.equal(found.boxes, one["boxes"])
        assert len(found) > 0
    assert getattr(model.roi_heads, f"{name}_roi_pool") is extra[f"{name}_roi_pool"]


# Proposals


@every_family
def test_every_answer_has_a_proposal_of_its_class(family: str) -> None:
    model = build(family)
    detector = TorchvisionDetector(model, proposals=100_000)
    for found, proposed in zip(detector(images()), detector.propose(images()), strict=True):
        assert proposed.class_probs is not None and found.class_probs is not None
        assert (proposed.scores > 0.05).all()
        assert (proposed.scores.diff() <= 0).all()
        assert torch.equal(proposed.class_probs.gather(1, proposed.labels[:, None])[:, 0], proposed.scores)
        sure = with_area(found[found.scores > 0.05])
        assert len(sure) > 10
        near = box_iou(sure.boxes, proposed.boxes) > 0.7 - 1e-4
        best = proposed.class_probs[:, sure.labels].T  # of the answer's class, in every proposal
        assert (near & (best >= sure.scores[:, None])).any(1).all()


@every_family
def test_proposals_obey_their_settings(family: str) -> None:
    model = build(family)
    many = TorchvisionDetector(model, proposals=100_000).propose(images())
    few = TorchvisionDetector(model, proposals=5).propose(images())
    for some, one in zip(many, few, strict=True):
        assert len(one) == 5 < len(some)
        assert torch.equal(one.scores, some.scores[:5])
        iou = box_iou(some.boxes, some.boxes).triu(1)
        assert (iou[some.labels[:, None] == some.labels] <= 0.7 + 1e-4).all()
    strict = TorchvisionDetector(model, min_score=0.5, overlap=0.3, proposals=100_000).propose(images())
    assert all((one.scores > 0.5).all() for one in strict)
    assert 0 < sum(map(len, strict)) < sum(map(len, many))


@every_family
def test_boxes_are_in_pixels_of_the_images_given(family: str) -> None:
    for found in TorchvisionDetector(build(family)).propose(images()):
        assert (found.boxes >= 0).all()
        assert found.boxes[:, 2].max() == pytest.approx(SIZE[1], rel=1e-4)  # some are cut at the edge
        assert found.boxes[:, 3].max() == pytest.approx(SIZE[0], rel=1e-4)


@every_family
def test_an_image_answers_alike_alone_and_in_a_batch(family: str) -> None:
    detector = TorchvisionDetector(build(family), proposals=100_000)
    together = detector.propose(images())
    assert len(together[0]) != len(together[1])
    for i, found in enumerate(together):
        (alone,) = detector.propose(images()[i : i + 1])
        torch.testing.assert_close(alone.boxes, found.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(alone.class_probs, found.class_probs, atol=1e-4, rtol=1e-3)


@every_family
def test_nothing_found_is_an_answer(family: str) -> None:
    threshold = "box_score_thresh" if family == "rcnn" else "score_thresh"
    detector = TorchvisionDetector(build(family, **{threshold: 0.99999999}), min_score=0.99999999)
    for found in [*detector(images()), *detector.propose(images())]:
        assert found.boxes.shape == (0, 4)
        assert found.class_probs is not None and found.class_probs.shape == (0, CLASSES - first_class(family))
        assert found.labels.dtype == torch.int64


def test_no_proposals_of_the_first_stage_are_no_detections() -> None:
    detector = TorchvisionDetector(build("rcnn"))
    detector.model.rpn.score_thresh = 1.5
    assert [len(found) for found in [*detector(images()), *detector.propose(images())]] == [0, 0, 0, 0]
