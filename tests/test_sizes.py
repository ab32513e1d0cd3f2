"""Costs by the channels that stay: exactly those of the network that is sliced."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import timm
import torch
import torchvision
from models import images, seeded
from snapshot import of_everything, same
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from drnet_captum.reconstruct.groups import Group, KeepSet, find_groups, kept_groups
from drnet_captum.reconstruct.sizes import ALWAYS, Costs, Flags, LayerSize, find_sizes
from drnet_captum.reconstruct.slicing import sliced

SMALL = ["test_resnet", "test_efficientnet", "test_convnext"]
LARGE = [
    "tv:resnet18", "tv:vgg16_bn", "tv:squeezenet1_1", "mobilenetv2_100", "efficientnet_b0", "convnext_atto",
    "regnety_002", "densenet121",
]  # fmt: skip
X = images(2, size=(12, 12))


def random_groups(groups: Sequence[Group], share: float, seed: int) -> Flags:
    """A share of the groups that go through the same layers, and at least one."""
    rng = random.Random(seed)
    alike: dict[tuple[str, ...], list[int]] = {}
    for g, group in enumerate(groups):
        alike.setdefault(tuple(group.channels), []).append(g)
    kept = np.zeros(len(groups), dtype=np.bool_)
    for numbers in alike.values():
        kept[rng.sample(numbers, max(1, round(share * len(numbers))))] = True
    return kept


def keep_of(groups: Sequence[Group], kept: Flags) -> KeepSet:
    stay: dict[str, list[int]] = {}
    for g in np.flatnonzero(kept):
        for layer, channels in groups[g].channels.items():
            stay.setdefault(layer, []).extend(channels)
    return {layer: tuple(sorted(channels)) for layer, channels in stay.items()}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, x: Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() / 2


def check(model: nn.Module, x: Tensor) -> None:
    groups = find_groups(model, x)
    sizes = find_sizes(model, x, groups)
    weights, products = (Costs(groups, sizes, kind) for kind in ("parameters", "macs"))
    assert weights.total == parameters(model) and products.total == macs(model, x[:1])
    for share, seed in ((0.6, 1), (0.1, 2)):
        kept = random_groups(groups, share, seed)
        keep = keep_of(groups, kept)
        small = sliced(model, keep, x)
        assert weights.of(kept) == weights.of(kept_groups(groups, keep)) == parameters(small) < weights.total
        assert products.of(kept) == macs(small, x[:1]) < products.total


def built(name: str) -> nn.Module:
    if name.startswith("tv:"):
        return seeded(torchvision.models.get_model, name[3:], weights=None)
    return seeded(timm.create_model, name, pretrained=False)


@pytest.mark.parametrize("name", SMALL)
def test_costs_are_those_of_slices(name: str) -> None:
    check(built(name).double(), images(2, size=(64, 64), dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_costs_are_those_of_slices_of_large_networks(name: str) -> None:
    check(built(name).double(), images(2, size=(64, 64), dtype=torch.float64))


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Conv2d(4, 6, 1, bias=False), nn.PReLU(6),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(6 * 4, 5),
    )  # fmt: skip


def test_a_chain_by_hand() -> None:
    model = chain().eval()
    groups = find_groups(model, X)
    sizes = find_sizes(model, X, groups)
    flat = tuple(g for g in range(4, 10) for _ in range(4))
    first, second, classes = (0, 1, 2, 3), (4, 5, 6, 7, 8, 9), (ALWAYS,) * 5
    assert sizes == [
        LayerSize("0", (ALWAYS,) * 3, first, pair=9, each=1, positions=100),
        LayerSize("1", (ALWAYS,), first, pair=0, each=2, positions=0),
        LayerSize("2", (ALWAYS,), (ALWAYS,), pair=0, each=1, positions=0),  # one slope for all
        LayerSize("3", first, second, pair=1, each=0, positions=100),
        LayerSize("4", (ALWAYS,), second, pair=0, each=1, positions=0),
        LayerSize("7", flat, classes, pair=1, each=1, positions=1),
    ]
    kept = np.array([True, False, True, False, True, False, True, True, False, False])
    assert Costs(groups, sizes, "parameters").of(kept) == (27 + 1 + 2) * 2 + 1 + 2 * 3 + 3 + 12 * 5 + 5
    assert Costs(groups, sizes, "macs").of(kept) == 27 * 2 * 100 + 2 * 3 * 100 + 12 * 5
    assert Costs(groups, (), "channels").of(kept) == 5
    check(model, X)


class Mixed(nn.Module):
    """Residual, depthwise and grouped by three, group norm, layer norm, layer scale, transposed, one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.deep, self.grouped = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 9, 1, groups=3, bias=False)
        self.norm, self.gamma = nn.GroupNorm(3, 9), nn.Parameter(torch.ones(9, 1, 1))
        self.up, self.twice = nn.ConvTranspose2d(9, 4, 2, stride=2), nn.Conv2d(4, 4, 1)
        self.last, self.fc = nn.LayerNorm(4), nn.Linear(4, 5)
        self.unused, self.table = nn.Linear(7, 2), nn.Parameter(torch.ones(3, 11))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = self.deep(x + self.b(x))
        x = self.up(self.norm(self.grouped(x)) * self.gamma)
        x = x + self.twice(F.relu(self.twice(x)))
        return self.fc(self.last(x.permute(0, 2, 3, 1)).mean((1, 2)))


