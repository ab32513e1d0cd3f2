"""The command `detect`: what it finds, says, writes, and how it ends."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import run

import drnet_captum.cli.detection as detection
from drnet_captum import DRISE, Detections
from drnet_captum.cli.console import progress
from drnet_captum.cli.stopping import stoppable

# Bright blobs: their box and mean brightness; nothing on dark photos.
BLOBS = """
import torch

CLASSES = ["cat", "dog", "crow"]
class Blobs:
    def __call__(self, images):
        return [self.one(image.mean(0)) for image in images]

    def one(self, grey):
        found = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "class_probs": torch.zeros(0, 3)}
        bright = (grey > 0.3).nonzero()
        if len(bright) == 0:
            return found
        (top, left), (bottom, right) = bright.min(0).values, bright.max(0).values + 1
        score = grey[top:bottom, left:right].mean()
        boxes = torch.stack([left, top, right, bottom]).float()[None]
        if right - left < 0.6 * grey.shape[1]:
            boxes = torch.cat([boxes, boxes + 1])
        count = len(boxes)
        probs = torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1]])[:count]
        return {"boxes": boxes, "scores": torch.stack([score, score / 2])[:count], "class_probs": probs}

class Failing(Blobs):
    def __call__(self, images):
        raise ValueError("expected other images")

class Picky(Blobs):
    def __call__(self, images):
        if images.shape[3] > 200:
            raise ValueError("expected smaller images")
        return super().__call__(images)
