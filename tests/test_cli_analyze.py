"""``drnet-captum analyze`` on a small model: what it says, what it writes, and how it ends."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from test_cli import run

from drnet_captum import Dissection, DRNet, load_model
from drnet_captum.analysis import modules_kept
from drnet_captum.cli.analyze import find_classes, read_photos
from drnet_captum.data import ModelCard, embedded_photos
from drnet_captum.dissect.dissector import Dissector

PHOTOS = embedded_photos()
MODEL = "timm:test_efficientnet"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four photos of two classes, by name and by WordNet number."""
    root = tmp_path_factory.mktemp("data")
    for folder, name in (("Espresso", "coffee"), ("n02124075", "chelsea")):
        (root / folder).mkdir()
        with Image.open(PHOTOS[name]) as photo:
            for i in range(12):
                photo.crop((8 * i, 4 * i, 200 + 8 * i, 200 + 4 * i)).save(root / folder / f"{i:02}.jpg")
    return root


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory, small_weights: Path, data: Path) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("out") / "new"
    args = ["--model", MODEL, "--checkpoint", small_weights, "--data", data, "--batch-size", "8", "--out", out]
    return run("analyze", PHOTOS["coffee"], PHOTOS["rocket"], *args), out


def test_says_the_lines_that_readers_of_the_method_expect(analysis: tuple[Any, Path]) -> None:
    result, out = analysis
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "Loading trained CNN model…" and lines[-1] == "DRNet analysis complete"
    layers = [line for line in lines if line.startswith("Analyzing layer ")]
    assert layers[0].startswith("Analyzing layer conv_stem (24 units): ") and len(layers) > 5
    assert all(re.search(r"\d+$", line) for line in layers)
    places = [lines.index(text) for text in ("Detected features:", "Reconstructing interpretable modules…")]
    modules = [line for line in lines if re.match(r"Module \d+: ", line)]
    assert places == sorted(places) and len(modules) >= 2 and lines.index(modules[0]) == places[1] + 1
    assert any("modules have 90% of the importance" in line for line in lines)
    assert str(out / "report.html") in result.stdout


def test_counts_of_a_layer_add_up_to_its_units(analysis: tuple[Any, Path]) -> None:
    for line in analysis[0].stdout.splitlines():
        if line.startswith("Analyzing layer "):
            units = int(re.search(r"\((\d+) units\)", line)[1])
            assert sum(int(part.rsplit(" ", 1)[1]) for part in line.split("): ")[1].split(", ")) == units


def test_writes_everything(analysis: tuple[Any, Path]) -> None:
    out = analysis[1]
    there = {path.name for path in out.iterdir()}
    pictures = {f"{name}-{kind}.png" for name in ("coffee", "rocket") for kind in ("features", "modules")}
    assert there == pictures | {
        "dissection",
        "dissection.png",
        "filters.png",
        "modules.csv",
        "report.html",
        "units.csv",
    }
    for name in pictures | {"dissection.png", "filters.png"}:
        with Image.open(out / name) as image:
            assert min(image.size) > 20


