"""DRNet against Captum, against loops, and against its own promise: the map's sum is the difference in y."""

from __future__ import annotations

import captum.attr as ca
import pytest
import timm
import torch
from captum.metrics import sensitivity_max
from models import CLASSES, Answers, ChannelsLast, ConvNet, FunctionalConvNet, ManyScores, NormedConvNet, TwoInputs
from models import images, seeded, signal_net, volume_net
from reference import integrated_reconstruction
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.attr.drnet import DRNet, baseline_of, default_shares
from drnet_captum.attr.layer_part import LayerPart, reconstruction
from drnet_captum.attr.path_weights import path_weights, target_rows
from drnet_captum.data import embedded_photo, embedded_photos, load_model, model_card
from drnet_captum.layers.interpolation import spread

LAYERS = ["relu1", "pool", "relu2"]
WEIGHTS = ["gradient", "local", "integrated"]
EXACT = {"rtol": 1e-9, "atol": 1e-11}


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
        assert_close(part.evidence, shares, **EXACT)
        assert_close(part.map, shares.sum(1, keepdim=True), **EXACT)
    found = drnet.attribute(x, [3, 1], baselines, weights="integrated", score=score, **options)
    assert_close(found, sum(spread(p.map, x.shape[2:]) for p in parts) / 3, **EXACT)


@pytest.mark.parametrize("log_prob", [True, False])
def test_integrated_weights_transcribed_slowly(log_prob):
    """Loops over layers, steps, channels, positions and pixels on the tiny net."""
    model, x, shares = convnet(), photos(1, size=(6, 4)), [0.25, 0.5, 0.25]
    after = {
        "relu1": lambda a: model.fc(model.relu2(model.conv2(model.pool(a))).mean((2, 3))),
        "pool": lambda a: model.fc(model.relu2(model.conv2(a)).mean((2, 3))),
        "relu2": lambda a: model.fc(a.mean((2, 3))),
    }
    first = model.relu1(model.conv1(x))
    base = model.relu1(model.conv1(x * 0 + 0.2))
    activations = {"relu1": first, "pool": model.pool(first), "relu2": model.relu2(model.conv2(model.pool(first)))}
    at_base = {"relu1": base, "pool": model.pool(base), "relu2": model.relu2(model.conv2(model.pool(base)))}
    expected = integrated_reconstruction(
        [(after[n], activations[n].detach(), at_base[n].detach()) for n in LAYERS], 2, shares, (6, 4), 4, log_prob
    )
    found = DRNet(model, LAYERS).attribute(
        x, 2, 0.2, None, "integrated", 4, "riemann_middle", layer_weights=shares, score="log_prob" if log_prob else "logit"
    )
    assert_close(found, expected, **EXACT)


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
        n_steps=400,
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


# --- Pieces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 7, 16, 1000, None])
@pytest.mark.parametrize("target", [2, [0, 4, 1, 3, 2], torch.tensor([0, 4, 1, 3, 2])], ids=["int", "list", "tensor"])
def test_the_number_of_rows_at_once_changes_nothing(rows, target):
    model, x = convnet(), photos(5)
    drnet = DRNet(model, layers=["pool", "relu2"])
    options = {"weights": "integrated", "n_steps": 6, "return_convergence_delta": True}
    expected = [
        drnet.attribute(x[i : i + 1], target if isinstance(target, int) else int(target[i]), **options) for i in range(5)
    ]
    found, delta = drnet.attribute(x, target, internal_batch_size=rows, **options)
    assert_close(found, torch.cat([e for e, _ in expected]), **EXACT)
    assert_close(delta, torch.cat([d for _, d in expected]), **EXACT)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("target", [1, [1, 3, 0], torch.tensor([1, 3, 0]), torch.tensor(1)])
def test_examples_and_targets_one_by_one(weights, target):
    model, x = convnet(NormedConvNet), photos(3)
    drnet = DRNet(model)
    found = drnet.attribute(x, target, weights=weights, n_steps=5)
    each = target if isinstance(target, list) else torch.as_tensor(target).expand(3).tolist()
    one_by_one = [drnet.attribute(x[i : i + 1], each[i], weights=weights, n_steps=5) for i in range(3)]
    assert_close(found, torch.cat(one_by_one), **EXACT)


def test_rows_and_their_targets():
    assert target_rows([(0, 1), (2, 0)], slice(1, 2), 2, 3) == [(2, 0)] * 3
    assert target_rows(torch.tensor([[0, 1], [2, 0]]), slice(0, 2), 2, 2) == [(0, 1), (2, 0)] * 2
    assert target_rows((0, 1), slice(0, 1), 2, 3) == (0, 1) and target_rows(None, slice(0, 1), 2, 3) is None
    assert target_rows(torch.tensor([4]), slice(0, 1), 2, 3) == torch.tensor([4])
    with pytest.raises(ValueError, match="one target for each of the 3 examples, got a list of 2"):
        target_rows([1, 2], slice(0, 1), 3, 1)


