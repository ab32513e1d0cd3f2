"""What cannot be explained is said before the first mask is drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors import BrightRectangles
from torch import nn

import drnet_captum as dc

BOX = (1, 1, 9, 9)
X = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Counting:
    """A detector of four classes, which counts the images it is asked about."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> list[dc.Detections]:
        self.seen += len(images)
        probs = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        return [dc.Detections(torch.tensor([[1.0, 1, 9, 9]]), torch.ones(1), probs) for _ in images]


def boxes(*rows: Any) -> dc.Detections:
    return dc.Detections.drawn(torch.tensor(rows, dtype=torch.float32), [0] * len(rows))


TARGETS = [
    (lambda: boxes([5, 5, 3, 3]), r"x2 > x1 and y2 > y1, got \[5.0, 5.0, 3.0, 3.0\]: convert xywh"),
    (lambda: boxes([1, 1, 9, 9], [5, 5, 9, 5]), r"got \[5.0, 5.0, 9.0, 5.0\]"),
    (lambda: boxes([1, 1, float("nan"), 9]), "finite boxes"),
    (lambda: dc.Detections.drawn([BOX], [4]), "classes from 0 to 3, as the detector has 4, got 4"),
    (lambda: dc.Detections.drawn([BOX], [-1]), "classes from 0 to 3, as the detector has 4, got -1"),
    (lambda: [boxes(BOX), boxes(BOX)], "targets for each of the 1 images, got 2"),
    (lambda: [], "targets for each of the 1 images, got 0"),
    (
        lambda: dc.Detections(torch.tensor([[1.0, 1, 9, 9]]), torch.ones(1), torch.ones(1, 7)),
        "class_probs for the detector's 4 classes, got 7",
    ),
]


@pytest.mark.parametrize(("target", "message"), TARGETS)
def test_targets(target, message):
    detector = Counting()
    with pytest.raises(ValueError, match=message):
        dc.DRISE(detector).attribute_detections(X, target())
    assert detector.seen <= 1


def test_targets_that_are_no_detections():
    with pytest.raises(TypeError, match="targets as Detections, one for each image, got Tensor: find_detections"):
        dc.DRISE(Counting()).attribute_detections(X, [torch.tensor([[1.0, 1, 9, 9]])])
    with pytest.raises(TypeError, match="targets as Detections"):
        dc.DRISE(Counting()).attribute(X, target=[285])


def test_several_detections_of_one_image_are_not_for_attribute():
    with pytest.raises(ValueError, match=r"one detection for each image, got 2: choose one, found\[0\], or call"):
        dc.DRISE(Counting()).attribute(X, target=[boxes(BOX, BOX)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_masks": 0}, "at least one mask"),
        ({"grid": (0, 3)}, "at least one cell"),
        ({"keep_probability": 1.5}, "keep_probability in"),
        ({"perturbations_per_eval": 0}, "perturbations_per_eval of at least 1, got 0"),
        ({"normalize": "paper"}, "normalize to be one of mean, coverage"),
        ({"stop_at": 0.0}, "stop_at, a relative standard error, above 0"),
        ({"baselines": "grey"}, "one of mean, black, blur, got 'grey'"),
        ({"baselines": torch.zeros(5, 5)}, r"broadcasts to \(1, 3, 12, 12\), got \(5, 5\)"),
        ({"baselines": (0.0, 0.0)}, "one baseline for one input, got 2"),
    ],
)
def test_options(options, message):
    detector = Counting()
    with pytest.raises(ValueError, match=message):
        dc.DRISE(detector).attribute(X, boxes(BOX), **options)
    assert detector.seen <= 1


def test_options_that_do_not_exist():
    with pytest.raises(TypeError, match="masks_n"):
        dc.DRISE(Counting()).attribute_detections(X, boxes(BOX), masks_n=5)
    with pytest.raises(ValueError, match="every, the masks between two estimates, of at least 1, got 0"):
        next(dc.DRISE(Counting()).attribute_iter(X, boxes(BOX), every=0))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (X[0], ValueError, r"images of shape \(B, 3, H, W\), got \(3, 12, 12\)"),
        (X[:0], ValueError, "images of shape"),
        ((X * 255).byte(), TypeError, "floating-point tensor .*got torch.uint8"),
        (X.numpy(), TypeError, "floating-point tensor .*got ndarray"),
        (X.where(X > 0.1, torch.nan), ValueError, "finite images"),
        ((X, X), ValueError, "one batch of images, got a tuple of 2"),
    ],
)
def test_images(images, error, message):
    with pytest.raises(error, match=message):
        dc.DRISE(Counting()).attribute_detections(images, boxes(BOX))