def test_the_dissection_is_loaded_again_and_is_of_that_model(analysis: tuple[Any, Path], small_weights: Path) -> None:
    dissection = Dissection.load(analysis[1] / "dissection")
    assert dissection.counts == {285: 12, 967: 12}  # Egyptian cat, espresso
    model = load_model(MODEL, checkpoint=small_weights)
    reconstruction = DRNet(model).reconstruct(dissection)
    with pytest.raises(ValueError, match="other weights"):
        DRNet(timm.create_model("test_efficientnet").eval()).reconstruct(dissection)
    with (analysis[1] / "modules.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(module.members) for module in reconstruction.modules)
    with (analysis[1] / "units.csv").open() as file:
        units = list(csv.DictReader(file))
    assert len(units) == len(dissection.to_records()) and {"layer", "unit", "label", "class_1"} <= units[0].keys()


def test_the_report_holds_the_layers_and_modules(analysis: tuple[Any, Path]) -> None:
    page = (analysis[1] / "report.html").read_text()
    block = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    found = json.loads(block[1])
    names = [layer["name"] for layer in found["layers"]]
    assert names[0] == "conv_stem" and len(found["modules"]) >= 2
    unit = found["layers"][0]["units"][0]
    assert unit["stimuli"] and unit["exemplars"] and unit["filter"] is not None and unit["projection"] is not None
    assert {name for name, _ in unit["served"]} <= {"Egyptian cat", "espresso"}
    assert "<h3>coffee.jpg</h3>" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_classes_leave_the_others_out(tmp_path: Path, small_weights: Path, data: Path) -> None:
    args = ["--model", MODEL, "--checkpoint", small_weights, "--data", data, "--class", "espresso", "--modules", "3"]
    args += ["--layer", "conv_stem", "--layer", "blocks.1"]
    result = run("analyze", *args, "--out", tmp_path)
    assert result.exit_code == 0
    assert Dissection.load(tmp_path / "dissection").counts == {967: 12}
    assert "Module 3: " in result.stdout and "Module 4: " not in result.stdout
    assert len(list(tmp_path.glob("*-modules.png"))) == 4  # some of the data stand for photos
    assert (
        len(list(tmp_path.glob("*-features-conv_stem.png"))) == len(list(tmp_path.glob("*-features-blocks.1.png"))) == 4
    )


def test_ctrl_c_keeps_what_was_dissected(
    tmp_path: Path, small_weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Dissector.update

    def interrupted(self: Dissector, *args: Any) -> Any:
        if self.images_seen >= 16:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(Dissector, "update", interrupted)
    args = ["--model", MODEL, "--checkpoint", small_weights, "--data", data, "--batch-size", "8", "--out", tmp_path]
    result = run("analyze", *args)
    assert result.exit_code == 130 and "written so far" in result.stderr
    assert sum(Dissection.load(tmp_path / "dissection").counts.values()) == 16


def test_a_broken_photo_in_the_data_is_named_and_the_sums_are_kept(
    tmp_path: Path, small_weights: Path, data: Path
) -> None:
    album = tmp_path / "album"
    shutil.copytree(data, album)
    (album / "n02124075" / "99.jpg").write_bytes(b"no picture")
    args = [
        "--model",
        MODEL,
        "--checkpoint",
        small_weights,
        "--data",
        album,
        "--batch-size",
        "8",
        "--out",
        tmp_path / "out",
    ]
    result = run("analyze", PHOTOS["coffee"], *args)
    assert result.exit_code == 2 and "99.jpg" in result.stderr and "written so far" in result.stderr
    assert sum(Dissection.load(tmp_path / "out" / "dissection").counts.values()) == 24


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--class", "expresso"], "has no class 'expresso': did you mean espresso"),
        (["--class", "1000"], "has no class '1000'"),
        (["--data", "nowhere"], "nowhere"),
        (["nowhere.jpg"], "nowhere.jpg"),
        (["--layer", "features.99"], "the model has no layer 'features.99'; near names: features.9"),
        (["--model", "timm:resnet51"], "timm has no model called 'resnet51'"),
    ],
)
def test_mistakes_end_with_a_line(args: list[str], message: str, tmp_path: Path) -> None:
    result = run("analyze", *args, "--out", tmp_path / "out")
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_data_of_other_classes_and_unreadable_photos(tmp_path: Path, small_weights: Path, data: Path) -> None:
    args = ["--model", MODEL, "--checkpoint", small_weights, "--out", tmp_path / "out"]
    result = run("analyze", *args, "--data", data, "--class", "tabby")
    assert result.exit_code == 2 and "are of the classes tabby" in result.stderr
    album = tmp_path / "album"
    shutil.copytree(data / "Espresso", album / "spaghetti western")
    result = run("analyze", *args, "--data", album)
    assert result.exit_code == 2 and "none of the model's 1000 classes" in " ".join(result.stderr.split())


def test_unreadable_images_are_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert list(read_photos([tmp_path / "broken.jpg", PHOTOS["coffee"]], None)) == ["coffee.jpg"]
    with pytest.raises(ValueError, match="no image could be read"):
        read_photos([tmp_path / "broken.jpg"], None)


def test_classes_by_name_and_number() -> None:
    card = ModelCard("m", (3, 8, 8), (0.5,) * 3, (0.5,) * 3, lambda p: torch.zeros(3, 8, 8), ("cat", "sea lion", "cat"))
    assert find_classes(["Sea lion, 0", "cat"], card) == [1, 0]
    unnamed = ModelCard("m", (3, 8, 8), (0.5,) * 3, (0.5,) * 3, lambda p: torch.zeros(3, 8, 8))
    assert find_classes(["12"], unnamed) == [12]
    with pytest.raises(ValueError, match="no class 'cat'"):
        find_classes(["cat"], unnamed)


def test_modules_kept() -> None:
    assert modules_kept([1.0]) == 1 and modules_kept([0.0, 0.0]) == 1
    assert modules_kept([0.6, 0.29, 0.11]) == 3
