"""``drnet-captum subnetwork`` on a small model: what it says, what it writes, and how it ends."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_cli import run
from torch.testing import assert_close

from drnet_captum import DRNet, load_model, model_card
from drnet_captum.cli import subnetwork_files
from drnet_captum.cli.subnetwork import labelled_photos, lost
from drnet_captum.cli.subnetwork_files import as_json
from drnet_captum.data import embedded_photo, embedded_photos
from drnet_captum.dissect.fingerprint import fingerprint
from drnet_captum.reconstruct import groups
from drnet_captum.reconstruct.masks import MaskedModel
from drnet_captum.reconstruct.subnetwork import SubNetwork
from drnet_captum.reconstruct.subnetwork_report import SubNetworkReport, Variant

PHOTOS = embedded_photos()
MODEL = "timm:test_efficientnet"
FILES = {"channels.json", "report.csv", "report.txt", "subnetwork.pt", "subnetwork.pt2"}

ALONE = """
import sys, torch
images = torch.load("images.pt")
exported = torch.export.load("out/subnetwork.pt2").module()
answers = [exported(images), exported(images[:1])]
module = torch.load("out/subnetwork.pt", weights_only=False)
answers.append(module(images))
torch.save(([a.detach() for a in answers], sum(p.numel() for p in module.parameters())), "answers.pt")
assert not any(name.startswith(("drnet_captum", "captum", "torch_pruning")) for name in sys.modules)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photos of three classes, by name, number and WordNet number."""
    root = tmp_path_factory.mktemp("data")
    for folder, name in (("Espresso", "coffee"), ("n02124075", "chelsea"), ("657", "rocket")):
        (root / folder).mkdir()
        with Image.open(PHOTOS[name]) as photo:
            for i in range(3):
                photo.crop((8 * i, 4 * i, 200 + 8 * i, 200 + 4 * i)).save(root / folder / f"{i:02}.jpg")
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds that an export takes."""
    monkeypatch.setattr(subnetwork_files, "exported", lambda model, example: b"exported")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, small_weights: Path, data: Path) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("new") / "out"
    args = [
        "--model",
        MODEL,
        "--checkpoint",
        small_weights,
        "--data",
        data,
        "--class",
        "espresso, 285",
        "--budget",
        "0.5",
    ]
    return run("subnetwork", *args, "--batch-size", "4", "--out", out), out


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "channels.json").read_text())
    return found


def test_says_what_it_costs_and_how_to_load_it(cut: tuple[Any, Path]) -> None:
    result, out = cut
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "Loading trained CNN model…" and "for espresso, Egyptian cat: " in lines[1]
    assert any(line.startswith("whole network ") and "0.36 M" in line for line in lines)
    assert any(line.startswith("sub-network ") and "%" in line for line in lines)
    assert any(line.startswith("random channels") for line in lines)
    assert any(line.startswith("of the 6 photos that it was chosen by") for line in lines)
    assert lines[-1] == f'load: torch.export.load("{out / "subnetwork.pt2"}").module()(images)'


