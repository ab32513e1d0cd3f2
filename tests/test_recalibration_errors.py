"""What cannot be corrected, and what the errors say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from snapshot import of_everything, same
from test_recalibration import X, chain, cut
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from drnet_captum.reconstruct.recalibration import match, recalibrate


class Broken(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken model")


def test_nothing_changes_when_something_breaks() -> None:
    whole, broken, x = chain(), chain(), X.clone()
    broken[9] = Broken()
    shared = nn.Linear(10, 10).double()
    twice = nn.Sequential(*chain()[:-1], shared, shared, nn.Linear(10, 4).double()).eval()
    models = whole, broken, twice
    before = [of_everything(model, x) for model in models]
    with pytest.raises(RuntimeError, match="broken model"):
        recalibrate(broken, x)
    for small, full in ((broken, whole), (whole, broken)):
        with pytest.raises(RuntimeError, match="broken model"):
            match(small, full, {}, x)
    with pytest.raises(ValueError, match=r"run once in a pass, got '11'"):
        match(twice, twice, {}, x)
    same(before, [of_everything(model, x) for model in models])


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.flatten(1).std(1).view(-1, 1, 1, 1)
        return self._conv_forward(x, weight, self.bias)


def test_weights_that_are_computed() -> None:
    small, keep = cut(chain(norm=False))
    full = chain(norm=False)
    hidden: Any = small[3]
    small[3] = Standardised(hidden.in_channels, hidden.out_channels, 3).double()
    with pytest.raises(ValueError, match=r"cannot be folded .* standardise"):
        match(small, full, keep, X)
    small[3] = parametrizations.weight_norm(hidden)
    with pytest.raises(ValueError, match=r"computed ones at '3': remove the parametrisation"):
        match(small, full, keep, X)


def test_images_that_cannot_be_used() -> None:
    full = chain()
    small, keep = cut(full)
    with pytest.raises(TypeError, match="without labels, got list"):
        recalibrate(small, [[X, torch.zeros(6)]])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="without labels, got list"):
        match(small, full, keep, [X])  # type: ignore[arg-type]
    for none in ([], X[:0]):
        with pytest.raises(ValueError, match="expected images, got"):
            recalibrate(small, none)
    with pytest.raises(ValueError, match="expected images, got"):
        match(small, full, keep, X[:0])
    for bad in (torch.full_like(X, torch.nan), torch.full_like(X, torch.inf)):
        with pytest.raises(ValueError, match="finite values, got others at '1'"):
            recalibrate(small, bad)
        with pytest.raises(ValueError, match="finite values, got others at '0'"):
            match(small, full, keep, bad)
    with pytest.raises(ValueError, match=r"two or more values a channel at '1', got 1"):
        recalibrate(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(432)).double(), X[:1])


def test_networks_that_cannot_be_corrected() -> None:
    full = chain()
    small, keep = cut(full)
    with pytest.raises(ValueError, match=r"which has none: match\(small, full"):
        recalibrate(chain(norm=False), X)
    with pytest.raises(ValueError, match="full network in eval mode"):
        match(small, chain().train(), keep, X)
    with pytest.raises(ValueError, match=r"expected 6 channels of '0', by the keep-set, got 3"):
        match(small, full, {}, X)
    with pytest.raises(ValueError, match="from 0 to 5"):
        match(small, full, {"0": (6,)}, X)
    with pytest.raises(ValueError, match="got '8' in one of the two"):
        match(nn.Sequential(*chain()[:8], nn.Identity(), *chain()[9:]), full, {}, X)
    with pytest.raises(ValueError, match="layers before the classifier, got Sequential with '1' alone"):
        match(small, nn.Sequential(nn.Flatten(), nn.Linear(432, 2)).double().eval(), {}, X)
    with pytest.raises(ValueError, match="with convolutions or linear layers, got Identity"):
        match(small, nn.Identity().eval(), {}, X)


def test_layers_that_run_in_one_of_the_two_only() -> None:
    class Either(nn.Module):
        def __init__(self, run: str) -> None:
            super().__init__()
            self.a, self.b, self.run, self.fc = nn.Linear(3, 3), nn.Linear(3, 3), run, nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            for name in self.run:
                x = getattr(self, name)(x)
            return self.fc(x)

    full, x = Either("a").eval(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for run, message in (("b", "got 'b' beside"), ("aa", "got 'a' beside"), ("", "but 'a' does not run here")):
        with pytest.raises(ValueError, match=message):
            match(Either(run), full, {}, x)
