"""Dissections put together, asked, searched and drawn; statistics by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import matplotlib
import numpy as np
import pytest
import torch

from drnet_captum.dissect.dissection import Dissection, LayerUnits
from drnet_captum.dissect.exemplars import Exemplars, content_key, to_jpeg
from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.dissect.labels import UNLABELLED, UnitLabel
from drnet_captum.dissect.moments import ChannelMoments
from drnet_captum.layers.fields import Field
from drnet_captum.layers.units import UnitLayer
from drnet_captum.viz.dissection import _chosen, dissection_picture

CONV1 = UnitLayer("conv1", "convolution", 3, (8, 8), Field((3, 3), (2.0, 2.0), (-1.0, -1.0)))
LAYER4 = UnitLayer("layer4", "layer", 2, (2, 2), Field((15, 15), (8.0, 8.0), (-4.0, -4.0)))
LABELS = (UnitLabel("vertical edges", "edges", 0.75), UnitLabel("red", "colours", 1.0), UNLABELLED)
NAMES = ("cat", "cup", "Rocket")


def dissection(seed: int = 0, images: int = 6, **changes: object) -> Dissection:
    """Two layers, three classes; the same seed gives the same images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (images,), generator=generator)
    pixels = torch.randint(256, (images, 16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
    keys = [content_key(p) for p in pixels]
    layers = []
    for layer in (CONV1, LAYER4):
        importance, exemplars = ClassImportance(layer.channels), Exemplars(layer.channels, 2)
        similarity = ChannelMoments(layer.channels) if layer.kind == "layer" else None
        importance.update(torch.randn(images, layer.channels, generator=generator), labels)
        values = torch.randn(images, layer.channels, generator=generator)
        places = torch.randint(layer.grid[0] * layer.grid[1], values.shape, generator=generator)
        exemplars.update(values, places, (layer.grid[0], layer.grid[1]), keys)
        if similarity is not None:
            similarity.update(values)
        layers.append(LayerUnits(layer, importance, exemplars, similarity=similarity))
    layers[0] = replace(layers[0], labels=LABELS)
    referenced = set().union(*(units.exemplars.referenced() for units in layers))
    kept = {key: to_jpeg(p) for key, p in zip(keys, pixels, strict=True) if key in referenced}
    counts = dict(sorted((int(c), int(n)) for c, n in zip(*labels.unique(return_counts=True), strict=True)))
    return replace(Dissection("tiny", "f00d", NAMES, tuple(layers), counts, kept), **changes)  # type: ignore[arg-type]


def assert_same(a: Dissection, b: Dissection, tolerance: float = 0.0) -> None:
    for name in ("model", "fingerprint", "class_names", "counts", "images"):
        assert getattr(a, name) == getattr(b, name), name
    for one, other in zip(a.layers, b.layers, strict=True):
        assert (one.layer, one.labels, one.concepts) == (other.layer, other.labels, other.concepts)
        assert one.exemplars.state()[1] == other.exemplars.state()[1]
        torch.testing.assert_close(one.exemplars.state()[0], other.exemplars.state()[0], rtol=0, atol=0)
        for statistic in ("importance", "similarity"):
            x, y = getattr(one, statistic), getattr(other, statistic)
            assert (x is None) == (y is None)
            if x is not None:
                torch.testing.assert_close(x.state(), y.state(), rtol=tolerance, atol=tolerance)


def by_hand() -> Dissection:
    importance = ClassImportance(3)
    importance.update(torch.tensor([[3.0, -1.0, 0.0], [5.0, 2.0, 0.0]]), torch.tensor([0, 7]))
    exemplars = Exemplars(3, 1)
    exemplars.update(torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0, 0, 9]]), (8, 8), ["k1"])
    concepts = {"masks": (UNLABELLED, UnitLabel("Wheel", "part", 0.25), UNLABELLED)}
    units = LayerUnits(CONV1, importance, exemplars, LABELS, concepts)
    plain = LayerUnits(LAYER4, ClassImportance(2), Exemplars(2, 1))
    return Dissection("tiny", "f00d", NAMES, (units, plain), {0: 1, 7: 1}, {})


# Sums


def test_sum_in_any_order() -> None:
    parts = [dissection(seed) for seed in range(3)]
    whole = sum(parts)
    assert isinstance(whole, Dissection)
    assert sum(whole.counts.values()) == 18
    for a, b, c in permutations(parts):
        assert_same((a + b) + c, whole, 1e-12)
        assert_same(a + (b + c), whole, 1e-12)
    assert_same(parts[0], dissection(0))  # summands are as before
    assert sum([parts[0]]) is parts[0]


