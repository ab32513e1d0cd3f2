"""Corrections without training: as slow transcriptions say, exact after folding; nothing of the caller's changes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from models import images, seeded
from snapshot import of_everything, same
from test_slicing import random_keep, randomised
from torch import Tensor, nn
from torch.testing import assert_close

from drnet_captum.reconstruct.groups import KeepSet, find_groups, is_layer
from drnet_captum.reconstruct.recalibration import match, recalibrate, scale_and_shift
from drnet_captum.reconstruct.slicing import sliced

X = images(6, dtype=torch.float64, size=(12, 12))
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def chain(norm: bool = True) -> nn.Sequential:
    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, bias=not norm), nn.BatchNorm2d(o) if norm else nn.Identity(), nn.ReLU(inplace=True)]

    def make() -> nn.Sequential:
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4)]
        return nn.Sequential(*block(3, 6), *block(6, 8), *head)

    return randomised(seeded(make))  # type: ignore[return-value]


def upwards() -> nn.Sequential:
    """With grouped and transposed convolutions, of other numbers of inputs than of outputs."""
    down = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, groups=2, bias=False)]
    up = [nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Tanh(), nn.ConvTranspose2d(6, 3, 2)]
    return nn.Sequential(*down, *up, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))


def built(name: str) -> nn.Module:
    if name in ("norms", "plain"):
        return chain(name == "norms")
    if name == "upwards":
        return randomised(seeded(upwards))
    return randomised(seeded(timm.create_model, name, pretrained=False, num_classes=7))


MODELS = ["norms", "plain", "test_resnet", "test_efficientnet", "test_convnext"]


def cut(full: nn.Module, x: Tensor = X, classes: list[int] | None = None) -> tuple[nn.Module, KeepSet]:
    keep = random_keep(find_groups(full, x), 0.5, seed=3)
    return sliced(full, keep, x, classes), keep


def seen(model: nn.Module, name: str, x: Tensor, reads: bool = False) -> Tensor:
    """What a layer puts out, or reads."""
    found: list[Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(lambda m, args, out: found.append((args[0] if reads else out).clone()))
    with torch.no_grad():
        model(x)
    handle.remove()
    return found[0]


def order(model: nn.Module, x: Tensor, kind: Any) -> list[str]:
    """The names of the modules of a kind, as they run."""
    found: list[str] = []
    handles = [
        m.register_forward_hook(lambda m, args, out, name=name: found.append(name))
        for name, m in model.named_modules()
        if kind(m)
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)


def rows(layer: nn.Module, z: Tensor) -> np.ndarray[Any, Any]:
    return (z if isinstance(layer, nn.Linear) else z.movedim(1, -1)).flatten(0, -2).numpy().T


def slowly_recalibrated(small: nn.Module, x: Tensor) -> nn.Module:
    """One norm after the other, each on a run through those that are done."""
    twin = copy.deepcopy(small)
    for name in order(twin, x, is_norm):
        z = seen(twin, name, x, reads=True).movedim(1, -1).flatten(0, -2).numpy()
        norm: Any = twin.get_submodule(name)
        norm.running_mean.copy_(torch.from_numpy(z.mean(0)))
        norm.running_var.copy_(torch.from_numpy(z.var(0, ddof=1)))
    return twin


def slowly_matched(small: nn.Module, full: nn.Module, keep: KeepSet, x: Tensor) -> nn.Module:
    """One layer after the other, each folded before the next is looked at; one channel at a time."""
    twin = copy.deepcopy(small)
    for name in order(full, x, is_layer)[:-1]:
        layer: Any = twin.get_submodule(name)
        now, goal = rows(layer, seen(twin, name, x)), rows(layer, seen(full, name, x))
        transposed = isinstance(layer, nn.ConvTranspose2d)
        shifts = np.zeros(len(now))
        weight = layer.weight.detach().clone()
        for c, z in enumerate(now):
            wanted = goal[keep[name][c] if name in keep else c]
            (a, b), *_ = np.linalg.lstsq(np.stack([z, np.ones_like(z)], 1), wanted, rcond=None)
            shifts[c] = b + (0.0 if layer.bias is None else a * layer.bias[c].item())
            if transposed:
                of_group, inputs = weight.shape[1], len(weight) // layer.groups
                group, column = divmod(c, of_group)
                weight[group * inputs : (group + 1) * inputs, column] *= a
            else:
                weight[c] *= a
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(torch.from_numpy(shifts))
    return twin


def close(a: nn.Module, b: nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        assert_close(value, b.state_dict()[name], msg=lambda m, name=name: f"{name}: {m}", **EXACT)


@pytest.mark.parametrize("name", ["norms", "test_resnet", "test_efficientnet"])
def test_recalibrated_as_norm_by_norm(name: str) -> None:
    full = built(name)
    x = X if name == "norms" else images(6, dtype=torch.float64, size=(64, 64))
    small, _ = cut(full, x, [2, 0])
    right = recalibrate(small, x)
    close(right, slowly_recalibrated(small, x))
    assert not right.training and not any(m.training for m in right.modules())
    changed = {n for n, v in right.state_dict().items() if not torch.equal(v, small.state_dict()[n])}
    norms = order(small, x, is_norm)
    assert changed == {f"{n}.running_{of}" for n in norms for of in ("mean", "var")}


def test_recalibrated_twice_is_recalibrated_once() -> None:
    small, _ = cut(chain())
    once = recalibrate(small, X)
    close(recalibrate(once, X), once)
    with torch.no_grad():
        assert (once(X) - small(X)).abs().max() > 1e-2


def test_first_norm_has_the_mean_over_batches_by_their_size() -> None:
    small, _ = cut(chain())
    whole, parts = recalibrate(small, X), recalibrate(small, iter([X[:4], X[4:]]))
    assert_close(parts[1].running_mean, whole[1].running_mean)  # type: ignore[index]
    z = [seen(small, "1", x, reads=True).movedim(1, 0).flatten(1) for x in (X[:4], X[4:])]
    assert_close(parts[1].running_var, (4 * z[0].var(1) + 2 * z[1].var(1)) / 6)  # type: ignore[index]
    # Each batch goes through with its own statistics.
    first, last = (recalibrate(small, x) for x in (X[:4], X[4:]))
    assert_close(parts[4].running_mean, (4 * first[4].running_mean + 2 * last[4].running_mean) / 6)  # type: ignore[index]


def test_other_norms() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.last = nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3, momentum=None)
            self.idle = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(input=2 * self.own(x))

    small = Net().double()
    small.idle.running_mean += 5
    right: Any = recalibrate(small, torch.randn(9, 3, generator=torch.Generator().manual_seed(0)).double())
    assert_close(right.last.running_mean, torch.zeros(3).double())
    assert_close(right.last.running_var, torch.full((3,), 4 * 9 / 8).double(), atol=1e-3, rtol=0)  # own has an epsilon
    assert right.last.num_batches_tracked == 0 and right.last.momentum is None and right.own.running_mean is None
    assert torch.equal(right.idle.running_mean, small.idle.running_mean)


@pytest.mark.parametrize("name", [*MODELS, "upwards"])
def test_matched_as_layer_by_layer(name: str) -> None:
    full = built(name)
    x = images(4, dtype=torch.float64, size=(48, 48)) if name.startswith("test") else X
    small, keep = (copy.deepcopy(full), {}) if name == "upwards" else cut(full, x, [2, 0])
    if name == "upwards":
        with torch.no_grad():
            for p in small.parameters():
                p += 0.3 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(5))
    right = match(small, full, keep, x)
    slow = slowly_matched(small, full, keep, x)
    close(right, slow)
    with torch.no_grad():
        assert_close(right(x), slow(x), **EXACT)
        assert (right(x) - small(x)).abs().max() > 1e-3
    head = order(full, x, is_layer)[-1]
    assert torch.equal(right.get_submodule(head).weight, small.get_submodule(head).weight)
    assert not right.training


@pytest.mark.parametrize("name", MODELS)
def test_nothing_to_correct(name: str) -> None:
    full = built(name)
    x = images(4, dtype=torch.float64, size=(64, 64))
    right = match(full, full, {}, x)
    with torch.no_grad():
        assert_close(right(x), full(x), rtol=1e-8, atol=1e-8)


def test_a_scale_and_a_shift_are_undone() -> None:
    full = chain()
    small = copy.deepcopy(full)
    with torch.no_grad():
        small[3].weight *= -0.25
        small[3].bias = nn.Parameter(torch.arange(8.0, dtype=torch.float64))
        small[8].bias += 3
        assert (small(X) - full(X)).abs().max() > 0.1
        assert_close(match(small, full, {}, X)(X), full(X), **EXACT)


def test_scale_and_shift_by_hand() -> None:
    x = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0], [1.0, 1.0 + 1e-15, 1.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 2.0, 6.0], [1.0, 2.0, 6.0], [1.0, 1.0, 1.0], [1.0, 9.0, 2.0]], dtype=torch.float64)
    a, b = scale_and_shift(x, y, torch.finfo(torch.float64).eps)
    assert_close(a, torch.tensor([2.5, 1.0, 1.0, 1.0], dtype=torch.float64))
    assert_close(b, torch.tensor([0.5, -2.0, 1.0, 3.0], dtype=torch.float64))
    assert scale_and_shift(x[:, :1], y[:, :1], 1e-16)[0].tolist() == [1.0] * 4


def test_matched_by_the_whole_network_in_float32() -> None:
    full = chain().float()
    small, keep = cut(full, X.float())
    right = match(small, full, keep, X.float())
    double = match(copy.deepcopy(small).double(), copy.deepcopy(full).double(), keep, X)
    with torch.no_grad():
        assert_close(right(X.float()), double(X).float(), rtol=1e-3, atol=1e-4)


def test_weights_that_layers_share() -> None:
    def tied() -> nn.Sequential:
        net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
        net[2].weight = net[0].weight
        return net

    full, small = (seeded(tied, seed=s).double() for s in (0, 1))
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(match(small, full, {}, x), slowly_matched(small, full, {}, x))


@pytest.mark.parametrize("by", [recalibrate, match])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_of_the_callers_changes(by: Any, mode: Any) -> None:
    class Drawing(nn.Dropout):
        """Draws in eval mode, and writes down what it saw."""

        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            return x.add_(0.1 * torch.rand(1, dtype=x.dtype))

    full = nn.Sequential(nn.ReLU(inplace=True), *chain()).eval()  # writes into its input
    full[8] = nn.Sequential(nn.Flatten(), Drawing()).eval()
    small = copy.deepcopy(full)
    small[1].weight.requires_grad_(False)
    small.train()
    small[1].register_forward_hook(lambda *_: None)
    x = X.clone().requires_grad_()
    before = of_everything(full, x), of_everything(small, x)
    with mode():
        right = by(small, x) if by is recalibrate else by(small, full, {"1": range(6)}, x)
    same(before, (of_everything(full, x), of_everything(small, x)))
    assert [p.requires_grad for n, p in right.named_parameters() if n in dict(small.named_parameters())] == [
        p.requires_grad for p in small.parameters()
    ]
    assert not {p.data_ptr() for p in right.state_dict().values()} & {p.data_ptr() for p in small.state_dict().values()}
    assert not any(m.training for m in right.modules())
    copy.deepcopy(right).load_state_dict(right.state_dict())  # an ordinary module
    right(X.clone())[:, 0].sum().backward()
    assert all(not h for m in right.modules() if m is not right[1] for h in (m._forward_hooks, m._forward_pre_hooks))
