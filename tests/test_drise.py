"""D-RISE against its paper, transcribed: one mask at a time; and on detectors that find nothing, one thing, or much."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectors import BrightRectangles, Replies, Scripted
from reference import drise_weight, masked_sum
from snapshot import of_everything, same
from torch import Tensor, nn
from torch.testing import assert_close

import drnet_captum as dc
from drnet_captum.attr.detection_similarity import dot
from drnet_captum.detect.detector import Detector
from drnet_captum.masking.random_masks import RandomMasks

N, GRID, SIZE = 60, (3, 4), (14, 18)
OPTIONS = {"n_masks": N, "grid": GRID, "baselines": 0.25}
NORMALIZATIONS = ("mean", "coverage", "expectation", "none")
TARGET = dc.Detections(
    torch.tensor([[1.0, 2, 9, 8], [0, 0, 18, 14]], dtype=torch.float64),
    torch.tensor([0.9, 0.8], dtype=torch.float64),
    torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64),
)


def photos(n: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, 3, *SIZE, generator=torch.Generator().manual_seed(5), dtype=dtype)


def transcribed(detector: Scripted, x: Tensor, target: dc.Detections, row: int, normalize: str) -> Tensor:
    """The paper's loop over masks, in float64."""
    masks = RandomMasks.draw(N, SIZE, GRID, 0.5, torch.Generator().manual_seed(0))

    def weigh(image: np.ndarray) -> float:
        found = detector.one(torch.from_numpy(image))
        rows = zip(found.boxes.numpy(), found.class_probs.numpy(), found.objectness.tolist(), strict=True)
        return drise_weight((target.boxes[row].numpy(), target.class_probs[row].numpy()), list(rows))

    image = x.numpy()
    return torch.from_numpy(
        masked_sum(image, np.full_like(image, 0.25), masks.grids.numpy(), masks.offsets.numpy(), weigh, normalize, 0.5)
    )


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_equal_to_the_paper_transcribed(normalize):
    """Proposals change with every mask, and some masks have none."""
    x, detector = photos(), Scripted()
    (maps,) = dc.DRISE(detector).attribute_detections(x, TARGET, normalize=normalize, **OPTIONS)
    assert maps.shape == (2, *SIZE) and maps.dtype == torch.float64
    for row in (0, 1):
        assert_close(maps[row], transcribed(detector, x[0], TARGET, row, normalize), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_equal_to_the_paper_transcribed_in_float32(normalize):
    x = photos(dtype=torch.float32)
    box = (3, 2, 12, 9)
    drise, target = dc.DRISE(BrightRectangles(box)), dc.Detections.drawn([box], [0])
    x[:, 1:] = 0  # red: the class is 0 under every mask
    (maps,) = drise.attribute_detections(x, target, normalize=normalize, n_masks=N, grid=GRID, baselines=0.0)
    image = x[0].double().numpy()
    masks = RandomMasks.draw(N, SIZE, GRID, 0.5, torch.Generator().manual_seed(0))
    slow = masked_sum(
        image, 0 * image, masks.grids.numpy(), masks.offsets.numpy(), lambda i: i[:, 2:9, 3:12].mean(), normalize, 0.5
    )
    assert_close(maps[0].double(), torch.from_numpy(slow), rtol=1e-5, atol=1e-5)


def test_the_chunk_size_does_not_change_the_result():
    x, drise = photos(2), dc.DRISE(Scripted())
    targets = [TARGET, TARGET[1]]
    whole = drise.attribute_detections(x, targets, perturbations_per_eval=1000, **OPTIONS)
    for size in (None, 1, 2, 7, 64):
        found = drise.attribute_detections(x, targets, perturbations_per_eval=size, **OPTIONS)
        assert_close(found, whole, rtol=1e-9, atol=1e-12)


def test_images_with_different_numbers_of_targets():
    """On one set of masks, each as if it were alone."""
    x, drise = photos(3), dc.DRISE(Scripted())
    targets = [TARGET, TARGET[[]], TARGET[1]]
    together = drise.attribute_detections(x, targets, **OPTIONS)
    assert [m.shape for m in together] == [(2, *SIZE), (0, *SIZE), (1, *SIZE)]
    for i, target in enumerate(targets):
        (alone,) = drise.attribute_detections(x[i : i + 1], target, **OPTIONS)
        assert_close(together[i], alone, rtol=1e-9, atol=1e-12)


def test_five_targets_cost_the_passes_of_one():
    boxes = [(i, i, i + 6, i + 5) for i in range(5)]
    detector = BrightRectangles(*boxes)
    dc.DRISE(detector).attribute_detections(photos(), dc.Detections.drawn(boxes, [0] * 5), **OPTIONS)
    assert detector.seen == N + 1  # and the image itself, once


def test_one_detection_an_image_has_the_images_shape():
    x, drise = photos(2, torch.float32), dc.DRISE(Scripted())
    targets = [TARGET[0], TARGET[1]]
    found = drise.attribute(x, target=targets, **OPTIONS)
    assert found.shape == x.shape and found.dtype == x.dtype and found.is_contiguous()
    expected = drise.attribute_detections(x, targets, **OPTIONS)
    for i in (0, 1):
        assert_close(found[i], expected[i].expand(3, -1, -1))
    assert_close(drise.attribute(x, TARGET, **OPTIONS), found)  # rows of one Detections, an image each
    in_tuple = drise.attribute((x,), TARGET, **OPTIONS)
    assert isinstance(in_tuple, tuple) and len(in_tuple) == 1
    assert_close(in_tuple[0], found)


def test_no_target_at_all():
    assert [m.shape for m in dc.DRISE(Scripted()).attribute_detections(photos(), TARGET[[]])] == [(0, *SIZE)]
    assert list(dc.DRISE(Scripted()).attribute_iter(photos(), TARGET[[]])) == []


NOTHING = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}