def test_writes_everything(cut: tuple[Any, Path], small_weights: Path) -> None:
    out = cut[1]
    assert {path.name for path in out.iterdir()} == FILES
    found, model = read(out), load_model(MODEL, checkpoint=small_weights)
    assert found["classes"] == [967, 285] and found["class_names"] == ["espresso", "Egyptian cat"]
    assert found["images"] == {"285": 3, "967": 3}
    assert found["fingerprint"] == fingerprint(model) and found["input_size"] == [3, 160, 160]
    assert 0.4 < found["share"] <= found["budget"] == 0.5 and found["budget_of"] == "parameters"
    assert found["keep"].keys() == found["channels"].keys()
    for name, channels in found["keep"].items():
        assert 0 < len(channels) <= found["channels"][name] == model.get_submodule(name).out_channels
    with (out / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["name"] == "whole network" and int(rows[1]["parameters"]) < int(rows[0]["parameters"])
    assert "espresso" in (out / "report.txt").read_text()


def test_what_it_writes_runs_without_this_package_and_answers_as_the_masked_model(
    cut: tuple[Any, Path], small_weights: Path, tmp_path: Path
) -> None:
    images = torch.rand(3, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    shutil.copytree(cut[1], tmp_path / "out")
    subprocess.run([sys.executable, "-I", "-c", ALONE], cwd=tmp_path, check=True)
    (batch, first, module), size = torch.load(tmp_path / "answers.pt")
    model, found = load_model(MODEL, checkpoint=small_weights), read(cut[1])
    keep = {name: tuple(channels) for name, channels in found["keep"].items()}
    with torch.no_grad():
        expected = MaskedModel(model, keep, images[:1])(images)[:, found["classes"]]
    for answer in (batch, module):
        assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    assert_close(first, batch[:1], rtol=1e-4, atol=1e-5)
    assert size < 0.5 * sum(p.numel() for p in model.parameters())


@pytest.mark.usefixtures("quick")
def test_classes_are_those_of_the_subfolders_and_gates_are_learned(
    tmp_path: Path, small_weights: Path, data: Path
) -> None:
    args = ["--model", MODEL, "--checkpoint", small_weights, "--data", data, "--method", "gates", "--budget-of", "macs"]
    result = run("subnetwork", *args, "--out", tmp_path)
    assert result.exit_code == 0
    found = read(tmp_path)
    assert found["classes"] == [285, 657, 967] and found["method"] == "gates" and found["budget_of"] == "macs"
    assert 0.6 < found["share"] <= 0.65


@pytest.mark.usefixtures("quick")
def test_of_a_flat_folder_the_models_answers_are_the_labels(tmp_path: Path, small_weights: Path) -> None:
    (tmp_path / "flat").mkdir()
    for name in ("coffee", "rocket"):
        shutil.copy(PHOTOS[name], tmp_path / "flat")
    model = load_model(MODEL, checkpoint=small_weights)
    card = model_card(model)
    answers = [int(model(card.transform(embedded_photo(name))[None]).argmax()) for name in ("coffee", "rocket")]
    args = ["--model", MODEL, "--checkpoint", small_weights, "--data", tmp_path / "flat", "--out", tmp_path / "out"]
    result = run("subnetwork", *args)
    assert result.exit_code == 0 and read(tmp_path / "out")["classes"] == sorted(set(answers))
    assert f"coffee.jpg: {card.label(answers[0])} ({answers[0]})" in result.stdout.splitlines()
    other = next(c for c in range(1000) if c not in answers)
    result = run("subnetwork", *args, "--class", str(other))
    assert result.exit_code == 2 and "no photos are of the classes" in result.stderr
    assert card.label(answers[0]) in " ".join(result.stderr.split())


def test_ctrl_c_leaves_nothing(
    tmp_path: Path, small_weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(subnetwork_files, "exported", interrupted)
    result = run("subnetwork", "--model", MODEL, "--checkpoint", small_weights, "--data", data, "--out", tmp_path)
    assert result.exit_code == 130 and "nothing was written" in result.stderr
    assert not list(tmp_path.iterdir())


def test_where_there_is_no_export_and_where_there_are_no_slices(
    tmp_path: Path, small_weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **options: Any) -> Any:
        raise ValueError("it branches\non its input")

    for name in FILES:
        (tmp_path / name).write_bytes(b"of a run before")
    args = [
        "--model",
        MODEL,
        "--checkpoint",
        small_weights,
        "--data",
        data,
        "--budget-of",
        "channels",
        "--out",
        tmp_path,
    ]
    monkeypatch.setattr(subnetwork_files, "exported", fails)
    result = run("subnetwork", *args)
    assert result.exit_code == 0 and "cannot trace it (ValueError: it branches)" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"subnetwork.pt2"}
    monkeypatch.setattr(SubNetwork, "sliced", fails)
    result = run("subnetwork", *args)
    assert result.exit_code == 0 and "it branches" in result.stdout and "MaskedModel" in result.stdout.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"subnetwork.pt2", "subnetwork.pt"}


def test_a_missing_package_is_told_before_anything_is_dissected(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise ImportError("pip install this")

    monkeypatch.setattr(groups, "_torch_pruning", missing)
    result = run("subnetwork", "--model", MODEL, "--checkpoint", small_weights, "--out", tmp_path / "out")
    message = " ".join(result.stderr.split())
    assert result.exit_code == 2 and "pip install this; --budget-of channels needs no slices" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--class", "expresso"], "has no class 'expresso': did you mean espresso"),
        (["--class", "tabby"], "no photos are of the classes tabby: there are Egyptian cat, missile, espresso"),
        (["--budget", "0"], "expected --budget to be above 0 and at most 1"),
        (["--budget", "1.5"], "expected --budget to be above 0 and at most 1"),
        (["--budget", "0.0001"], "one group a layer already costs"),
        (["--budget-of", "bytes"], "bytes"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_with_a_line(
    args: list[str], message: str, tmp_path: Path, small_weights: Path, data: Path
) -> None:
    usual = ["--model", MODEL, "--checkpoint", small_weights, "--data", data, "--out", tmp_path / "out"]
    result = run("subnetwork", *usual, *args)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output and not list(tmp_path.glob("out/*"))


def test_of_many_classes_some_have_to_be_named(tmp_path: Path, small_weights: Path, data: Path) -> None:
    for c in range(11):
        shutil.copytree(data / "Espresso", tmp_path / "many" / str(c))
    args = ["--model", MODEL, "--checkpoint", small_weights, "--data", tmp_path / "many", "--out", tmp_path / "out"]
    result = run("subnetwork", *args)
    assert result.exit_code == 2 and "expected --class: there are photos of 11 classes" in " ".join(
        result.stderr.split()
    )


def test_what_is_lost_is_told() -> None:
    variants = (Variant("whole", among=1.0, over_all=0.9), Variant("part", among=1.0, over_all=0.6))
    (line,) = lost(SubNetworkReport("title", (), (), variants, 10))
    assert line.startswith("over all outputs, 3 right answers fewer")
    assert not list(lost(SubNetworkReport("title", (), (), variants[::-1], 10)))


def test_json_has_lists_in_a_line() -> None:
    value = {"a": [1, 2], "b": {"c": [3], "d": "“x”"}, "e": None}
    assert json.loads(as_json(value)) == value
    assert as_json(value).splitlines()[1] == ' "a": [1, 2],'


def test_the_embedded_network_cut_to_five_classes_is_smaller_and_answers_the_same() -> None:
    model = load_model()
    card = model_card(model)
    found = labelled_photos(model, card, None, 4)
    assert [path.stem for path in found.paths] == list(PHOTOS) and found.labels == [422, 285, 967, 657]
    photos = torch.stack([card.transform(embedded_photo(name)) for name in ("chelsea", "coffee", "rocket")])
    classes, cats = [281, 282, 285, 967, 657], {281, 282, 285}
    seen = photos[[0, 0, 0, 1, 2]]
    dissection = DRNet(model).dissect([(torch.cat([seen, seen.flip(-1)]), torch.tensor(classes * 2))], stimuli=False)
    part = DRNet(model).reconstruct(dissection, classes=classes, budget=0.65)
    small = part.sliced()
    with torch.no_grad():
        cat, *others = (classes[i] for i in small(photos).argmax(1).tolist())
        assert cat in cats and others == [967, 657]
        # Of 1,000 classes the whole network gives its rocket 17%, so that there little decides.
        cat, coffee, _ = part.masked()(photos).argmax(1).tolist()
        assert cat in cats and coffee == 967
    assert sum(p.numel() for p in small.parameters()) < 0.45 * sum(p.numel() for p in model.parameters())
