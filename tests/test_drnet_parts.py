"""What DRNet's map is made of: examples, targets, rows, the layers' shares, channels; and Captum's tools on it."""

from __future__ import annotations

import captum.attr as ca
import pytest
import timm
import torch
from captum.metrics import sensitivity_max
from models import CLASSES, NormedConvNet, seeded
from test_drnet import EXACT, LAYERS, WEIGHTS, convnet, photos
from torch.testing import assert_close

from drnet_captum.attr.drnet import DRNet, default_shares
from drnet_captum.attr.layer_part import LayerPart, reconstruction
from drnet_captum.attr.path_weights import path_weights, target_rows
from drnet_captum.layers.interpolation import spread


@pytest.mark.parametrize("rows", [1, 3, 7, 16, 1000, None])
@pytest.mark.parametrize("target", [2, [0, 4, 1, 3, 2], torch.tensor([0, 4, 1, 3, 2])], ids=["int", "list", "tensor"])
def test_the_number_of_rows_at_once_changes_nothing(rows, target):
    model, x = convnet(), photos(5)
    drnet = DRNet(model, layers=["pool", "relu2"])
    options = {"weights": "integrated", "n_steps": 6, "return_convergence_delta": True}
    expected = [
        drnet.attribute(x[i : i + 1], target if isinstance(target, int) else int(target[i]), **options)
        for i in range(5)
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
    assert_close(
        drnet.attribute(x, layer_weights=some, **options),
        sum(map(torch.mul, some.tolist(), maps)),
        rtol=1e-6,
        atol=1e-9,
    )
    four = [27 / 175, 36 / 175, 48 / 175, 64 / 175]  # 3/4 to the powers 3 … 0, of sum 1
    assert default_shares(4) == pytest.approx(four)
    assert (default_shares(1), default_shares(2)) == ([1.0], [0.5, 0.5])
    for count in range(1, 20):
        assert sum(default_shares(count)) == pytest.approx(1) and default_shares(count) == sorted(default_shares(count))
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
            expected[n] += spread(sum(strongest)[None, None], x.shape[2:])[0] * part.share
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
