"""Which channels can only go together, and what goes with them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import timm
import torch
import torchvision
from models import images, seeded
from snapshot import of_everything, same
from torch import Tensor, nn
from torch.nn import functional as F

from drnet_captum.reconstruct.groups import Group, find_groups
from drnet_captum.reconstruct.slicing import sliced

X = images(2, size=(12, 12))


def channels(groups: list[Group]) -> list[dict[str, tuple[int, ...]]]:
    return [dict(group.channels) for group in groups]


def test_a_chain_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    net.append(nn.Linear(8, 5))
    groups = find_groups(net, X)
    assert channels(groups) == [{"0": (0,)}, {"0": (1,)}, {"3": (0,)}, {"3": (1,)}]
    # Its weights and bias, scale and shift, what reads it; then weights, bias, four features of five outputs.
    assert [g.parameters for g in groups] == [27 + 1 + 2 + 18] * 2 + [18 + 1 + 20] * 2


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.c, self.fc = nn.Conv2d(4, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(self.deep(x + self.b(x)))
        return self.fc(self.c(x).mean((2, 3)))


def test_residual_sums_and_depthwise_convolutions() -> None:
    groups = find_groups(Residual(), X)
    assert channels(groups)[:4] == [{"a": (i,), "b": (i,), "deep": (i,)} for i in range(4)]
    assert channels(groups)[4:] == [{"c": (i,)} for i in range(6)]
    # a's and b's rows, b's column less the crossing, the depthwise channel, c's column
    assert groups[0].parameters == (27 + 1) + (36 + 36 - 9) + (9 + 1) + 6


def test_grouped_convolutions_and_group_norms() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 9, 3, groups=3), nn.GroupNorm(3, 9), nn.Conv2d(9, 5, 1))
    assert channels(find_groups(net, X)) == [
        {"0": (0, 2, 4)},
        {"0": (1, 3, 5)},
        {"1": (0, 3, 6)},
        {"1": (1, 4, 7)},
        {"1": (2, 5, 8)},
    ]


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1)
        self.fc = nn.Conv2d(5, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.a(x), self.b(x)], 1) + self.c(x)).mean((2, 3))


def test_a_sum_with_a_concatenation() -> None:
    assert channels(find_groups(Dense(), X)) == [
        *({"a": (i,), "c": (i,)} for i in range(2)),
        *({"b": (i,), "c": (i + 2,)} for i in range(3)),
    ]


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "regnety_002", "convnext_atto"])
def test_a_partition_of_all_channels_and_their_parameters(name: str) -> None:
    model = seeded(timm.create_model, name, pretrained=False).eval()
    x = images(1, size=(64, 64))
    groups = find_groups(model, x)
    found = [(layer, c) for g in groups for layer, of in g.channels.items() for c in of]
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    head = list(layers)[-1]
    every = {(n, c) for n, m in layers.items() if n != head for c in range(len(m.weight))}
    assert len(found) == len(set(found)) and set(found) == every
    total = sum(p.numel() for p in model.parameters())
    for group in (groups[1], groups[len(groups) // 2], groups[-1]):
        keep = {n: tuple(c for c in range(len(layers[n].weight)) if c not in of) for n, of in group.channels.items()}
        assert total - sum(p.numel() for p in sliced(model, keep, x).parameters()) == group.parameters


def test_gates_go_with_what_they_gate() -> None:
    model = seeded(timm.create_model, "efficientnet_b0", pretrained=False)
    by_layer = {layer: g for g in find_groups(model, images(1, size=(64, 64))) for layer in g.channels}
    assert set(by_layer["blocks.1.0.se.conv_expand"].channels) == {
        "blocks.1.0.conv_pw",
        "blocks.1.0.conv_dw",
        "blocks.1.0.se.conv_expand",
    }
    assert set(by_layer["blocks.1.0.se.conv_reduce"].channels) == {"blocks.1.0.se.conv_reduce"}


def test_nothing_of_the_model_changes() -> None:
    model = torchvision.models.squeezenet1_1(weights=None).train().requires_grad_(False)
    x = images(1, size=(64, 64))
    before = of_everything(model, x)
    with torch.no_grad():
        groups = find_groups(model, x)
    same(before, of_everything(model, x))
    assert {"classifier.1"}.isdisjoint(layer for g in groups for layer in g.channels)


def test_without_torch_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def refuse(name: str, *rest: Any) -> Any:
        if name == "torch_pruning":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ImportError, match=r"drnet-captum\[subnetworks\]"):
        find_groups(Residual(), X)


def test_a_model_that_cannot_be_traced() -> None:
    with pytest.raises(ValueError, match="Torch-Pruning cannot trace Linear"):
        find_groups(nn.Linear(7, 2), X)
    with pytest.raises(TypeError, match="inputs"):
        find_groups(Residual(), [1.0])  # type: ignore[arg-type]
