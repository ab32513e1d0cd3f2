"""The whole dissection: nets whose units are known, parts that add up, models of all kinds, nothing left behind."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from models import CLASSES, ConvNet, NormedConvNet, images, seeded
from snapshot import of_everything, same
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from drnet_captum import Dissection, DRNet, ModelCard, load_model, model_card
from drnet_captum.data import embedded_photos
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.dissect.labels import UNLABELLED

LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
MEAN, STD = (0.5, 0.4, 0.3), (0.9, 0.2, 0.05)


def sobel(degrees: float) -> Tensor:
    """Sobel's 3×3 filter of luminance, for lines at an angle."""
    across_columns = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    angle = math.radians(degrees)
    return LUMA * (-across_columns.T * math.cos(angle) - across_columns * math.sin(angle))


def disc(radius: float, size: int) -> Tensor:
    """A disc of luminance less the ring around it."""
    x = torch.arange(size) - size // 2
    distance = (x[:, None] ** 2 + x**2).sqrt()
    inside, around = (distance <= radius).float(), ((distance > radius) & (distance <= 1.25 * radius)).float()
    return LUMA * (inside / inside.sum() - around / around.sum())


LINES = {"horizontal edges": 0, "diagonal edges (45°)": 45, "vertical edges": 90, "diagonal edges (135°)": 135}
COLOURS = {"red": (1.0, -0.5, -0.5), "green": (-0.5, 1.0, -0.5), "blue": (-0.5, -0.5, 1.0)}
FILTERS = {
    "edges": {name: sobel(degrees) for name, degrees in LINES.items()},
    "colours": {name: torch.tensor(rgb)[:, None, None] for name, rgb in COLOURS.items()},
    "shapes": {"discs": disc(0.17 * 64, 27), "unlabelled": torch.zeros(3, 27, 27)},
}


class Known(nn.Module):
    """Filters that say what they detect, on photos that come normalised."""

    def __init__(self) -> None:
        super().__init__()
        for family, filters in FILTERS.items():
            weight = torch.stack([*filters.values()])
            step = nn.Conv2d(3, len(weight), weight.shape[-1], stride=2 if family == "shapes" else 1, bias=False)
            step.weight = nn.Parameter(weight)
            setattr(self, family, step)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        self.fc = nn.Linear(sum(map(len, FILTERS.values())), 2)

    def forward(self, x: Tensor) -> Tensor:
        photo = x * self.std + self.mean
        return self.fc(torch.cat([torch.relu(getattr(self, f)(photo)).mean((2, 3)) for f in FILTERS], 1))


def card(size: int = 64, name: str = "known", categories: tuple[str, ...] | None = None) -> ModelCard:
    return ModelCard(name, (3, size, size), MEAN, STD, lambda photo: torch.zeros(3, size, size), categories)


def test_units_built_by_hand_get_exactly_their_labels_without_data() -> None:
    model = seeded(Known)
    found = DRNet(model).dissect(card=card(categories=("this", "that")))
    assert [units.layer.name for units in found.layers] == [*FILTERS]
    for family, filters in FILTERS.items():
        assert [label.name for label in found[family].labels] == [*filters]
        assert {label.family for label in found[family].labels} <= {family, "unlabelled"}
        assert all(label == UNLABELLED or label.score > 0.7 for label in found[family].labels)
    assert (found.model, found.class_names, found.counts, found.images) == ("known", ("this", "that"), {}, {})
    assert [row["label"] for row in found.find("disc")] == ["discs"]


