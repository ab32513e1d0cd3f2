"""Networks that cannot be sliced, or not be counted: what still works, and what is said of the rest."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from models import CLASSES, ConvNet, seeded
from snapshot import of_everything, same
from test_subnetwork import DATA, X, dissected
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.reconstruct import subnetwork_report
from drnet_captum.reconstruct.groups import KeepSet, find_groups
from drnet_captum.reconstruct.subnetwork import subnetwork


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subnetwork_report, "_SECONDS", 1e-3)


def by_hand(model: ConvNet, keep: KeepSet) -> tuple[Tensor, list[int]]:
    """What a ConvNet's classifier reads of the channels that stay, and which they are."""
    conv1, conv2 = (list(keep.get(name, range(count))) for name, count in (("conv1", 4), ("conv2", 6)))
    h = F.max_pool2d(F.relu(F.conv2d(X, model.conv1.weight[conv1], model.conv1.bias[conv1], padding=1)), 2)
    return F.relu(F.conv2d(h, model.conv2.weight[conv2][:, conv1], model.conv2.bias[conv2], padding=1)), conv2


class Untraceable(ConvNet):
    """Runs on parameters without gradients only, as custom kernels do; its classifier is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.conv1.weight.requires_grad:
            raise NotImplementedError("no graph here")
        return self.fc(F.relu(self.conv2(self.pool(F.relu(self.conv1(x)))))).mean((2, 3))


def test_a_model_that_cannot_be_traced_is_masked() -> None:
    model = seeded(Untraceable).double().requires_grad_(False)
    dissection = dissected(model)
    before = of_everything(model, X)
    for budget_of in ("parameters", "macs"):
        with pytest.raises(
            ValueError, match=r"cannot trace Untraceable .*; with budget_of='channels' it can be masked"
        ):
            subnetwork(model, dissection, [4, 0], 0.5, budget_of=budget_of)  # type: ignore[arg-type]
    part = subnetwork(model, dissection, [4, 0], 0.5, budget_of="channels")
    assert part.choice.cost == 5 and part.choice.total == 10 and set(part.keep) == {"conv1", "conv2"}  # no classes
    h, left = by_hand(model, part.keep)
    assert_close(part.masked()(X), F.conv2d(h, model.fc.weight[:, left], model.fc.bias).mean((2, 3)))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"cannot trace Untraceable .*no graph here"):
            part.sliced()
    report = part.report(DATA, seeds=2)
    assert report["sub-network"].parameters is None and report["sub-network"].milliseconds is None
    assert report.notes[0].startswith("There are no slices for these classes: Torch-Pruning cannot trace Untraceable")
    assert "parameters  " not in str(report) and "right among the classes" in str(report)
    assert "of 4 images" in str(report) and "whole network" in str(part.report())
    same(before, of_everything(model, X))


class Tied(ConvNet):
    """Two layers with one weight: no layer's size is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.conv4 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.conv4.weight = self.conv3.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(self.pool(F.relu(self.conv1(x)))))
        return self.fc(F.relu(self.conv4(F.relu(self.conv3(x)))).mean((2, 3)))


def test_without_sizes_groups_are_still_groups() -> None:
    model = seeded(Tied).double()
    dissection = dissected(model)
    with pytest.raises(ValueError, match="shares its parameters"):
        subnetwork(model, dissection, [1, 2], 0.5)
    part = subnetwork(model, dissection, [1, 2], 0.5, budget_of="channels")
    assert part.anatomy.untraced is None and not part.anatomy.sizes
    assert part.anatomy.groups == find_groups(model, X)


def test_without_torch_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    load = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == "torch_pruning":
            raise ModuleNotFoundError("No module named 'torch_pruning'")
        return load(name, package)

    model = seeded(ConvNet).double()
    dissection = dissected(model)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'drnet-captum\[subnetworks\]'; with budget_of='channels'"):
        subnetwork(model, dissection, [0, 1], 0.5)
    part = subnetwork(model, dissection, [0, 1], 0.5, budget_of="channels")
    assert part.masked()(X).shape == (10, CLASSES)
    with pytest.raises(ImportError, match=r"drnet-captum\[subnetworks\]"):
        part.sliced()
    assert "drnet-captum[subnetworks]" in part.report(DATA).notes[0]
    monkeypatch.undo()
    assert part.keep == subnetwork(model, dissection, [0, 1], 0.5, budget_of="channels").keep


class ReadsItsOwnWeight(ConvNet):
    """Its scores are no layer's, and the last layer's channels are taken for them."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(self.pool(F.relu(self.conv1(x))))).mean((2, 3))
        return x @ self.fc.weight.t()


def test_slices_that_do_not_run() -> None:
    model = seeded(ReadsItsOwnWeight).double()
    part = subnetwork(model, dissected(model), [1, 2], 0.5)
    with pytest.raises(ValueError, match="slices of ReadsItsOwnWeight do not run"):
        part.sliced()
    assert set(part.keep) == {"conv1"} and part.sliced(all_outputs=True)(X).shape == (10, CLASSES)
    report = part.report(DATA, seeds=1)
    assert report.images == 4 and "slices of ReadsItsOwnWeight do not run" in report.notes[0]
    assert report["sub-network"].parameters == part.choice.cost and report["sub-network"].milliseconds is None
    h, left = by_hand(model, part.keep)
    assert_close(part.masked()(X), h.mean((2, 3)) @ model.fc.weight[:, left].t())
