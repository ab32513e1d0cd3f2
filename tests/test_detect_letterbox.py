"""Letterboxing: where the image lies, what its border holds, and boxes back, in numbers by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from drnet_captum.detect.detections import Detections
from drnet_captum.detect.detector import CallableDetector, Detector
from drnet_captum.detect.letterbox import GREY, Letterbox, Letterboxed, letterbox


def test_a_wide_image_on_a_square() -> None:
    images = torch.rand(2, 3, 20, 40)
    canvas, placed = letterbox(images, (40, 40), fill=0.25)
    assert placed == Letterbox((1.0, 1.0), (0, 10), (20, 40))
    assert torch.equal(canvas[:, :, 10:30], images)
    assert (canvas[:, :, :10] == 0.25).all() and (canvas[:, :, 30:] == 0.25).all()


def test_a_tall_image_is_reduced() -> None:
    images = torch.rand(1, 3, 80, 40)
    canvas, placed = letterbox(images, (40, 60))  # r = 0.5
    assert placed == Letterbox((0.5, 0.5), (20, 0), (80, 40))
    # Bilinear at a half, half-pixel centres: the mean of 2×2 pixels.
    torch.testing.assert_close(canvas[..., 20:40], torch.nn.functional.avg_pool2d(images, 2))
    torch.testing.assert_close(canvas[..., :20], torch.full((1, 3, 40, 20), GREY))


def test_an_odd_pixel_goes_right_and_below() -> None:
    canvas, placed = letterbox(torch.zeros(1, 3, 10, 7), 10, fill=1.0)
    assert placed.offset == (1, 0)
    assert canvas[0, 0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    canvas, placed = letterbox(torch.zeros(1, 3, 10, 7), 10, fill=1.0, centred=False)
    assert placed.offset == (0, 0)
    assert canvas[0, 0, 0].tolist() == [0] * 7 + [1] * 3


def test_rounded_sides_have_their_own_scale() -> None:
    canvas, placed = letterbox(torch.zeros(1, 3, 33, 50), (64, 64))  # 33 · 1.28 = 42.24
    assert canvas.shape == (1, 3, 64, 64)
    assert placed == Letterbox((64 / 50, 42 / 33), (0, 11), (33, 50))
    torch.testing.assert_close(placed.back(torch.tensor([[0.0, 11, 64, 53]])), torch.tensor([[0.0, 0, 50, 33]]))


def test_a_thin_image_keeps_a_pixel() -> None:
    canvas, placed = letterbox(torch.zeros(1, 3, 1, 300), (32, 32), fill=1.0)
    assert (canvas[0, 0] == 0).sum() == 32
    assert placed.scale == (32 / 300, 1.0)


def test_stretched() -> None:
    canvas, placed = letterbox(torch.rand(1, 3, 20, 40), (40, 40), stretch=True, fill=9.0)
    assert placed == Letterbox((1.0, 2.0), (0, 0), (20, 40))
    assert float(canvas.max()) <= 1.0


def test_antialias_is_low_pass() -> None:
    stripes = torch.tensor([1.0, 0, 0, 0]).repeat(16).expand(1, 3, 64, 64).contiguous()  # period 4, reduced by 4
    plain, _ = letterbox(stripes, 16)
    smooth, _ = letterbox(stripes, 16, antialias=True)
    torch.testing.assert_close(plain, torch.zeros_like(plain))  # samples between the second and third of four
    assert (smooth - 0.25).abs().mean() < 0.1


def test_what_fits_already_is_untouched() -> None:
    images = torch.rand(1, 3, 16, 24, dtype=torch.float64)
    canvas, placed = letterbox(images, (16, 24))
    assert canvas is images
    assert placed == Letterbox((1.0, 1.0), (0, 0), (16, 24))


def test_back_takes_any_leading_shape_and_cuts_off() -> None:
    placed = Letterbox((2.0, 4.0), (10, 20), (30, 50))
    boxes = torch.tensor([10.0, 20, 30, 60])
    assert placed.back(boxes).tolist() == [0, 0, 10, 10]
    assert placed.back(boxes.half().expand(2, 5, 4)).shape == (2, 5, 4)
    assert placed.back(boxes.half()).dtype == torch.float32
    assert placed.back(torch.tensor([[0.0, 0, 500, 500]])).tolist() == [[0, 0, 50, 30]]
    assert placed.back(torch.zeros(0, 4)).shape == (0, 4)
    with pytest.raises(ValueError, match=r"boxes of shape \(…, 4\).*got \(4, 3\)"):
        placed.back(torch.zeros(4, 3))


@pytest.mark.parametrize("size", [(0, 4), (4,), (4, 4, 4), (4.5, 4), -1])
def test_a_size_that_is_none(size: Any) -> None:
    with pytest.raises(ValueError, match="two positive integers"):
        letterbox(torch.zeros(1, 3, 4, 4), size)
    with pytest.raises(ValueError, match="two positive integers"):
        Letterboxed(lambda images: [], size)


def test_images_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"floating-point tensor.*uint8"):
        letterbox(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 8)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(3, 4, 4\)"):
        letterbox(torch.zeros(3, 4, 4), 8)
    with pytest.raises(TypeError, match="can be called with images, got int"):
        Letterboxed(3, 8)  # type: ignore[arg-type]


class Bright(Detector):
    """The box of all pixels above a half, with one more proposal."""

    name = "bright"
    categories = ("bright",)
    image_range = (0.0, 255.0)

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> list[Detections]:
        self.seen.append(images)
        return [self._box(image) for image in images]

    def propose(self, images: Tensor) -> list[Detections]:
        return [
            Detections(found.boxes.repeat(2, 1), torch.tensor([0.9, 0.1]), torch.tensor([[0.9], [0.1]]))
            for found in self(images)
        ]

    @staticmethod
    def _box(image: Tensor) -> Detections:
        y, x = torch.where(image[0] > 127)
        box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
        return Detections(box[None], torch.tensor([0.9]), torch.tensor([[0.9]]))


def test_letterboxed_brings_boxes_back() -> None:
    images = torch.zeros(2, 3, 20, 40)
    images[0, :, 4:10, 8:30] = 255
    images[1, :, 0:2, 0:2] = 255
    inner = Bright()
    detector = Letterboxed(inner, (80, 80))  # r = 2, 20 rows above
    assert [found.boxes.tolist() for found in detector(images)] == [[[8, 4, 30, 10]], [[0, 0, 2, 2]]]
    assert inner.seen[0].shape == (2, 3, 80, 80)
    assert float(inner.seen[0][0, 0, 0, 0]) == pytest.approx(114)  # a grey of this detector's range
    proposed = detector.propose(images)
    assert [len(found) for found in proposed] == [2, 2]
    assert proposed[0].boxes.tolist() == [[8, 4, 30, 10]] * 2
    assert (detector.name, detector.categories, detector.image_range) == ("bright", ("bright",), (0, 255))


def test_letterboxed_options_reach_the_canvas() -> None:
    inner = Bright()
    image = torch.zeros(1, 3, 20, 40)
    image[..., 0, 0] = 255
    Letterboxed(inner, 40, fill=7.0, centred=False)(image)
    assert inner.seen[-1][0, 0, 39, 0] == 7.0 and inner.seen[-1][0, 0, 0, 0] == 255
    found = Letterboxed(inner, (40, 40), stretch=True)(image)
    assert found[0].boxes[0, :2].tolist() == [0, 0]
    assert float(inner.seen[-1][0, 0, 39, 0]) == 0


def test_letterboxed_takes_a_function_and_its_dicts() -> None:
    def corner(images: Tensor) -> list[dict[str, Tensor]]:
        return [
            {"boxes": torch.tensor([[0, 16, 64, 48]]), "scores": torch.ones(1), "labels": torch.tensor([2])}
            for _ in images
        ]

    detector = Letterboxed(corner, (64, 64))
    assert isinstance(detector.detector, CallableDetector)
    assert detector.name == "corner"
    found = detector.propose(torch.rand(1, 3, 40, 80))[0]
    assert found.boxes.tolist() == [[0, 0, 80, 40]]
    assert found.labels.tolist() == [2]