def test_sum_keeps_the_images_of_its_exemplars_only() -> None:
    a, b = dissection(0), dissection(1)
    total = a + b
    referenced = set().union(*(units.exemplars.referenced() for units in total.layers))
    assert set(total.images) == referenced < {*a.images, *b.images}
    assert all(total.images[key] == {**a.images, **b.images}[key] for key in referenced)


def test_sum_takes_labels_and_names_from_the_side_that_has_them() -> None:
    a = dissection(0)
    words = {"text": (UnitLabel("wheel", "word", 0.5), UNLABELLED)}
    b = dissection(1, class_names=None).without_labels()
    b = replace(b, layers=(b.layers[0], replace(b.layers[1], concepts=words)))
    for total in (a + b, b + a):
        assert total.class_names == NAMES
        assert total["conv1"].labels == LABELS
        assert total["layer4"].concepts == words
    assert (a + a)["conv1"].labels == LABELS


def relabelled(a: Dissection, **changes: object) -> Dissection:
    return replace(a, layers=(replace(a.layers[0], **changes), a.layers[1]))  # type: ignore[arg-type]


def test_sum_refuses() -> None:
    a = dissection(0)
    with pytest.raises(ValueError, match=r"one model, got tiny \(f00d\) and big \(beef\)"):
        a + dissection(1, model="big", fingerprint="beef")
    with pytest.raises(ValueError, match="same layers on both sides, one side only has: layer4"):
        a + replace(a, layers=a.layers[:1])
    with pytest.raises(ValueError, match="another order"):
        a + replace(a, layers=a.layers[::-1])
    with pytest.raises(ValueError, match=r"same layer, got .*grid=.8, 8.* and .*grid=.4, 4"):
        a + relabelled(a, layer=replace(CONV1, grid=(4, 4)))
    with pytest.raises(ValueError, match="same class names"):
        a + dissection(1, class_names=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"conv1: the two sides have different labels: .*without_labels"):
        a + relabelled(a, labels=LABELS[::-1])
    masks = relabelled(a, concepts={"masks": LABELS})
    with pytest.raises(ValueError, match=r"conv1: .* different 'masks' labels: .*make the labels again from the sum"):
        masks + relabelled(a, concepts={"masks": LABELS[::-1]})
    assert_same(masks.without_labels() + a.without_labels(), (a + a).without_labels(), 1e-12)
    with pytest.raises(ValueError, match="layer4: one side only has similarities"):
        a + replace(a, layers=(a.layers[0], replace(a.layers[1], similarity=None)))
    for wrong in (1, None):
        with pytest.raises(TypeError):
            a + wrong  # type: ignore[operator]
        with pytest.raises(TypeError):
            wrong + a  # type: ignore[operator]


# Asked


def test_questions_by_hand() -> None:
    a = by_hand()
    assert a.served("conv1", 0) == [(7, 5.0), (0, 3.0)]
    assert a.served("conv1", 0, n=1) == [(7, 5.0)]
    assert a.served("conv1", 1) == [(7, 2.0)]
    assert a.served("conv1", 2) == a.served("layer4", 0) == []
    assert [a.class_label(c) for c in (0, 2, 3, -1)] == ["cat", "Rocket", "class 3", "class -1"]
    assert replace(a, class_names=None).class_label(0) == "class 0"
    assert repr(a) == "Dissection(tiny: 2 layers, 5 units, 2 classes, 2 images, 0 kept)"
    assert repr(a["conv1"]) == "LayerUnits(conv1: 3 units, labels, masks)"
    a.check("f00d")
    with pytest.raises(ValueError, match=r"dissection of tiny \(f00d\).* other weights \(beef\)"):
        a.check("beef")
    with pytest.raises(ValueError, match="no layer 'fc' was dissected; there are: conv1, layer4"):
        a["fc"]
    for unit in (-1, 3):
        with pytest.raises(ValueError, match=f"conv1 has the units 0 … 2, got {unit}"):
            a.served("conv1", unit)