def test_kinds_of_layers() -> None:
    model = seeded(Mixed)
    groups = find_groups(model, X)
    by_name = {size.layer: size for size in find_sizes(model, X, groups)}
    assert (by_name["deep"].inputs, by_name["deep"].pair) == ((ALWAYS,), 9)
    assert by_name["grouped"].pair == 1 / 3 and by_name["gamma"].each == 1 and by_name["last"].each == 2
    assert by_name["(all else)"] == LayerSize("(all else)", (ALWAYS,), (ALWAYS,), pair=0, each=33, positions=0)
    assert by_name["b"].inputs == by_name["b"].outputs == by_name["a"].outputs
    assert by_name["up"].positions == 10 * 10 and by_name["twice"].positions == 2 * 20 * 20
    assert (by_name["unused"].positions, by_name["fc"].positions) == (0, 1)
    check(model, X)


def test_along_and_prices_are_differences_of_costs() -> None:
    model = seeded(Mixed)
    groups = find_groups(model, X)
    sizes = find_sizes(model, X, groups)
    for kind in ("parameters", "macs", "channels"):
        costs = Costs(groups, sizes, kind)
        stays = random_groups(groups, 0.3, 4)
        order = np.random.default_rng(0).permutation(np.flatnonzero(~stays))[:-2]  # two neither stay nor come
        expected, now = [], stays.copy()
        for g in order:
            now[g] = True
            expected.append(costs.of(now))
        assert costs.along(order, stays).tolist() == expected
        price = costs.prices(costs.counts(stays))
        for g in np.flatnonzero(~stays):
            more = stays.copy()
            more[g] = True
            assert costs.of(more) - costs.of(stays) == round(price[g])


def test_channels_in_no_group_always_stay() -> None:
    model = chain().eval()
    groups = [group for group in find_groups(model, X) if "0" in group.channels]
    sizes = find_sizes(model, X, groups)
    none = Costs(groups, sizes, "parameters").of(np.zeros(4, dtype=np.bool_))
    assert none == 1 + 6 + 24 * 5 + 5 and Costs(groups, sizes, "parameters").total == parameters(model)


def test_nothing_of_the_model_changes() -> None:
    model = chain().train().requires_grad_(False)
    before = of_everything(model, X)
    with torch.no_grad():
        find_sizes(model, X, find_groups(model, X))
    same(before, of_everything(model, X))


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)))))


class Gained(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain[:, None, None]


def test_what_cannot_be_counted_says_why() -> None:
    model = chain().eval()
    groups = find_groups(model, X)
    with pytest.raises(ValueError, match="'a' loses channels and shares its parameters"):
        find_sizes(Tied(), X, find_groups(Tied(), X))
    gained = nn.Sequential(Gained(), nn.ReLU(), nn.Conv2d(4, 5, 1))
    with pytest.raises(ValueError, match="Gained '0' loses channels, and its parameters do not go with them"):
        find_sizes(gained, X, find_groups(gained, X))
    with pytest.raises(ValueError, match="the groups have channel 2 of 'elsewhere', which the model does not run"):
        find_sizes(model, X, [*groups, Group({"elsewhere": (2,)}, 1)])
    residual = seeded(Mixed)
    with pytest.raises(ValueError, match="can only go together, and the groups part them: take those of find_groups"):
        find_sizes(residual, X, [Group({"a": (0,)}, 1)])
    sizes = find_sizes(model, X, groups)
    with pytest.raises(ValueError, match="the sizes name group 9, and there are 6"):
        Costs(groups[:6], sizes, "macs")
    with pytest.raises(ValueError, match="a budget of parameters needs the layers' sizes"):
        Costs(groups, (), "parameters")
    with pytest.raises(ValueError, match="parameters, channels, macs, got 'bytes'"):
        Costs(groups, sizes, "bytes")  # type: ignore[arg-type]


def test_weights_shared_by_layers_that_stay_count_once() -> None:
    model = Tied().eval()
    assert Costs([], find_sizes(model, X, []), "parameters").total == parameters(model)


def test_costs_are_whole_numbers() -> None:
    size = LayerSize("grouped", (ALWAYS,) * 49, (ALWAYS,), 1 / 49)  # 49 * (1 / 49) is below 1
    assert Costs([], [size], "parameters").total == 1
