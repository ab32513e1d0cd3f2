"""DRNet on every kind of model."""

from __future__ import annotations

import captum.attr as ca
import pytest
import timm
import torch
from models import (
    CLASSES,
    Answers,
    ChannelsLast,
    ConvNet,
    FunctionalConvNet,
    ManyScores,
    TwoInputs,
    images,
    seeded,
    signal_net,
    volume_net,
)
from snapshot import of_everything, same
from test_drnet import EXACT, LAYERS, WEIGHTS, convnet, photos
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.attr.drnet import DRNet


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def swin():
    options = {"img_size": 64, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=CLASSES, **options)


def levit():
    return timm.create_model("levit_128s", num_classes=CLASSES)


KINDS = {
    "signals": (signal_net, (2, 2, 16), 1),
    "volumes": (volume_net, (2, 1, 5, 6, 7), 1),
    "tokens": (lambda: timm.create_model("test_vit", num_classes=CLASSES, img_size=64), (2, 3, 64, 64), 1),
    "NHWC": (lambda: ChannelsLast(2), (2, 3, 12, 10), 1),
    "NHWC volumes": (lambda: ChannelsLast(3), (2, 3, 4, 12, 10), 1),
    "swin": (swin, (2, 3, 64, 64), 2),
    "one score": (lambda: ConvNet(outputs=1), (2, 3, 12, 10), 2),
    "functional": (FunctionalConvNet, (2, 3, 12, 10), 2),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=CLASSES), (1, 3, 64, 64), 4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_kinds_of_models(kind, weights):
    build, shape, resolutions = KINDS[kind]
    model, x = seeded(build).double(), random(*shape).double()
    target = None if kind == "one score" else 2
    drnet = DRNet(model)
    parts = drnet.attribute_layers(x, target, weights=weights, n_steps=20)
    assert len(parts) == resolutions and len({p.activation.shape[2:] for p in parts}) == resolutions
    before = of_everything(model, x)
    found = drnet.attribute(x, target, weights=weights, n_steps=20)
    same(before, of_everything(model, x))
    assert found.shape == (len(x), 1, *shape[2:]) and found.isfinite().all() and found.abs().sum() > 0
    assert not found.requires_grad
    assert_close(found.flatten(1).sum(1), sum(p.share * p.map.flatten(1).sum(1) for p in parts), **EXACT)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tokens"])
def test_every_layer_of_every_kind_is_complete(kind):
    build, shape, _ = KINDS[kind]
    model, x = seeded(build).double(), random(*shape).double()
    with torch.no_grad():
        out, base = model(x), model(x * 0 + 0.5)
    if out.shape[1] > 1:
        out, base = out.log_softmax(1)[:, 2:3], base.log_softmax(1)[:, 2:3]
    change, target = (out - base)[:, 0], 2 if model(x).shape[1] > 1 else None
    for part in DRNet(model).attribute_layers(x, target, 0.5, weights="integrated", n_steps=100):
        assert_close(part.map.flatten(1).sum(1), change, rtol=0, atol=0.02 * float(change.abs().max()))


def test_of_tokens_what_is_missing_is_the_class_token_s():
    """It has no place in the picture: the map is Captum's shares of the patches."""
    model, x = seeded(KINDS["tokens"][0]).double(), random(1, 3, 64, 64).double()
    options = {"n_steps": 8, "method": "riemann_middle"}
    (part,) = DRNet(model).attribute_layers(x, 2, 0.5, weights="integrated", score="logit", **options)
    oracle = ca.LayerIntegratedGradients(model, model.get_submodule(part.name))
    shares = oracle.attribute(x, 0.5, target=2, **options).detach().sum(2)  # (1, 1 + 16)
    assert part.name == "blocks.4" and shares.shape == (1, 17)
    assert_close(part.map.flatten(1), shares[:, 1:], rtol=1e-6, atol=1e-9)
    assert shares[:, 0].abs() > 0.01


def test_one_score_uses_the_logit_and_several_the_log_probability():
    one, x = seeded(lambda: ConvNet(outputs=1)).double(), photos()
    assert_close(DRNet(one).attribute(x), DRNet(one).attribute(x, 0, score="logit"), **EXACT)
    assert DRNet(one).attribute(x, score="log_prob").abs().max() == 0  # there is nothing to set it against
    several = convnet()
    assert_close(DRNet(several).attribute(x, 1), DRNet(several).attribute(x, 1, score="log_prob"), **EXACT)
    assert not torch.allclose(DRNet(several).attribute(x, 1), DRNet(several).attribute(x, 1, score="logit"))
    flat = Answers(one, lambda out: out[:, 0]).eval()
    assert_close(DRNet(flat).attribute(x), DRNet(one).attribute(x), **EXACT)
    with pytest.raises(ValueError, match=r"several classes, \(N, C\), for score='log_prob', got \(2,\)"):
        DRNet(flat).attribute(x, score="log_prob")


