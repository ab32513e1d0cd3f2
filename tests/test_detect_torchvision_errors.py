"""torchvision's detectors: nothing of the model changes, background and names, what is refused."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.models import detection, resnet18
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision_models import CLASSES, FAMILIES, build, images, own_answers, retinanet

from drnet_captum.detect import Detections, as_detector, find_detections
from drnet_captum.detect.torchvision import TorchvisionDetector

every_family = pytest.mark.parametrize("family", FAMILIES)
LETTERS = ("a", "b", "c", "d", "e")


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that any part of a model holds; tensors by identity and version, lists by content."""
    held: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            held[f"{name}.{key}"] = repr(value) if key == "cell_anchors" else value
            if key in ("_parameters", "_buffers", "_modules"):
                held[f"{name}.{key}"] = {k: (id(v), getattr(v, "_version", 0)) for k, v in value.items()}
    return held


@every_family
def test_nothing_of_the_model_changes(family: str) -> None:
    model = build(family)
    used = state(model)
    detector = TorchvisionDetector(model)
    detector(images())
    detector.propose(images())
    with pytest.raises(RuntimeError):
        detector.propose(images()[:, :2])  # two channels
    assert state(model) == used
    expected = own_answers(model, images())
    for one, again in zip(expected, own_answers(model, images()), strict=True):
        assert torch.equal(one["boxes"], again["boxes"])


@every_family
def test_nothing_of_an_unused_model_changes(family: str) -> None:
    """RoI pools keep the scales of the first images they see, anchor generators the dtype of the last."""
    model = FAMILIES[family]().eval().double()
    fresh = state(model)
    TorchvisionDetector(model).propose(images().double())
    TorchvisionDetector(model)(images().double())
    assert state(model) == fresh


@every_family
def test_nothing_changes_while_the_model_runs(family: str) -> None:
    model = build(family)
    before = state(model)
    seen: list[bool] = []
    layer = model.backbone.second
    handle = layer.register_forward_hook(lambda *_: seen.append(state(model) == hooked))
    hooked = state(model)
    TorchvisionDetector(model).propose(images(1))
    handle.remove()
    assert seen == [True]
    assert state(model).keys() == before.keys()


@every_family
def test_threads_share_a_model(family: str) -> None:
    detector = TorchvisionDetector(build(family))
    jobs = [detector, detector.propose, detector.model, detector.propose] * 2
    x = images()

    def run(job: Any) -> Any:
        if job is detector.model:
            return [one["boxes"] for one in own_answers(job, x)]
        return [found.boxes for found in job(x)]

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(run, jobs), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_models_settings_are_read_at_every_call() -> None:
    model = build("ssd")
    detector = TorchvisionDetector(model)
    assert len(detector(images(1))[0]) > 3
    model.detections_per_img = 3
    assert len(detector(images(1))[0]) == 3


@every_family
def test_no_graph_and_no_tensors_stay_behind(family: str) -> None:
    detector = TorchvisionDetector(build(family))
    gc.disable()
    try:
        found = detector.propose(images().requires_grad_())
        assert not found[0].boxes.requires_grad
        probs = weakref.ref(found[0].class_probs)
        del found
        assert probs() is None
    finally:
        gc.enable()


def test_a_parametrised_part_is_no_obstacle() -> None:
    model = build("ssd")
    model.register_parameter("unused", nn.Parameter(torch.ones(1)))
    parametrize.register_parametrization(model, "unused", nn.Identity())
    assert len(TorchvisionDetector(model)(images(1))[0]) > 0


# Background and names


@pytest.mark.parametrize("given", [LETTERS[:4], ("__background__", *LETTERS[:4]), ("N/A", *LETTERS[:4])])
@pytest.mark.parametrize("family", ["rcnn", "ssd"])
def test_a_softmax_has_background(family: str, given: tuple[str, ...]) -> None:
    detector = TorchvisionDetector(build(family), categories=given)
    assert detector.categories == LETTERS[:4]
    assert detector.background
    with pytest.raises(ValueError, match="label 0 of an R-CNN or SSD is background"):
        TorchvisionDetector(detector.model, background=False)


