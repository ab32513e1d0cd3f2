"""A sub-network is the same masked and sliced, keeps its budget, leaves the model alone, and says what it cannot do."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from models import CLASSES, ConvNet, images, seeded
from snapshot import of_everything, same
from test_slicing import randomised
from torch import Tensor, nn
from torch.testing import assert_close

from drnet_captum import DRNet
from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.dissect.run import dissect
from drnet_captum.reconstruct import subnetwork_report
from drnet_captum.reconstruct.gates import gate_importance
from drnet_captum.reconstruct.groups import find_groups, kept_groups
from drnet_captum.reconstruct.keep import choose
from drnet_captum.reconstruct.sizes import Costs, find_sizes
from drnet_captum.reconstruct.subnetwork import SubNetwork, subnetwork

X, Y = images(10, dtype=torch.float64), torch.arange(10) % CLASSES
DATA = [(X, Y)]


def dissected(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> Dissection:
    return dissect(model, [(x, y)], stimuli=False, exemplars=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subnetwork_report, "_SECONDS", 1e-3)


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, Dissection]:
    model = seeded(ConvNet).double()
    return model, dissected(model)


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet"])
def coupled(request: pytest.FixtureRequest) -> tuple[nn.Module, Dissection, Tensor]:
    """Residual sums, or depthwise convolutions and squeeze-and-excitations; no norm stands at 0 and 1."""
    model = randomised(seeded(timm.create_model, request.param, num_classes=CLASSES))
    x = images(10, dtype=torch.float64, size=(48, 48))
    return model, dissected(model, x), x


def test_masked_equals_sliced(coupled: tuple[nn.Module, Dissection, Tensor]) -> None:
    model, dissection, x = coupled
    whole = subnetwork(model, dissection, [3, 0], 0.3)
    for part in (whole, whole.of([1], 0.1), whole.of([4, 2, 0], 0.6)):
        with torch.no_grad():
            masked, sliced, full = part.masked()(x), part.sliced()(x), part.sliced(all_outputs=True)(x)
        assert sliced.shape == (10, len(part.classes)) and full.shape == (10, CLASSES)
        assert_close(sliced, masked[:, list(part.classes)], rtol=1e-8, atol=1e-8 * float(masked.abs().max()))
        assert_close(full, masked, rtol=1e-8, atol=1e-8 * float(masked.abs().max()))
        assert (masked - model(x)).abs().max() > 1e-3
        count = sum(p.numel() for p in part.sliced(all_outputs=True).parameters())
        assert count == part.choice.cost <= {1: 0.1, 2: 0.3, 3: 0.6}[len(part.classes)] * part.choice.total
        assert part.choice.total == sum(p.numel() for p in model.parameters())


def test_other_classes_and_budgets_are_as_if_made_anew(coupled: tuple[nn.Module, Dissection, Tensor]) -> None:
    model, dissection, _ = coupled
    part = subnetwork(model, dissection, [0, 3], 0.3)
    for classes, budget in (([3, 0], 0.3), ([2], 0.3), ([1, 2, 4], 0.15), (range(CLASSES), 0.8)):
        other, anew = part.of(classes, budget), subnetwork(model, dissection, classes, budget)
        assert other.choice == anew.choice and other.classes == anew.classes == tuple(classes)
    assert part.of([3, 0], 0.3).keep == part.keep != part.of([2], 0.3).keep
    again = subnetwork(model, dissection, torch.tensor([3, 0]), 0.3)  # type: ignore[arg-type]
    assert again.classes == (3, 0) and again.keep == part.keep


@pytest.mark.parametrize("budget_of", ["parameters", "channels", "macs"])
def test_budgets_are_kept_and_filled(net: tuple[nn.Module, Dissection], budget_of: Any) -> None:
    model, dissection = net
    groups = find_groups(model, X)
    sizes = find_sizes(model, X, groups)
    costs = Costs(groups, sizes, budget_of)
    for budget in (0.35, 0.6, 1.0):
        part = subnetwork(model, dissection, [2, 4], budget, budget_of=budget_of)
        assert part.choice == choose(dissection, groups, [2, 4], budget, budget_of=budget_of, sizes=sizes)
        kept = kept_groups(groups, part.keep)
        assert costs.of(kept) == part.choice.cost <= budget * costs.total
        for g in (~kept).nonzero()[0]:
            kept[g] = True
            assert costs.of(kept) > budget * costs.total
            kept[g] = False
    total = {"parameters": sum(p.numel() for p in model.parameters()), "channels": 10}
    total["macs"] = 27 * 4 * 120 + 9 * 4 * 6 * 30 + 6 * CLASSES  # 12 × 10 positions, then 6 × 5
    assert part.choice.total == total[budget_of] and part.choice.share == 1.0
    assert torch.equal(part.masked()(X), model(X))


def test_through_drnet(net: tuple[nn.Module, Dissection]) -> None:
    model, dissection = net
    drnet = DRNet(model)
    part = drnet.reconstruct(dissection, classes=[4, 2], budget=0.6, budget_of="macs")
    assert isinstance(part, SubNetwork) and part.model is model
    assert part.choice == subnetwork(model, dissection, [4, 2], 0.6, budget_of="macs").choice
    assert repr(part).startswith("SubNetwork(ConvNet for class 4, class 2: 5") and "% of the macs" in repr(part)
    with pytest.raises(ValueError, match="expected n_modules or classes, got both"):
        drnet.reconstruct(dissection, 2, classes=[4, 2])  # type: ignore[call-overload]


def test_gates_are_what_is_chosen_by() -> None:
    model = seeded(ConvNet, seed=3).double()
    for parameter in model.parameters():
        parameter.data *= 3  # so that gates close
    dissection = dissect(model, DATA, stimuli=False, exemplars=1, contrasts=[1, 3])
    shown = [(X[:4], torch.tensor([1, 3, 1, 3])), (X[4:5], torch.tensor([3]))]
    part = subnetwork(model, dissection, [3, 1], 0.6, method="gates", data=shown)
    found = gate_importance(model, shown)
    by_hand = replace(
        dissection, layers=tuple(replace(u, importance=found[u.layer.name], contrasts={}) for u in _convs(dissection))
    )
    groups = find_groups(model, X)
    assert part.choice == choose(by_hand, groups, [3, 1], 0.6, sizes=find_sizes(model, X, groups))
    for of_taylor in (dissection, dissected(model)):  # one against the other, and each alone
        assert part.keep != subnetwork(model, of_taylor, [3, 1], 0.6).keep
    assert part.dissection.counts == {1: 2, 3: 3} and dissection.counts == dict.fromkeys(range(CLASSES), 2)
    assert_close(part.sliced()(X), part.masked()(X)[:, [3, 1]])
    assert part.of([1], 0.6).choice == subnetwork(model, dissection, [1], 0.6, method="gates", data=shown).choice
    assert part.report(shown, seeds=1).images == 5  # channels important to all classes are those of the gates
    with pytest.raises(ValueError, match="no image of class 0 was seen; the classes seen are: 1, 3"):
        part.of([0], 0.6)


def _convs(dissection: Dissection) -> list[Any]:
    return [units for units in dissection.layers if units.layer.kind == "convolution"]


def test_what_gates_need_is_checked_before_they_are_learned(
    net: tuple[nn.Module, Dissection], monkeypatch: pytest.MonkeyPatch
) -> None:
    def learned(*args: Any) -> None:
        raise AssertionError("gates were learned")

    model, dissection = net
    monkeypatch.setattr("drnet_captum.reconstruct.subnetwork.gate_importance", learned)
    with pytest.raises(ValueError, match="budget above 0 and at most 1, the share that may stay, got 11"):
        subnetwork(model, dissection, [0], 11, method="gates", data=DATA)
    with pytest.raises(ValueError, match="each once"):
        subnetwork(model, dissection, [0, 0], method="gates", data=DATA)
    others = replace(dissection, layers=tuple(u for u in dissection.layers if u.layer.kind != "convolution"))
    with pytest.raises(ValueError, match="a dissection of convolutions, which can have gates"):
        subnetwork(model, others, [0], 0.5, method="gates", data=DATA)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": [0, 7]}, ValueError, r"no image of class 7 was seen; the classes seen are: 0, 1, 2, 3, 4"),
        ({"classes": [-1]}, ValueError, "no image of class -1 was seen"),
        ({"classes": [1, 3, 1]}, ValueError, r"at least one class, and each once, got \[1, 3, 1\]"),
        ({"classes": []}, ValueError, r"at least one class, and each once, got \[\]"),
        ({"classes": 3}, TypeError, "a list of class numbers, got 3"),
        ({"classes": ["cat"]}, TypeError, r"a list of class numbers, got \['cat'\]"),
        ({"classes": [1.5]}, TypeError, r"a list of class numbers, got \[1.5\]"),
        ({"method": "magic"}, ValueError, "method to be one of taylor, gates, got 'magic'"),
        ({"budget_of": "bytes"}, ValueError, "budget_of to be one of parameters, channels, macs, got 'bytes'"),
        ({"data": DATA}, ValueError, "method='taylor' reads the dissection alone: leave it out"),
        ({"method": "gates"}, ValueError, "method='gates' learns gates on images: pass data="),
        ({"budget": 0.0}, ValueError, "budget above 0"),
        ({"budget": 1.5}, ValueError, "at most 1"),
        ({"budget": 0.01}, ValueError, r"one group a layer already costs \d+\.\d+%, got a budget of 1.000%"),
    ],
)
def test_bad_arguments_leave_the_model_alone(
    net: tuple[nn.Module, Dissection], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model, dissection = net
    before = of_everything(model, X)
    with pytest.raises(error, match=message):
        subnetwork(model, dissection, **{"classes": [0], "budget": 0.5} | options)
    same(before, of_everything(model, X))


def test_another_model_and_a_model_in_train_mode(net: tuple[nn.Module, Dissection]) -> None:
    _, dissection = net
    with pytest.raises(ValueError, match=r"this is the dissection of ConvNet .* load the weights that were dissected"):
        subnetwork(seeded(ConvNet, seed=1).double(), dissection, [0])
    with pytest.raises(ValueError, match="in eval mode, got one in train mode"):
        subnetwork(seeded(ConvNet).double().train(), dissection, [0])


def test_nothing_of_the_model_changes(net: tuple[nn.Module, Dissection]) -> None:
    model, dissection = net
    model.conv2.weight.requires_grad_(False)
    before = of_everything(model, X)
    part = subnetwork(model, dissection, [0, 3], 0.5, method="gates", data=[(X[:2], torch.tensor([0, 3]))], inputs=X)
    part.masked()(X)
    small = part.sliced()
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    part.report(DATA, seeds=1)
    same(before, of_everything(model, X))
    assert [p.requires_grad for p in small.parameters()] == [True, True, False, True, True, True]
    model.conv2.weight.requires_grad_()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_slices_are_saved_and_exported(net: tuple[nn.Module, Dissection]) -> None:
    model, dissection = net
    small = subnetwork(model, dissection, [4, 1], 0.4).sliced()
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(X), small(X))
    twin = subnetwork(model, dissection, [4, 1], 0.4).sliced()
    nn.init.zeros_(twin.fc.weight)
    twin.load_state_dict(small.state_dict(), strict=True)
    assert torch.equal(twin(X), small(X))
    assert_close(torch.export.export(small, (X,)).module()(X), small(X))
    assert_close(torch.jit.trace(small, X)(X), small(X))


def test_held_layers_are_told(net: tuple[nn.Module, Dissection]) -> None:
    """All that matters is in the second layer; one channel of the first stays all the same."""
    model, dissection = net
    conv1, conv2 = _convs(dissection)
    strong = replace(conv2, importance=_importance([[1.0, 1.0, 0, 0, 0, 0]]))
    weak = replace(conv1, importance=_importance([[0.2, 0.3, 0.25, 0.25]]))
    mine = replace(dissection, layers=(weak, strong), counts={0: 1})
    part = subnetwork(model, mine, [0], 0.2, budget_of="channels")
    assert part.keep == {"conv1": (1,), "conv2": (0,)} and part.choice.held == ("conv1",)
    text = str(part.report())
    assert "their most important channel stays: conv1." in text and "conv1 1/4, conv2 1/6" in text


def _importance(rows: list[list[float]]) -> ClassImportance:
    found = ClassImportance(len(rows[0]))
    found.update(torch.tensor(rows), torch.arange(len(rows)))
    return found
