"""Where the units of convolutions and of other layers are met."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from models import CLASSES, ChannelsLast, images, seeded, signal_net
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.engine.unit_tape import UnitTape
from drnet_captum.layers.units import find_units


class Steps(nn.Module):
    """Named steps, put together as a function says; the answer is the mean over positions."""

    def __init__(self, forward, inplace=False):
        super().__init__()
        for i, name in enumerate("abcd"):
            setattr(self, name, nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1))
            norm = nn.BatchNorm2d(6)
            norm.running_mean.normal_(std=0.2)
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(norm.weight, 1.0, 0.3)
            setattr(self, "norm_" + name, norm)
        self.deep, self.group = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.gate, self.gate_up = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.relu, self.fc, self._forward = nn.ReLU(inplace), nn.Linear(6, CLASSES), forward
        self.alias = self.a

    def forward(self, x):
        return self.fc(self._forward(self, x).mean((2, 3)))


def noted(model, x, place):
    """What ``place`` names in a plain run: the tensor that a step of the model was given back as, and its gradient."""
    kept = {}
    model.note = lambda name, t: kept.setdefault(name, t) + 0  # a new tensor: what is kept is never written into
    y = model(x)
    del model.note
    (gradient,) = torch.autograd.grad(y[:, 1].sum(), kept[place])
    return kept[place].detach(), gradient


def note(model, name, tensor):
    return model.note(name, tensor) if hasattr(model, "note") else tensor


# What a convolution's units are: each function notes the tensor that is expected for the convolution of that name.
def normed(m, x):
    return m.b(note(m, "a", m.relu(m.norm_a(m.a(x)))))


def norm_only(m, x):
    return m.b(note(m, "a", m.norm_a(m.a(x)))).mean((2, 3), keepdim=True)


def alone(m, x):
    return F.avg_pool2d(note(m, "a", m.a(x)), 2)


def activated(m, x):
    return m.b(note(m, "a", torch.relu_(m.a(x))))


def functional(m, x):
    return m.b(note(m, "a", F.relu(m.norm_a(m.a(x)))))


def by_parts(m, x):
    x = m.norm_a(m.a(x))
    return m.b(note(m, "a", x * torch.sigmoid(x)))


def smooth(m, x):
    return m.b(note(m, "a", F.gelu(m.norm_a(m.a(x)))))


def activation_first(m, x):
    return m.norm_a(note(m, "a", m.relu(m.a(x)))) * 2


def residual(m, x):
    x = m.relu(m.a(x))
    y = note(m, "b", m.norm_b(m.b(x)))
    return m.relu(y + x)


def residual_in_place(m, x):
    x = F.relu(m.a(x))
    y = note(m, "b", m.norm_b(m.b(x)))
    y += x
    return torch.relu_(y)


def scaled_in_place(m, x):
    y = note(m, "a", m.norm_a(m.a(x)))
    y.mul_(3.0)
    return m.relu(y)


def forked(m, x):
    y = note(m, "a", m.a(x))
    return m.norm_a(y) + F.relu(y)


def forked_after_the_norm(m, x):
    y = note(m, "a", m.norm_a(m.a(x)))
    return F.relu(y) + y.mean()


def before_activation(m, x):
    """The norm of the next convolution is all that reads this one; what is added to a residual stays as it is."""
    x = m.a(x)
    y = note(m, "b", m.relu(m.norm_c(m.b(m.relu(m.norm_b(x))))))
    return x + note(m, "c", m.c(y))


def depthwise(m, x):
    return m.b(note(m, "deep", m.relu(m.norm_b(m.deep(m.a(x))))))


def grouped(m, x):
    return m.b(note(m, "group", m.relu(m.group(m.a(x)))))


def transposed(m, x):
    return m.b(note(m, "up", m.relu(m.norm_b(m.up(m.a(x))))))


def dead_branch(m, x):
    x = m.a(x)
    m.b(x)
    m.norm_a(x)
    return note(m, "a", F.relu(x))


def pooled_between(m, x):
    return m.relu(F.max_pool2d(note(m, "a", m.a(x)), 2))


CASES = [
    *((f, "a") for f in (normed, norm_only, alone, activated, functional, by_parts, smooth, activation_first)),
    *((f, "b") for f in (residual, residual_in_place, before_activation)),
    (before_activation, "c"),
    *((f, "a") for f in (scaled_in_place, forked, forked_after_the_norm, dead_branch, pooled_between)),
    (depthwise, "deep"),
    (grouped, "group"),
    (transposed, "up"),
]


def double(forward, **options):
    return seeded(Steps, forward, **options).double()


def read(model, x, names=None, *, target=1, **options):
    """Tensors and gradients of all places by name."""
    sites = find_units(model, (x,), layers=names)
    tape, seen, found = UnitTape(model, {s.layer.name: s for s in sites}, **options), {}, {}
    output = tape.forward(x, seen=lambda name, t: seen.setdefault(name, t.clone()))
    tape.backward(output[:, target], lambda name, t, g: found.setdefault(name, (t.clone(), g.clone())))
    assert_close(output, model(x))
    assert seen.keys() == {s.layer.name for s in sites}
    for name, (tensor, _) in found.items():
        assert torch.equal(tensor, seen[name]), f"{name} was written into"
    return found


@pytest.mark.parametrize(("forward", "name"), CASES, ids=[f"{f.__name__}-{name}" for f, name in CASES])
@pytest.mark.parametrize("inplace", [False, True])
def test_the_units_of_a_convolution(forward, name, inplace):
    model, x = double(forward, inplace=inplace), images(dtype=torch.float64)
    tensor, gradient = noted(model, x, name)
    found = read(model, x)
    assert_close(found[name][0], tensor)
    assert_close(found[name][1], gradient)
    site = next(s for s in find_units(model, (x,)) if s.layer.name == name)
    assert site.layer.kind == "convolution" and site.layer.channels == 6 and site.layer.grid == tensor.shape[2:]
    assert site.placement.layout == "NCHW"


def test_convolutions_come_from_input_to_output_and_each_once():
    model, x = double(lambda m, x: m.norm_a(m.c(m.b(x * 2) if x.shape[1] == 6 else m.a(x)))), images().double()
    assert [s.layer.name for s in find_units(model, (x,))] == ["a", "c"]
    order = [s.layer.name for s in find_units(double(lambda m, x: m.b(F.relu(m.d(m.c(m.a(x)))))), (x,))]
    assert order == ["a", "c", "d", "b"]
    of_resnet = [s.layer.name for s in find_units(torchvision.models.resnet18().eval(), (torch.rand(1, 3, 64, 64),))]
    assert of_resnet[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"] and len(of_resnet) == 20


def test_overwritten_tensors_are_told_apart():
    x = images().double()
    sites = {f: find_units(double(f), (x,), layers=["b"])[0] for f in (residual, residual_in_place)}
    assert not sites[residual].overwritten and sites[residual_in_place].overwritten


def test_a_branch_that_does_not_reach_the_answer_is_left_out():
    model, x = double(dead_branch), images().double()
    assert [s.layer.name for s in find_units(model, (x,))] == ["a"]
    with pytest.raises(ValueError, match="'b' has no units to look at: it is not run, or the answer does not depend"):
        find_units(model, (x,), layers=["b"])
    with pytest.raises(ValueError, match=r"'c' has no units .*not run"):
        find_units(model, (x,), layers=["c"])


def test_gates_of_one_position_are_left_out():
    def gated(m, x):
        x = m.relu(m.a(x))
        return m.b(x * torch.sigmoid(m.gate_up(F.relu(m.gate(x.mean((2, 3), keepdim=True))))))

    model, x = double(gated), images().double()
    assert [s.layer.name for s in find_units(model, (x,))] == ["a", "b"]
    with pytest.raises(ValueError, match=r"'gate' has no units .*\(1, 2, 1, 1\), which has no grid .*have: a, relu, b"):
        find_units(model, (x,), layers=["gate"])


def test_a_convolution_that_runs_twice_is_named():
    model, x = double(lambda m, x: m.b(m.relu(m.b(m.a(x))))), images().double()
    with pytest.raises(ValueError, match="'b' has no units to look at: it runs 2 times in one forward pass"):
        find_units(model, (x,), layers=["a", "b"])
    with pytest.warns(UserWarning, match="left out: b, as it runs 2 times in one forward pass"):
        assert [s.layer.name for s in find_units(model, (x,))] == ["a"]
    assert [s.layer.name for s in find_units(model, (x,), layers=["a"])] == ["a"]


def test_modules_by_other_names_twice_and_from_elsewhere():
    model, x = double(normed), images().double()
    assert [s.layer.name for s in find_units(model, (x,), layers=[model.alias])] == ["a"]
    with pytest.raises(ValueError, match="got the module 'a' twice"):
        find_units(model, (x,), layers=["a", model.alias])
    with pytest.raises(ValueError, match="a Conv2d that is no part of it"):
        find_units(model, (x,), layers=[nn.Conv2d(3, 3, 3)])
    with pytest.raises(ValueError, match="no layer 'conv'"):
        find_units(model, (x,), layers=["conv"])
    with pytest.raises(ValueError, match=r"'fc' has no units .*no grid of positions"):
        find_units(model, (x,), layers=["fc"])


def test_a_model_that_reads_nothing_of_its_input_has_no_units():
    model = double(lambda m, x: torch.ones_like(m.a(x).detach()))
    assert find_units(model, (images().double(),)) == []


def test_other_layers_by_name():
    """Their own output: of a norm before its activation, in NHWC, as tokens, in a tuple."""
    model, x = double(normed), images().double()
    (site,) = find_units(model, (x,), layers=["norm_a"])
    assert (site.layer.kind, site.layer.channels, site.layer.grid, site.call) == ("layer", 6, (12, 10), None)
    tensor, gradient = read(model, x, ["norm_a"])["norm_a"]
    plain = model.norm_a(model.a(x)).detach().requires_grad_()
    (expected,) = torch.autograd.grad(model.fc(model.b(F.relu(plain)).mean((2, 3)))[:, 1].sum(), plain)
    assert_close((tensor, gradient), (plain.detach(), expected))

    (site,) = find_units(seeded(ChannelsLast, 2), (images(),), layers=["body"])
    assert (site.placement.layout, site.layer.grid, site.layer.channels) == ("NHWC", (12, 10), 6)
    vit = seeded(timm.create_model, "test_vit", img_size=64, num_classes=CLASSES)
    (site,) = find_units(vit, (torch.rand(1, 3, 64, 64),), layers=["blocks.2"])
    assert (site.placement.layout, site.placement.prefix_tokens, site.layer.grid) == ("tokens", 1, (4, 4))
    (site,) = find_units(seeded(signal_net), (torch.rand(1, 2, 16),), layers=["1"])
    assert site.layer.grid == (16,)


def test_the_channels_of_a_classifier_are_no_units():
    """SqueezeNet's last convolution puts out the classes; looked at by name it is a layer like others."""
    layers = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model, x = nn.Sequential(*layers).eval(), images()
    assert [s.layer.name for s in find_units(model, (x,))] == ["0"]
    (site,) = find_units(model, (x,), layers=["2"])
    assert (site.layer.kind, site.layer.channels) == ("layer", CLASSES)
