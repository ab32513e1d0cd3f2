"""RISE, beside what it shares with all methods: what w is, when it stops, and models whose answer is known."""

from __future__ import annotations

import pytest
import torch
from captum.attr import NoiseTunnel
from models import ConvNet, images, seeded
from torch import Tensor, nn
from torch.testing import assert_close

import drnet_captum as dc

FAST = {"n_masks": 60, "grid": (4, 4)}


def test_the_paper_s_form():
    """Probabilities, no control variate, over N·p: a constant classifier gives its probability, about everywhere."""

    def constant(x: Tensor) -> Tensor:
        return torch.tensor([[0.0, 2.0, 1.0]]).expand(len(x), -1)

    x = images(1)
    paper = {"normalize": "expectation", "score": "probability"}
    maps = dc.RISE(constant).attribute(x, 1, n_masks=4000, grid=(4, 4), **paper)
    probability = float(constant(x).softmax(1)[0, 1])
    assert abs(float(maps.mean()) - probability) < 0.01 and float((maps - probability).abs().max()) < 0.03


@pytest.mark.parametrize("score", ["logit", "log_prob", "probability"])
def test_scores(score):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    made = {
        "logit": model,
        "log_prob": nn.Sequential(model, nn.LogSoftmax(1)),
        "probability": nn.Sequential(model, nn.Softmax(1)),
    }[score].eval()
    assert_close(dc.RISE(model).attribute(x, [1, 3], score=score, **FAST), dc.RISE(made).attribute(x, [1, 3], **FAST))


def test_the_chunk_size_does_not_change_the_result():
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    whole = dc.RISE(model).attribute(x, [1, 3], perturbations_per_eval=100, **FAST)
    for size in (None, 1, 7):
        assert_close(dc.RISE(model).attribute(x, [1, 3], perturbations_per_eval=size, **FAST), whole)


def test_a_bright_corner():
    """A model that sees one patch, and one that is hurt by it."""

    def corners(x: Tensor) -> Tensor:
        patch = x[:, :, 2:6, 10:16].mean((1, 2, 3))
        return torch.stack([patch, -patch], 1)

    maps = dc.RISE(corners).attribute(torch.ones(2, 3, 24, 20), [0, 1], n_masks=2000, grid=(6, 5))
    for heat in (maps[0, 0], -maps[1, 0]):
        y, x = divmod(int(heat.argmax()), 20)
        assert 2 <= y < 6 and 10 <= x < 16


def test_estimates_on_the_way():
    model, x = seeded(ConvNet), images(2)
    steps = list(dc.RISE(model).attribute_iter(x, [1, 3], every=25, **FAST))
    assert [s.n_masks for s in steps] == [25, 50, 60]
    assert [m.shape for m in steps[0].maps] == [(1, *x.shape[2:])] * 2
    whole = dc.RISE(model).attribute(x, [1, 3], **FAST)
    assert_close(torch.stack(steps[-1].maps).expand_as(whole), whole)
    assert all(s.isfinite().all() and (s >= 0).all() for s in steps[-1].standard_errors)


def test_stopping_at_a_standard_error():
    model, x = seeded(ConvNet), images(1)
    seen = []
    steps = list(
        dc.RISE(lambda v: seen.append(len(v)) or model(v)).attribute_iter(x, 1, n_masks=9000, grid=(3, 3), stop_at=0.1)
    )
    assert steps[-1].relative_error < 0.1 and steps[-1].n_masks < 9000
    found = dc.RISE(model).attribute(x, 1, n_masks=9000, grid=(3, 3), stop_at=0.1)
    assert_close(found[0, :1], steps[-1].maps[0])


def test_several_classes_on_the_same_masks():
    model, x = seeded(ConvNet), images(2)
    (together,) = dc.RISE(model).attribute_classes(x, [1, [0, 3]], **FAST)
    assert together.shape == (2, *x.shape)
    for found, target in zip(together, (1, [0, 3]), strict=True):
        assert_close(found, dc.RISE(model).attribute(x, target, **FAST))


def test_additional_arguments_go_with_their_image():
    def shifted(x: Tensor, shift: Tensor, factor: float) -> Tensor:
        return factor * (x * shift[:, None, None, None]).mean((2, 3))

    x, shift = images(2), torch.tensor([1.0, 3.0])
    found = dc.RISE(shifted).attribute(x, 1, additional_forward_args=(shift, 2.0), **FAST)
    for i in (0, 1):
        alone = dc.RISE(shifted).attribute(x[i : i + 1], 1, additional_forward_args=(shift[i : i + 1], 2.0), **FAST)
        assert_close(found[i], alone[0])
    assert_close(found[1], 6 * dc.RISE(lambda v: v.mean((2, 3))).attribute(x[1:], 1, **FAST)[0])


def test_hidden_parts_show_the_baseline():
    seen = []
    model = seeded(ConvNet)
    x = images(1)
    for baselines in (0.5, x / 2, (0.5,), "blur", None):
        seen.clear()
        dc.RISE(lambda v: seen.append(v.clone()) or model(v)).attribute(x, 1, baselines=baselines, **FAST)
        shown = torch.cat(seen)
        if not isinstance(baselines, str):
            base = torch.as_tensor(
                0.0 if baselines is None else baselines[0] if isinstance(baselines, tuple) else baselines
            )
            low, high = torch.minimum(x, base), torch.maximum(x, base)
            assert (shown >= low - 1e-5).all() and (shown <= high + 1e-5).all()
        assert shown.std(0).mean() > 0.01


def test_in_a_noise_tunnel():
    x = images(1)
    tunnel = NoiseTunnel(dc.RISE(seeded(ConvNet)))
    assert tunnel.attribute(x, nt_samples=2, stdevs=0.1, target=1, **FAST).shape == x.shape


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ((images(1), images(1)), {}, "masks one input"),
        (torch.rand(2, 7), {}, "masks one input"),
        (images(1), {"n_masks": 0}, "at least one mask"),
        (images(1), {"grid": (4, 5, 6)}, "along each of 2 dimensions"),
        (images(1), {"score": "odds"}, "score to be"),
        (images(1), {"baselines": "black"}, "needs image_range"),
    ],
)
def test_what_cannot_be_explained(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        dc.RISE(seeded(ConvNet)).attribute(inputs, 1, **{**FAST, **options})


def test_scores_that_are_not_finite():
    with pytest.raises(ValueError, match="not finite: try a wider dtype"):
        dc.RISE(lambda x: x.mean((2, 3)) / 0).attribute(images(1), 1, **FAST)


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="every, the masks between two estimates"):
        next(dc.RISE(seeded(ConvNet)).attribute_iter(images(1), 1, every=0))
