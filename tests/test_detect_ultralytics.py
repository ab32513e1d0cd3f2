"""The adapter of Ultralytics models: by hand on stand-ins, and against the package itself where it is installed."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from drnet_captum.detect.ultralytics import UltralyticsDetector, detections_of

IMAGE = torch.rand(1, 3, 24, 64, generator=torch.Generator().manual_seed(0))  # on 32×64 at size 64: 4 rows above
# cx, cy, w, h and three class scores of four anchors.
ANCHORS = torch.tensor(
    [
        [20.0, 16, 20, 12, 0.10, 0.80, 0.3],
        [20.0, 16, 20, 11, 0.20, 0.70, 0.3],  # the same object, IoU 11/12
        [50.0, 20, 10, 10, 0.02, 0.01, 0.1],
        [10.0, 10, 10, 10, 0.001, 0.002, 0.003],
    ]
)


class Head(nn.Module):
    """Stands in for an Ultralytics head: it has ``nc`` classes, and keeps the shape of the last image."""

    shape: Any = None
    end2end = False

    def __init__(self, output: Any, classes: int = 3) -> None:
        super().__init__()
        self.output, self.nc = output, classes
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        self.shape = x.shape
        self.seen.append(x)
        if self.output is None:
            raise RuntimeError("broken")
        return self.output


class Inner(nn.Module):
    """Stands in for ``ultralytics.YOLO(…).model``."""

    def __init__(self, output: Any, head: type[Head] = Head, **names: Any) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), head(output))
        self.stride = torch.tensor([8.0, 16.0, 32.0])
        self.names = names.get("names", {0: "cat", 2: "dog"})

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


def raw(rows: Tensor = ANCHORS) -> Tensor:
    return rows.T[None].clone()  # (1, 7, A)


def test_answers_by_hand() -> None:
    detector = UltralyticsDetector(Inner((raw(), {})).eval(), size=64)
    (found,) = detector(IMAGE)
    torch.testing.assert_close(found.boxes, torch.tensor([[10.0, 6, 30, 18]]))
    torch.testing.assert_close(found.class_probs, torch.tensor([[0.10, 0.80, 0.3]]))
    assert (found.scores.tolist(), found.labels.tolist()) == ([pytest.approx(0.8)], [1])
    assert detector.categories == ("cat", "class 1", "dog")
    assert detector.model.model[-1].seen[0].shape == (1, 3, 32, 64)
    assert detector.image_range == (0, 1)


def test_proposals_are_loosened() -> None:
    model = Inner(raw()).eval()
    assert len(UltralyticsDetector(model, size=64).propose(IMAGE)[0]) == 2
    (found,) = UltralyticsDetector(model, size=64, overlap=0.95, min_score=0.001).propose(IMAGE)
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.7, 0.1, 0.003]))
    assert found.labels.tolist() == [1, 1, 2, 2]
    assert len(UltralyticsDetector(model, size=64, overlap=0.95, proposals=1).propose(IMAGE)[0]) == 1
    assert len(UltralyticsDetector(model, size=64, threshold=0.05, final_overlap=0.95)(IMAGE)[0]) == 3


def test_overlapping_boxes_of_two_classes_stay() -> None:
    rows = ANCHORS[:2].clone()
    rows[1, 4] = 0.75
    assert UltralyticsDetector(Inner(raw(rows)).eval(), size=64)(IMAGE)[0].labels.tolist() == [1, 0]


def test_nan_is_dropped_and_nothing_is_no_error() -> None:
    rows = ANCHORS.clone()
    rows[0, 4], rows[1, 0] = float("nan"), float("nan")
    (found,) = UltralyticsDetector(Inner(raw(rows)).eval(), size=64).propose(IMAGE)
    assert found.labels.tolist() == [2]
    (found,) = UltralyticsDetector(Inner(raw(rows)).eval(), size=64)(IMAGE)
    assert (found.boxes.shape, found.class_probs.shape) == ((0, 4), (0, 3))


def test_channels_after_the_class_scores_are_none() -> None:
    masks = torch.cat([raw(), torch.full((1, 32, 4), 9.0)], 1)
    (found,) = UltralyticsDetector(Inner(((masks, torch.zeros(1, 32, 8, 8)), {})).eval(), size=64)(IMAGE)
    assert found.class_probs.tolist() == [[pytest.approx(v) for v in (0.10, 0.80, 0.3)]]


def end_to_end() -> tuple[Tensor, dict[str, Any]]:
    """Rows as an end-to-end head gives them, two of one anchor, and the logits beside them."""
    probs = torch.tensor([[0.9, 0.1, 0.6], [0.2, 0.5, 0.3], [0.1, 0.01, 0.02]])  # three anchors
    logits = probs.logit()
    p = logits.sigmoid()
    box = torch.tensor([[0.0, 4, 10, 14], [20, 8, 30, 20]])
    rows = torch.stack(
        [
            torch.cat([box[0], p[0, 0:1], torch.tensor([0.0])]),
            torch.cat([box[0], p[0, 2:3], torch.tensor([2.0])]),
            torch.cat([box[1], p[1, 1:2], torch.tensor([1.0])]),
        ]
    )
    return rows[None], {"one2many": {}, "one2one": {"scores": logits.T[None]}}


def test_end_to_end_heads_have_each_image_s_own_scores() -> None:
    rows, beside = end_to_end()
    logits = beside["one2one"]["scores"]
    both = torch.cat([rows, rows]), {"one2one": {"scores": torch.cat([logits, logits.flip(2)])}}  # other anchors' order
    both[0][0, 0, 4] += 0.01  # not what the logits say
    first, second = UltralyticsDetector(Inner(both).eval(), size=64)(IMAGE.repeat(2, 1, 1, 1))
    assert first.class_probs is None
    assert second.class_probs is not None and second.class_probs.shape == (3, 3)


def test_end_to_end_heads_have_their_class_scores_looked_up() -> None:
    (found,) = UltralyticsDetector(Inner(end_to_end()).eval(), size=64)(IMAGE)
    assert found.labels.tolist() == [0, 2, 1]
    torch.testing.assert_close(
        found.class_probs, torch.tensor([[0.9, 0.1, 0.6], [0.9, 0.1, 0.6], [0.2, 0.5, 0.3]]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.boxes[2], torch.tensor([20.0, 4, 30, 16]))


@pytest.mark.parametrize(
    "beside", [None, {}, {"one2one": [torch.zeros(1)]}, {"one2one": {"scores": torch.zeros(1, 3, 9)}}]
)
def test_end_to_end_heads_without_them_tell_labels(beside: Any) -> None:
    rows = end_to_end()[0]
    (found,) = UltralyticsDetector(Inner((rows, beside) if beside is not None else rows).eval(), size=64)(IMAGE)
    assert found.class_probs is None
    assert found.labels.tolist() == [0, 2, 1]
    assert len(UltralyticsDetector(Inner(rows).eval(), size=64, threshold=0.55)(IMAGE)[0]) == 2


class RTDETRDecoder(Head):
    """Named as the one in Ultralytics."""


def test_rt_detr_is_stretched_and_takes_the_last_layer() -> None:
    boxes = torch.tensor([0.25, 0.5, 0.5, 0.5]).expand(2, 1, 1, 4)
    logits = torch.tensor([[[[9.0, 9, 9]]], [[[-1.0, 2, -3]]]])  # two layers
    model = Inner((torch.zeros(1, 1, 6), (boxes, logits, None, None, None)), head=RTDETRDecoder).eval()
    (found,) = UltralyticsDetector(model, size=64)(IMAGE)
    assert model.model[-1].seen[0].shape == (1, 3, 64, 64)
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 6, 32, 18]]))
    torch.testing.assert_close(found.class_probs, torch.tensor([[-1.0, 2, -3]]).sigmoid())


def test_nothing_of_the_callers_is_changed() -> None:
    for output in (raw(), None):
        model = Inner(output).eval()
        head = model.model[-1]
        before = {name: id(value) for name, value in vars(head).items()}
        detector = UltralyticsDetector(model, size=64)
        if output is None:
            with pytest.raises(RuntimeError, match="broken"):
                detector(IMAGE)
        else:
            detector.propose(IMAGE)
        assert len(head.seen) == 1
        assert {name: id(value) for name, value in vars(head).items()} == before
        assert head.shape is None


@pytest.mark.parametrize(("size", "canvas"), [(64, (32, 64)), ((96, 64), (96, 64)), (32, (32, 32)), (128, (64, 128))])
def test_canvas(size: Any, canvas: tuple[int, int]) -> None:
    model = Inner(raw()).eval()
    UltralyticsDetector(model, size=size)(IMAGE)
    assert model.model[-1].seen[0].shape[2:] == canvas


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"train mode.*eval"):
        UltralyticsDetector(Inner(raw()), size=64)(IMAGE)
    with pytest.raises(ValueError, match="stride 32 divides, got 100"):
        UltralyticsDetector(Inner(raw()).eval(), size=100)
    with pytest.raises(TypeError, match="PyTorch, got str"):
        UltralyticsDetector("yolov8n.pt")
    with pytest.raises(TypeError, match=r"of model\.onnx: for an ONNX file take OnnxDetector"):
        UltralyticsDetector(SimpleNamespace(model="model.onnx"))
    with pytest.raises(ValueError, match="pass categories="):
        UltralyticsDetector(nn.Identity().eval())
    with pytest.raises(ValueError, match=r"\(B, 7, A\), got \(1, 3\).*detection model"):
        UltralyticsDetector(Inner(torch.zeros(1, 3)).eval(), size=64)(IMAGE)
    with pytest.raises(ValueError, match="tensor first, got dict"):
        UltralyticsDetector(Inner({}).eval(), size=64)(IMAGE)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        UltralyticsDetector(Inner(raw()).eval(), size=64)(IMAGE * 255)
    with pytest.raises(ValueError, match="oriented boxes"):
        UltralyticsDetector(Inner(raw(), head=type("OBB", (Head,), {})).eval())


def test_a_plain_module_with_categories() -> None:
    head = Head(raw()).eval()
    detector = UltralyticsDetector(head, size=64, categories=["a", "b", "c"])
    assert detector(IMAGE)[0].labels.tolist() == [1]
    assert detector.label(2) == "c"


def test_detections_of_results() -> None:
    boxes = SimpleNamespace(
        xyxy=torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]]),
        conf=torch.tensor([0.5, float("nan")]),
        cls=torch.tensor([2.0, 1]),
    )
    empty = SimpleNamespace(xyxy=torch.zeros(0, 4), conf=torch.zeros(0), cls=torch.zeros(0))
    first, second = detections_of([SimpleNamespace(boxes=boxes), SimpleNamespace(boxes=empty)])
    assert (first.boxes.tolist(), first.scores.tolist(), first.labels.tolist()) == ([[0, 1, 2, 3]], [0.5], [2])
    assert first.class_probs is None
    assert len(second) == 0
    with pytest.raises(ValueError, match="without: detection models only"):
        detections_of([SimpleNamespace(boxes=None)])


# Against the package


def build(name: str) -> Any:
    """Random weights, whose class scores differ from box to box as a trained model's do."""
    opened, printed = Image.open, np.get_printoptions()
    package = pytest.importorskip("ultralytics")
    Image.open = opened  # it replaces this, and how arrays are printed, for everybody
    np.set_printoptions(**printed)
    torch.set_printoptions(profile="default")
    yolo = package.YOLO(name)
    torch.manual_seed(0)
    head = yolo.model.model[-1]
    for scores in [*head.cv3, *getattr(head, "one2one_cv3", [])]:
        nn.init.normal_(scores[-1].weight, std=0.05)
        nn.init.constant_(scores[-1].bias, -0.5)
    for module in yolo.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        yolo.model.train()(torch.rand(2, 3, 128, 128))
    yolo.model.eval()
    return yolo


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo11n-seg.yaml"])
def test_answers_are_those_of_predict(name: str) -> None:
    yolo = build(name)
    photo = torch.randint(0, 256, (100, 128, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    state = copy.deepcopy(yolo.model.state_dict())
    head = dict(vars(yolo.model.model[-1]))
    detector = UltralyticsDetector(yolo, size=128, threshold=0.7, overlap=0.9)
    image = photo.permute(2, 0, 1)[None].float() / 255
    (found,) = detector(image)
    (inner,) = UltralyticsDetector(yolo.model, size=128, threshold=0.7)(image)
    assert torch.equal(found.boxes, inner.boxes)
    for name, value in yolo.model.state_dict().items():  # nothing fused
        assert torch.equal(value, state[name])
    assert all(vars(yolo.model.model[-1])[key] is value for key, value in head.items())
    bgr = photo.numpy()[..., ::-1].copy()
    (expected,) = detections_of(copy.deepcopy(yolo).predict(bgr, imgsz=128, conf=0.7, iou=0.7, verbose=False))
    assert len(found) > 20
    # predict fuses the norms: a box at the edge of suppression may fall to the other side.
    ours, theirs = (torch.cat([f.boxes, f.labels[:, None], f.scores[:, None]], 1) for f in (found, expected))
    same = torch.cdist(theirs, ours, p=torch.inf).amin(1) < 0.02
    assert same.float().mean() > 0.97 and abs(len(found) - len(expected)) <= 3
    proposed = detector.propose(image)[0]
    assert len(proposed) > len(found)
    assert proposed.class_probs is not None
    torch.testing.assert_close(proposed.class_probs.amax(1), proposed.scores)


@pytest.mark.filterwarnings("ignore")
def test_end_to_end_of_the_package() -> None:
    yolo = build("yolov10n.yaml")
    yolo.model.model[-1].end2end = True
    (found,) = UltralyticsDetector(yolo, size=128).propose(torch.rand(1, 3, 100, 128))
    assert len(found) == 300
    assert found.class_probs is not None
    assert torch.equal(found.class_probs.gather(1, found.labels[:, None])[:, 0], found.scores)
