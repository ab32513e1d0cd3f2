"""Deletion and insertion: by hand, against loops in float64, in chunks, and what they refuse."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from models import ConvNet, NormedConvNet, images, seeded
from torch import nn
from torch.testing import assert_close

from drnet_captum.metrics import Curve, curve, deletion, insertion
from drnet_captum.metrics.baselines import blurred, filling


class Sum(nn.Module):
    """Two scores of an image: its sum, and nothing."""

    def forward(self, x):
        return torch.stack([x.sum((1, 2, 3)), torch.zeros(len(x), dtype=x.dtype)], 1)


def slow_curve(model, start, end, heat, target, steps):
    """One image, pixel by pixel: at step k those whose place in the order is below k·P/steps are exchanged."""
    height, width = heat.shape
    order = sorted(range(height * width), key=lambda i: (-float(heat[i // width, i % width]), i))
    values = []
    for k in range(steps + 1):
        x = start.clone()
        for place, i in enumerate(order):
            if place < k * height * width / steps:
                x[:, i // width, i % width] = end[:, i // width, i % width]
        with torch.no_grad():
            values.append(float(model(x[None]).softmax(1)[0, target]))
    area = sum((a + b) / 2 for a, b in pairwise(values)) / steps
    return values, area


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("baselines", ["mean", "blur", 0.3])
@pytest.mark.parametrize("measure", [deletion, insertion])
def test_against_loops(measure, baselines, steps):
    model, x = seeded(ConvNet).double(), images(3, dtype=torch.float64)
    maps = torch.randn(3, 2, 12, 10, generator=torch.Generator().manual_seed(2)).double().round()  # with ties
    found = measure(model, x, maps, [1, 4, 0], baselines=baselines, steps=steps)
    base = filling(x, baselines)
    for i, target in enumerate([1, 4, 0]):
        ends = (x[i], base[i]) if measure is deletion else (base[i], x[i])
        values, area = slow_curve(model, *ends, maps[i].sum(0), target, steps)
        assert_close(found.values[i], torch.tensor(values, dtype=torch.float64))
        assert float(found.area[i]) == pytest.approx(area)


def test_by_hand():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    options = {"steps": 4, "score": "logit", "baselines": 0.0}
    assert deletion(Sum(), x, x, 0, **options).values.tolist() == [[10, 6, 3, 1, 0]]
    assert deletion(Sum(), x, -x, 0, **options).values.tolist() == [[10, 9, 7, 4, 0]]
    assert insertion(Sum(), x, x, 0, **options).values.tolist() == [[0, 4, 7, 9, 10]]
    assert insertion(Sum(), x, torch.zeros_like(x), 0, **options).values.tolist() == [[0, 1, 3, 6, 10]]  # ties in order
    assert deletion(Sum(), x, x, 0, **options).area.tolist() == [(5 + 6 + 3 + 1 + 0) / 4]
    mean = deletion(Sum(), x, x, 0, steps=2, score="logit")
    assert mean.values.tolist() == [[10, 8, 10]]
    sigmoid = deletion(Sum(), x, x, 0, steps=1, baselines=0.0).values
    assert_close(sigmoid, torch.tensor([[10.0, 0.0]]).sigmoid())
    assert_close(deletion(Sum(), x, x, 0, steps=1, baselines=0.0, score="log_prob").values, sigmoid.log())


def test_channels_of_a_pixel_go_together():
    x = torch.ones(1, 3, 2, 2)
    assert deletion(Sum(), x, torch.rand(1, 2, 2), 0, steps=4, baselines=0.0, score="logit").values.tolist() == [
        [12, 9, 6, 3, 0]
    ]


def test_model_of_one_score_needs_no_target():
    x = torch.rand(2, 3, 2, 2)
    found = deletion(lambda v: v.sum((1, 2, 3)), x, x, steps=2, score="logit")
    assert_close(found.values[:, 0], x.sum((1, 2, 3)))


@pytest.mark.parametrize("at_once", [1, 5, 1000])
@pytest.mark.parametrize("target", [2, [0, 1, 2], torch.tensor([2, 1, 0])])
def test_chunks_change_nothing(target, at_once):
    model, x = seeded(ConvNet).double(), images(3, dtype=torch.float64)
    expected = deletion(model, x, x, target, steps=9)
    assert_close(deletion(model, x, x, target, steps=9, perturbations_per_eval=at_once).values, expected.values)
    own = [target] * 3 if isinstance(target, int) else [int(t) for t in target]
    alone = [deletion(model, x[i : i + 1], x[i : i + 1], own[i], steps=9) for i in range(3)]
    assert_close(torch.cat([a.values for a in alone]), expected.values)


def test_blur_is_a_gaussian_of_eleven_pixels():
    spot = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    spot[..., 15, 15] = 1
    offsets = torch.arange(31, dtype=torch.float64) - 15
    kernel = torch.where(offsets.abs() <= 5, torch.exp(-(offsets**2) / 50), 0.0)
    kernel = kernel / kernel.sum()
    assert_close(blurred(spot)[0, 0], kernel[:, None] * kernel[None])
    assert blurred(torch.rand(1, 3, 2, 3)).shape == (1, 3, 2, 3)


def test_the_mean_is_of_each_image_and_channel():
    x = images(2)
    assert_close(filling(x, "mean"), x.mean(3, keepdim=True).mean(2, keepdim=True).expand(2, 3, 12, 10))


def test_a_tensor_as_baseline():
    x, base = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    found = deletion(Sum(), x, x, 0, baselines=base, score="logit", steps=3)
    assert_close(found.values[:, -1], base.sum((1, 2, 3)))
    one = deletion(Sum(), x, x, 0, baselines=base[:1], score="logit", steps=3)
    assert_close(one.values[:, -1], base[:1].sum((1, 2, 3)).expand(2))


def test_area_is_batched():
    values = torch.rand(2, 3, 5)
    assert_close(Curve(values).area, ((values[..., 1:] + values[..., :-1]) / 2).mean(-1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": torch.rand(3, 4, 4)}, r"images as a floating-point tensor \(N, C, H, W\), got torch.float32"),
        ({"inputs": torch.ones(2, 3, 4, 4).long()}, "torch.int64"),
        ({"inputs": torch.full((2, 3, 4, 4), torch.nan)}, "finite values"),
        (
            {"maps": torch.rand(2, 1, 2, 2)},
            r"4×4 pixels for each of the 2 images, got \(2, 1, 2, 2\)",
        ),
        ({"maps": torch.rand(1, 4, 4)}, "each of the 2 images"),
        ({"maps": torch.full((2, 4, 4), torch.inf)}, "NaN or infinite"),
        ({"maps": torch.rand(4, 4)}, r"shape \(N, H, W\) or \(N, C, H, W\), got \(4, 4\)"),
        ({"steps": 0}, "at least 1 step, got 0"),
        ({"perturbations_per_eval": 0}, "perturbations_per_eval of at least 1"),
        ({"score": "odds"}, "probability, log_prob, logit, got 'odds'"),
        ({"baselines": "black"}, 'a number, a tensor, "mean" or "blur", got \'black\''),
        ({"baselines": torch.rand(2, 3, 1, 1)}, "a baseline of shape"),
        ({"target": 2}, "out of range"),
        ({"target": [0, 1, 0]}, "one target for each of the 2 examples"),
        ({"model": lambda x: x.sum((1, 2, 3))}, "pass score='logit'"),
    ],
)
def test_errors(changed, message):
    arguments = {"model": Sum(), "inputs": torch.rand(2, 3, 4, 4), "maps": torch.rand(2, 4, 4), "target": 0} | changed
    with pytest.raises(ValueError, match=message):
        deletion(**arguments)


def test_ends_of_one_shape_and_maps_as_tensors():
    with pytest.raises(ValueError, match="two images of one shape"):
        curve(Sum(), torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 5), torch.rand(1, 4, 4), 0)
    with pytest.raises(TypeError, match=r"maps as a tensor, got list: use torch\.as_tensor"):
        deletion(Sum(), torch.rand(1, 3, 4, 4), [[1.0]], 0)
    with pytest.raises(TypeError, match=r"real numbers, got torch\.complex64"):
        deletion(Sum(), torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4).to(torch.complex64), 0)


def test_models_in_train_mode_warn_and_keep_their_state():
    model, x = seeded(NormedConvNet).train(), images(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="train mode"):
        deletion(model, x, x, 1, steps=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
