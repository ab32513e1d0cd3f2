"""Captum's metrics by a method's name, and Quantus' calling convention, over the whole registry."""

from __future__ import annotations

import inspect

import captum.metrics
import numpy as np
import pytest
import torch
from methods import CASES, LAYER_SIZE, NAMES
from models import ConvNet, images, seeded
from torch import nn
from torch.testing import assert_close

import drnet_captum as dc
from drnet_captum.metrics import explain_func, infidelity, named_maps, sensitivity_max


def maps_of(name, model, x, target):
    return dc.explain(model, x, target, methods=[name])[name]


@pytest.mark.parametrize("name", NAMES)
def test_named_maps_with_options_equal_those_without(name):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    if CASES[name].fast:  # those that draw: another number of samples is another map
        assert named_maps(model, x, [1, 2], name, **CASES[name].fast).shape == x.shape
        return
    found = named_maps(model, x, [1, 2], name)
    assert found.shape in (x.shape, (2, 1, 12, 10)) and not found.requires_grad
    options = {"saliency": {"abs": True}, "drnet": {"score": "log_prob"}, "score_cam": {"perturbations_per_eval": 2}}
    accepted = inspect.signature(dc.methods()[name].cls.attribute).parameters
    given = options.get(name, {"attr_dim_summation": True} if "attr_dim_summation" in accepted else {})
    assert_close(named_maps(model, x, [1, 2], name, **given), found)


@pytest.mark.parametrize("name", NAMES)
def test_infidelity_is_captum_s(name):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    found = infidelity(model, x, [1, 2], name, n_perturb_samples=3, normalize=True, **CASES[name].fast)
    maps = named_maps(model, x, [1, 2], name, **CASES[name].fast).expand_as(x)
    drawn = torch.Generator().manual_seed(0)

    def perturb(values):
        noise = 0.1 * torch.randn(values.shape, generator=drawn).double()
        return noise, values - noise

    expected = captum.metrics.infidelity(
        model, perturb, x, maps, target=[1, 2], n_perturb_samples=3, normalize=True
    ).detach()
    assert_close(found, expected)


def test_infidelity_by_hand():
    """Of a linear model the gradient tells all; half of it is off by half of what happens, squared."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double().eval()
    x = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    weights = model[1].weight[1].detach().view(1, 3, 2, 2)

    def ones(values):
        return torch.ones_like(values), values - 1

    assert infidelity(model, x, 1, lambda v, t: weights, perturb_func=ones).item() == pytest.approx(0, abs=1e-12)
    half = infidelity(model, x, 1, lambda v, t: weights / 2, perturb_func=ones)
    assert half.item() == pytest.approx(float(weights.sum() / 2) ** 2)
    narrow = infidelity(model, x, 1, lambda v, t: torch.ones(1, 1, 2, 2).double(), perturb_func=ones)  # expanded
    assert narrow.item() == pytest.approx((12 - float(weights.sum())) ** 2)
    assert infidelity(model, x, 1, lambda v, t: torch.ones(1, 2, 2).double(), perturb_func=ones).equal(narrow)
    small, large = (infidelity(model, x, 1, lambda v, t: v * 0, noise=n).item() for n in (0.1, 0.2))
    assert large == pytest.approx(4 * small)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("cam", "hires_cam", "xgrad_cam")])
def test_sensitivity_is_captum_s(name):
    model, x = seeded(ConvNet), images(2)
    options = {"perturb_radius": 0.3, "n_perturb_samples": 2}
    found = sensitivity_max(model, x, [1, 2], name, **options, **CASES[name].fast)
    drawn = torch.Generator().manual_seed(0)

    def perturb(values):
        return values + 0.3 * (torch.rand(values.shape, generator=drawn) * 2 - 1)

    def explain(inputs, target):
        return (
            named_maps(model, inputs[0] if isinstance(inputs, tuple) else inputs, target, name, **CASES[name].fast),
        )

    expected = captum.metrics.sensitivity_max(explain, x, perturb, n_perturb_samples=2, target=[1, 2])
    assert found.shape == (2,) and (found > 0).all()
    assert_close(found, expected)


def test_sensitivity_by_hand():
    x = torch.ones(1, 1, 1, 4, dtype=torch.float64)

    def perturb(values):
        return values + 0.5

    def double(values, target):
        return 2 * values

    found = sensitivity_max(lambda v: v.sum((1, 2, 3)), x, None, double, perturb_func=perturb)
    assert found.item() == pytest.approx(0.5)
    drawn = sensitivity_max(lambda v: v.sum((1, 2, 3)), x, None, double, perturb_radius=0.5, n_perturb_samples=200)
    assert 0.3 < drawn.item() <= 0.5


@pytest.mark.parametrize("metric", [infidelity, sensitivity_max])
def test_seeds_and_the_callers_state(metric):
    model, x = seeded(ConvNet), images(2).requires_grad_()
    state = torch.random.get_rng_state()
    first = metric(model, x, 1, "guided_backprop")
    assert torch.equal(first, metric(model, x, 1, "guided_backprop", generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(first, metric(model, x, 1, "guided_backprop", generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert x.requires_grad and x.grad is None and all(p.grad is None for p in model.parameters())
    assert not first.requires_grad
    layers = [metric(model, x, 1, "grad_cam", layer=layer) for layer in ("conv1", "conv2")]
    assert not torch.allclose(*layers)


@pytest.mark.parametrize("limit", [1, 2, 4, 100])
def test_any_number_of_examples_at_once(limit):
    """Captum's own bounds are two images and six copies; it takes copies in whole rounds of all images."""
    model, x, seen = nn.Sequential(nn.Flatten(), nn.Linear(360, 2)).eval(), images(2), []

    def perturb(values):
        seen.append(len(values))
        return values * 0.1, values * 0.9

    infidelity(model, x, 1, "saliency", perturb_func=perturb, n_perturb_samples=3, max_examples_per_batch=limit)
    assert max(seen) == min(max(limit, 2), 6) and sum(seen) == 6
    seen.clear()
    options = {"n_perturb_samples": 3, "max_examples_per_batch": limit}
    sensitivity_max(model, x, 1, "saliency", perturb_func=lambda v: perturb(v)[1], **options)
    assert max(seen) == min(max(limit, 2), 6) and sum(seen) == 6