def test_images_outside_the_range_that_was_told():
    drise = dc.DRISE(Counting(), image_range=(0, 1))
    with pytest.raises(ValueError, match=r"values in \[0, 1\], as the detector was told, got .* rescale them"):
        drise.attribute_detections(X * 255, boxes(BOX))
    dc.DRISE(Counting(), image_range=(0, 255)).attribute_detections(X * 255, boxes(BOX), n_masks=3)


def test_a_range_that_nobody_told():
    """0 to 1 and normalised images are plain; of 0 to 255 the fill would be a guess."""
    drise = dc.DRISE(Counting())
    with pytest.raises(ValueError, match=r"cannot tell the images' range .* image_range=\(0, 255\)"):
        drise.attribute_detections(X * 255, boxes(BOX))
    drise.attribute_detections(X * 255, boxes(BOX), n_masks=3, baselines=114.0)
    drise.attribute_detections(X * 255, boxes(BOX), n_masks=3, baselines="blur")
    drise.attribute_detections(X - 0.5, boxes(BOX), n_masks=3)
    resized = X * 1.0004 / X.max()  # out of the range by rounding
    drise.attribute_detections(resized - 2e-4, boxes(BOX), n_masks=3, baselines="black")
    with pytest.raises(ValueError, match='"black" needs image_range'):
        drise.attribute_detections(X - 0.5, boxes(BOX), n_masks=3, baselines="black")


def test_what_is_no_detector():
    with pytest.raises(TypeError, match="expected a detector"):
        dc.DRISE(3)
    with pytest.raises(ValueError, match="image_range is for functions"):
        dc.DRISE(dc.as_detector(Counting(), image_range=(0, 1)), image_range=(0, 1))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"boxes": torch.zeros(4)}, ValueError, r"boxes of shape \(M, 4\) in xyxy pixels, got \(4,\): add a dimension"),
        ({"boxes": torch.zeros(2, 5)}, ValueError, r"got \(2, 5\)"),
        ({"boxes": [[0, 0, 1, 1]]}, TypeError, "boxes as a tensor, got list"),
        ({"scores": torch.zeros(2)}, ValueError, r"scores of shape \(1,\), one for each box, got \(2,\)"),
        ({"class_probs": torch.zeros(3)}, ValueError, r"class_probs of shape \(1, K\)"),
        ({"class_probs": None}, ValueError, "class_probs .* or labels .*, got neither"),
        ({"objectness": torch.zeros(1, 1)}, ValueError, r"objectness of shape \(1,\)"),
        ({"labels": torch.zeros(2)}, ValueError, r"labels of shape \(1,\)"),
    ],
)
def test_detections(fields, error, message):
    sound = {"boxes": torch.zeros(1, 4), "scores": torch.zeros(1), "class_probs": torch.zeros(1, 3)}
    with pytest.raises(error, match=message):
        dc.Detections(**{**sound, **fields})


def test_records_that_lack_something():
    with pytest.raises(ValueError, match="a dict with boxes and scores, got the keys scores"):
        dc.Detections.of({"scores": torch.zeros(1)})
    with pytest.raises(TypeError, match=r"Detections or a dict .* got list"):
        dc.Detections.of([1])


class OutOfMemory(nn.Module):
    """Has memory for so many images at once, and from its second call on for none if it is told so."""

    def __init__(self, most: int, once: bool = False) -> None:
        super().__init__()
        self.known, self.most, self.once = BrightRectangles(BOX), most, once
        self.asked: list[int] = []

    def forward(self, images: torch.Tensor) -> list[object]:
        self.asked.append(len(images))
        if len(images) > self.most or (self.once and self.known.seen):
            raise torch.OutOfMemoryError("no memory for so many")
        return self.known(images)


def test_out_of_memory():
    """Halved where the chunk was left open; where it was chosen, the error says what to do."""
    drise = dc.DRISE(OutOfMemory(2).eval())
    with pytest.raises(torch.OutOfMemoryError, match="with 8 masks in a forward pass on 1 images: leave"):
        drise.attribute_detections(X, boxes(BOX), n_masks=20, perturbations_per_eval=8)
    model = OutOfMemory(2).eval()
    found = dc.DRISE(model).attribute_detections(X, boxes(BOX), n_masks=20)
    assert model.asked == [1, 20, 10, 5, *[2] * 10]
    expected = drise.attribute_detections(X, boxes(BOX), n_masks=20, perturbations_per_eval=2)
    torch.testing.assert_close(found, expected)
    with pytest.raises(torch.OutOfMemoryError, match="with 1 masks in a forward pass on 1 images"):
        dc.DRISE(OutOfMemory(2, once=True).eval()).attribute_detections(X, boxes(BOX), n_masks=20)
