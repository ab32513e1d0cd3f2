"""DRNet against Captum, against loops, and against its own promise: the map's sum is the difference in y."""

from __future__ import annotations

import captum.attr as ca
import pytest
import torch
from models import (
    ConvNet,
    images,
    seeded,
)
from torch import nn
from torch.testing import assert_close

from drnet_captum.attr.drnet import DRNet, baseline_of
from drnet_captum.data import embedded_photo, embedded_photos, load_model, model_card
from drnet_captum.layers.interpolation import spread

LAYERS = ["relu1", "pool", "relu2"]
WEIGHTS = ["gradient", "local", "integrated"]
EXACT = {"rtol": 1e-9, "atol": 1e-11}
STEPS = {"rtol": 1e-6, "atol": 1e-9}  # Captum's steps are float32


def convnet(make=ConvNet, **options):
    """In float64, with biases large enough that the answer to nothing is not nothing."""
    model = seeded(make, **options).double()
    with torch.no_grad():
        model.conv1.bias.normal_(generator=torch.Generator().manual_seed(5))
        model.conv2.bias.normal_(generator=torch.Generator().manual_seed(6))
    return model


def photos(n=2, **options):
    return images(n, dtype=torch.float64, **options)


class LogProbabilities(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args):
        return self.model(*args).log_softmax(1)


# --- Captum's maps, layer by layer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["logit", "log_prob"])
@pytest.mark.parametrize("layer", LAYERS)
def test_pooled_weights_are_grad_cam(layer, score):
    model, x = convnet(), photos()
    theirs = ca.LayerGradCam(model if score == "logit" else LogProbabilities(model), model.get_submodule(layer))
    expected = theirs.attribute(x, target=[3, 1]).detach()
    drnet = DRNet(model, layers=[layer])
    (part,) = drnet.attribute_layers(x, [3, 1], score=score)
    assert_close(part.map, expected, **EXACT)
    assert part.weights.shape[2:] == (1, 1) and part.name == layer and part.share == 1
    assert_close(drnet.attribute(x, [3, 1], score=score), spread(expected, x.shape[2:]), **EXACT)


@pytest.mark.parametrize("score", ["logit", "log_prob"])
def test_local_weights_are_gradient_times_activation(score):
    model, x = convnet(), photos()
    scored = model if score == "logit" else LogProbabilities(model)
    for part in DRNet(model, layers=LAYERS).attribute_layers(x, 2, weights="local", score=score):
        shares = ca.LayerGradientXActivation(scored, model.get_submodule(part.name)).attribute(x, target=2).detach()
        assert_close(part.evidence, shares, **EXACT)
        assert_close(part.map, shares.sum(1, keepdim=True), **EXACT)


BASELINES = [None, 0, 0.7, photos(2, seed=4), photos(1, seed=4)]


@pytest.mark.parametrize("baselines", BASELINES, ids=["none", "zero", "number", "tensor", "one for all"])
@pytest.mark.parametrize(("method", "n_steps"), [("gausslegendre", 7), ("riemann_trapezoid", 6), ("riemann_left", 5)])
@pytest.mark.parametrize("score", ["logit", "log_prob"])
def test_integrated_weights_are_captum_s_layer_integrated_gradients(baselines, method, n_steps, score):
    model, x = convnet(), photos()
    scored = model if score == "logit" else LogProbabilities(model)
    theirs = baselines.expand_as(x) if isinstance(baselines, torch.Tensor) else baselines
    options = {"n_steps": n_steps, "method": method}
    drnet = DRNet(model, layers=LAYERS)
    parts = drnet.attribute_layers(x, [3, 1], baselines, weights="integrated", score=score, **options)
    for part in parts:
        oracle = ca.LayerIntegratedGradients(scored, model.get_submodule(part.name))
        shares = oracle.attribute(x, theirs, target=[3, 1], **options).detach()
        assert_close(part.evidence, shares, **STEPS)
        assert_close(part.map, shares.sum(1, keepdim=True), **STEPS)
    found = drnet.attribute(x, [3, 1], baselines, weights="integrated", score=score, **options)
    assert_close(found, sum(p.share * spread(p.map, x.shape[2:]) for p in parts), **EXACT)


def pixel_shares(position, short, long):
    """What a position hands to every pixel of a line: linear between centres, clamped at the edges, sum 1."""
    shares = []
    for pixel in range(long):
        at = min(max((pixel + 0.5) * short / long - 0.5, 0.0), short - 1.0)
        shares.append(max(0.0, 1 - abs(at - position)))
    return [share / sum(shares) for share in shares]


