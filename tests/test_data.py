"""Photos and cards: what the files hold, and what a wrong one is told."""

from __future__ import annotations

import gc
import hashlib
import weakref
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from drnet_captum.data import (
    ModelCard,
    embedded_photo,
    embedded_photos,
    find_images,
    load_image,
    load_model,
    model_card,
)


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    return load_model("embedded")


# Photos


def test_the_assets_are_those_whose_licences_are_stated() -> None:
    folder = embedded_photos()["coffee"].parent
    stated = dict(
        reversed(line.split())
        for line in (folder / "README.md").read_text("utf-8").splitlines()
        if len(line.split()) == 2
    )
    shipped = {file.name for file in folder.iterdir() if file.suffix in (".jpg", ".safetensors")}
    assert shipped == {name for name in stated if "." in name}
    for name in shipped:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == stated[name]


def test_embedded_photo_of_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="no embedded photo 'dog': there are astronaut, chelsea, coffee, rocket"):
        embedded_photo("dog")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 1), 100), (100, 100, 100)),
        (Image.new("1", (2, 1), 1), (255, 255, 255)),
        (Image.fromarray(np.full((1, 2), 257 * 40, dtype=np.uint16)), (40, 40, 40)),  # 16 bits: 257 · 40 is 40 of 255
        (Image.new("RGBA", (2, 1), (255, 0, 0, 0)), (255, 255, 255)),  # nothing of the hidden red
        (Image.new("LA", (2, 1), (0, 255)), (0, 0, 0)),
        (Image.new("RGB", (2, 1), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 2, 3)),
    ],
    ids=["grey", "bilevel", "16 bit", "transparent", "grey with alpha", "palette"],
)
def test_every_kind_of_png_becomes_rgb(tmp_path: Path, image: Image.Image, expected: tuple[int, int, int]) -> None:
    image.save(tmp_path / "image.png")
    loaded = load_image(tmp_path / "image.png")
    assert (loaded.mode, loaded.size, loaded.getpixel((1, 0))) == ("RGB", (2, 1), expected)


def test_cmyk_and_float_images(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "white.jpg")
    assert load_image(tmp_path / "white.jpg").getpixel((4, 4)) == (255, 255, 255)
    Image.fromarray(np.full((1, 2), 0.2, dtype=np.float32)).save(tmp_path / "fifth.tif")
    assert load_image(tmp_path / "fifth.tif").getpixel((0, 0)) == (51, 51, 51)
    Image.fromarray(np.full((1, 2), 7.0, dtype=np.float32)).save(tmp_path / "seven.tif")
    with pytest.raises(ValueError, match=r"seven\.tif: pixel values from 7 to 7, expected 0 to 1"):
        load_image(tmp_path / "seven.tif")


def test_exif_orientation_turns_the_photo_upright(tmp_path: Path) -> None:
    lying = Image.new("RGB", (16, 8))
    lying.paste((255, 0, 0), (0, 0, 8, 8))  # red at the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    lying.save(tmp_path / "turned.png", exif=exif)
    upright = load_image(tmp_path / "turned.png")
    assert upright.size == (8, 16)
    assert upright.getpixel((4, 2)) == (255, 0, 0)  # red at the top
    assert upright.getpixel((4, 13)) == (0, 0, 0)


def test_unreadable_images_are_named_with_the_reason(tmp_path: Path) -> None:
    whole = embedded_photos()["coffee"].read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"could not read the image .*half\.jpg: .*truncated"):
        load_image(tmp_path / "half.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.jpg: not an image that Pillow can read"):
        load_image(tmp_path / "text.jpg")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png"):
        load_image(tmp_path / "empty.png")
    with pytest.raises(ValueError, match="could not read the image"):
        load_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        load_image(tmp_path / "none.jpg")


def test_find_images_takes_files_as_named_and_folders_in_order(tmp_path: Path) -> None:
    names = ["b.JPG", "a.png", "deep/er/c.webp", "notes.txt", ".hidden.png", ".cache/d.png", "odd.xyz"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folder = [tmp_path / name for name in ("a.png", "b.JPG", "deep/er/c.webp")]
    assert find_images(tmp_path) == folder
    assert find_images([str(tmp_path / "odd.xyz"), tmp_path]) == [tmp_path / "odd.xyz", *folder]
    assert find_images([tmp_path / "b.JPG", tmp_path]) == [folder[1], folder[0], folder[2]]  # each once


def test_find_images_with_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such image file or folder"):
        find_images([tmp_path / "none"])
    with pytest.raises(ValueError, match=r"no images in the folder .*looked for \.bmp"):
        find_images([tmp_path])
    with pytest.raises(ValueError, match="at least one"):
        find_images([])


# Cards


def test_photo_undoes_the_normalisation(squeezenet: nn.Module) -> None:
    card = model_card(squeezenet)
    seen = torchvision.transforms.functional.pil_to_tensor(
        torchvision.transforms.functional.center_crop(
            torchvision.transforms.functional.resize(embedded_photo("coffee"), [256], antialias=True), [224]
        )
    )
    photo = card.photo(card.transform(embedded_photo("coffee")))
    assert photo.dtype == np.float32
    assert photo.shape == (224, 224, 3)
    assert np.abs(photo - seen.permute(1, 2, 0).numpy() / 255).max() < 1e-3


def test_photo_in_numbers_and_in_range() -> None:
    card = ModelCard("two", (3, 1, 2), (0.5, 0.4, 0.3), (0.1, 0.2, 0.5), lambda photo: torch.zeros(3, 1, 2))
    x = torch.tensor([[[1.0, -9.0]], [[-1.0, 0.0]], [[1.0, 9.0]]], dtype=torch.bfloat16)
    np.testing.assert_allclose(card.photo(x), [[[0.6, 0.2, 0.8], [0.0, 0.4, 1.0]]], atol=1e-6)
    with pytest.raises(ValueError, match=r"one model input of shape \(3, H, W\), got \(1, 3, 1, 2\): take one"):
        card.photo(x[None])


def test_labels_fall_back_to_numbers(squeezenet: nn.Module) -> None:
    card = model_card(squeezenet)
    assert card.input_size == (3, 224, 224)
    assert [card.label(i) for i in (281, 999, 1000, -1)] == ["tabby", "toilet tissue", "class 1000", "class -1"]


def test_cards_of_timm_models() -> None:
    card = model_card(timm.create_model("test_resnet"))
    assert (card.name, card.input_size, card.mean) == ("test_resnet.r160_in1k", (3, 160, 160), (0.5, 0.5, 0.5))
    assert card.label(967) == "espresso"
    assert card.transform(embedded_photo("rocket")).shape == (3, 160, 160)
    assert model_card(timm.create_model("test_resnet", num_classes=7)).categories is None


def test_cards_that_cannot_be() -> None:
    with pytest.raises(
        ValueError, match=r"made by load_model.* or by timm, got Linear, .* write its card yourself, Mod"
    ):
        model_card(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"expected input_size \(3, H, W\), got \(1, 28, 28\)"):
        ModelCard("grey", (1, 28, 28), (0.5,), (0.5,), lambda photo: torch.zeros(1, 28, 28))
    with pytest.raises(ValueError, match="three positive stds"):
        ModelCard("flat", (3, 8, 8), (0.5,) * 3, (0.0,) * 3, lambda photo: torch.zeros(3, 8, 8))


def test_a_card_does_not_keep_its_model_alive() -> None:
    model = load_model("timm:test_resnet", pretrained=False)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
