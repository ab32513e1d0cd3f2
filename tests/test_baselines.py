"""Other choices of channels: as many, as random, as heavy as they say."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from models import images, seeded
from test_slicing import random_keep
from torch import nn

from drnet_captum.reconstruct.baselines import (
    alike,
    at_the_widths_of,
    evenly,
    random_importance,
    union,
    weight_norms,
)
from drnet_captum.reconstruct.groups import Group, find_groups
from drnet_captum.reconstruct.sizes import ALWAYS, Costs, LayerSize


def singles(**widths: int) -> list[Group]:
    return [Group({layer: (k,)}, 0) for layer, width in widths.items() for k in range(width)]


def test_random_importance_is_a_seed_s() -> None:
    groups = singles(a=200)
    first = random_importance(groups, 3)
    assert first.shape == (200,) and (0 <= first).all() and (first < 1).all() and len(np.unique(first)) == 200
    np.testing.assert_array_equal(first, random_importance(groups, 3))
    assert (first != random_importance(groups, 4)).all() and (first != random_importance(groups, [3, 1])).all()


def test_weight_norms_by_hand() -> None:
    conv, linear = nn.Conv2d(2, 3, (1, 2)), nn.Linear(3, 2)
    conv.weight.data = torch.tensor([[[[1.0, -1]], [[0, 0]]], [[[2, 0]], [[0, -2]]], [[[0, 0]], [[0, 0]]]])
    linear.weight.data = torch.tensor([[1.0, -1, 1], [0, 0, -1]])
    model = nn.ModuleDict({"conv": conv, "linear": linear})
    found = weight_norms(model, singles(conv=3, linear=2))
    np.testing.assert_allclose(found, [2 / 6, 4 / 6, 0, 3 / 4, 1 / 4])
    coupled = [Group({"conv": (0, 2), "linear": (1,)}, 0), Group({"conv": (1,), "linear": (0,)}, 0)]
    np.testing.assert_allclose(weight_norms(model, coupled), [2 / 6 + 1 / 4, 4 / 6 + 3 / 4])
    nn.init.zeros_(conv.weight)
    assert weight_norms(model, singles(conv=3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_norms_of_transposed_convolutions(groups: int) -> None:
    conv = seeded(nn.ConvTranspose2d, 4, 6, 3, groups=groups, bias=False)
    norms = []
    for k in range(6):  # the weights that one output channel reads are those with a gradient
        (slopes,) = torch.autograd.grad(conv(torch.ones(1, 4, 5, 5))[0, k].sum(), conv.weight)
        norms.append(float(conv.weight[slopes != 0].detach().abs().sum()))
    np.testing.assert_allclose(weight_norms(nn.Sequential(conv), singles(**{"0": 6})), np.array(norms) / sum(norms))


def test_as_wide_everywhere_and_the_highest() -> None:
    model = seeded(timm.create_model, "test_efficientnet", num_classes=5)
    groups = find_groups(model, images(1, size=(32, 32)))
    keep = random_keep(groups, 0.4)
    importance = random_importance(groups, 1)
    found = at_the_widths_of(keep, groups, importance)
    assert {name: len(of) for name, of in found.items()} == {name: len(of) for name, of in keep.items()}
    assert found != keep and at_the_widths_of(found, groups, importance) == found
    for members in alike(groups, importance):
        stays = [all(set(of) <= set(found[name]) for name, of in groups[g].channels.items()) for g in members]
        assert stays == sorted(stays, reverse=True) and any(stays)
        assert sorted(importance[members], reverse=True) == importance[members].tolist()
    assert at_the_widths_of({}, groups, importance) == {}


def test_layers_that_are_not_cut_stay_whole() -> None:
    groups = singles(a=3, b=2)
    assert at_the_widths_of({"b": (0,), "head": (0, 1)}, groups, np.arange(5.0)) == {"b": (1,)}
    unscored = np.array([1.0, 3.0, 2.0, np.nan, np.nan])
    assert at_the_widths_of({"a": (0, 1)}, groups, unscored) == {"a": (1, 2)}


def test_groups_that_a_keep_set_parts() -> None:
    groups = [Group({"a": (k,), "b": (k, k + 2)}, 0) for k in range(2)]
    assert at_the_widths_of({"a": (0,), "b": (2, 0)}, groups, np.array([0.0, 1.0])) == {"a": (1,), "b": (1, 3)}
    with pytest.raises(ValueError, match="a keep-set of whole groups, got one that parts a group of 'a'"):
        at_the_widths_of({"a": (0,), "b": (0, 1)}, groups, np.zeros(2))


def test_evenly_takes_what_a_budget_allows() -> None:
    groups = singles(a=8, b=12)
    a, b = tuple(range(8)), tuple(range(8, 20))
    sizes = [LayerSize("a", (ALWAYS,) * 3, a, 9), LayerSize("b", a, b, 9), LayerSize("c", b, (ALWAYS,) * 4, 1)]
    costs, importance = Costs(groups, sizes, "parameters"), random_importance(groups, 0)
    total = 27 * 8 + 9 * 8 * 12 + 4 * 12
    for budget in (0.1, 0.25, 0.5, 0.9):
        found = evenly(groups, importance, costs, budget)
        n_a, n_b = len(found["a"]), len(found["b"])
        assert (27 * n_a + 9 * n_a * n_b + 4 * n_b) / total <= budget
        shares = np.linspace(0, 1, 2000)
        widths = [(max(1, round(s * 8)), max(1, round(s * 12))) for s in shares]
        allowed = [(n, m) for n, m in widths if (27 * n + 9 * n * m + 4 * m) / total <= budget]
        assert (n_a, n_b) == allowed[-1]
        assert set(found["a"]) == set(np.argsort(-importance[:8])[:n_a].tolist())
    assert evenly(groups, importance, costs, 1.0) == {"a": a, "b": tuple(range(12))}


def test_evenly_leaves_what_has_to_stay() -> None:
    groups = singles(a=4, b=4)
    importance = np.array([1.0, 2.0, 3.0, 4.0, *[np.nan] * 4])
    assert evenly(groups, importance, Costs(groups, (), "channels"), 6 / 8) == {"a": (2, 3), "b": (0, 1, 2, 3)}


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, float("nan")])
def test_budgets_that_are_no_share(budget: float) -> None:
    groups = singles(a=4)
    with pytest.raises(ValueError, match="budget above 0 and at most 1"):
        evenly(groups, np.ones(4), Costs(groups, (), "channels"), budget)


def test_a_budget_below_one_group_a_layer() -> None:
    groups = singles(a=4, b=4)
    with pytest.raises(ValueError, match=r"one group a layer already costs 25.000%, got a budget of 20.000%"):
        evenly(groups, np.ones(8), Costs(groups, (), "channels"), 0.2)


def test_alike_and_union() -> None:
    groups = [Group({"a": (0,), "b": (0, 1)}, 0), Group({"a": (1,)}, 0), Group({"a": (2,), "b": (2, 3)}, 0)]
    assert alike(groups, np.array([1.0, 5.0, 2.0])) == [[1], [2, 0]]
    assert alike(groups, np.zeros(3)) == [[0, 2], [1]]
    assert union(groups, [2, 1]) == {"a": (1, 2), "b": (2, 3)} and union(groups, []) == {"a": (), "b": ()}