@pytest.mark.parametrize("log_prob", [True, False])
def test_the_reconstruction_transcribed_slowly(log_prob):
    """Loops over layers, steps, channels, positions and pixels."""
    model, x, shares, steps = convnet(), photos(1, size=(6, 4)), {"relu1": 0.25, "pool": 0.5, "relu2": 0.25}, 4
    above = {
        "relu1": lambda a: model.fc(model.relu2(model.conv2(model.pool(a))).mean((2, 3))),
        "pool": lambda a: model.fc(model.relu2(model.conv2(a)).mean((2, 3))),
        "relu2": lambda a: model.fc(a.mean((2, 3))),
    }
    below = {
        "relu1": lambda v: model.relu1(model.conv1(v)),
        "pool": lambda v: model.pool(model.relu1(model.conv1(v))),
        "relu2": lambda v: model.relu2(model.conv2(model.pool(model.relu1(model.conv1(v))))),
    }
    expected = [[0.0] * 4 for _ in range(6)]
    for name in LAYERS:
        at_x, at_base = below[name](x).detach()[0], below[name](torch.full_like(x, 0.2)).detach()[0]
        alpha = torch.zeros_like(at_x)
        for step in range(steps):
            point = (at_base + (step + 0.5) / steps * (at_x - at_base)).requires_grad_()
            out = above[name](point[None])[0]
            y = out[2] - out.exp().sum().log() if log_prob else out[2]
            alpha += torch.autograd.grad(y, point)[0] / steps
        channels, height, width = at_x.shape
        for i in range(height):
            for j in range(width):
                value = sum(float(alpha[k, i, j] * (at_x[k, i, j] - at_base[k, i, j])) for k in range(channels))
                rows, columns = pixel_shares(i, height, 6), pixel_shares(j, width, 4)
                for r in range(6):
                    for c in range(4):
                        expected[r][c] += shares[name] * value * rows[r] * columns[c]
    found = DRNet(model, LAYERS).attribute(
        x,
        2,
        0.2,
        None,
        "integrated",
        steps,
        "riemann_middle",
        layer_weights=list(shares.values()),
        score="log_prob" if log_prob else "logit",
    )
    assert_close(found, torch.tensor([[expected]], dtype=torch.float64), **EXACT)


# --- Completeness --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["logit", "log_prob"])
@pytest.mark.parametrize("baselines", [None, 0.7, photos(1, seed=4)], ids=["none", "number", "tensor"])
@pytest.mark.parametrize("layer_weights", [None, [2.0, -1.5, 0.5]])
def test_the_map_is_complete(score, baselines, layer_weights):
    model, x = convnet(), photos(3)
    found, delta = DRNet(model, LAYERS).attribute(
        x,
        [0, 1, 2],
        baselines,
        weights="integrated",
        n_steps=300,
        layer_weights=layer_weights,
        score=score,
        return_convergence_delta=True,
    )
    scored = model if score == "logit" else LogProbabilities(model)
    rows = torch.arange(3)
    y, y_base = scored(x)[rows, rows], scored(baseline_of((x,), baselines)[0])[rows, rows]
    assert delta.shape == (3,) and not delta.requires_grad
    assert_close(found.sum((1, 2, 3)) - (y - y_base).detach(), delta, **EXACT)
    assert (delta.abs() < 0.01 * (y - y_base).abs().clamp(min=0.05)).all()


def complete(photo, targets, n_steps=50):
    model = load_model("embedded")
    x = model_card(model).transform(embedded_photo(photo))[None]
    for score in ("logit", "log_prob"):
        scored = model if score == "logit" else LogProbabilities(model)
        with torch.no_grad():
            changes = (scored(x) - scored(torch.zeros_like(x)))[0]
        for target in targets(changes):
            found, delta = DRNet(model).attribute(
                x, target, weights="integrated", n_steps=n_steps, score=score, return_convergence_delta=True
            )
            change = float(changes[target])
            assert abs(change) >= 1 and found.shape == (1, 1, *x.shape[2:])
            assert abs(float(delta)) < 0.02 * abs(change), (photo, score, target)
            assert abs(float(found.sum()) - change) < 0.02 * abs(change)


@pytest.mark.slow
@pytest.mark.parametrize("photo", embedded_photos())
def test_complete_on_the_real_network(photo):
    complete(photo, lambda changes: changes.topk(3).indices.tolist())


def test_complete_on_the_real_network_for_one_class_in_few_steps():
    complete("chelsea", lambda changes: [285], n_steps=20)