"""
FAST = ("--n-masks", "60", "--grid", "4", "4")


@pytest.fixture
def blobs(tmp_path: Path) -> str:
    (tmp_path / "blobs.py").write_text(BLOBS)
    return f"python:{tmp_path / 'blobs.py'}:Blobs"


def photo(path: Path, size: tuple[int, int] = (40, 30), box: tuple[int, int, int, int] = (10, 8, 20, 20)) -> Path:
    """Black, with a bright box."""
    image = Image.new("RGB", size, "black")
    image.paste((230, 230, 230), box)
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return path


def detect(*args: str | Path) -> Any:
    return run("detect", "--device", "cpu", *args)


class TestFound:
    def test_what_is_found_is_explained(self, blobs: str, tmp_path: Path) -> None:
        path, out = photo(tmp_path / "p" / "blob.png"), tmp_path / "new" / "out"
        result = detect(path, "--detector", blobs, *FAST, "--min-score", "0.2", "--seed", "3", "--out", out)
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines == [
            f"{path}: dog 90% at 10 8 20 20",
            f"{path}: cat 45% at 11 9 21 21",
            f"{path}: 60 masks → {out / 'blob.png'}, {out / 'blob.npz'}",
        ]
        with np.load(out / "blob.npz") as held, Image.open(out / "blob.png") as image:
            image.load()
            assert image.width > 800
            assert held["maps"].shape == held["standard_errors"].shape == (2, 30, 40)
            assert held["maps"].dtype == held["standard_errors"].dtype == np.float32
            assert held["boxes"].tolist() == [[10, 8, 20, 20], [11, 9, 21, 21]]
            assert held["labels"].tolist() == [1, 0] and held["label_names"].tolist() == ["dog", "cat"]
            np.testing.assert_allclose(held["scores"], [230 / 255, 115 / 255], atol=1e-6)
            settings = {key: held[key].tolist() for key in ("n_masks", "seed", "grid", "keep_probability", "scale")}
            assert settings == {"n_masks": 60, "seed": 3, "grid": [4, 4], "keep_probability": 0.5, "scale": 1.0}
            self.check_maps(held, path, blobs)

    @staticmethod
    def check_maps(held: Any, path: Path, blobs: str) -> None:
        """They are those of DRISE in Python."""
        from drnet_captum.detect.load import load_detector

        x = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None] / 255
        targets = Detections(
            torch.from_numpy(held["boxes"]),
            torch.from_numpy(held["scores"]),
            torch.tensor([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]),
        )
        (expected,) = DRISE(load_detector(blobs)).attribute_detections(
            x, targets, n_masks=60, grid=(4, 4), generator=torch.Generator().manual_seed(3)
        )
        torch.testing.assert_close(torch.from_numpy(held["maps"]), expected)

    def test_the_least_score_and_the_most_detections(self, blobs: str, tmp_path: Path) -> None:
        path = photo(tmp_path / "blob.png")
        for args in (["--min-score", "0.5"], ["--min-score", "0.1", "--max-detections", "1"], []):
            result = detect(path, "--detector", blobs, *FAST, *args, "--out", tmp_path / "out")
            assert result.exit_code == 0 and "cat" not in result.stdout and "dog 90%" in result.stdout

    def test_a_large_photo_is_brought_down_and_its_boxes_are_not(self, blobs: str, tmp_path: Path) -> None:
        path, out = photo(tmp_path / "large.png", (400, 300), (100, 80, 200, 200)), tmp_path / "out"
        result = detect(path, "--detector", blobs, *FAST, "--max-side", "40", "--out", out)
        assert f"{path}: dog 88% at 100 80 200 200" in result.stdout
        with np.load(out / "large.npz") as held:
            assert held["maps"].shape == (1, 30, 40) and held["scale"] == 0.1
            np.testing.assert_allclose(held["boxes"], [[10, 8, 20, 20]])

    def test_the_precision_that_is_asked_for_ends_it(self, blobs: str, tmp_path: Path) -> None:
        path = photo(tmp_path / "blob.png")
        args = ("--detector", blobs, "--n-masks", "2000", "--grid", "4", "4", "--out", tmp_path / "out")
        result = detect(path, *args, "--stop-at", "0.5")
        assert result.exit_code == 0 and "250 masks →" in result.stdout

    def test_no_detection_is_said_and_the_others_go_on(self, blobs: str, tmp_path: Path) -> None:
        dark, bright = photo(tmp_path / "a.png", box=(0, 0, 0, 0)), photo(tmp_path / "b.png")
        result = detect(dark, bright, "--detector", blobs, *FAST, "--out", tmp_path / "out")
        assert result.exit_code == 0
        assert f"{dark}: no detections of at least 0.5: try a lower --min-score, or --box" in result.stdout
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["b.npz", "b.png"]

    def test_broken_files_are_named_and_the_others_go_on(self, blobs: str, tmp_path: Path) -> None:
        (tmp_path / "album").mkdir()
        (tmp_path / "album" / "a.png").write_text("no picture")
        photo(tmp_path / "album" / "b.png")
        photo(tmp_path / "album" / "c.png", (300, 30))
        spec = blobs.replace("Blobs", "Picky")
        result = detect(tmp_path / "album", "--detector", spec, *FAST, "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert f"could not read the image {tmp_path / 'album' / 'a.png'}" in result.stderr
        assert "c.png: expected smaller images" in result.stderr
        assert "2 of 3 images failed" in result.stderr
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["b.npz", "b.png"]


class TestDrawn:
    @pytest.mark.parametrize("named", ["crow", "CROW", "2"])
    def test_a_box_drawn_by_hand(self, blobs: str, tmp_path: Path, named: str) -> None:
        path, out = photo(tmp_path / "large.png", (80, 60), (20, 16, 40, 40)), tmp_path / "out"
        args = ("--box", "20", "16", "44", "40", "--class", named, "--max-side", "40")
        result = detect(path, "--detector", blobs, *FAST, *args, "--out", out)
        assert result.exit_code == 0
        assert f"{path}: crow (drawn) at 20 16 44 40" in result.stdout
        with np.load(out / "large.npz") as held:
            assert held["boxes"].tolist() == [[10, 8, 22, 20]] and held["labels"].tolist() == [2]

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--box", "1", "1", "9", "9"], "got --box without --class"),
            (["--class", "dog"], "got --class without --box"),
            (["--box", "9", "1", "1", "9", "--class", "dog"], "with X2 > X1 and Y2 > Y1, in pixels, got 9 1 1 9"),
            (["--box", "40", "1", "60", "9", "--class", "dog"], "outside of the photo, which has 40 × 30 pixels"),
            (["--box", "1", "1", "9", "9", "--class", "dgo"], "blobs:Blobs has no class 'dgo': did you mean dog"),
            (["--box", "1", "1", "9", "9", "--class", "3"], "has no class '3'"),
            (["--box", "1", "1", "9", "9", "--class", "cat,dog"], "expected one class for --box, got 'cat,dog'"),
            (["--box", "1", "1", "9", "9", "--class", "dog", "--min-score", "0.2"], "leave them out with --box"),
            (["--stop-at", "0"], "expected --stop-at above 0"),
            (["--keep-probability", "1.5"], "1.5"),
            (["--device", "abacus"], "unknown device 'abacus'"),
            (["--checkpoint", "absent.pt"], "no checkpoint file at absent.pt"),
        ],
    )
    def test_a_mistake_is_one_line_and_code_2(self, blobs: str, tmp_path: Path, args: list[str], message: str) -> None:
        result = detect(photo(tmp_path / "blob.png"), "--detector", blobs, *args, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (
                "torchvision:fasterrcnn",
                "torchvision has no detector called 'fasterrcnn': did you mean torchvision:faster",
            ),
            ("python:absent.py:Net", "no Python file at absent.py"),
        ],
    )
    def test_a_detector_that_is_not_there(self, tmp_path: Path, spec: str, message: str) -> None:
        result = detect(photo(tmp_path / "blob.png"), "--detector", spec)
        assert result.exit_code == 2 and message in result.stderr

    def test_a_detector_that_fails_at_once_ends_it(self, blobs: str, tmp_path: Path) -> None:
        paths = [photo(tmp_path / "a.png"), photo(tmp_path / "b.png")]
        result = detect(*paths, "--detector", blobs.replace("Blobs", "Failing"), "--out", tmp_path / "out")
        assert result.exit_code == 2 and result.stderr.count("expected other images") == 1


class TestStopping:
    @pytest.fixture(autouse=True)
    def heard(self) -> Iterator[None]:
        """Ctrl-C is heard, also where the tests run in the background of a shell, which has it ignored."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def interrupt(self, monkeypatch: pytest.MonkeyPatch, after: int, times: int = 1) -> None:
        """Ctrl-C, some times, while the estimate with a number of masks is made."""
        iterate = DRISE.attribute_iter

        def attribute_iter(drise: DRISE, *args: Any, **options: Any) -> Iterator[Any]:
            for found in iterate(drise, *args, **options | {"every": 25}):
                if found.n_masks == after:
                    for _ in range(times):
                        signal.raise_signal(signal.SIGINT)
                yield found

        monkeypatch.setattr(DRISE, "attribute_iter", attribute_iter)

    def test_the_masks_so_far_are_written(self, blobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        titles: list[str] = []
        draw = detection.detection_panel
        monkeypatch.setattr(
            detection,
            "detection_panel",
            lambda *args, **options: (titles.append(options["title"]), draw(*args, **options))[1],
        )
        self.interrupt(monkeypatch, 1250)
        paths, out = [photo(tmp_path / "a.png"), photo(tmp_path / "b.png")], tmp_path / "out"
        result = detect(*paths, "--detector", blobs, "--grid", "4", "4", "--out", out)
        assert result.exit_code == 130 and result.stderr == ""
        assert f"{paths[0]}: stopped after 1,250 of 5,000 masks → {out / 'a.png'}" in result.stdout
        assert titles == ["a.png · blobs:Blobs · stopped after 1,250 of 5,000 masks"]
        assert sorted(file.name for file in out.iterdir()) == ["a.npz", "a.png"]
        with np.load(out / "a.npz") as held:
            assert held["n_masks"] == 1250 and held["maps"].any()

    def test_a_second_one_ends_at_once(self, blobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.interrupt(monkeypatch, 50, times=2)
        result = detect(photo(tmp_path / "a.png"), "--detector", blobs, *FAST, "--out", tmp_path / "out")
        assert result.exit_code == 130
        assert "nothing was written" in result.stderr and not list((tmp_path / "out").iterdir())

    def test_at_the_last_masks_the_photo_is_done(
        self, blobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.interrupt(monkeypatch, 60)
        paths, out = [photo(tmp_path / "a.png"), photo(tmp_path / "b.png")], tmp_path / "out"
        result = detect(*paths, "--detector", blobs, *FAST, "--out", out)
        assert result.exit_code == 130
        assert "60 masks →" in result.stdout and "stopped after" not in result.stdout
        assert f"written so far: {out / 'a.png'}" in result.stderr

    def test_the_handler_is_put_back(self) -> None:
        heard: list[int] = []
        with stoppable(lambda: heard.append(1)) as pressed:
            signal.raise_signal(signal.SIGINT)
            assert len(pressed) == len(heard) == 1
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    @pytest.mark.parametrize(
        ("seconds", "batch", "every"),
        [(0.001, None, 250), (0.05, None, 25), (9.0, None, 5), (9.0, 8, 10), (0.05, 20, 25)],
    )
    def test_how_often_it_listens(self, seconds: float, batch: int | None, every: int) -> None:
        assert detection.masks_between_looks(torch.device("cpu"), seconds, batch) == every
        assert detection.masks_between_looks(torch.device("cuda"), seconds, batch) == 250


def test_a_progress_bar_tells_the_time_left() -> None:
    assert len(progress(remaining=True).columns) > len(progress().columns)


def test_a_photo_is_never_written_over(blobs: str, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    shutil.copy(photo(tmp_path / "p" / "x.png"), path)
    before = path.read_bytes()
    assert detect(path, "--detector", blobs, *FAST, "--out", tmp_path).exit_code == 0
    assert path.read_bytes() == before and (tmp_path / "cat-2.png").exists()


def test_help() -> None:
    result = detect("--help")
    assert result.exit_code == 0 and "--max-side" in result.stdout