def test_rows_that_were_run_are_reported():
    calls, tail = [], lambda a: a.sum((2, 3))
    F_x = torch.ones(5, 2, 3, 3)
    found = path_weights(lambda part: tail, F_x, F_x * 0, 1, "logit", 4, internal_batch_size=3, step=calls.append)
    assert sum(calls) == 5 * 4 and max(calls) <= 3
    assert_close(found[:, 1], torch.ones(5, 3, 3))
    assert_close(found[:, 0], torch.zeros(5, 3, 3))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_shares_of_layers(weights):
    model, x = convnet(), photos()
    drnet, options = DRNet(model, layers=LAYERS), {"target": 1, "weights": weights, "n_steps": 4}
    parts = drnet.attribute_layers(x, **options)
    maps = [spread(part.map, x.shape[2:]) for part in parts]
    for i in range(3):
        one = [float(i == j) for j in range(3)]
        assert_close(drnet.attribute(x, layer_weights=one, **options), maps[i], **EXACT)
    some = torch.tensor([0.6, 0.6, -0.2])
    assert_close(drnet.attribute(x, layer_weights=some, **options), sum(map(torch.mul, some.tolist(), maps)), rtol=1e-6, atol=1e-9)
    assert default_shares(4) == [0.25] * 4
    assert [part.share for part in parts] == default_shares(3)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_strongest_channels_transcribed_slowly(weights, count):
    model, x = convnet(), photos(3)
    options = {"target": [1, 2, 3], "weights": weights, "n_steps": 4}
    drnet = DRNet(model, layers=LAYERS)
    expected = torch.zeros(3, 1, *x.shape[2:], dtype=x.dtype)
    for part in drnet.attribute_layers(x, **options):
        for n in range(3):
            evidence = [part.weights[n, k] * part.activation[n, k] for k in range(part.activation.shape[1])]
            strongest = sorted(evidence, key=lambda e: -abs(float(e.sum())))[:count]
            expected[n] += spread(sum(strongest)[None, None], x.shape[2:])[0] / 3
    assert_close(drnet.attribute(x, top_channels=count, **options), expected, **EXACT)
    for many in (6, 100):
        assert_close(drnet.attribute(x, top_channels=many, **options), drnet.attribute(x, **options), **EXACT)


def test_a_reconstruction_by_hand():
    """1·2 − 3·1 = −1 spread over four pixels and +4 on its own: ¾·(−¼) + ¼·4 at the first pixel."""
    coarse = LayerPart("a", torch.tensor([[[[2.0]], [[1.0]]]]), torch.tensor([[[[1.0]], [[-3.0]]]]), 0.75)
    fine = LayerPart("b", torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]]), torch.ones(1, 1, 1, 1), 0.25)
    expected = torch.tensor([[[[0.8125, -0.1875], [-0.1875, -0.1875]]]])
    assert_close(reconstruction([coarse, fine], (2, 2)), expected)
    assert coarse.strongest(1).evidence.flatten().tolist() == [0.0, -3.0]


def test_layers_found_are_the_last_at_each_resolution():
    model = seeded(timm.create_model, "test_resnet", num_classes=CLASSES)
    names = [part.name for part in DRNet(model).attribute_layers(torch.rand(1, 3, 96, 96), 1)]
    assert names == ["act1", "layer1", "layer2", "layer3", "layer4"]


def test_captum_s_tools():
    model, x = convnet(), photos()
    drnet = DRNet(model)
    options = {"target": [1, 2], "weights": "integrated", "n_steps": 3}
    with torch.no_grad():
        plain = drnet.attribute(x, **options)
    assert_close(plain, drnet.attribute(x, **options), **EXACT)
    tunnel = ca.NoiseTunnel(drnet)
    assert_close(tunnel.attribute(x, nt_type="smoothgrad", stdevs=0.0, nt_samples=2, **options), plain, **EXACT)
    assert tunnel.attribute(x, nt_type="vargrad", stdevs=0.1, nt_samples=3, **options).shape == plain.shape

    def perturb(inputs):
        return inputs + 0.1 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs)

    def explain(inputs, **arguments):
        return (drnet.attribute(inputs[0] if isinstance(inputs, tuple) else inputs, **arguments),)

    for weights in WEIGHTS:
        value = sensitivity_max(explain, x, perturb, n_perturb_samples=2, target=[1, 2], weights=weights)
        assert value.shape == (2,) and (value > 0).all()
    assert DRNet.get_name() == "DRNet"
