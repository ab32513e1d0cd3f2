"""The command line: what it writes, what it says, and how it ends."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import drnet_captum
import drnet_captum.cli.explanation
from drnet_captum import explain, load_model, methods, model_card
from drnet_captum.cli import app
from drnet_captum.cli.device import find_device
from drnet_captum.cli.explanation import explain_photo, method_titles, percent
from drnet_captum.cli.outputs import output_names, write
from drnet_captum.data import ModelCard, embedded_photos, load_image
from drnet_captum.examples.simple_cnn import SimpleCNN

PHOTOS = embedded_photos()
FAST = ("--method", "grad_cam")


def run(*args: str | Path) -> Any:
    """The command's result; an exception that is no exit fails the test."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    out = tmp_path_factory.mktemp("demo") / "new folder"
    yield run("demo", "--out", out), out


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Two photos of one name, and two files that are no photos."""
    folder = tmp_path / "album"
    (folder / "deeper").mkdir(parents=True)
    shutil.copy(PHOTOS["coffee"], folder / "cup.jpg")
    shutil.copy(PHOTOS["rocket"], folder / "deeper" / "cup.jpg")
    (folder / "broken.jpg").write_bytes(PHOTOS["coffee"].read_bytes()[:5000])
    (folder / "text.png").write_text("no picture")
    return folder


def small_card() -> ModelCard:
    return ModelCard(
        "small", (3, 32, 32), (0.5,) * 3, (0.5,) * 3, lambda photo: torch.linspace(-1, 1, 3072).view(3, 32, 32)
    )


class TestDemo:
    def test_ends_well_and_says_where_the_files_are(self, demo: tuple[Any, Path]) -> None:
        result, out = demo
        assert result.exit_code == 0
        for text in (str(out / "chelsea.png"), str(out / "chelsea.npz"), "Egyptian cat", "tabby", "lynx"):
            assert text in result.stdout

    def test_every_method_is_there_or_named_as_left_out(self, demo: tuple[Any, Path]) -> None:
        result, out = demo
        with np.load(out / "chelsea.npz") as held:
            for name, method in methods().items():
                if name in held:
                    channels = 3 if method.output == "input" else 1
                    assert held[name].shape == (3, channels, 224, 224), name
                    assert held[name].dtype == np.float32
                    assert np.isfinite(held[name]).all() and held[name].any(), name
                else:
                    assert f"{method.title} is left out" in result.stdout

    def test_names_the_cats(self, demo: tuple[Any, Path]) -> None:
        with np.load(demo[1] / "chelsea.npz") as held:
            assert held["classes"].tolist() == [285, 282, 281]
            assert held["labels"].tolist() == ["Egyptian cat", "tiger cat", "tabby"]
            np.testing.assert_allclose(held["probabilities"], [0.42, 0.34, 0.23], atol=0.01)

    def test_the_picture_is_a_picture(self, demo: tuple[Any, Path]) -> None:
        with Image.open(demo[1] / "chelsea.png") as image:
            image.load()
            assert image.format == "PNG" and image.width > 1000 and image.height > 700


class TestExplain:
    def test_maps_are_those_of_explain(self, tmp_path: Path) -> None:
        names = ["grad_cam", "guided_backprop"]
        args = [arg for name in names for arg in ("--method", name)]
        result = run("explain", PHOTOS["coffee"], *args, "--top-k", "2", "--layer", "features.9", "--out", tmp_path)
        assert result.exit_code == 0
        model = load_model("embedded")
        x = model_card(model).transform(load_image(PHOTOS["coffee"]))[None]
        probabilities, classes = model(x).softmax(1)[0].topk(2)
        expected = explain(model, x, classes=classes.tolist(), methods=names, layer="features.9")
        with np.load(tmp_path / "coffee.npz") as held:
            assert set(held) == {*names, "classes", "labels", "probabilities"}
            assert held["classes"].tolist() == classes.tolist()
            assert held["labels"][0] == "espresso"
            torch.testing.assert_close(torch.from_numpy(held["probabilities"]), probabilities.detach())
            for name in names:
                torch.testing.assert_close(torch.from_numpy(held[name]), expected[name][:, 0])

    def test_a_broken_file_is_named_and_the_others_go_on(self, album: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = run("explain", PHOTOS["chelsea"], album, *FAST, "--out", out)
        assert result.exit_code == 1
        assert f"could not read the image {album / 'broken.jpg'}" in result.stderr
        assert f"could not read the image {album / 'text.png'}" in result.stderr
        assert "2 of 5 images failed" in result.stderr
        assert {p.name for p in out.iterdir()} == {
            f"{name}.{suffix}" for name in ("chelsea", "cup", "cup-2") for suffix in ("png", "npz")
        }
        labels = {name: np.load(out / f"{name}.npz")["labels"][0] for name in ("cup", "cup-2")}
        assert labels == {"cup": "espresso", "cup-2": "missile"}

    def test_a_photo_is_never_written_over(self, tmp_path: Path) -> None:
        photo = tmp_path / "cat.png"
        Image.open(PHOTOS["chelsea"]).save(photo)
        before = photo.read_bytes()
        assert run("explain", photo, *FAST, "--out", tmp_path).exit_code == 0
        assert photo.read_bytes() == before
        assert (tmp_path / "cat-2.png").exists() and (tmp_path / "cat-2.npz").exists()

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--method", "grad_cmm"], "unknown method 'grad_cmm' (did you mean 'grad_cam'?)"),
            (["--model", "timm:resnet51"], "timm has no model called 'resnet51': did you mean"),
            (["--model", "resnet50"], "unknown model 'resnet50'"),
            ([*FAST, "--layer", "features.99"], "no layer 'features.99'"),
            (["--device", "abacus"], "unknown device 'abacus': expected one of cpu"),
            (["--device", "cuda:99"], "the device 'cuda:99' is not there, only cpu"),
            (["--checkpoint", "no-such-file.safetensors"], "no checkpoint file at no-such-file.safetensors"),
            (["no-such-photo.jpg"], "no such image file or folder: no-such-photo.jpg"),
        ],
    )
    def test_a_mistake_is_one_line_and_code_2(self, tmp_path: Path, args: list[str], message: str) -> None:
        result = run("explain", PHOTOS["coffee"], *args, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert "Traceback" not in result.output

    @pytest.mark.parametrize("args", [["--dtype", "float16"], ["--top-k", "0"], ["--top-k", "x"]])
    def test_a_value_out_of_range_is_code_2(self, args: list[str]) -> None:
        assert run("explain", PHOTOS["coffee"], *args).exit_code == 2

    def test_a_file_in_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("")
        result = run("explain", PHOTOS["coffee"], *FAST, "--out", tmp_path / "out")
        assert result.exit_code == 2 and "expected --out to be a folder" in result.stderr

    def test_half_precision(self, tmp_path: Path) -> None:
        assert run("explain", PHOTOS["coffee"], *FAST, "--dtype", "bfloat16", "--out", tmp_path).exit_code == 0
        with np.load(tmp_path / "coffee.npz") as held:
            assert held["labels"][0] == "espresso" and held["grad_cam"].dtype == np.float32

    def test_settings_that_fail_for_the_first_photo_end_it(
        self, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def undefined(*args: Any, **kwargs: Any) -> Any:
            raise ValueError("CAM is not defined here")

        monkeypatch.setattr(drnet_captum.cli.explanation, "explain_photo", undefined)
        result = run("explain", album, *FAST, "--out", tmp_path / "out")
        assert result.exit_code == 2 and result.stderr.count("CAM is not defined here") == 1

    def test_ctrl_c_says_what_was_written(self, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = 0

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return explain_photo(*args, **kwargs)

        monkeypatch.setattr(drnet_captum.cli.explanation, "explain_photo", interrupted)
        out = tmp_path / "out"
        result = run("explain", PHOTOS["rocket"], PHOTOS["coffee"], *FAST, "--out", out)
        assert result.exit_code == 130
        assert f"written so far: {out / 'rocket.png'}, {out / 'rocket.npz'}" in result.stderr
        assert sorted(p.name for p in out.iterdir()) == ["rocket.npz", "rocket.png"]


class TestExplanation:
    def test_a_method_that_is_not_defined_is_noted(self) -> None:
        found = explain_photo(SimpleCNN().eval(), small_card(), Image.new("RGB", (8, 8)), methods="all", top_k=50)
        assert len(found.classes) == 10 and found.labels[0] == f"class {found.classes[0]}"
        assert "cam" not in found.maps
        assert [note for note in found.notes if note.startswith("CAM is left out")]

    def test_a_method_that_is_named_and_not_defined_raises(self) -> None:
        with pytest.raises(ValueError, match="CAM is defined for heads"):
            explain_photo(SimpleCNN().eval(), small_card(), Image.new("RGB", (8, 8)), methods=["cam"])

    def test_scores_that_are_not_finite(self) -> None:
        model = SimpleCNN().eval()
        with torch.no_grad():
            model.fc3.bias[0] = torch.nan
        with pytest.raises(ValueError, match="scores are not finite in torch\\.float32"):
            explain_photo(model, small_card(), Image.new("RGB", (8, 8)))

    def test_titles_are_the_registry_s(self) -> None:
        assert method_titles(["grad_cam", "cam"]) == {"grad_cam": "Grad-CAM", "cam": "CAM"}

    @pytest.mark.parametrize(
        ("p", "text"), [(0.0, "0%"), (0.004, "<1%"), (0.0099, "<1%"), (0.01, "1%"), (0.226, "23%"), (1.0, "100%")]
    )
    def test_percent(self, p: float, text: str) -> None:
        assert percent(p) == text


class TestOutputs:
    def test_names_are_all_different(self) -> None:
        images = [Path(p) for p in ("a/x.jpg", "b/x.jpg", "x-2.jpg", "X.PNG", "é.jpg")]
        assert output_names(images, Path("out")) == ["x", "x-2", "x-2-2", "X-3", "é"]

    def test_a_file_is_written_whole_or_not_at_all(self, tmp_path: Path) -> None:
        def broken(file: Any) -> None:
            file.write(b"half")
            raise RuntimeError("disk is full")

        path = tmp_path / "a.npz"
        path.write_bytes(b"before")
        with pytest.raises(RuntimeError, match="disk is full"):
            write(path, broken)
        assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]

    def test_device(self) -> None:
        assert find_device("cpu") == torch.device("cpu")
        assert find_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
        with pytest.raises(ValueError, match="holds no values"):
            find_device("meta")


def test_methods_lists_the_registry() -> None:
    result = run("methods")
    assert result.exit_code == 0
    for name, method in methods().items():
        assert name in result.stdout and method.title in result.stdout


@pytest.mark.parametrize("args", [[], ["demo"], ["explain"], ["methods"], ["example"], ["example", "simple-cnn"]])
def test_help(args: list[str]) -> None:
    result = run(*args, "--help")
    assert result.exit_code == 0 and "Usage" in result.stdout


def test_version() -> None:
    assert run("--version").stdout.strip() == f"drnet-captum {drnet_captum.__version__}"


def test_python_m(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["drnet_captum", "--version"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("drnet_captum", run_name="__main__")
    assert left.value.code == 0 and drnet_captum.__version__ in capsys.readouterr().out