def test_errors():
    model, x = seeded(ConvNet), images(2)
    with pytest.raises(ValueError, match="unknown method 'gradcam'"):
        infidelity(model, x, 1, "gradcam")
    with pytest.raises(ValueError, match=r"maps of the input's size, \(N, 1 or 3, 12, 10\), got \(2, 1, 6, 5\)"):
        infidelity(model, x, 1, lambda v, t: torch.rand(2, 1, 6, 5))
    with pytest.raises(ValueError, match=r"no layer and no options with a function as method"):
        sensitivity_max(model, x, 1, lambda v, t: v, layer="conv1")
    with pytest.raises(ValueError, match="unknown method 'all'"):
        named_maps(model, x, 1, "all")


@pytest.mark.parametrize("name", NAMES)
def test_quantus_convention(name):
    """Arrays by keyword, a device, an array of the input's size back."""
    model, x = seeded(ConvNet), images(3)
    arguments = {"model": model, "inputs": x.numpy().astype(np.float64), "targets": np.array([1, 2, 0])}
    found = explain_func(**arguments, method=name, device="cpu", **CASES[name].fast)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32 and np.isfinite(found).all()
    one = name in LAYER_SIZE or CASES[name].output == "pixels"
    assert found.shape == (3, 1 if one else 3, 12, 10)
    expected = named_maps(model, x, [1, 2, 0], name, **CASES[name].fast)
    assert_close(torch.from_numpy(found), expected)


def test_quantus_targets():
    model, x = seeded(ConvNet), images(2)
    expected = maps_of("grad_cam", model, x, [1, 1])
    for targets in (1, np.int64(1), [1, 1], torch.tensor([1, 1]), np.array([[1], [1]])):
        assert_close(torch.from_numpy(explain_func(model, x, targets)), expected)
    with pytest.raises(ValueError, match="a target for each of the 2 images, got 3"):
        explain_func(model, x, [1, 2, 3])


def test_quantus_itself():
    quantus = pytest.importorskip("quantus", exc_type=ImportError)
    model, x = seeded(ConvNet), images(3)
    metric = quantus.MaxSensitivity(nr_samples=2, disable_warnings=True, display_progressbar=False)
    scores = metric(
        model=model,
        x_batch=x.numpy(),
        y_batch=np.array([1, 2, 0]),
        device="cpu",
        explain_func=explain_func,
        explain_func_kwargs={"method": "grad_cam"},
    )
    assert len(scores) == 3 and np.isfinite(scores).all()