def test_records_by_hand() -> None:
    rows = by_hand().to_records()
    assert len({tuple(row) for row in rows}) == 1  # the same columns in the same order
    assert [(row["layer"], row["unit"]) for row in rows] == [
        *(("conv1", i) for i in range(3)),
        *(("layer4", i) for i in (0, 1)),
    ]
    assert rows[1] == {
        "layer": "conv1",
        "kind": "convolution",
        "unit": 1,
        "label": "red",
        "family": "colours",
        "score": 1.0,
        "class_1": "class 7",
        "importance_1": 2.0,
        "class_2": None,
        "importance_2": None,
        "class_3": None,
        "importance_3": None,
        "exemplar": None,
        "masks": "Wheel",
        "masks_score": 0.25,
    }
    assert (rows[0]["class_2"], rows[0]["importance_2"], rows[0]["exemplar"]) == ("cat", 3.0, "k1")
    assert all(value is None for key, value in rows[3].items() if key not in ("layer", "kind", "unit"))


@pytest.mark.parametrize(
    ("text", "units"),
    [("EDGES", [0]), ("red", [1]), ("colour", [1]), ("wheel", [1]), ("cat", [0]), ("class 7", [0, 1]), ("none", [])],
)
def test_find(text: str, units: list[int]) -> None:
    assert [row["unit"] for row in by_hand().find(text)] == units


def test_find_refuses_an_empty_text() -> None:
    with pytest.raises(ValueError, match="a text to look for"):
        by_hand().find(" ")


def test_layers_must_belong_together() -> None:
    a = dissection()
    for changes, what in (
        ({"labels": LABELS[:2]}, "labels of 2"),
        ({"concepts": {"text": ()}}, "text of 0"),
        ({"importance": ClassImportance(4)}, "importance of 4"),
        ({"exemplars": Exemplars(2)}, "exemplars of 2"),
        ({"similarity": ChannelMoments(2)}, "similarity of 2"),
    ):
        with pytest.raises(ValueError, match=f"conv1 has 3 units, got {what}"):
            relabelled(a, **changes)
    with pytest.raises(ValueError, match="each layer once, got conv1 several"):
        replace(a, layers=a.layers[:1] * 2)
    with pytest.raises(ValueError, match="at least one layer"):
        replace(a, layers=())


# Drawn


def test_plot_shows_families_importances_and_patches() -> None:
    before = dict(matplotlib.rcParams)
    a = dissection(images=12)
    first, last = a.plot("conv1"), a.plot()
    assert first.mode == "RGB"
    assert first.width == last.width == 1430
    assert last.tobytes() == a.plot("layer4").tobytes() != first.tobytes()
    colours = {tuple(c) for _, c in first.getcolors(10**6) or []}
    assert {(0xD5,) * 3, (0x00, 0x72, 0xB2), (0x56, 0xB4, 0xE9)} <= colours  # unlabelled, colours, edges
    magenta = to_jpeg(np.full((16, 16, 3), (255, 0, 255), dtype=np.uint8))
    patches = np.asarray(replace(a, images=dict.fromkeys(a.images, magenta)).plot("conv1")).astype(int)
    assert (np.abs(patches - (255, 0, 255)).max(axis=2) < 8).sum() > 3 * 60**2  # one for each of three units
    assert replace(a, images={}).plot("conv1").height < first.height
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(ValueError, match="no layer 'fc'"):
        a.plot("fc")


def test_plot_of_a_dissection_without_images_is_its_bars() -> None:
    nothing = dissection_picture({"conv1": []}, "conv1", np.zeros((0, 3)), [])
    assert nothing.height < 400
    assert dissection_picture({"conv1": []}, "conv1", -np.ones((1, 3)), ["cat"]).height == nothing.height


def test_chosen_units_stand_beside_their_classes() -> None:
    values = np.array([[0.0, 5.0, 1.0, -1.0], [0.0, 6.0, 0.5, 2.0], [-1.0, -1.0, -1.0, -1.0]])
    # Unit 0 and the last class are served by none; unit 1 serves the second class more than the first.
    assert _chosen(values) == ([0, 1], [2, 1, 3])
    rows, columns = _chosen(np.eye(1000, 50))
    assert (rows, columns) == (list(range(16)), list(range(16)))
    assert len(_chosen(np.random.default_rng(0).random((40, 60)))[1]) == 24


def test_picture_refuses() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        dissection_picture({}, "a", np.eye(2), ["x", "y"])
    with pytest.raises(ValueError, match=r"importances \(1, C\), a row a class name, got \(2, 2\)"):
        dissection_picture({"a": []}, "a", np.eye(2), ["x"])
    with pytest.raises(ValueError, match="each of 2 units, or none, got 1"):
        dissection_picture({"a": []}, "a", np.eye(2), ["x", "y"], ["red"])