@pytest.mark.parametrize("weights", WEIGHTS)
def test_targets_of_several_indices(weights):
    model, x = seeded(ManyScores).double(), photos()
    options = {"weights": weights, "n_steps": 4}
    found = DRNet(model, LAYERS).attribute(x, [(1, 0), (3, 1)], **options)
    for i, target in enumerate([(1, 0), (3, 1)]):
        assert_close(found[i : i + 1], DRNet(model, LAYERS).attribute(x[i : i + 1], target, **options), **EXACT)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_several_inputs_and_further_arguments(weights):
    model, x, other = convnet(TwoInputs), photos(), photos(seed=2)
    one = convnet()
    options = {"weights": weights, "n_steps": 3, "internal_batch_size": 4}
    found = DRNet(model, LAYERS).attribute((x, other), 1, additional_forward_args=0.3, **options)
    assert isinstance(found, torch.Tensor)
    assert_close(found, DRNet(one, LAYERS).attribute(x + 0.15 * other, 1, **options), **EXACT)
    if weights == "integrated":
        given = DRNet(model, LAYERS).attribute((x, other), 1, (1.0, other[:1]), 0.3, **options)
        assert_close(given, DRNet(one, LAYERS).attribute(x + 0.15 * other, 1, 1 + 0.15 * other[:1], **options), **EXACT)


class Weighted(ConvNet):
    """An argument with one row for each example."""

    def forward(self, x, factor):
        return super().forward(x) * factor


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_arguments_with_rows(rows):
    model, x, factor = convnet(Weighted), photos(3), torch.tensor([[1.0], [-2.0], [0.5]]).double()
    options = {"weights": "integrated", "n_steps": 4, "internal_batch_size": rows, "return_convergence_delta": True}
    found, delta = DRNet(model, LAYERS).attribute(x, 1, additional_forward_args=factor, **options)
    for i in range(3):
        one, of_one = DRNet(model, LAYERS).attribute(
            x[i : i + 1], 1, additional_forward_args=factor[i : i + 1], **options
        )
        assert_close(found[i : i + 1], one, **EXACT)
        assert_close(delta[i : i + 1], of_one, **EXACT)


class OneReLU(ConvNet):
    """The same ReLU after both convolutions."""

    def forward(self, x):
        x = self.pool(self.relu1(self.conv1(x)))
        return self.fc(self.relu1(self.conv2(x)).mean((2, 3)))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_layer_that_serves_twice_is_its_last_run(weights):
    x, options = photos(), {"weights": weights, "n_steps": 4}
    found = DRNet(convnet(OneReLU), ["relu1"]).attribute(x, 1, **options)
    assert_close(found, DRNet(convnet(), ["relu2"]).attribute(x, 1, **options), **EXACT)
    assert DRNet(convnet(OneReLU)).attribute(x, 1, **options).isfinite().all()


class Mixed(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.conv, self.fc, self.form = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES), form
        self.body = nn.Module()
        self.body.forward = lambda x: form(F.relu(self.conv(x)))

    def forward(self, x):
        return self.fc(sum(t for t in self.body(x) if t is not None).mean((2, 3)))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_layers_that_put_out_tuples(weights):
    x, options = images(), {"weights": weights, "n_steps": 3}
    one = seeded(Mixed, lambda t: (t, None))
    found = DRNet(one, [one.body]).attribute(x, 1, **options)
    plain = nn.Sequential(one.conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), one.fc).eval()
    assert_close(found, DRNet(plain, ["1"]).attribute(x, 1, **options), rtol=1e-4, atol=1e-6)
    several = seeded(Mixed, lambda t: (t, 2 * t))
    with pytest.raises(ValueError, match="layer 'body' puts out 2 tensors: choose a layer of one"):
        DRNet(several, [several.body]).attribute(x, 1, **options)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("memory_format", ["auto", "preserve", "channels_last"])
def test_memory_formats(weights, memory_format):
    model, x, options = convnet(), photos(), {"weights": weights, "n_steps": 3}
    expected = DRNet(model).attribute(x, 1, **options)
    drnet = DRNet(model, memory_format=memory_format)
    assert_close(drnet.attribute(x.contiguous(memory_format=torch.channels_last), 1, **options), expected, **EXACT)
    assert_close(drnet.attribute(x, 1, **options), expected, **EXACT)


def test_functions_around_a_model_and_parallel_ones():
    model, x = convnet(), photos()
    for weights in WEIGHTS:
        options = {"weights": weights, "n_steps": 3}
        expected = DRNet(model, LAYERS).attribute(x, 1, **options)
        modules = [model.get_submodule(name) for name in LAYERS]
        assert_close(DRNet(lambda v: model(v), modules).attribute(x, 1, **options), expected, **EXACT)
        assert_close(DRNet(nn.DataParallel(model), LAYERS).attribute(x, 1, **options), expected, **EXACT)
    parts = DRNet(lambda v: model(v), modules).attribute_layers(x, 1)
    assert [part.name for part in parts] == ["ReLU", "MaxPool2d", "ReLU"]