@pytest.mark.parametrize(
    ("given", "background", "dropped", "names"),
    [
        (None, None, False, None),
        (None, True, True, None),
        (LETTERS, None, False, LETTERS),
        (LETTERS[:4], None, True, LETTERS[:4]),
        (("__background__", *LETTERS[:4]), None, True, LETTERS[:4]),
        (LETTERS, True, True, LETTERS[1:]),
        (LETTERS, False, False, LETTERS),
    ],
)
@pytest.mark.parametrize("family", ["retinanet", "fcos"])
def test_a_sigmoid_may_have_background(
    family: str, given: Any, background: bool | None, dropped: bool, names: tuple[str, ...] | None
) -> None:
    model = build(family)
    detector = TorchvisionDetector(model, categories=given, background=background, proposals=100_000)
    assert (detector.background, detector.categories) == (dropped, names)
    (one,) = own_answers(model, images(1))
    (found,) = detector(images(1))
    (proposed,) = detector.propose(images(1))
    kept = one["labels"] >= int(dropped)
    assert 0 < int(kept.sum()) <= len(kept) - int(dropped)
    assert torch.equal(found.boxes, one["boxes"][kept])
    assert torch.equal(found.labels, one["labels"][kept] - int(dropped))
    for some in (found, proposed):
        assert some.class_probs is not None and some.class_probs.shape[1] == CLASSES - int(dropped)
        assert torch.equal(some.class_probs.gather(1, some.labels[:, None])[:, 0], some.scores)
        assert int(some.labels.min()) == 0


def test_the_published_numbering_has_background() -> None:
    names = detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    model = retinanet()
    assert not TorchvisionDetector(model).background
    model.head.classification_head.num_classes = len(names)
    assert TorchvisionDetector(model).background
    detector = TorchvisionDetector(model, categories=names)
    assert (detector.label(0), len(detector.categories or ())) == ("person", 90)


@pytest.mark.parametrize("family", ["rcnn", "retinanet"])
def test_another_number_of_names_is_refused(family: str) -> None:
    count = 4 if family == "rcnn" else 5
    with pytest.raises(ValueError, match=rf"expected {count} categories.*, got 2"):
        TorchvisionDetector(build(family), categories=LETTERS[:2])


def test_a_head_that_does_not_say_how_many_classes() -> None:
    class Own(FastRCNNPredictor):
        def __init__(self, given: Any) -> None:
            nn.Module.__init__(self)
            self.scores, self.boxes = given.cls_score, given.bbox_pred

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.scores(x), self.boxes(x)

    model = build("rcnn")
    model.roi_heads.box_predictor = Own(model.roi_heads.box_predictor)
    detector = TorchvisionDetector(model, categories=("__background__", *LETTERS[:4]))
    assert detector.categories == LETTERS[:4]
    (found,) = detector(images(1))
    assert found.class_probs is not None and found.class_probs.shape[1] == 4


# As one detector among others


def test_as_detector_and_find() -> None:
    model = build("ssd")
    detector = as_detector(nn.DataParallel(model), categories=LETTERS[:4])
    assert isinstance(detector, TorchvisionDetector)
    assert (detector.model, detector.name, detector.image_range) == (model, "SSD", (0, 1))
    assert isinstance(find_detections(model, images(1), max_detections=2), Detections)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        find_detections(model, images(1) * 255)


@every_family
def test_train_mode_is_refused(family: str) -> None:
    detector = TorchvisionDetector(build(family))
    detector.model.train()
    with pytest.raises(ValueError, match=r"is in train mode.*\.eval\(\)"):
        detector(images())
    with pytest.raises(ValueError, match="is in train mode"):
        detector.propose(images())


def test_other_models_and_numbers_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"torchvision's FasterRCNN, .*, got ResNet: give another detector as a function"
    ):
        TorchvisionDetector(resnet18(weights=None))
    model = build("ssd")
    for wrong in ({"min_score": 1.0}, {"min_score": -0.1}, {"overlap": 0.0}, {"overlap": 1.5}, {"proposals": 0}):
        with pytest.raises(ValueError, match=f"expected.*{next(iter(wrong))}"):
            TorchvisionDetector(model, **wrong)  # type: ignore[arg-type]


def test_a_post_processing_of_ones_own() -> None:
    model = build("ssd")

    class Halved(type(model)):  # type: ignore[misc]
        factor = 1.0

        def postprocess_detections(self, *args: Any) -> Any:
            found = super().postprocess_detections(*args)
            return [
                {
                    **one,
                    "boxes": one["boxes"][::2],
                    "scores": one["scores"][::2] * self.factor,
                    "labels": one["labels"][::2],
                }
                for one in found
            ]

    (whole,) = TorchvisionDetector(model)(images(1))
    model.__class__ = Halved
    (found,) = TorchvisionDetector(model)(images(1))
    assert torch.equal(found.boxes, whole.boxes[::2])
    Halved.factor = 0.3
    with pytest.raises(ValueError, match="among the class scores of the head"):
        TorchvisionDetector(model)(images(1))
