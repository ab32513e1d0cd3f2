"""Units grouped, named and represented, on dissections made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from drnet_captum.dissect.dissection import LayerUnits
from drnet_captum.dissect.exemplars import Exemplars
from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.dissect.labels import UNLABELLED, UnitLabel
from drnet_captum.dissect.moments import ChannelMoments
from drnet_captum.layers.fields import Field
from drnet_captum.layers.units import UnitLayer
from drnet_captum.reconstruct.modules import cut, features, group_units, unit_table
from drnet_captum.reconstruct.naming import different, name_modules
from drnet_captum.reconstruct.redundancy import images_needed, representatives, unknown

VERTICAL, HORIZONTAL = UnitLabel("vertical edges", "edges", 1.0), UnitLabel("horizontal edges", "edges", 1.0)
DIAGONAL = UnitLabel("diagonal edges", "edges", 1.0)
RED, ORANGE = UnitLabel("red", "colours", 1.0), UnitLabel("orange", "colours", 0.9)
CURVES, DISCS = UnitLabel("curves", "curves", 1.0), UnitLabel("discs", "shapes", 1.0)
NAMES = ("tabby, tabby cat", "Egyptian cat", "cup", "rocket", "jeep", "moped")


def layer_of(
    name: str,
    labels: Sequence[UnitLabel] = (),
    signed: Sequence[Sequence[float]] = (),
    pooled: Tensor | None = None,
    kind: str = "layer",
    channels: int | None = None,
) -> LayerUnits:
    """A layer with labels, the mean importance for classes 0, 1, …, (K, C), and activations of N images, (N, C)."""
    count = channels or len(labels) or (len(signed[0]) if signed else pooled.shape[1])  # type: ignore[union-attr]
    importance, moments = ClassImportance(count), ChannelMoments(count)
    if pooled is not None and not signed:
        signed = [[0.0] * count]
    if signed:
        times = 1 if pooled is None else max(1, len(pooled) // len(signed))
        importance.update(torch.tensor(signed).repeat(times, 1), torch.arange(len(signed)).repeat(times))
    if pooled is not None:
        moments.update(pooled)
    layer = UnitLayer(name, kind, count, (4, 4), Field((3, 3), (1.0, 1.0), (0.0, 0.0)))  # type: ignore[arg-type]
    return LayerUnits(layer, importance, Exemplars(count), tuple(labels), similarity=moments)


def named(layers: Sequence[LayerUnits], n_modules: int | None = None) -> dict[str, tuple[float, list[str]]]:
    """Name → purity and the members, "layer unit"."""
    table = unit_table(layers)
    groups = group_units(table, n_modules)
    names = name_modules(groups, table, lambda c: NAMES[c])
    assert sorted(np.concatenate(groups)) == list(range(len(table.labels)))
    return {
        name.text: (round(name.purity, 3), [f"{table.layers[table.layer[r]]} {table.unit[r]}" for r in rows])
        for name, rows in zip(names, groups, strict=True)
    }


def diagonal(*classes: int, strength: float = 1.0) -> list[list[float]]:
    """(6, C): every unit adds to one class and to nothing else."""
    rows = [[0.0] * len(classes) for _ in NAMES]
    for unit, c in enumerate(classes):
        rows[c][unit] = strength
    return rows


# Names and groups


def test_edges_colours_and_class_units_over_two_layers() -> None:
    low = layer_of("conv1", [VERTICAL, RED, HORIZONTAL, ORANGE, DIAGONAL, RED], diagonal(0, 1, 2, 3, 4, 5))
    high = layer_of("conv2", [UNLABELLED] * 4 + [VERTICAL, DIAGONAL, HORIZONTAL], diagonal(0, 0, 3, 3, 1, 2, 4))
    assert named([low, high], 4) == {
        "Edge detection": (1.0, ["conv1 0", "conv1 2", "conv1 4", "conv2 4", "conv2 5", "conv2 6"]),
        "Colour detection: red and orange": (1.0, ["conv1 1", "conv1 3", "conv1 5"]),
        "Evidence for tabby": (1.0, ["conv2 0", "conv2 1"]),
        "Evidence for rocket": (1.0, ["conv2 2", "conv2 3"]),
    }
    by_silhouette = set(named([low, high]))  # six clear groups: the edges are apart by direction
    assert by_silhouette == {f"Edge detection: {d} edges" for d in ("vertical", "horizontal", "diagonal")} | {
        "Colour detection: red and orange",
        "Evidence for tabby",
        "Evidence for rocket",
    }


def test_names_hold_for_most_of_all_members() -> None:
    half = layer_of("conv1", [VERTICAL, DIAGONAL, HORIZONTAL, UNLABELLED, UNLABELLED, UNLABELLED])
    assert named([half], 1) == {"Mixed features of conv1": (1.0, [f"conv1 {u}" for u in range(6)])}
    most = layer_of("conv1", [VERTICAL, DIAGONAL, HORIZONTAL, UNLABELLED, RED])
    assert [(name, share) for name, (share, _) in named([most], 1).items()] == [("Edge detection", 0.6)]
    one_concept = layer_of("conv1", [RED, RED, RED, ORANGE])
    assert [(name, share) for name, (share, _) in named([one_concept], 1).items()] == [("Colour detection: red", 0.75)]
    two_families = layer_of("conv1", [CURVES, DISCS, DISCS, CURVES, UNLABELLED])
    assert [(n, share) for n, (share, _) in named([two_families], 1).items()] == [("Curve and shape detection", 0.8)]
    assert list(named([layer_of("conv1", [CURVES] * 3)], 1)) == ["Curve detection"]
    strange = layer_of("conv1", [UnitLabel("wheel", "part", 0.2)] * 2)
    assert list(named([strange], 1)) == ["Part detection: wheel"]


def test_classes_that_most_members_serve() -> None:
    rows = [[1.0, 1.0, 1.0, 0, 0, 0], [1.0, 1.0, -0.1, 0, 0, 0], [0, 0, 0, 1.0, 1.0, 1.0], [0] * 6, [0] * 6, [0] * 6]
    found = named([layer_of("conv1", signed=rows)], 2)
    assert {name: share for name, (share, _) in found.items()} == {
        "Evidence for tabby and Egyptian cat": round(2 / 3, 3),
        "Evidence for cup": 1.0,
    }
    against = [[-1.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, -1.0], [0] * 4, [0] * 4, [0] * 4, [0] * 4]
    assert set(named([layer_of("conv1", signed=against)], 2)) == {
        "Evidence against tabby",
        "Evidence against Egyptian cat",
    }
    all_classes = [[1.0, 1.0, -1.0, -1.0]] * 6
    assert set(named([layer_of("conv1", signed=all_classes)], 2)) == {
        "Evidence for most classes",
        "Evidence against most classes",
    }
    assert set(named([layer_of("conv1", signed=[[1.0, 1.0, -1.0, -1.0]])], 2)) == {
        "Evidence for tabby",
        "Evidence against tabby",
    }


def test_a_class_needs_to_stand_out() -> None:
    even = [[1.0, 1.1, 0.9, 1.0]] * 6  # all units serve all classes alike
    assert list(named([layer_of("conv1", signed=even)], 1)) == ["Mixed features of conv1"]
    assert all(name.startswith("Mixed features of conv1") for name in named([layer_of("conv1", signed=even)], 2))


def test_stimuli_only_and_nothing_at_all() -> None:
    layers = [layer_of("conv1", [RED, RED, UNLABELLED]), layer_of("conv2", [UNLABELLED] * 2)]
    assert set(named(layers)) == {
        "Colour detection: red",
        "Unlabelled features of conv1",
        "Unlabelled features of conv2",
    }
    bare = [layer_of(f"conv{i}", channels=2) for i in range(3)]
    assert list(named(bare, 1)) == ["Unlabelled features of conv0 to conv2"]
    assert [len(rows) for _, rows in named([layer_of("conv1", channels=5)]).values()] == [5]  # all alike


def test_inactive_units_are_the_last_module() -> None:
    layer = layer_of("conv1", [UNLABELLED, UNLABELLED, VERTICAL, UNLABELLED], [[0.0, 2.0, 0.0, 1e-9]])
    found = named([layer], 3)
    assert list(found)[-1] == "Inactive units"
    assert found["Inactive units"] == (1.0, ["conv1 0", "conv1 3"])  # the edge unit is known to fire
    assert len(named([layer], 1)) == 1
    with pytest.raises(ValueError, match="n_modules from 1 to 3, for 2 units and one module of 2 inactive ones, got 4"):
        named([layer], 4)
    assert list(named([layer_of("conv1", signed=[[0.0, 0.0]])])) == ["Inactive units"]


@pytest.mark.parametrize("n_modules", [0, -1, 5])
def test_a_number_of_modules_that_cannot_be(n_modules: int) -> None:
    with pytest.raises(ValueError, match=f"n_modules from 1 to 4, for 4 units, got {n_modules}"):
        named([layer_of("conv1", [RED, VERTICAL, CURVES, DISCS])], n_modules)


@pytest.mark.parametrize("n_modules", [1, 2, 3, 4])
def test_as_many_modules_as_asked(n_modules: int) -> None:
    assert len(named([layer_of("conv1", [RED] * 4)], n_modules)) == n_modules
    assert len(named([layer_of("conv1", [RED])])) == 1


def test_equal_names_get_layers_and_numbers() -> None:
    assert different(["A", "A", "A", "B"], ["x", "y", "y", "y"]) == ["A (x)", "A (y)", "A (y), 2", "B"]
    assert different(["Mixed features of x"] * 2, ["x", "x"]) == ["Mixed features of x", "Mixed features of x, 2"]
    assert len(set(named([layer_of("conv1", [RED] * 3), layer_of("conv2", [RED] * 3)], 6))) == 6


def test_features_by_hand() -> None:
    half = UnitLabel("red", "colours", 0.5)
    table = unit_table(
        [layer_of("a", [half, UNLABELLED], [[2.0, 0.0], [0.0, 3.0]]), layer_of("b", [RED], [[0.0], [-4.0]])]
    )
    # families: colours, unlabelled; names: red, unlabelled; two classes; depth
    expected = [
        [0.5, 0, 0.25, 0, 0.5, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [1, 0, 0.5, 0, 0, 0, 0.25],
    ]
    np.testing.assert_allclose(features(table), expected, atol=1e-12)
    np.testing.assert_allclose(table.evidence, [[2**0.5, 0], [0, 2**0.5], [0, -1]])
    np.testing.assert_allclose(table.importance, [0.4, 0.6, 1])


def test_many_classes_are_reduced_and_layers_of_other_classes_go_together() -> None:
    signed = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).tolist()
    table = unit_table([layer_of("a", signed=signed), layer_of("b", signed=signed[:3])])
    assert table.evidence.shape == (60, 40)
    assert features(table).shape == (60, 1 + 1 + 16 + 1)
    first, second = (group_units(table, 5, seed=3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_cutting_a_tree() -> None:
    merges = np.array([[2, 3], [0, 1], [4, 5], [6, 7]])  # of 4 leaves: 4 = {2, 3}, 5 = {0, 1}, 6 = all
    for count, groups in {4: [0, 1, 2, 3], 3: [0, 1, 2, 2], 2: [0, 0, 1, 1], 1: [0, 0, 0, 0]}.items():
        assert cut(merges[:3], 4, count).tolist() == groups


# Redundancy


def wave(images: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_duplicates_scaled_ones_and_opposites_have_one_representative() -> None:
    a, b = wave(seed=1), wave(seed=2)
    pooled = torch.stack([a, b, a, 3 * a + 2, -2 * a + 1, wave(seed=3)], 1)
    layer = layer_of("conv1", signed=[[1.0, 5.0, 2.0, -9.0, 1.0, 1.0]], pooled=pooled)
    found = representatives(layer, range(6))
    assert [(r.unit, [s.unit for s in r.stands_for]) for r in found] == [(1, []), (3, [0, 2, 4]), (5, [])]
    for line in found[1].stands_for:
        torch.testing.assert_close(line.slope * pooled[:, 3] + line.intercept, pooled[:, line.unit])
        assert abs(line.correlation) == pytest.approx(1)
    assert found[1].stands_for[2].slope == pytest.approx(-2 / 3)
    for order in permutations(range(6)):
        assert representatives(layer, order) == found
    assert [r.unit for r in representatives(layer, [0, 1, 2])] == [1, 2]  # members only, the more important of 0 and 2


def test_a_redundant_unit_is_close_to_its_representative_itself() -> None:
    """b correlates with a and with c at 0.7 and more, a and c do not: b goes with the more important a."""
    a, c = wave(400, 1), wave(400, 2)
    layer = layer_of("conv1", signed=[[3.0, 1.0, 2.0]], pooled=torch.stack([a, a + c, c], 1))
    found = representatives(layer, [2, 1, 0], redundant_at=0.6)
    assert [(r.unit, [s.unit for s in r.stands_for]) for r in found] == [(0, [1]), (2, [])]
    line = found[0].stands_for[0]
    slope, intercept = np.polyfit(a.numpy(), (a + c).numpy(), 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    assert line.correlation == pytest.approx(np.corrcoef(a.numpy(), (a + c).numpy())[0, 1])
    assert all(not r.stands_for for r in representatives(layer, [0, 1, 2], redundant_at=0.9))


def test_constant_units_and_a_threshold_of_one() -> None:
    a = wave()
    layer = layer_of(
        "conv1", signed=[[1.0, 1.0, 1.0, 1.0]], pooled=torch.stack([a, a, torch.ones(40), torch.zeros(40)], 1)
    )
    found = representatives(layer, range(4), redundant_at=1)
    assert [(r.unit, [s.unit for s in r.stands_for]) for r in found] == [(0, [1]), (2, []), (3, [])]


def test_too_few_images_tell_nothing() -> None:
    few = layer_of("conv1", pooled=torch.stack([wave(19)] * 2, 1))
    assert unknown(few) == "19 images were dissected, and it takes 20"
    with pytest.raises(ValueError, match="redundant in conv1 is not known: 19 images were dissected"):
        representatives(few, [0, 1])
    assert unknown(layer_of("conv1", channels=2)) == "nothing was dissected on images"
    assert unknown(replace(few, similarity=None)) == "nothing was dissected on images"
    assert "after its activation" in unknown(layer_of("conv1", pooled=torch.ones(40, 2), kind="convolution"))
    assert unknown(layer_of("conv1", pooled=torch.ones(40, 2))) == ""


@pytest.mark.parametrize(("channels", "redundant_at"), [(64, 0.6), (256, 0.8), (512, 0.5)])
def test_with_enough_images_chance_makes_no_pairs(channels: int, redundant_at: float) -> None:
    images = images_needed(channels, redundant_at)
    noise = torch.randn(images, channels, generator=torch.Generator().manual_seed(0))
    layer = layer_of("conv1", pooled=noise, signed=[[1.0] * channels])
    assert len(representatives(layer, range(channels), redundant_at)) == channels