def test_no_detection_under_any_mask():
    drise = dc.DRISE(lambda images: [NOTHING] * len(images))
    found = list(drise.attribute_iter(photos(), TARGET, every=50, stop_at=0.01, **{**OPTIONS, "n_masks": 900}))
    assert found[-1].n_masks == 250 and found[-1].relative_error == 0  # exact: nothing to wait for
    assert_close(found[-1].maps, [torch.zeros(2, *SIZE, dtype=torch.float64)])


def test_no_detection_under_some_masks_is_weight_zero():
    """What is found only where a corner shows is 0 elsewhere, not an error and not NaN."""
    box = torch.tensor([[0.0, 0, 5, 5]])

    def detector(images: Tensor) -> list[dict[str, Tensor]]:
        shown = {"boxes": box, "scores": torch.ones(1), "labels": torch.zeros(1, dtype=torch.int64)}
        return [shown if image[:, 2, 2].mean() > 0.5 else NOTHING for image in images]

    x = torch.ones(1, 3, *SIZE)
    (heat,) = dc.DRISE(detector).attribute_detections(x, dc.Detections.drawn(box, [0]), n_masks=400, baselines=0.0)
    y, left = divmod(int(heat[0].argmax()), SIZE[1])
    assert heat.isfinite().all() and abs(y - 2) <= 2 and abs(left - 2) <= 2


@pytest.mark.parametrize("field", ["boxes", "scores", "class_probs", "objectness"])
def test_a_proposal_that_is_not_a_number_counts_for_nothing(field):
    sound = Scripted(least=1).one(photos()[0])
    broken = {name: getattr(sound, name).clone() for name in ("boxes", "scores", "class_probs", "objectness")}
    broken[field][0] = math.nan
    without = sound[1:]
    found = [
        dc.DRISE(lambda images, one=one: [one] * len(images)).attribute_detections(
            photos(), TARGET, normalize="none", **OPTIONS
        )
        for one in (dc.Detections(**broken), without)
    ]
    assert_close(found[0], found[1])
    assert found[0][0].isfinite().all()


