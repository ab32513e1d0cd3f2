"""Classes set against each other: by a slow transcription, however the images come, kept, added, and chosen by."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import CLASSES, ConvNet, FunctionalConvNet, NormedConvNet, images, seeded
from snapshot import same
from test_dissect import card
from test_dissection import CONV1
from test_keep import dissection as scored
from test_keep import singles
from torch import Tensor
from torch.testing import assert_close

from drnet_captum import Dissection, DRNet
from drnet_captum.dissect.contrasts import rivals_of
from drnet_captum.dissect.dissection import LayerUnits
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.dissect.exemplars import Exemplars
from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.engine.unit_tape import UnitTape
from drnet_captum.reconstruct.keep import Chooser, choose, group_importance

SET = (0, 2, 3)
X = images(12, dtype=torch.float64)
Y = torch.tensor([0, 2, 3, 1, 2, 2, 4, 0, 3, 1, 2, 0])


def states(units: LayerUnits) -> dict[str, Any]:
    found: dict[str, Any] = {"importance": units.importance.state(), "exemplars": units.exemplars.state()}
    found |= {f"against {u}": sums.state() for u, sums in units.contrasts.items()}
    return found | ({"similarity": units.similarity.state()} if units.similarity else {})


def assert_close_dissections(a: Dissection, b: Dissection, tolerance: float = 1e-10) -> None:
    assert (a.counts, a.images.keys()) == (b.counts, b.images.keys())
    for one, other in zip(a.layers, b.layers, strict=True):
        assert list(one.contrasts) == list(other.contrasts)
        for u in one.contrasts:
            assert_close(one.contrasts[u].state(), other.contrasts[u].state(), rtol=tolerance, atol=tolerance)


# What is summed up


def slow(model: ConvNet, x: Tensor, c: int, u: int) -> dict[str, Tensor]:
    """s_c - s_u of one image, each by its own forward and backward pass: layer -> (C,)."""
    found: dict[str, Tensor] = {}
    for target, sign in ((c, 1), (u, -1)):
        first = model.conv1(x[None])
        first = torch.relu(model.norm(first) if isinstance(model, NormedConvNet) else first)
        second = torch.relu(model.conv2(torch.nn.functional.max_pool2d(first, 2)))
        y = model.fc(second.mean((2, 3)))[0, target]
        for name, maps in (("conv1", first), ("conv2", second)):
            (gradient,) = torch.autograd.grad(y, maps, retain_graph=True)
            found[name] = found.get(name, 0) + sign * (maps * gradient)[0].sum((1, 2)).detach()
    return found


@pytest.mark.parametrize("make", [ConvNet, FunctionalConvNet, NormedConvNet])
@pytest.mark.parametrize("target", ["label", "predicted"])
def test_it_is_the_difference_of_two_importances(make: type[ConvNet], target: str) -> None:
    model = seeded(make).double()
    with torch.no_grad():
        own = Y if target == "label" else model(X).argmax(1)
    contrasts = SET if target == "label" else range(CLASSES)
    found = DRNet(model).dissect([(X, Y)], target=target, contrasts=contrasts)
    for name in ("conv1", "conv2"):
        assert list(found[name].contrasts) == list(contrasts)
        for u, sums in found[name].contrasts.items():
            seen = [c for c in own.unique().tolist() if c in contrasts and c != u]
            assert sums.classes.tolist() == seen
            for c in seen:
                rows = torch.stack([slow(model, x, c, u)[name] for x in X[own == c]])
                assert_close(sums.of(c)[0], rows.mean(0), rtol=1e-10, atol=1e-13)
                assert_close(sums.absolute_of([c])[0], rows.abs().mean(0), rtol=1e-10, atol=1e-13)
                assert sums.counts[seen.index(c)] == (own == c).sum()


def test_a_contrast_both_ways_and_alone() -> None:
    """Signed, the means of s_c and of s_c - s_u lie apart by that of s_u; summed over positions before |·|."""
    model = seeded(ConvNet).double()
    found = DRNet(model).dissect([(X, Y)], contrasts=(2, 3))["conv2"]
    as_class_3 = DRNet(model).dissect([(X[Y == 2], torch.full_like(Y[Y == 2], 3))])["conv2"]
    assert_close(found.contrasts[3].of(2)[0], found.importance.of(2)[0] - as_class_3.importance.of(3)[0])
    assert 2 not in found.contrasts[2] and 2 in found.contrasts[3] and 0 not in found.contrasts[3]


@pytest.mark.parametrize("size", [1, 5, 12])
def test_batches_and_order_do_not_matter(size: int) -> None:
    model = DRNet(seeded(NormedConvNet).double())
    whole = model.dissect([(X, Y)], contrasts=SET)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    split = zip(X[order].split(size), Y[order].split(size), strict=True)
    assert_close_dissections(model.dissect(split, contrasts=np.array([3, 0, 2])), whole)


def test_parts_add_up() -> None:
    model = DRNet(seeded(ConvNet).double())
    parts = [model.dissect([(X[a:b], Y[a:b])], contrasts=SET) for a, b in pairwise((0, 4, 5, 12))]
    whole = model.dissect([(X, Y)], contrasts=SET)
    assert_close_dissections(parts[0] + parts[1] + parts[2], whole)
    assert_close_dissections(sum(reversed(parts)), whole)
    plain = model.dissect([(X, Y)])
    for a, b, said in ((plain, whole, r"\[\].*\[0, 2, 3\]"), (whole, plain, r"\[0, 2, 3\].*\[\]")):
        with pytest.raises(
            ValueError, match=f"conv1: one side .* classes {said}: dissect both with the same contrasts"
        ):
            a + b
    with pytest.raises(ValueError, match=r"\[0, 2, 3\].*\[0, 2\]"):
        whole + model.dissect([(X, Y)], contrasts=(0, 2))


def test_all_else_is_bit_for_bit_the_same() -> None:
    model = seeded(NormedConvNet)
    x = X.float()
    plain, none, some = (DRNet(model).dissect([(x[:7], Y[:7]), (x[7:], Y[7:])], contrasts=c) for c in ((), [], SET))
    for one, other, third in zip(plain.layers, none.layers, some.layers, strict=True):
        assert not one.contrasts and not other.contrasts and list(third.contrasts) == list(SET)
        same(states(one), states(other))
        same(states(one), states(replace(third, contrasts={})))
    assert plain.images == some.images and plain.counts == some.counts


def test_backward_passes_are_only_as_many_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[bool | int] = []
    backward, forward = UnitTape.backward, UnitTape.forward

    def counted(tape: UnitTape, y: Tensor, read: Any, *, keep: bool = False) -> None:
        passes.append(keep)
        backward(tape, y, read, keep=keep)

    def once(tape: UnitTape, x: Tensor, **options: Any) -> Tensor:
        passes.append(len(x))
        return forward(tape, x, **options)

    monkeypatch.setattr(UnitTape, "backward", counted)
    monkeypatch.setattr(UnitTape, "forward", once)
    model = seeded(ConvNet).double()
    for contrasts, y, expected in [
        ((), Y, [False]),
        (SET, Y, [True, True, False]),
        (SET, torch.full_like(Y, 1), [False]),
        (range(CLASSES), Y, [True] * 4 + [False]),
    ]:
        passes.clear()
        Dissector(model, contrasts=contrasts, layers=["conv1"]).update(X, y)
        assert passes == [12, *expected]


def test_each_image_meets_every_other_class_once() -> None:
    rivals = rivals_of(Y, SET, CLASSES)
    assert rivals.shape == (2, 12)
    for own, against in zip(Y.tolist(), rivals.T.tolist(), strict=True):
        assert sorted(against) == ([u for u in SET if u != own] if own in SET else [own, own])
    assert rivals_of(Y, (), CLASSES).shape == rivals_of(torch.ones(12, dtype=torch.long), SET, CLASSES).shape == (0, 12)


# What goes wrong


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"contrasts": [2]}, ValueError, "at least two classes, got class 2 alone"),
        ({"contrasts": [0, 2, 2]}, ValueError, "each class of contrasts once, got class 2 several times"),
        ({"contrasts": [0, 5]}, ValueError, "class 5 of contrasts is not one of the model's 5 classes, 0 to 4"),
        ({"contrasts": [-1, 2]}, ValueError, "classes of at least 0 as contrasts, got -1"),
        ({"contrasts": [0, 2], "score": "log_prob"}, ValueError, "two classes' logits, got score='log_prob'"),
        ({"contrasts": "02"}, TypeError, "list of class numbers, got '02'"),
        ({"contrasts": 2}, TypeError, "list of class numbers, got 2"),
        ({"contrasts": [0.0, 1.0]}, TypeError, r"list of class numbers, got \[0.0, 1.0\]"),
    ],
)
def test_bad_contrasts(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DRNet(seeded(ConvNet)).dissect([(X.float(), Y)], **options)


def test_contrasts_need_images() -> None:
    with pytest.raises(ValueError, match="pass data= with contrasts="):
        DRNet(seeded(ConvNet)).dissect(contrasts=SET, card=card())


def test_an_error_in_a_later_round_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    dissector = Dissector(seeded(ConvNet).double(), contrasts=SET)
    dissector.update(X, Y)
    before = [states(units) for units in dissector.result().layers]
    backward, calls = UnitTape.backward, []

    def fails(tape: UnitTape, *args: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        backward(tape, *args, **options)

    monkeypatch.setattr(UnitTape, "backward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        dissector.update(X, Y)
    same(before, [states(units) for units in dissector.result().layers])
    assert dissector.result().counts == {0: 3, 1: 2, 2: 4, 3: 2, 4: 1}


# Kept


def test_round_trip(tmp_path: Path) -> None:
    model = DRNet(seeded(ConvNet, outputs=12))
    a = model.dissect([(X.float(), Y)], contrasts=(0, 2, 3, 11))
    a.save(tmp_path / "a")
    loaded = Dissection.load(tmp_path / "a")
    for one, other in zip(loaded.layers, a.layers, strict=True):
        assert list(one.contrasts) == [0, 2, 3, 11]
        same(states(one), states(other))
    assert_close_dissections(loaded + a, a + a, 0)
    loaded.save(tmp_path / "b")
    for name in ("dissection.json", "statistics.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    path = tmp_path / "a" / "dissection.json"
    path.write_text(path.read_text().replace('"contrast_11"', '"contrast_x"'))
    with pytest.raises(ValueError, match="is damaged"):
        Dissection.load(tmp_path / "a")
    scored(a=ROWS).save(tmp_path / "a")
    assert "contrast" not in path.read_text() and Dissection.load(tmp_path / "a")["a"].contrasts == {}


def test_labels_come_and_go_and_contrasts_stay() -> None:
    found = DRNet(seeded(ConvNet)).dissect([(X.float(), Y)], contrasts=SET)
    assert repr(found["conv1"]) == "LayerUnits(conv1: 4 units, contrasts of 3 classes)"
    assert found.without_labels()["conv1"].contrasts is found["conv1"].contrasts
    found.check(found.fingerprint)
    with pytest.raises(ValueError, match="layer conv1 has 3 units, got contrasts with class 7 of 2"):
        LayerUnits(CONV1, ClassImportance(3), Exemplars(3), contrasts={7: ClassImportance(2)})


# Chosen by


def against(mine: Dissection, layer: str, values: dict[tuple[int, int], list[float]]) -> Dissection:
    """The same with mean |s_c - s_u| of pairs (c, u)."""
    sums = {u: ClassImportance(len(next(iter(values.values())))) for u in sorted({u for _, u in values})}
    for (c, u), row in values.items():
        sums[u].update(torch.tensor([row, [-v for v in row]], dtype=torch.float64), torch.tensor([c, c]))
    units = [replace(each, contrasts=sums) if each.layer.name == layer else each for each in mine.layers]
    return replace(mine, layers=tuple(units))


ROWS = [[6.0, 3.0, 1.0], [5.0, 4.0, 1.0], [2.0, 2.0, 6.0], [0.0, 1.0, 1.0]]
PAIRS = {(0, 1): [0.0, 1.0, 3.0], (1, 0): [0.0, 2.0, 2.0], (0, 2): [4.0, 0.0, 0.0], (2, 0): [1.0, 0.0, 1.0]}
PAIRS |= {(1, 2): [5.0, 0.0, 1.0], (2, 1): [0.0, 3.0, 0.0]}


def test_channels_are_chosen_by_what_tells_the_classes_apart() -> None:
    mine = against(scored(a=ROWS, b=ROWS), "a", PAIRS)
    assert choose(scored(a=ROWS), singles(a=3), (0, 1), 2 / 3, budget_of="channels").keep == {"a": (0, 1)}
    assert choose(mine, singles(a=3), (0, 1), 2 / 3, budget_of="channels").keep == {"a": (1, 2)}
    # Each class's sum over the others as shares of it; layer b has no contrasts.
    expected = {
        (0, 1): [0, 1 / 4 + 2 / 4, 3 / 4 + 2 / 4],
        (2, 0, 2): [4 / 4 + 1 / 2, 0, 1 / 2],
        (0, 1, 2): [4 / 8 + 5 / 10 + 1 / 5, 1 / 8 + 2 / 10 + 3 / 5, 3 / 8 + 3 / 10 + 1 / 5],
        (1,): [0.5, 0.4, 0.1],  # against none: what each adds to it
        (0, 3): [0.6, 0.3 + 0.5, 0.1 + 0.5],  # class 3 was set against none
        (0, 1, 3): [0.6 + 0.5, 0.3 + 0.4 + 0.5, 0.1 + 0.1 + 0.5],
    }
    plain = scored(b=ROWS)
    for classes, shares in expected.items():
        found = group_importance(mine, singles(a=3, b=3), classes)
        np.testing.assert_allclose(found[:3], shares, atol=1e-15)
        np.testing.assert_array_equal(found[3:], group_importance(plain, singles(b=3), classes))
    with pytest.raises(ValueError, match="no image of class 7 was seen"):
        group_importance(mine, singles(a=3), (0, 7))


def test_ten_classes_at_the_size_of_vgg16_take_less_than_50_ms() -> None:
    widths = {f"l{i}": w for i, w in enumerate([64, 64, 128, 128, 256, 256, 256, *[512] * 6])}
    rng = np.random.default_rng(0)
    mine = scored(**{name: rng.random((10, w)).tolist() for name, w in widths.items()})
    for units in mine.layers:
        for u in range(10):
            sums = ClassImportance(units.layer.channels)
            sums.update(
                torch.from_numpy(rng.random((9, sums.channels))), torch.tensor([c for c in range(10) if c != u])
            )
            units.contrasts[u] = sums  # type: ignore[index]
    chooser, seconds = Chooser(singles(**widths), budget_of="channels"), []
    for _ in range(7):
        start = time.process_time()
        chooser.within(chooser.importance(mine, range(10)), 0.3)
        seconds.append(time.process_time() - start)
    assert sorted(seconds)[3] < 0.05
