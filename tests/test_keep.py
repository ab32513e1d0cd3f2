"""Which channels stay, on dissections and groups made by hand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
import pytest
import torch

from drnet_captum.dissect.dissection import Dissection, LayerUnits
from drnet_captum.dissect.exemplars import Exemplars
from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.layers.fields import Field
from drnet_captum.layers.units import UnitLayer
from drnet_captum.reconstruct.groups import Group, kept_groups
from drnet_captum.reconstruct.keep import Choice, Chooser, choose, group_importance, within_budget
from drnet_captum.reconstruct.sizes import ALWAYS, Costs, LayerSize

Kind = Literal["convolution", "layer"]


def dissection(kind: Kind = "convolution", **layers: Sequence[Sequence[float]]) -> Dissection:
    """Layer -> rows of importances, one a class 0, 1, …"""
    units = []
    for name, rows in layers.items():
        values = torch.tensor(rows, dtype=torch.float64)
        importance = ClassImportance(values.shape[1])
        importance.update(values, torch.arange(len(values)))
        layer = UnitLayer(name, kind, values.shape[1], (4, 4), Field((3, 3), (1.0, 1.0), (-1.0, -1.0)))
        units.append(LayerUnits(layer, importance, Exemplars(values.shape[1])))
    classes = len(next(iter(layers.values())))
    return Dissection("mine", "f00d", None, tuple(units), dict.fromkeys(range(classes), 1), {})


def singles(**channels: int) -> list[Group]:
    return [Group({layer: (k,)}, 0) for layer, count in channels.items() for k in range(count)]


def sizes_of(groups: list[Group]) -> list[LayerSize]:
    """image (3) -> a (3 × 3, bias, norm) -> b (3 × 3, bias) -> 10 classes."""
    a = tuple(g for g, group in enumerate(groups) if "a" in group.channels)
    b = tuple(g for g, group in enumerate(groups) if "b" in group.channels)
    return [
        LayerSize("a", (ALWAYS,) * 3, a, 9, 3, 16),
        LayerSize("b", a, b, 9, 1, 4),
        LayerSize("head", b, (ALWAYS,) * 10, 1, 1),
    ]


def parameters(a: int, b: int) -> int:
    return 27 * a + 3 * a + 9 * a * b + b + 10 * b + 10


def test_classes_compose() -> None:
    mine = dissection(a=[[8.0, 5.0, 3.0, 0.0, 0.0], [0.0, 0.0, 4.0, 9.0, 3.0]])
    keep = {}
    for classes in ((0,), (1,), (0, 1)):
        budget = 0.4 if len(classes) == 1 else 0.6
        keep[classes] = choose(mine, singles(a=5), classes, budget, budget_of="channels").keep["a"]
    assert keep == {(0,): (0, 1), (1,): (2, 3), (0, 1): (0, 2, 3)}  # of 16 for 2: 3 + 4


def test_classes_weigh_the_same_whatever_their_scale() -> None:
    mine = dissection(a=[[900.0, 100.0, 0.0], [0.0, 0.001, 0.009]])
    importance = group_importance(mine, singles(a=3), (0, 1))
    torch.testing.assert_close(torch.from_numpy(importance), torch.tensor([0.9, 0.2, 0.9], dtype=torch.float64))


def test_order_and_repetition_of_classes_do_not_matter() -> None:
    mine = dissection(a=[[4.0, 3.0, 1.0], [0.0, 1.0, 2.0]])
    first, second = (choose(mine, singles(a=3), c, 0.7, budget_of="channels") for c in ([0, 1], [1, 0, 1]))
    assert first == second
    np.testing.assert_array_equal(*(group_importance(mine, singles(a=3), c) for c in ([0], [0, 0])), strict=True)


@pytest.mark.parametrize("budget", [0.1, 0.2, 0.35, 0.5, 0.8, 1.0])
def test_budget_of_parameters_is_counted_exactly_and_kept(budget: float) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = singles(a=8, b=12)
    mine = dissection(
        a=torch.rand(2, 8, generator=generator).tolist(), b=torch.rand(2, 12, generator=generator).tolist()
    )
    choice = choose(mine, groups, [0], budget, sizes=sizes_of(groups))
    a, b = (len(choice.keep[layer]) for layer in "ab")
    assert choice.cost == parameters(a, b) and choice.total == parameters(8, 12)
    assert choice.share <= budget
    assert a == 8 or parameters(a + 1, b) > budget * choice.total
    assert b == 12 or parameters(a, b + 1) > budget * choice.total


def test_what_still_fits_is_added_down_the_order() -> None:
    groups = [Group({"a": tuple(range(k, k + n))}, 0) for k, n in ((0, 4), (4, 5), (9, 2), (11, 1))]
    choice = within_budget(groups, np.array([9.0, 8.0, 2.0, 1.0]), 7 / 12, budget_of="channels")
    assert choice.keep == {"a": (0, 1, 2, 3, 9, 10, 11)} and choice.cost == 7  # five more do not fit after four


@pytest.mark.parametrize("seed", range(12))
def test_a_budget_is_never_exceeded_and_nothing_more_fits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(40)  # groups of one to four channels over three layers, sizes of all shapes
    parts = np.split(numbers, np.sort(rng.choice(np.arange(1, 40), 17, replace=False)))
    groups = [Group({f"l{g % 3}": tuple(sorted(part.tolist()))}, 0) for g, part in enumerate(parts)]
    sides = [tuple(g for g in range(len(parts)) if g % 3 == layer for _ in parts[g]) for layer in range(3)]
    chain = [(ALWAYS,) * 2, *sides, (ALWAYS,) * 4]
    sizes = [LayerSize(str(i), a, b, float(rng.integers(1, 9)), 1.0, i + 1) for i, (a, b) in enumerate(pairwise(chain))]
    sizes.append(LayerSize("self", sides[0], sides[0], 1 / 3 * 3, 0.0, 3))
    for budget_of in ("parameters", "macs", "channels"):
        costs = Costs(groups, sizes, budget_of)
        for budget in rng.uniform(0.35, 1, 4):
            choice = within_budget(groups, rng.random(len(groups)) ** 4, budget, budget_of=budget_of, sizes=sizes)
            kept = np.array(
                [set(of) <= set(choice.keep[name]) for group in groups for name, of in group.channels.items()]
            )
            np.testing.assert_array_equal(kept_groups(groups, choice.keep), kept)
            assert choice.cost == costs.of(kept) and choice.share <= budget
            assert all(choice.keep.values())
            for g in np.flatnonzero(~kept):
                more = kept.copy()
                more[g] = True
                assert costs.of(more) / costs.total > budget


def test_budget_of_macs_counts_positions() -> None:
    groups = singles(a=4, b=4)
    mine = dissection(a=[[4.0, 3.0, 2.0, 1.0]], b=[[4.0, 3.0, 2.0, 1.0]])
    choice = choose(mine, groups, [0], 0.5, budget_of="macs", sizes=sizes_of(groups))
    a, b = (len(choice.keep[layer]) for layer in "ab")
    assert choice.cost == 27 * a * 16 + 9 * a * b * 4 + 10 * b and choice.share <= 0.5


def test_channels_of_the_same_importance_go_where_they_are_cheap() -> None:
    groups = singles(a=4, b=4)
    mine = dissection(a=[[1.0] * 4], b=[[1.0] * 4])
    choice = choose(mine, groups, [0], 0.5, sizes=sizes_of(groups))
    assert len(choice.keep["b"]) > len(choice.keep["a"])  # 11 + 9 a against 30 + 9 b parameters


def test_one_channel_a_layer_stays_and_is_told() -> None:
    mine = dissection(a=[[1.0] + [1e-3] * 3], b=[[1.0, 1.0, 1.0, 1.0]])
    choice = choose(mine, singles(a=4, b=4), [0], 0.5, budget_of="channels")
    assert choice.keep == {"a": (0,), "b": (0, 1, 2)} and choice.held == ()  # it is the most important of all
    with pytest.raises(ValueError, match=r"one group a layer already costs 25.000%, got a budget of 20.000%"):
        choose(mine, singles(a=4, b=4), [0], 0.2, budget_of="channels")


def test_a_layer_that_the_budget_would_empty_keeps_its_best_channel() -> None:
    wide = [[1.0] * 11 + [1.1]]
    choice = choose(dissection(a=wide, b=[[3.0, 3.0, 3.0, 3.0]]), singles(a=12, b=4), [0], 4 / 16, budget_of="channels")
    assert choice.keep == {"a": (11,), "b": (0, 1, 2)} and choice.held == ("a",)


def test_images_of_opposite_signs_do_not_cancel() -> None:
    mine = dissection(a=[[4.0, 1.0]]) + dissection(a=[[-4.0, 1.0]])
    assert group_importance(mine, singles(a=2), (0,)).tolist() == [0.8, 0.2]


def test_equal_importances_stay_by_number() -> None:
    mine = dissection(a=[[1.0] * 6], b=[[1.0] * 6])
    choices = [choose(mine, singles(a=6, b=6), [0], 0.6, budget_of="channels") for _ in range(3)]
    assert choices[0] == choices[1] == choices[2]
    assert choices[0].keep == {"a": (0, 1, 2, 3, 4, 5), "b": (0,)}


def test_channels_are_sorted_whatever_the_order_of_groups() -> None:
    groups = [Group({"a": (k,)}, 0) for k in (2, 0, 1)]
    assert within_budget(groups, np.array([3.0, 2.0, 1.0]), 2 / 3, budget_of="channels").keep == {"a": (0, 2)}


def test_layers_in_which_nothing_matters_have_equal_shares() -> None:
    importance = group_importance(dissection(a=[[0.0, 0.0]]), singles(a=2), (0,))
    assert importance.tolist() == [0.5, 0.5]


def test_coupled_channels_stay_together() -> None:
    groups = [Group({"a": (k,), "c": (k, k + 2)}, 0) for k in range(2)] + singles(b=2)
    mine = dissection(a=[[1.0, 3.0]], b=[[1.0, 1.0]], c=[[0.0, 4.0, 0.0, 4.0]])
    choice = choose(mine, groups, [0], 4 / 8, budget_of="channels")
    assert choice.keep == {"a": (1,), "c": (1, 3), "b": (0,)} and choice.cost == 4


def test_layers_that_were_not_dissected_stay_whole_and_count() -> None:
    mine = dissection(a=[[1.0, 2.0]])
    choice = choose(mine, singles(a=2, b=2), [0], 3 / 4, budget_of="channels")
    assert choice.keep == {"a": (1,)} and choice.unscored == ("b",) and choice.cost == 3
    with pytest.raises(
        ValueError, match=r"already costs 75.000%, with b whole, which were not dissected, got a budget"
    ):
        choose(mine, singles(a=2, b=2), [0], 0.5, budget_of="channels")


def test_outputs_of_other_layers_are_no_channels() -> None:
    both = dissection(a=[[1.0, 2.0]]).layers + dissection("layer", b=[[1.0, 2.0, 3.0]]).layers
    mine = Dissection("mine", "f00d", None, both, {0: 1}, {})
    importance = group_importance(mine, singles(a=2, b=2), (0,))
    np.testing.assert_allclose(importance, [1 / 3, 2 / 3, np.nan, np.nan])
    with pytest.raises(ValueError, match=r"none of the groups' layers was dissected; convolutions are: $"):
        group_importance(dissection("layer", a=[[1.0, 2.0]]), singles(a=2), (0,))


def test_the_whole_budget_is_used_as_a_few_images_do_not_show_all_that_matters() -> None:
    mine = dissection(a=[[3.0, 0.0, 1.0]], b=[[0.0, 2.0, 0.0]])
    choice = choose(mine, singles(a=3, b=3), [0], 1.0, budget_of="channels")
    assert choice.keep == {"a": (0, 1, 2), "b": (0, 1, 2)} and choice.share == 1


def test_groups_that_stay_whatever_comes() -> None:
    choice = within_budget(singles(a=3, b=2), np.array([5.0, np.nan, 6.0, 0.0, 1.0]), 0.4, budget_of="channels")
    assert choice.keep == {"a": (1,), "b": (1,)} and choice.held == ("b",) and choice.unscored == ()
    whole = within_budget(singles(a=2), np.full(2, np.nan), 1.0, budget_of="channels")
    assert whole == Choice({}, "channels", 2.0, 2.0, (), ("a",))


def test_a_chooser_for_many_is_choose() -> None:
    groups = singles(a=8, b=12)
    mine = dissection(a=np.random.default_rng(0).random((3, 8)).tolist(), b=np.eye(3, 12).tolist())
    chooser = Chooser(groups, sizes=sizes_of(groups))
    for classes in ((0,), (1, 2), (0, 1, 2)):
        choice = chooser.within(chooser.importance(mine, classes), 0.4)
        assert choice == choose(mine, groups, classes, 0.4, sizes=sizes_of(groups))


def test_a_set_of_classes_takes_less_than_50_ms_at_the_size_of_vgg16() -> None:
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    generator = torch.Generator().manual_seed(0)
    mine = dissection(**{f"l{i}": torch.rand(10, w, generator=generator).tolist() for i, w in enumerate(widths)})
    groups = singles(**{f"l{i}": w for i, w in enumerate(widths)})
    ends = np.cumsum([0, *widths])
    sides = [(ALWAYS,) * 3, *(tuple(range(a, b)) for a, b in pairwise(ends)), (ALWAYS,) * 10]
    sizes = [LayerSize(f"l{i}", sides[i], sides[i + 1], 9 if i < 13 else 1, 3) for i in range(14)]
    chooser, seconds = Chooser(groups, sizes=sizes), []
    for pair in list(combinations(range(10), 2))[:9]:
        start = time.process_time()
        choice = chooser.within(chooser.importance(mine, pair), 0.05)
        seconds.append(time.process_time() - start)
        assert 0.0499 < choice.share <= 0.05
    assert sorted(seconds)[4] < 0.05


def test_what_cannot_be_chosen_says_why() -> None:
    mine, groups = dissection(a=[[1.0, 2.0], [2.0, 1.0]]), singles(a=2)
    with pytest.raises(ValueError, match=r"no image of class 7 was seen; the classes seen are: 0, 1"):
        choose(mine, groups, [0, 7], 0.5, budget_of="channels")
    with pytest.raises(ValueError, match="at least one class"):
        choose(mine, groups, [], 0.5, budget_of="channels")
    for budget in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="budget above 0 and at most 1"):
            choose(mine, groups, [0], budget, budget_of="channels")
    with pytest.raises(ValueError, match="parameters, channels, macs, got 'bytes'"):
        choose(mine, groups, [0], 0.5, budget_of="bytes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a budget of parameters needs the layers' sizes"):
        choose(mine, groups, [0], 0.5)
    with pytest.raises(ValueError, match="channel 1 of 'a' is in two groups"):
        choose(mine, [*groups, Group({"a": (1,)}, 0)], [0], 0.5, budget_of="channels")
    with pytest.raises(ValueError, match=r"layer 'a' was dissected with the channels 0 … 1, and the groups have 0 … 2"):
        choose(mine, singles(a=3), [0], 0.5, budget_of="channels")
    with pytest.raises(ValueError, match="none of the groups' layers was dissected; convolutions are: a"):
        choose(mine, singles(z=3), [0], 0.5, budget_of="channels")
    with pytest.raises(ValueError, match="the sizes name group 3, and there are 2"):
        choose(mine, groups, [0], 0.5, sizes=sizes_of(singles(a=2, b=2)))
    with pytest.raises(ValueError, match=r"one importance for each of 2 groups, got \(3,\)"):
        within_budget(groups, np.ones(3), 0.5, budget_of="channels")
    for wrong in (-1.0, np.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            within_budget(groups, np.array([1.0, wrong]), 0.5, budget_of="channels")
    with pytest.raises(ValueError, match="at least one group of channels, got none"):
        within_budget([], np.zeros(0), 0.5, budget_of="channels")