def test_three_hundred_proposals_and_boxes_outside_the_image():
    x, drise = photos(), dc.DRISE(Scripted(proposals=300, least=300))
    target = dc.Detections.drawn([[-30.0, -20, 4, 5], [40, 40, 60, 60], [-5, -5, 500, 500]], [0, 1, 2])
    (maps,) = drise.attribute_detections(x, target, **OPTIONS)
    assert maps.isfinite().all()
    assert not maps[1].any()  # nothing is found out there


def test_classes_of_label_and_score_count_by_the_score():
    """Of two boxes on one place the target's class decides; the other label is worth nothing."""
    box = torch.tensor([[0.0, 0, 9, 9]]).repeat(2, 1)
    found = {"boxes": box, "scores": torch.tensor([0.9, 0.4]), "labels": torch.tensor([5, 2])}
    drise = dc.DRISE(lambda images: [found] * len(images))
    for label, weight in ((5, 0.9), (2, 0.4), (0, 0.0), (7, 0.0)):
        target = dc.Detections.drawn(box[:1], [label])
        (maps,) = drise.attribute_detections(photos(), target, normalize="coverage", n_masks=10, grid=(2, 2))
        assert_close(maps, torch.full((1, *SIZE), weight, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_factors_replaced_and_left_out():
    found = dc.Detections(
        torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0.5]), torch.tensor([[0.3, 0.4]]), torch.tensor([0.7])
    )
    target = dc.Detections.drawn([[0.0, 0, 4, 8]], [1])

    def weight(**factors: object) -> float:
        drise = dc.DRISE(lambda images: [found] * len(images), **factors)
        (maps,) = drise.attribute_detections(photos(), target, normalize="coverage", n_masks=5, grid=(2, 2))
        return float(maps.mean())

    assert weight() == pytest.approx(0.5 * 0.8 * 0.7)
    assert weight(objectness=None) == pytest.approx(0.5 * 0.8)
    assert weight(objectness=lambda d: d.scores) == pytest.approx(0.5 * 0.8 * 0.5)
    assert weight(box_similarity=None) == pytest.approx(0.8 * 0.7)
    assert weight(class_similarity=None) == pytest.approx(0.5 * 0.7)
    assert weight(class_similarity=dot) == pytest.approx(0.5 * 0.4 * 0.7)


class TwoFaced(Detector):
    """Answers nothing, and proposes something: for masked images the proposals count."""

    def __call__(self, images: Tensor) -> list[dc.Detections]:
        return [dc.Detections.of(NOTHING)] * len(images)

    def propose(self, images: Tensor) -> list[dc.Detections]:
        return [dc.Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), torch.eye(3)[:1])] * len(images)


def test_masked_images_are_compared_by_the_detector_s_proposals():
    target = dc.Detections.drawn([[0, 0, 9, 9]], [0])
    (maps,) = dc.DRISE(TwoFaced()).attribute_detections(photos(), target, normalize="coverage", **OPTIONS)
    assert_close(maps, torch.ones(1, *SIZE, dtype=torch.float64))
    assert len(dc.find_detections(TwoFaced(), photos()[0])) == 0  # and what is explained, by its answers


