"""The part above a layer, given the layer's own activation, is the whole model; its gradient is autograd's."""

from __future__ import annotations

import functools

import pytest
import timm
import torch
import torchvision
from models import (
    CLASSES,
    ChannelsLast,
    ConvNet,
    FunctionalConvNet,
    NormedConvNet,
    TwoInputs,
    conv_relu_pool,
    flatten_linear,
    images,
    max_pool_linear,
    pool_linear,
    seeded,
    signal_net,
    volume_net,
)
from snapshot import of_everything, same
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.data import load_model
from drnet_captum.engine.tail import Tail, has_rows, repeated
from drnet_captum.layers.discovery import cut_layers_for


def size(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))


MODELS = {
    "conv": (lambda: seeded(ConvNet), images()),
    "in place": (lambda: seeded(ConvNet, inplace=True), images()),
    "functional": (lambda: seeded(FunctionalConvNet), images()),
    "normed": (lambda: seeded(NormedConvNet), images()),
    "pool, linear": (lambda: seeded(pool_linear), images()),
    "max-pool": (lambda: seeded(max_pool_linear), images()),
    "flatten": (lambda: seeded(flatten_linear), images()),
    "conv, ReLU, pool": (lambda: seeded(conv_relu_pool), images()),
    "signals": (lambda: seeded(signal_net), size(2, 16)),
    "volumes": (lambda: seeded(volume_net), size(1, 5, 6, 7)),
    "channels last": (lambda: seeded(ChannelsLast, 2), images()),
    "test_resnet": (lambda: seeded(timm.create_model, "test_resnet", num_classes=5), size(3, 64, 64)),
    "test_vit": (lambda: seeded(timm.create_model, "test_vit", num_classes=5, img_size=64), size(3, 64, 64)),
    "test_convnext": (lambda: seeded(timm.create_model, "test_convnext", num_classes=5), size(3, 64, 64)),
    "test_efficientnet": (lambda: seeded(timm.create_model, "test_efficientnet", num_classes=5), size(3, 64, 64)),
    "resnet18": (lambda: seeded(torchvision.models.resnet18, num_classes=5), size(3, 64, 64)),
    "embedded": (lambda: load_model("embedded"), size(3, 64, 64)),
}


@functools.cache
def model_and_cuts(name):
    build, x = MODELS[name]
    model = build()
    return model, x, [layer.module for layer in cut_layers_for(model, (x,), ())]


def at_layer(model, layer, *args):
    """The layer's output and the model's by plain autograd, and the gradient of the first class by the former."""
    kept = []

    def keep(module, inputs, out):
        kept.append(out.clone())
        return kept[-1].clone()

    handle = layer.register_forward_hook(keep)
    y = model(*args)
    handle.remove()
    (gradient,) = torch.autograd.grad(y[:, 0].sum(), kept[-1])
    return kept[-1].detach(), y.detach(), gradient


def differs(a, b):
    """The largest difference as a share of the largest number."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("copies", [1, 3])
def test_tails_of_models(name, copies):
    model, x, cuts = model_and_cuts(name)
    before = of_everything(model, x)
    for layer in [cuts[0], cuts[len(cuts) // 2], cuts[-1]]:
        activation, expected, gradient = at_layer(model, layer, x)
        tail = Tail(model, layer, (x,))
        points = activation.repeat(copies, *[1] * (activation.dim() - 1)).requires_grad_()
        found = tail(points)
        assert tail._skips, "what lies below was run"
        assert found.shape == (copies * len(x), *expected.shape[1:]) and found.device == x.device
        assert differs(found.detach(), expected.repeat(copies, 1)) < 1e-5
        (found_gradient,) = torch.autograd.grad(found[:, 0].sum(), points)
        assert differs(found_gradient, gradient.repeat(copies, *[1] * (gradient.dim() - 1))) < 1e-4
        if copies == 1:
            assert torch.equal(found, tail(points)), "the second call is another one"
    same(before, of_everything(model, x))


def test_other_activations_give_what_the_layers_above_do():
    model = seeded(ConvNet)
    activation = size(4, 6, 5)
    expected = model.fc(model.relu2(model.conv2(activation)).mean((2, 3)))
    assert torch.equal(Tail(model, model.pool, (images(),))(activation), expected)
    assert torch.equal(Tail(model, model.fc, (images(),))(expected), expected)


class Below(nn.Module):
    """Reads more than the layer ``conv``, in a way that the argument names."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.fc, self.way = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, CLASSES), way

    def forward(self, x):
        out = F.relu(self.conv(x))
        if self.way == "mask":
            out = out * (x.mean(1, keepdim=True) > 0)
        elif self.way == "branch":
            out = out * 2 if x.mean() > 0.0 else out * 3
        elif self.way == "number":
            out = out * x.abs().max().item()
        elif self.way == "skip":
            out = out + x.sum(1, keepdim=True)
        elif self.way == "list":
            out = out * torch.tensor(x.mean((1, 2, 3)).tolist()).view(-1, 1, 1, 1)
        elif self.way == "index":
            out = out[:, :, (x[0, 0, :, 0] > 0).nonzero()[:, 0]]
        return self.fc(out.mean((2, 3)))