def batches(*seeds: int, n: int = 4) -> list[tuple[Tensor, Tensor]]:
    """The same images and labels for the same seeds."""
    labels = [torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return [(images(n, seed=seed), c) for seed, c in zip(seeds, labels, strict=True)]


def assert_equal(a: Dissection, b: Dissection, tolerance: float = 1e-6) -> None:
    assert (a.model, a.fingerprint, a.class_names, a.counts) == (b.model, b.fingerprint, b.class_names, b.counts)
    assert a.images == b.images
    assert [units.layer for units in a.layers] == [units.layer for units in b.layers]
    for one, other in zip(a.layers, b.layers, strict=True):
        assert (one.labels, one.concepts) == (other.labels, other.concepts)
        assert one.exemplars.state()[1] == other.exemplars.state()[1]
        assert_close(one.exemplars.state()[0], other.exemplars.state()[0], rtol=tolerance, atol=tolerance)
        assert_close(one.importance.state(), other.importance.state(), rtol=tolerance, atol=tolerance)
        assert (one.similarity is None) == (other.similarity is None)
        if one.similarity is not None and other.similarity is not None:
            assert_close(one.similarity.state(), other.similarity.state(), rtol=tolerance, atol=tolerance)


def test_two_halves_are_the_whole(tmp_path: Path) -> None:
    model = DRNet(seeded(NormedConvNet))
    loaders = [DataLoader(TensorDataset(*batches(s, n=9)[0]), batch_size=4) for s in (1, 2)]
    whole = model.dissect([*loaders[0], *loaders[1]])
    halves = [model.dissect(loader) for loader in loaders]
    assert sum(whole.counts.values()) == 18
    assert_equal(halves[0] + halves[1], whole)
    assert_equal(halves[1] + halves[0], whole)
    (halves[0] + halves[1]).save(tmp_path / "sum")
    assert_equal(Dissection.load(tmp_path / "sum"), whole)


def test_the_cut_into_batches_does_not_matter() -> None:
    model, (x, y) = seeded(ConvNet), batches(1, n=12)[0]
    assert_equal(DRNet(model).dissect([(x, y)]), DRNet(model).dissect(DataLoader(TensorDataset(x, y), 5)))


# Concepts of masks and of texts


class Colours(nn.Module):
    """Units of redness, of greenness, and one that is dead."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 3, 1, bias=False)
        self.colours.weight = nn.Parameter(
            torch.tensor([[1.0, -1, -1], [-1, 1, -1], [0, 0, 0]])[:, :, None, None], requires_grad=False
        )
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.colours(x)).mean((2, 3)))


def scenes(n: int = 12, size: int = 48, side: int = 5) -> tuple[Tensor, Tensor]:
    """Grey noise with a red (0) and a green (1) square, and what is where; no label elsewhere."""
    g = torch.Generator().manual_seed(0)
    x = 0.3 + 0.1 * torch.rand(n, 1, size, size, generator=g).expand(-1, 3, -1, -1).clone()
    masks = torch.full((n, size, size), -1)
    for i in range(n):
        for concept, left in enumerate((0, size // 2)):
            top, start = (int(torch.randint(0, size // 2 - side, (), generator=g)) for _ in range(2))
            there = (i, slice(top, top + side), slice(left + start, left + start + side))
            masks[there] = concept
            x[there[0], :, there[1], there[2]] = 0.0
            x[there[0], concept, there[1], there[2]] = 0.6 + 0.4 * torch.rand(side, side, generator=g)
    return x, masks


def test_network_dissection_finds_the_concepts() -> None:
    x, masks = scenes()
    model, names = seeded(Colours), ("a red thing", "a green thing")
    loader = DataLoader(TensorDataset(x, masks), 5)
    found = DRNet(model).dissect([(x, torch.zeros(len(x), dtype=torch.long))], masks=loader, mask_names=names)
    labels = found["colours"].concepts["masks"]
    assert [label.name for label in labels] == [*names, "unlabelled"]
    with torch.no_grad():
        maps = torch.relu(model.colours(x))
    for concept in (0, 1):
        active = maps[:, concept] > maps[:, concept].flatten().quantile(0.995)
        there = masks == concept
        iou = (active & there).sum() / (active | there).sum()
        assert float(iou) > 0.3
        assert labels[concept].score == pytest.approx(float(iou), abs=0.02)
    assert found["colours"].labels == ()
    plain = replace(card(48), mean=(0.0,) * 3, std=(1.0,) * 3)
    alone = DRNet(model).dissect(card=plain, masks=loader, mask_names=names)
    assert alone["colours"].concepts["masks"] == labels
    assert [label.name for label in alone["colours"].labels][:2] == ["red", "green"]


def test_texts_by_similarity() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(240, 3, 6, 6, generator=g)
    x[::2, 1] *= 0.2  # little green
    x[1::2, 0] *= 0.2  # little red
    seen = []

    def similarity(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return batch.mean((2, 3))

    data = DataLoader(TensorDataset(x, torch.arange(240) % 2), 100)
    found = DRNet(seeded(Colours)).dissect(data, similarity=similarity, concepts=["red", "green", "blue"])
    assert [label.name for label in found["colours"].concepts["text"]] == ["red", "green", "unlabelled"]
    assert seen == [100, 100, 40]


# Models


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_timm_models(name: str) -> None:
    model = seeded(timm.create_model, name, num_classes=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm's are zero at the end of a block, which cuts off what is before
            nn.init.ones_(module.weight)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and ".se." not in n]
    size = 160 if name == "test_vit" else 96
    x = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = DRNet(model).dissect([(x, torch.tensor([3, 1, 1]))], stimuli=False)
    kinds = {units.layer.name: units.layer.kind for units in found.layers}
    assert [n for n, kind in kinds.items() if kind == "convolution"] == convolutions
    assert len(kinds) >= len(convolutions) + 4
    if name == "test_vit":
        assert {f"blocks.{i}" for i in range(5)} <= kinds.keys()
    for units in found.layers:
        assert units.importance.classes.tolist() == [1, 3]
        assert units.importance.absolute.sum() > 0
        assert (units.similarity is None) == (units.layer.kind == "convolution")
    assert found.counts == {1: 2, 3: 1}
    assert found.class_names is None or len(found.class_names) == 4


def embedded(size: int) -> list[str]:
    model = load_model("embedded")
    smaller = replace(model_card(model), input_size=(3, size, size))
    return [label.family for label in DRNet(model).dissect(card=smaller, layers=["features.0"])["features.0"].labels]


def check_embedded(families: list[str]) -> None:
    known = [family for family in families if family != "unlabelled"]
    assert len(known) >= 0.6 * len(families)
    assert sum(family in ("edges", "colours") for family in known) >= 0.75 * len(known)


def test_the_embedded_model_begins_with_edges_and_colours() -> None:
    check_embedded(embedded(96))


@pytest.mark.slow
def test_the_embedded_model_begins_with_edges_and_colours_at_its_own_size() -> None:
    check_embedded(embedded(224))


def test_the_embedded_model_on_the_shipped_photos() -> None:
    model, photos = load_model("embedded"), embedded_photos()
    found = DRNet(model).dissect(photos["coffee"].parent, stimuli=False, exemplars=1)
    assert sum(found.counts.values()) == len(photos) == len(found.images)
    assert {found.class_label(c) for c in found.counts} >= {"espresso", "Egyptian cat"}
    assert "espresso" in {row["class_1"] for row in found.to_records()}


# Nothing is left behind, nothing grows


@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_caller_s_changes(training: bool) -> None:
    model = seeded(NormedConvNet).train(training)
    ((x, y),) = batches(1)
    x.requires_grad_()
    masks = [(x, torch.zeros(4, *x.shape[2:], dtype=torch.long))]
    before = of_everything(model, x, y)
    options = {"masks": masks, "mask_names": ["all"], "card": card(32)}
    DRNet(model).dissect([(x, y)], stimuli=False, **options)
    DRNet(model).dissect(stimuli=True, card=card(32))
    same(before, of_everything(model, x, y))
    with pytest.raises(ValueError, match="label"):
        DRNet(model).dissect([(x, y + 100)])
    same(before, of_everything(model, x, y))


def test_without_gradients_on() -> None:
    ((x, y),) = batches(1)
    drnet = DRNet(seeded(ConvNet))
    with torch.no_grad():
        quiet = drnet.dissect([(x, y)])
    assert_equal(quiet, drnet.dissect([(x, y)]))


def size(dissector: Dissector) -> int:
    """Bytes of all statistics."""
    total = 0
    for units in dissector.result().layers:
        states = [units.importance.state(), units.exemplars.state()[0]]
        states += [units.similarity.state()] if units.similarity else []
        total += sum(t.nbytes for state in states for t in state.values())
    return total


def test_memory_does_not_grow() -> None:
    dissector = Dissector(seeded(ConvNet), exemplars=2)
    sizes = []
    for number in range(50):
        dissector.update(images(10, seed=number), torch.arange(10) % CLASSES)
        if number in (4, 49):
            result = dissector.result()
            units = sum(each.layer.channels for each in result.layers)
            assert len(result.images) <= 2 * units
            assert set(result.images) == set().union(*(each.exemplars.referenced() for each in result.layers))
            sizes.append(size(dissector))
    assert sizes[0] == sizes[1]
    assert dissector.result().counts == dict.fromkeys(range(CLASSES), 100)