class Learned(nn.Module):
    """A detector with state: noise from the global generator, as some have it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 2, 3)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        scores = self.net(images).sigmoid().mean((2, 3)) + 0 * torch.rand(1)
        box = torch.tensor([[0.0, 0, 9, 9], [4, 4, 9, 9]])
        return [{"boxes": box, "scores": s, "class_probs": torch.stack([s, 1 - s], 1)} for s in scores]


def test_a_call_changes_nothing_and_takes_no_gradient():
    model, x = Learned(), photos(dtype=torch.float32).requires_grad_()
    model.eval()
    before = of_everything(model, x)
    maps = dc.DRISE(model).attribute_detections(x, dc.Detections.drawn([[0, 0, 9, 9]], [0]), **OPTIONS)
    same(before, of_everything(model, x))
    assert not maps[0].requires_grad


def test_a_loop_that_is_left_leaves_nothing_behind():
    model, x = Learned().eval(), photos(dtype=torch.float32)
    steps = dc.DRISE(model).attribute_iter(x, dc.Detections.drawn([[0, 0, 9, 9]], [0]), every=10, **OPTIONS)
    next(steps)
    assert torch.is_grad_enabled()
    torch.rand(1)  # by the caller, while the loop stands still
    state = torch.random.get_rng_state()
    steps.close()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_last_estimate_is_the_map():
    x, drise = photos(2), dc.DRISE(Scripted())
    targets = [TARGET, TARGET[1]]
    steps = list(drise.attribute_iter(x, targets, every=25, **OPTIONS))
    assert [s.n_masks for s in steps] == [25, 50, 60]
    assert_close(steps[-1].maps, drise.attribute_detections(x, targets, **OPTIONS))
    first = drise.attribute_detections(x, targets, **{**OPTIONS, "n_masks": 25})
    assert_close(steps[0].maps, first)
    assert steps[0].maps[0].shape == steps[0].standard_errors[0].shape == (2, *SIZE)
    assert 0 < steps[-1].relative_error < 1


def test_stopping_at_a_standard_error():
    box = (3, 2, 12, 9)
    detector = BrightRectangles(box)
    target, x = dc.Detections.drawn([box], [0]), torch.ones(1, 3, *SIZE)
    options = {"n_masks": 5000, "grid": GRID, "baselines": 0.0, "stop_at": 0.02}
    steps = list(dc.DRISE(detector).attribute_iter(x, target, **options))
    assert 0.02 > steps[-1].relative_error and all(s.relative_error >= 0.02 for s in steps[:-1])
    assert 250 < steps[-1].n_masks < 5000
    detector.seen = 0
    (found,) = dc.DRISE(detector).attribute_detections(x, target, **options)
    assert_close(found, steps[-1].maps[0])
    assert detector.seen == steps[-1].n_masks + 1


def test_the_generator_decides_and_the_global_one_is_left_alone():
    x, drise = photos(), dc.DRISE(Scripted())

    def maps(seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return drise.attribute_detections(x, TARGET, generator=generator, **OPTIONS)[0]

    assert_close(maps(None), maps(0), rtol=0, atol=0)
    assert not torch.allclose(maps(0), maps(1))


def test_a_progress_bar(capsys):
    dc.DRISE(Scripted()).attribute_detections(photos(), TARGET, show_progress=True, **OPTIONS)
    shown = capsys.readouterr()
    assert "DRISE" in shown.err + shown.out


@pytest.mark.parametrize("name", ["mean", "black", "blur", "number", "tensor", None])
def test_fills(name):
    fills = {"number": 0.3, "tensor": photos()[0] / 2}
    x = photos()
    (maps,) = dc.DRISE(Scripted()).attribute_detections(x, TARGET, n_masks=20, baselines=fills.get(name, name))
    assert maps.isfinite().all()


def test_results_of_the_wrong_number_or_kind():
    with pytest.raises(ValueError, match="return 1 results, one for each image, got 2"):
        dc.DRISE(Replies([NOTHING] * 2)).attribute_detections(photos(), TARGET)
    with pytest.raises(TypeError, match="a list with Detections or a dict"):
        dc.DRISE(Replies(torch.zeros(1, 4))).attribute_detections(photos(), TARGET)
    later = Replies([NOTHING], [NOTHING] * 9)
    with pytest.raises(ValueError, match="return 4 results"):
        dc.DRISE(later).attribute_detections(photos(), TARGET, perturbations_per_eval=4)
