"""Photos in folders: which class a subfolder is, what is refused, and a dissection from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import CLASSES, ConvNet, NormedConvNet, seeded
from PIL import Image
from snapshot import of_everything, same
from torch.testing import assert_close

from drnet_captum import DRNet, ModelCard
from drnet_captum.data.card import IMAGENET_1K
from drnet_captum.dissect.photos import PhotoFolder, check_batch, classes_of
from drnet_captum.dissect.run import normalizer

NAMES = ("tabby cat", "Egyptian cat", "espresso", "7", "pier")
SIZE = (12, 10)


def to_input(photo: Image.Image) -> torch.Tensor:
    pixels = np.asarray(photo.resize(SIZE[::-1]), dtype=np.float32) / 255
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) * 2 - 1


def card(categories: tuple[str, ...] | None = NAMES) -> ModelCard:
    return ModelCard("mine", (3, *SIZE), (0.5,) * 3, (0.5,) * 3, to_input, categories)


def photo(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*SIZE, 3), shade, dtype=np.uint8)
    pixels[2:6, 3:7] = 255 - shade
    Image.fromarray(pixels).save(path)
    return path


def by_folder(root: Path, *names: str, categories: tuple[str, ...] | None = NAMES, classes: int = 5) -> dict[str, int]:
    for i, name in enumerate(names):
        photo(root / name / "a.png", 20 + i)
    data = PhotoFolder(root, card(categories), classes)
    return {path.parent.name: label for path, label in zip(data.paths, data.labels, strict=True)}


# Which class a subfolder is


def test_subfolders_by_name_in_any_case_and_by_number(tmp_path: Path) -> None:
    assert by_folder(tmp_path, "EGYPTIAN_cat", "espresso", "0") == {"0": 0, "EGYPTIAN_cat": 1, "espresso": 2}


def test_a_name_comes_before_a_number(tmp_path: Path) -> None:
    assert by_folder(tmp_path, "7", "4") == {"7": 3, "4": 4}


def test_imagenet_by_wordnet_number_and_name() -> None:
    found = classes_of(["n02123045", "espresso", "n01440764", "999"], IMAGENET_1K, 1000, Path("photos"))
    assert found == {"n02123045": IMAGENET_1K.index("tabby"), "espresso": 967, "n01440764": 0, "999": 999}
    assert classes_of(["n02123045"], None, 1000, Path("photos")) == {"n02123045": 281}


def test_the_first_of_two_classes_of_one_name() -> None:
    assert classes_of(["Crane"], ("owl", "crane", "car", "crane"), 4, Path("photos")) == {"Crane": 1}


def test_as_many_unknown_subfolders_as_classes_are_the_classes_in_order(tmp_path: Path) -> None:
    names = ("b", "e", "a", "d", "c")
    assert by_folder(tmp_path, *names, categories=None) == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    photo(tmp_path / "b.png"), photo(tmp_path / "a.jpg")
    data = PhotoFolder(tmp_path, card(), 5)
    assert [path.name for path in data.paths] == ["a.jpg", "b.png"]
    assert data.labels == [-1, -1] and len(data) == 2


def test_photos_deep_in_a_subfolder_are_of_its_class(tmp_path: Path) -> None:
    photo(tmp_path / "espresso" / "2021" / "may" / "a.png")
    photo(tmp_path / "pier" / "a.png", 30)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.txt").write_text("no photo")
    data = PhotoFolder(tmp_path, card(), 5)
    assert data.labels == [2, 4]
    image, label = data[1]
    assert label == 4
    assert_close(image, card().transform(Image.open(tmp_path / "pier" / "a.png")))


def test_batches_are_in_order(tmp_path: Path) -> None:
    for i in range(5):
        photo(tmp_path / NAMES[i] / "a.png", 40 * i)
    data = PhotoFolder(tmp_path, card(), 5)
    found = list(data.batches(2))
    assert [len(images) for images, _ in found] == [2, 2, 1]
    assert torch.cat([labels for _, labels in found]).tolist() == data.labels
    assert_close(torch.cat([images for images, _ in found]), torch.stack([image for image, _ in data]))


# What is refused


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("espresso", "dog"),
            r"subfolders dog of .* are none of the model's 5 classes: name them by class name or number",
        ),
        (("a", "b"), "subfolders a, b of"),
        (("espresso", "5"), "subfolders 5 of"),
        (("-1", "0"), "subfolders -1 of"),
        (("a", "b", "c", "d", "espresso"), "subfolders a, b, c, d of"),
        (("a", "b", "c", "d", "e", "f", "g"), "subfolders a, b, c, d, e of"),
        (("n02123045", "espresso"), "subfolders n02123045 of"),
    ],
)
def test_unknown_subfolders(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        by_folder(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        DRNet(seeded(ConvNet)).dissect(tmp_path, card=card())


def test_folders_that_are_mixed_missing_or_empty(tmp_path: Path) -> None:
    drnet = DRNet(seeded(ConvNet))
    with pytest.raises(FileNotFoundError, match="no such image file or folder"):
        drnet.dissect(tmp_path / "nowhere", card=card())
    with pytest.raises(ValueError, match="no images in the folder"):
        drnet.dissect(tmp_path, card=card())
    photo(tmp_path / "a.png"), photo(tmp_path / "espresso" / "a.png")
    with pytest.raises(ValueError, match="in one subfolder a class, got both"):
        drnet.dissect(tmp_path, card=card())


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    photo(tmp_path / "espresso" / "a.png")
    (tmp_path / "espresso" / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"could not read the image .*b\.png"):
        DRNet(seeded(ConvNet)).dissect(tmp_path, card=card())


# From folders to dissections


def test_a_dissection_of_a_folder_is_that_of_its_photos(tmp_path: Path) -> None:
    for i in range(6):
        photo(tmp_path / NAMES[i % 3] / f"{i}.png", 30 * i)
    model = seeded(ConvNet)
    found = DRNet(model).dissect(tmp_path, card=card(), stimuli=False, batch_size=4)
    assert found.counts == {0: 2, 1: 2, 2: 2}
    assert (found.class_names, found.class_label(2)) == (NAMES, "espresso")
    data = PhotoFolder(tmp_path, card(), CLASSES)
    x, y = torch.stack([image for image, _ in data]), torch.tensor(data.labels)
    other = DRNet(model).dissect([(x, y)], card=card(), stimuli=False)
    for units, same_units in zip(found.layers, other.layers, strict=True):
        assert_close(units.importance.state(), same_units.importance.state())
        assert units.exemplars.state()[1] == same_units.exemplars.state()[1]
    assert found.images == other.images


def test_a_flat_folder_takes_the_model_s_answers(tmp_path: Path) -> None:
    for i in range(4):
        photo(tmp_path / f"{i}.png", 60 * i)
    model = seeded(ConvNet)
    found = DRNet(model).dissect(str(tmp_path), card=card(), stimuli=False)
    data = PhotoFolder(tmp_path, card(), CLASSES)
    answers = model(torch.stack([image for image, _ in data])).argmax(1).tolist()
    assert found.counts == {c: answers.count(c) for c in sorted(set(answers))}


@pytest.mark.parametrize("training", [False, True])
def test_a_card_without_names(training: bool, tmp_path: Path) -> None:
    photo(tmp_path / "4" / "a.png"), photo(tmp_path / "4" / "b.png", 7)
    model = seeded(NormedConvNet).train(training)
    before = of_everything(model)
    found = DRNet(model).dissect(tmp_path, card=card(None), stimuli=False)
    assert (found.counts, found.class_label(4)) == ({4: 2}, "class 4")
    same(before, of_everything(model))
    photo(tmp_path / "5" / "a.png")
    with pytest.raises(ValueError, match=r"subfolders 5 of .* 5 classes"):
        DRNet(model).dissect(tmp_path, card=card(None))


def test_stimuli_are_normalised_as_photos_are() -> None:
    there = replace(card(), mean=(0.5, 0.4, 0.3), std=(0.9, 0.2, 0.05))
    photos = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    seen = normalizer(there, seeded(ConvNet))(photos)
    for photo, model_input in zip(photos, seen, strict=True):
        assert_close(torch.from_numpy(there.photo(model_input)), photo.permute(1, 2, 0))


# Batches


def test_what_a_loader_may_give() -> None:
    x, y = torch.rand(2, 3, 4, 4), torch.tensor([3, 1])
    for batch in ((x, y), [x, y], (x, y, "names"), ((x,), y)):
        images, labels = check_batch(batch)
        assert images is x and labels is y
    assert torch.equal(check_batch((x, [3, 1]))[1], y)
    for batch in (x, (x,), [x], (x, torch.tensor([-1, -1]))):
        images, labels = check_batch(batch)
        assert images is x and labels is None
    assert check_batch((x, torch.tensor([-1, 2])))[1].tolist() == [-1, 2]


@pytest.mark.parametrize("batch", [{"image": 1}, "photo.png", None, (), ((1, 2), torch.tensor([0]))])
def test_what_a_loader_may_not_give(batch: object) -> None:
    with pytest.raises(TypeError, match=r"expected batches of .images, labels. tensors"):
        check_batch(batch)


def test_labels_that_are_no_numbers() -> None:
    with pytest.raises(TypeError, match=r"labels that are integers, got .'cat', 'dog'"):
        check_batch((torch.rand(2, 3, 4, 4), ["cat", "dog"]))
