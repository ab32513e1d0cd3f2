"""Gates are those of the paper's descent written out, image by image, and nothing of the caller's changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import pytest
import timm
import torch
from models import images, seeded
from snapshot import of_everything, same
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.layers.units import find_units
from drnet_captum.reconstruct.gates import learn_gates

X = images(3, dtype=torch.float64, size=(12, 12)) + images(3, seed=2, dtype=torch.float64, size=(1, 1))
OPTIONS = {"cost": 0.2, "steps": 14, "rate": 0.1, "momentum": 0.9}
Forward = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def slow(forward: Forward, channels: Mapping[str, int], x: Tensor, **options: float) -> dict[str, Tensor]:
    """The descent of Wang et al. for one image after another, by PyTorch's own optimizer."""
    cost, steps, rate, momentum = (options[key] for key in ("cost", "steps", "rate", "momentum"))
    rows: dict[str, list[Tensor]] = {name: [] for name in channels}
    for image in x.split(1):
        gates = {name: torch.ones(count, dtype=x.dtype, requires_grad=True) for name, count in channels.items()}
        with torch.no_grad():
            p = forward(image, gates).softmax(1)
        optimizer = torch.optim.SGD([*gates.values()], lr=rate, momentum=momentum)
        best, least = {}, float("inf")
        for _ in range(int(steps) + 1):
            scores = forward(image, gates)
            loss = -(p * scores.softmax(1).log()).sum() + cost * sum(g.sum() for g in gates.values())
            if scores.argmax() == p.argmax() and loss.item() < least:
                best, least = {name: g.detach().clone() for name, g in gates.items()}, loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for g in gates.values():
                g.data.clamp_(min=0)
        for name, g in best.items():
            rows[name].append(g)
    return {name: torch.stack(found) for name, found in rows.items()}


def hooked(model: nn.Module, places: Mapping[str, str]) -> Forward:
    """Gates on what modules put out: by layer, the module at which they act."""

    def forward(x: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
        handles = []
        for layer, place in places.items():
            times = lambda module, args, out, layer=layer: out * gates[layer].view(-1, 1, 1)  # noqa: E731
            handles.append(model.get_submodule(place).register_forward_hook(times))
        scores = model(x)
        for handle in handles:
            handle.remove()
        return scores

    return forward


def agree(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, gates in expected.items():
        assert_close(found[name], gates, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
        assert not found[name].requires_grad


class Net(nn.Module):
    """Three convolutions: with norm and activation, with an activation, and alone; the activation is one function."""

    def __init__(self, function: Callable[[Tensor], Tensor], norm: bool = True, forgets: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, m, 3, bias=False) for n, m in ((3, 6), (6, 5), (5, 4)))
        self.norm, self.fc = nn.BatchNorm2d(6) if norm else nn.Identity(), nn.Linear(4, 5)
        self.function, self.forgets = function, forgets
        nn.init.normal_(self.fc.weight, std=20)

    def activation(self, x: Tensor) -> Tensor:
        y = self.function(x)
        return x if self.forgets else y

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.a(x)))
        x = self.activation(self.b(x))
        return self.fc(self.c(x).mean((2, 3)))

    def gated(self, x: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
        """The same with gates; what the function does in place happens to a copy."""
        x = self.function(self.norm(self.a(x)).clone()) * gates["a"].view(1, 6, 1, 1)
        x = self.function(self.b(x).clone()) * gates["b"].view(1, 5, 1, 1)
        return self.fc((self.c(x) * gates["c"].view(1, 4, 1, 1)).mean((2, 3)))


def net(function: Callable[[Tensor], Tensor] = F.relu, **options: bool) -> Net:
    return seeded(Net, function, **options).double().eval()  # type: ignore[return-value]


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu inplace": lambda x: F.relu(x, True),
    "module inplace": nn.ReLU(inplace=True),
    "relu_": torch.relu_,
    "tanh_": torch.Tensor.tanh_,
    "elu inplace": lambda x: F.elu(x, inplace=True),
    "silu inplace": lambda x: F.silu(x, inplace=True),
    "silu by parts": lambda x: x * x.sigmoid(),
    "hardswish inplace": nn.Hardswish(inplace=True),
    "leaky inplace": nn.LeakyReLU(0.2, inplace=True),
    "gelu": F.gelu,
}
WRITING = ["relu inplace", "relu_", "tanh_", "elu inplace", "silu inplace", "hardswish inplace", "leaky inplace"]


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_descent_written_out(function: Callable[[Tensor], Tensor]) -> None:
    model = net(function)
    expected = slow(model.gated, {"a": 6, "b": 5, "c": 4}, X, **OPTIONS)
    assert any((gates == 0).any() for gates in expected.values())
    assert any(((gates > 0) & (gates != 1)).any() for gates in expected.values())
    agree(learn_gates(model, X, **OPTIONS), expected)


@pytest.mark.parametrize("name", WRITING)
def test_whoever_holds_what_is_written_into_reads_it_gated(name: str) -> None:
    model = net(FUNCTIONS[name], norm=False, forgets=True)
    agree(learn_gates(model, X, **OPTIONS), slow(model.gated, {"a": 6, "b": 5, "c": 4}, X, **OPTIONS))


