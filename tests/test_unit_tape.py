"""A tape of many places: what it reads there is what Captum reads, and nothing is left behind."""

from __future__ import annotations

import functools
from itertools import pairwise

import captum.attr as ca
import pytest
import timm
import torch
import torchvision
from models import CLASSES, ConvNet, FunctionalConvNet, Raising, images, seeded
from snapshot import of_everything, same
from test_units import double, read, residual, residual_in_place
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.data import load_model
from drnet_captum.engine.unit_tape import UnitTape
from drnet_captum.layers.units import find_units

pytestmark = pytest.mark.usefixtures("every_node_lean")

NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=7), (48, 40)),
    "densenet": (lambda: timm.create_model("densenet121", num_classes=7, growth_rate=8, block_config=(2, 2)), (48, 40)),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=7), (48, 40)),
    "mobilenet v2": (lambda: torchvision.models.mobilenet_v2(num_classes=7), (48, 40)),
    "test_efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=7), (64, 64)),
    "embedded": (lambda: load_model("embedded"), (64, 64)),
}


@functools.cache
def network(name):
    model = seeded(NETWORKS[name][0])
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(std=0.1, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
    for m in model.modules():
        if hasattr(m, "inplace"):
            m.inplace = False  # Captum reads the tensors when all is over
    return model.double(), images(2, dtype=torch.float64, size=NETWORKS[name][1])


def modules_that_put_out(model, x, tensors):
    """For each of the tensors the last module of one kind or other whose output it is."""
    found, handles = {}, []

    def compare(module, args, out):
        for name, tensor in tensors.items():
            if isinstance(out, torch.Tensor) and out.shape == tensor.shape and torch.equal(out, tensor):
                found[name] = module

    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)
    handles = [m.register_forward_hook(compare) for m in model.modules() if isinstance(m, kinds)]
    model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_products_equal_captum_s_layer_gradient_x_activation(name):
    model, x = network(name)
    before = of_everything(model, x)
    units = read(model, x, memory_format="preserve")
    same(before, of_everything(model, x))
    put_out = modules_that_put_out(model, x, {n: t for n, (t, _) in units.items()})
    assert len(units) > 3 and len(put_out) >= len(units) - 2
    counts = {m: 0 for m in put_out.values()}
    handles = [m.register_forward_pre_hook(lambda m, a: counts.update({m: counts[m] + 1})) for m in counts]
    model(x)
    for handle in handles:
        handle.remove()
    once = {n: m for n, m in put_out.items() if counts[m] == 1}  # Captum reads a module that runs twice at its last run
    assert len(once) > len(units) / 2
    for unit, module in list(once.items())[:: max(1, len(once) // 5)]:
        shares = ca.LayerGradientXActivation(model, module).attribute(x, target=1).detach().flatten(2).sum(2)
        tensor, gradient = units[unit]
        assert_close((tensor * gradient).flatten(2).sum(2), shares, rtol=1e-4, atol=1e-4 * float(shares.abs().max()))


class InATuple(nn.Module):
    def __init__(self, *extra):
        super().__init__()
        self.conv, self.extra = nn.Conv2d(3, 6, 3), extra

    def forward(self, x):
        return (*self.extra, F.relu(self.conv(x)))


@pytest.mark.parametrize("extra", [(), (None,), (torch.ones(1),)])
def test_a_layer_that_puts_its_tensor_out_in_a_tuple(extra):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = InATuple(*extra), nn.Linear(6, CLASSES)

        def forward(self, x):
            return self.fc(self.body(x)[-1].mean((2, 3)))

    model, x = seeded(Model), images()
    found = read(model, x, ["body", "body.conv"])
    assert_close(found["body"], found["body.conv"])


def test_a_layer_of_several_tensors_has_no_units():
    class Two(InATuple):
        def forward(self, x):
            return self.conv(x), F.relu(self.conv(x))

    model = seeded(lambda: nn.Sequential(Two(), Added()))
    with pytest.raises(ValueError, match="'0' has no units to look at: it puts out 2 tensors"):
        find_units(model, (images(),), layers=["0"])


class Added(nn.Module):
    def forward(self, both):
        return (both[0] + both[1]).mean((2, 3))


class Second(nn.Module):
    def forward(self, x):
        return x.chunk(2, 1)[1]


@pytest.mark.parametrize("place", ["stem", "part"])
def test_a_convolution_before_its_norm_and_a_part_of_a_tensor(place):
    """The norm is not folded into the one; the other is its node's second output."""
    model = seeded(Parts).double()
    model.norm.running_var.fill_(4.0)
    x, kept = images().double(), []
    handle = model.get_submodule(place).register_forward_hook(lambda module, args, out: kept.append(out))
    y = model(x)
    handle.remove()
    (expected,) = torch.autograd.grad(y[:, 1].sum(), kept[0])
    assert_close(read(model, x, [place, "stem.0"])[place], (kept[0].detach(), expected))


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Sequential(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)
        self.part, self.fc = Second(), nn.Linear(3, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.fc((self.part(x) * x[:, :3]).mean((2, 3)))


def test_several_backward_passes_and_classes():
    model, x = double(residual_in_place), images().double()
    sites = {s.layer.name: s for s in find_units(model, (x,))}
    tape, rows = UnitTape(model, sites), []
    output = tape.forward(x)
    for target, keep in [(0, True), (1, True), (0, False)]:
        found = {}
        tape.backward(
            output[:, target], lambda n, t, g, found=found: found.setdefault(n, (t.clone(), g.clone())), keep=keep
        )
        rows.append(found)
        assert_close(found, read(model, x, target=target))
    assert_close(rows[0], rows[2])
    with pytest.raises(RuntimeError, match="second time"):
        tape.backward(output[:, 0], lambda *_: None)


def test_only_what_the_answer_depends_on_is_read():
    model, x = seeded(ConvNet), images()
    tape = UnitTape(model, {s.layer.name: s for s in find_units(model, (x,))})
    names, kept = [], []
    handle = model.pool.register_forward_hook(lambda module, args, out: kept.append(out))
    output = tape.forward(x)
    handle.remove()
    tape.backward(kept[0].flatten(1).sum(1), lambda name, t, g: names.append(name), keep=True)
    assert names == ["conv1"]
    tape.backward(output[:, 0], lambda name, t, g: names.append(name))
    assert names == ["conv1", "conv2", "conv1"]


def test_without_gradients_nothing_is_kept_and_everything_is_seen():
    model, x = double(residual_in_place), images().double()
    sites = {s.layer.name: s for s in find_units(model, (x,), layers=["a", "b", "norm_b"])}
    seen, tape = {}, UnitTape(model, sites, gradients=False)
    output = tape.forward(x, seen=lambda name, t: seen.setdefault(name, t.clone()))
    assert list(seen) == ["a", "b", "norm_b"] and not output.requires_grad
    assert not tape._tensors and not tape._edges
    assert_close(seen, {n: t for n, (t, _) in read(model, x, ["a", "b", "norm_b"]).items()})


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("gradients", [True, False])
def test_nothing_of_the_caller_s_changes(grad, gradients):
    model, x = double(residual_in_place, inplace=True).train(), images().double().requires_grad_()
    before = of_everything(model, x)
    with grad():
        sites = {s.layer.name: s for s in find_units(model, (x,))}
        tape = UnitTape(model, sites, gradients=gradients)
        output = tape.forward(x)
        if gradients:
            with torch.enable_grad():
                y = output[:, 0]
            tape.backward(y, lambda *_: None)
    same(before, of_everything(model, x))


@pytest.mark.parametrize("at", ["seen", "read"])
def test_a_reader_that_raises_leaves_no_hooks(at):
    model, x = double(residual), images().double()
    before = of_everything(model, x)
    tape = UnitTape(model, {s.layer.name: s for s in find_units(model, (x,))})

    def breaks(*_):
        raise KeyError("broken reader")

    if at == "seen":
        with pytest.raises(KeyError, match="broken reader"):
            tape.forward(x, seen=breaks)
    output = tape.forward(x)
    if at == "read":
        with pytest.raises(KeyError, match="broken reader"):
            tape.backward(output[:, 1], breaks, keep=True)
    same(before, of_everything(model, x))
    names = []
    tape.backward(output[:, 1], lambda name, *_: names.append(name))
    assert sorted(names) == ["a", "b"]


def test_a_model_that_raises():
    model, x = seeded(Raising), images()
    before = of_everything(model, x)
    with pytest.raises(RuntimeError, match="broken model"):
        find_units(model, (x,))
    tape = UnitTape(model, {s.layer.name: s for s in find_units(seeded(ConvNet), (x,))})
    with pytest.raises(RuntimeError, match="broken model"):
        tape.forward(x)
    same(before, of_everything(model, x))


def test_steps_that_change_from_call_to_call_are_noticed():
    model, x = seeded(ConvNet), images()
    sites = {s.layer.name: s for s in find_units(model, (x,))}
    model.forward = lambda x: model.fc(F.avg_pool2d(model.conv1(x), 2)[:, [0, 1, 2, 3, 0, 1]].mean((2, 3)))
    with pytest.raises(RuntimeError, match="'conv1' was not met: the model does not run the same steps"):
        UnitTape(model, sites).forward(x)


def test_functional_and_module_activations_are_the_same():
    x = images()
    assert_close(read(seeded(FunctionalConvNet), x), read(seeded(ConvNet), x))


def test_the_order_of_reading_is_from_output_to_input():
    model, x = network("resnet18")
    names = list(read(model, x))
    order = [s.layer.name for s in find_units(model, (x,))]
    first = {n: i for i, n in enumerate(names)}
    blocks = [n for n in order if n.endswith("conv1") and n != "conv1"]
    assert names[-1] == "conv1" and all(first[a] > first[b] for a, b in pairwise(blocks))