@pytest.mark.parametrize("way", ["mask", "branch", "number", "skip", "list", "index"])
@pytest.mark.parametrize("copies", [1, 2])
def test_what_reads_values_from_below_is_run_in_full(way, copies):
    model, x = seeded(Below, way), images()
    activation, expected, gradient = at_layer(model, model.conv, x)
    tail = Tail(model, model.conv, (x,))
    points = activation.repeat(copies, 1, 1, 1).requires_grad_()
    found = tail(points)
    assert not tail._skips
    assert_close(found, expected.repeat(copies, 1))
    (found_gradient,) = torch.autograd.grad(found[:, 0].sum(), points)
    assert_close(found_gradient, gradient.repeat(copies, 1, 1, 1))


class Scaled(nn.Module):
    """x·scale, conv, then shift added to the classes; ``scale`` below and ``shift`` above the layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, CLASSES)

    def forward(self, x, shift, factor, scale=None):
        out = F.relu(self.conv(x if scale is None else x * scale.view(-1, 1, 1, 1)))
        return self.fc(out.mean((2, 3))) * factor + shift


@pytest.mark.parametrize("copies", [1, 3])
def test_further_arguments_with_rows_are_repeated(copies):
    model, x = seeded(Scaled), images(3)
    shift, scale = torch.randn(3, CLASSES), torch.tensor([0.5, 1.0, 2.0])
    extra = (shift, 2.0, scale)
    activation, expected, _ = at_layer(model, model.conv, x, *extra)
    tail = Tail(model, model.conv, (x,), extra)
    assert_close(tail(activation.repeat(copies, 1, 1, 1)), expected.repeat(copies, 1))
    assert tail._skips


def test_further_arguments_without_rows_are_handed_on():
    model, x = seeded(Scaled), images(3)
    shift = torch.randn(CLASSES)
    activation, expected, _ = at_layer(model, model.conv, x, shift, 2.0)
    found = Tail(model, model.conv, (x,), (shift, 2.0))(activation.repeat(2, 1, 1, 1))
    assert_close(found, expected.repeat(2, 1))


def test_several_inputs():
    model, (x, other) = seeded(TwoInputs), (images(), images(seed=2))
    activation, expected, _ = at_layer(model, model.conv2, x, other, 0.3)
    tail = Tail(model, model.conv2, (x, other), (0.3,))
    assert_close(tail(activation.repeat(2, 1, 1, 1)), expected.repeat(2, 1))
    assert tail._skips


class Shared(nn.Module):
    """One ReLU after every convolution: its last run is a cut."""

    def __init__(self, channels):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, channels, 3, padding=1)
        self.relu, self.fc = nn.ReLU(), nn.Linear(channels, CLASSES)

    def forward(self, x):
        return self.fc(self.relu(self.b(self.relu(self.a(x)))).mean((2, 3)))


@pytest.mark.parametrize("channels", [4, 6])
def test_a_layer_that_runs_several_times_is_its_last_run(channels):
    model, x = seeded(Shared, channels), images()
    activation = model.relu(model.b(model.relu(model.a(x)))).detach()
    tail = Tail(model, model.relu, (x,))
    assert_close(tail(2 * activation), model.fc(2 * activation.mean((2, 3))))
    assert tail._skips


class InATuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.above, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, CLASSES)
        self.block = nn.Module()
        self.block.forward = lambda x: (F.relu(self.conv(x)), None)

    def forward(self, x):
        return self.fc(self.above(self.block(x)[0]).mean((2, 3)))


@pytest.mark.parametrize("n", [1, 2])
def test_a_layer_that_puts_its_tensor_out_in_a_tuple(n):
    model, x = seeded(InATuple), images(n)
    assert_close(Tail(model, model.block, (x,))(F.relu(model.conv(x))), model(x))


def test_a_function_around_the_model():
    model, x = seeded(ConvNet), images()
    activation, expected, _ = at_layer(model, model.conv2, x)
    assert_close(Tail(lambda v: 2 * model(v), model.conv2, (x,))(activation), 2 * expected)


def test_parameters_below_the_layer_stay_where_they_are():
    model = seeded(ConvNet)
    Tail(model, model.relu2, (images(),))(size(6, 6, 5))
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def train_mode(model):
    return model.train()


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("change", [train_mode, lambda m: m.requires_grad_(False), lambda m: m])
def test_nothing_of_the_caller_s_changes(grad, change):
    model, x = change(seeded(NormedConvNet)), images()
    x.requires_grad_()
    model.conv1.register_forward_hook(lambda *_: None)
    activation = size(4, 12, 10)
    before = of_everything(model, x, activation)
    with grad():
        Tail(model, model.relu1, (x,))(activation)
    same(before, of_everything(model, x, activation))


class Breaks(NormedConvNet):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("broken model")


def test_nothing_of_the_caller_s_changes_where_the_model_raises():
    model, x, activation = seeded(Breaks).train(), images(), size(4, 12, 10)
    before = of_everything(model, x, activation)
    with pytest.raises(RuntimeError, match="broken model"):
        Tail(model, model.relu1, (x,))(activation)
    same(before, of_everything(model, x, activation))


def test_repeating_rows():
    assert repeated(torch.tensor([[1], [2]]), 3).tolist() == [[1], [2], [1], [2], [1], [2]]
    assert has_rows(torch.ones(3, 2), 3) and not has_rows(torch.ones(2, 3), 3)
    assert not has_rows(torch.tensor(3.0), 1) and not has_rows(3, 3) and not has_rows([1, 2], 2)