@pytest.mark.parametrize("steps", [1, 2, 25])
@pytest.mark.parametrize("cost", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(("rate", "momentum"), [(0.3, 0.5), (1.0, 0.0), (2.0, 0.0)])  # the last two overshoot
def test_steps_and_costs(steps: int, cost: float, rate: float, momentum: float) -> None:
    model, options = net(), {**OPTIONS, "cost": cost, "steps": steps, "momentum": momentum, "rate": rate}
    agree(learn_gates(model, X, **options), slow(model.gated, {"a": 6, "b": 5, "c": 4}, X, **options))


PLACES = {
    "test_resnet": {
        "conv1.0": "conv1.2",
        "conv1.3": "conv1.5",
        "conv1.6": "act1",
        "layer1.0.conv1": "layer1.0.act1",
        "layer1.0.conv2": "layer1.0.bn2",
        "layer2.0.conv2": "layer2.0.bn2",
        "layer2.0.downsample.1": "layer2.0.downsample.2",
    },
    "test_convnext": {
        name: name
        for name in ("stem.0", "stages.0.blocks.0.conv_dw", "stages.1.downsample.1", "stages.1.blocks.1.conv_dw")
    },
    "test_efficientnet": {
        "conv_stem": "bn1",
        "blocks.1.0.conv_exp": "blocks.1.0.bn1",
        "blocks.1.0.conv_pwl": "blocks.1.0.bn2",
        "blocks.3.0.conv_dw": "blocks.3.0.bn2",
    },
}


@pytest.mark.parametrize("name", PLACES)
def test_published_architectures(name: str) -> None:
    model = seeded(timm.create_model, name, num_classes=5).double()
    nn.init.normal_(model.get_classifier().weight)
    x = images(2, dtype=torch.float64, size=(64, 64))
    channels = {s.layer.name: s.layer.channels for s in find_units(model, (x,), layers=[*PLACES[name]])}
    options = {**OPTIONS, "cost": 0.05, "steps": 4, "rate": 0.5}
    found = learn_gates(model, x, [*PLACES[name]], **options)
    agree(found, slow(hooked(model, PLACES[name]), channels, x, **options))
    assert all((gates != 1).any() for gates in found.values())


def test_layers_that_are_no_convolutions() -> None:
    options = {**OPTIONS, "steps": 5}
    x = images(2, dtype=torch.float64, size=(64, 64))
    vit = seeded(timm.create_model, "test_vit", num_classes=5, dynamic_img_size=True).double()

    def forward(image: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
        handle = vit.blocks[3].register_forward_hook(lambda module, args, out: out * gates["blocks.3"])
        scores = vit(image)
        handle.remove()
        return scores

    agree(learn_gates(vit, x, ["blocks.3"], **options), slow(forward, {"blocks.3": 64}, x, **options))


def test_what_the_answer_goes_through_stays_open() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.fill_(1)
        model[4].weight.zero_()[0, 0] = 3
        model[4].bias.zero_()
    gates = learn_gates(model.eval(), images(2).abs())["0"]
    assert (gates[:, 0] > 0.5).all() and (gates[:, 1:] == 0).all()


def test_the_top_class_is_kept_and_never_a_dearer_step_taken() -> None:
    model = net()
    with torch.no_grad():
        answers = model(X).argmax(1)
        model.fc.bias[next(c for c in range(5) if c not in answers)] = 1
        assert torch.equal(model(X).argmax(1), answers)
    gates = learn_gates(model, X, cost=100.0, steps=3)
    assert all((g == 1).all() for g in gates.values())  # all closed at the first step
    for cost in (0.02, 0.1, 0.3):
        gates = learn_gates(model, X, cost=cost, steps=40)
        rows = [model.gated(X[i : i + 1], {name: g[i] for name, g in gates.items()}) for i in range(len(X))]
        assert torch.equal(torch.cat(rows).argmax(1), model(X).argmax(1))


def test_batches_are_images_side_by_side() -> None:
    model = net(FUNCTIONS["module inplace"])
    whole = learn_gates(model, X, **OPTIONS)
    parts = [learn_gates(model, x, **OPTIONS) for x in (X[:1], X[1:])]
    for name, gates in whole.items():
        assert_close(torch.cat([part[name] for part in parts]), gates, atol=1e-10, rtol=0)


class Drawing(nn.LeakyReLU):
    """Writes into its input, and draws a random number that nobody reads."""

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1)
        return super().forward(x)


@pytest.mark.parametrize("mood", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_of_the_caller_changes(mood: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    model = nn.Sequential(Drawing(0.5, inplace=True), net(FUNCTIONS["module inplace"])).eval()
    x = X.clone().requires_grad_()
    model[1].fc.weight.grad = torch.ones_like(model[1].fc.weight)
    model[1].a.requires_grad_(False)
    expected = learn_gates(model, X, **OPTIONS)
    assert any((gates != 1).any() for gates in expected.values())
    with mood():
        before = of_everything(model, x)
        found = learn_gates(model, x, **OPTIONS)
        same(before, of_everything(model, x))
        agree(found, expected)
        with pytest.raises(RuntimeError, match="expected input"):
            learn_gates(model, X[:, :2])
        same(before, of_everything(model, x))


def test_dtypes() -> None:
    model = net()
    wanted = learn_gates(model, X, **OPTIONS)
    found = learn_gates(model.float(), X.float(), **OPTIONS)
    assert all(g.dtype == torch.float32 for g in found.values())
    for name, gates in wanted.items():
        assert_close(found[name].double(), gates, atol=1e-3, rtol=0)
    rough = learn_gates(model.bfloat16(), X.bfloat16(), **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = learn_gates(model.float(), X.float(), **OPTIONS)
    for found in (rough, mixed):
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found.values())
        assert_close(torch.cat([*found.values()], 1), torch.cat([*wanted.values()], 1).float(), atol=0.1, rtol=0)
