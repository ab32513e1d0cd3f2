"""``drnet-captum layers`` and ``drnet-captum zoo``: what they print and write, and how they stop and go on."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from typer.testing import CliRunner

import drnet_captum.zoo
from drnet_captum import find_cut_layers, find_target_layer
from drnet_captum.cli import app
from drnet_captum.cli.layers import parameter_shares
from drnet_captum.cli.zoo import reasons
from drnet_captum.data import embedded_photos, load_image
from drnet_captum.zoo import COLUMNS, MAP_COLUMNS, draw_strip, survey

PHOTOS = embedded_photos()
TWO = ("--images", PHOTOS["coffee"], "--images", PHOTOS["rocket"], "--no-pretrained", "--device", "cpu")
CONVNEXTS = ["test_convnext", "test_convnext2", "test_convnext3"]


def run(*args: str | Path) -> Any:
    """The command's result; an exception that is no exit fails the test."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def untimed(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in table(path)]


class TestLayers:
    @pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
    def test_lists_what_python_finds(self, name: str) -> None:
        result = run("layers", f"timm:{name}")
        model = timm.create_model(name).eval()
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        rows = [line.replace("→", " ").split() for line in lines if "%" in line]
        cuts = find_cut_layers(model)
        assert [row[:4] for row in rows] == [
            [cut.name, type(cut.module).__name__, cut.layout, "×".join(map(str, cut.grid))] for cut in cuts
        ]
        prefixed = name == "test_vit"
        assert ("prefix" in result.stdout) is prefixed
        expected = [[str(cut.channels), *([str(cut.prefix_tokens)] if prefixed else [])] for cut in cuts]
        assert [row[4:-1] for row in rows] == expected
        assert [line.split()[1] for line in lines if line.startswith("→")] == [find_target_layer(model).name, "the"]

    @pytest.mark.parametrize("model", ["embedded", "torchvision:vit_b_16", "timm:densenet121"])
    def test_fits_80_columns_uncut(self, model: str) -> None:
        result = run("layers", model, "--input-size", "224", "224")
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= 80 and "…" not in result.stdout

    def test_input_size(self) -> None:
        assert "9×13" in run("layers", "embedded", "--input-size", "160", "224").stdout
        result = run("layers", "timm:test_vit", "--input-size", "200", "240")
        assert result.exit_code == 2 and "does not run on an image of (3, 200, 240)" in result.stderr

    def test_branches_are_the_reason(self) -> None:
        result = run("layers", "timm:crossvit_tiny_240")
        assert result.exit_code == 2
        assert "no layer with a grid decides the answer alone" in result.stdout
        assert "no target layer: CrossVit ends in several branches" in result.stderr

    def test_the_cut_layers_are_listed_where_none_is_the_target(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class PixelScores(nn.Sequential):
            """Its only layer is the classifier."""

        monkeypatch.setattr(
            "drnet_captum.data.load_model",
            lambda *args, **kwargs: PixelScores(nn.Conv2d(3, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        result = run("layers", "embedded", "--input-size", "8", "8")
        assert result.exit_code == 2
        assert "Conv2d" in result.stdout and "→" not in result.stdout
        assert "found no layer before the classifier" in result.stderr

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["timm:resnet51"], "timm has no model called 'resnet51': did you mean"),
            (["resnet50"], "unknown model 'resnet50'"),
            (["embedded", "--input-size", "0", "8"], "expected --input-size to be two positive integers, got 0 8"),
        ],
    )
    def test_a_mistake_is_one_line_and_code_2(self, args: list[str], message: str) -> None:
        result = run("layers", *args)
        assert result.exit_code == 2
        assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1


class TestParameterShares:
    def test_counted_by_hand(self) -> None:
        shared = nn.Conv2d(2, 2, 1, bias=False)  # 4 parameters, used twice
        unused = nn.Linear(10, 1, bias=False)

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones(6))  # owned by the model, which begins first
                self.a, self.b, self.c, self.unused = shared, nn.Sequential(nn.Conv2d(2, 5, 2)), shared, unused
                self.between = nn.ReLU()

            def forward(self, x: torch.Tensor) -> Any:
                return self.b(self.c(self.between(self.a(x) * self.scale[0]))).mean((2, 3))

        shares = parameter_shares(Model(), (2, 8, 8))  # 6 + 4 + 45 + 10 = 65
        assert shares == {"a": 10 / 65, "between": 10 / 65, "b.0": 55 / 65, "b": 55 / 65, "": 1}

    def test_a_module_that_is_read_counts_with_the_one_around_it(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)

            def forward(self, x: torch.Tensor) -> Any:
                tokens = self.stem(x).flatten(2).mT
                return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)

        assert parameter_shares(Model().train(), (3, 8, 8))["attention"] == 1


class TestZoo:
    def test_a_row_for_every_model(self, tmp_path: Path) -> None:
        out = tmp_path / "new" / "zoo.csv"
        result = run("zoo", "test_vit*", "--out", out)
        assert result.exit_code == 0
        rows = table(out)
        assert tuple(rows[0]) == COLUMNS
        assert [row["name"] for row in rows] == timm.list_models("test_vit*")
        assert rows[0] | {"seconds": ""} == {
            **{"name": "test_vit", "module": "vision_transformer", "class": "VisionTransformer"},
            **{"parameters": "371240", "input_size": "3x160x160", "classes": "1000", "layer": "blocks.4"},
            **{"layout": "tokens", "grid": "10x10", "channels": "64", "prefix_tokens": "1", "seconds": "", "error": ""},
        }
        assert 0 < float(rows[0]["seconds"]) < 60
        assert f"{len(rows)} models: {len(rows)} with a target layer ({len(rows)} tokens)" in result.stdout
        assert str(out) in result.stdout

    def test_a_model_that_fails_is_a_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        create = timm.create_model

        def broken(name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "test_convnext2":
                raise MemoryError("no room\nfor it")
            return create(name, *args, **kwargs)

        monkeypatch.setattr(timm, "create_model", broken)
        result = run("zoo", "test_convnext*", "--out", tmp_path / "zoo.csv")
        assert result.exit_code == 0
        assert [(row["layer"], row["error"]) for row in table(tmp_path / "zoo.csv")] == [
            ("stages", ""),
            ("", "MemoryError: no room for it"),
            ("stages", ""),
        ]
        assert "3 models: 2 with a target layer (2 NCHW)" in result.stdout
        assert "1 × MemoryError: no room for it\n      test_convnext2" in result.stdout

    def test_no_layer_is_a_reason(self) -> None:
        row, strip = survey("crossvit_tiny_240")
        assert strip is None and row["layer"] == row["grid"] == "" and float(row["seconds"]) > 0
        assert row["error"].startswith("CrossVit ends in several branches")
        assert next(iter(reasons([row]))).startswith("the model ends in several branches")

    def test_interrupted_and_resumed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out, whole = tmp_path / "zoo.csv", tmp_path / "whole.csv"
        assert run("zoo", "test_convnext*", "--out", whole).exit_code == 0
        seen: list[str] = []

        def interrupted(name: str, *args: Any) -> Any:
            seen.append(name)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return survey(name, *args)

        monkeypatch.setattr(drnet_captum.zoo, "survey", interrupted)
        result = run("zoo", "test_convnext*", "--out", out)
        assert result.exit_code == 130
        assert f"1 of 3 models are in {out}; the same command goes on from there" in result.stderr
        with out.open("ab") as file:
            file.write("test_convnext2,convnext,×".encode()[:-1])  # as a kill leaves it
        assert run("zoo", "test_convnext*", "--out", out).exit_code == 0
        assert seen == ["test_convnext", "test_convnext2", "test_convnext2", "test_convnext3"]
        assert untimed(out) == untimed(whole)

    def test_ctrl_c_ends_after_the_current_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def pressed(name: str, *args: Any) -> Any:
            if name == CONVNEXTS[0]:  # once: a second one would end it at once
                os.kill(os.getpid(), signal.SIGINT)
            return survey(name, *args)

        monkeypatch.setattr(drnet_captum.zoo, "survey", pressed)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        try:
            result = run("zoo", "test_convnext*", "--out", tmp_path / "zoo.csv")
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGINT, before)
        assert result.exit_code == 130 and "1 of 3 models" in result.stderr
        assert [row["name"] for row in table(tmp_path / "zoo.csv")] == CONVNEXTS[:1]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("name,layer\nresnet18,layer4\n", "has other columns"),
            ("notes without an end", "has other columns"),
            (",".join([*COLUMNS, *MAP_COLUMNS]) + "\n", "has other columns"),
            (",".join(COLUMNS) + "\nresnet18,resnet\n", "line 2 of"),
        ],
    )
    def test_another_file_is_refused_and_kept(self, tmp_path: Path, content: str, message: str) -> None:
        out = tmp_path / "zoo.csv"
        out.write_text(content)
        result = run("zoo", "test_convnext*", "--out", out)
        assert result.exit_code == 2 and message in result.stderr and "choose another --out" in result.stderr
        assert out.read_text() == content

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (
                ["resnet5", "--out", "no.csv"],
                "no model that matches 'resnet5' (wildcards are * and ?): did you mean resnet",
            ),
            (["test_vit", "--device", "cpu"], "pass --images too"),
            (["test_vit", "--images", "no-such-photo.jpg"], "no such image file or folder"),
        ],
    )
    def test_a_mistake_is_one_line_and_code_2(self, args: list[str], message: str) -> None:
        result = run("zoo", *args)
        assert result.exit_code == 2
        assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1


class TestMaps:
    def test_strips_sheets_and_columns(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "zoo.csv"
        monkeypatch.setattr(drnet_captum.zoo, "SHEET", 2)
        result = run("zoo", "test_convnext*", *TWO, "--out", out)
        assert result.exit_code == 0 and str(tmp_path / "zoo_sheet_2.jpg") in result.stdout
        rows = table(out)
        assert tuple(rows[0]) == (*COLUMNS, *MAP_COLUMNS)
        assert {(row["device"], row["pretrained"], row["error"]) for row in rows} == {("cpu", "False", "")}
        assert all(float(row["images_per_second"]) > 0 for row in rows)
        assert sorted(p.name for p in (tmp_path / "zoo_maps").iterdir()) == [f"{name}.jpg" for name in CONVNEXTS]
        sizes = [load_image(tmp_path / f"zoo_sheet_{number}.jpg").size for number in (1, 2)]
        assert sizes[0] > sizes[1]
        strips = {name: (tmp_path / "zoo_maps" / f"{name}.jpg").read_bytes() for name in CONVNEXTS}
        assert len(set(strips.values())) == 3

        # As if the run had been stopped after the first model: the others come out the same.
        (tmp_path / "zoo_maps" / "test_convnext3.jpg").unlink()
        before = untimed(out)
        out.write_text("".join(out.read_text().splitlines(keepends=True)[:2]))
        assert run("zoo", "test_convnext*", *TWO, "--out", out).exit_code == 0
        assert untimed(out) == before
        assert {name: (tmp_path / "zoo_maps" / f"{name}.jpg").read_bytes() for name in CONVNEXTS} == strips

        result = run("zoo", "test_convnext*", *TWO[:-3], "--device", "cpu", "--out", out)
        assert result.exit_code == 2
        assert "was made with pretrained False, and this run has pretrained True: choose another" in result.stderr

    def test_weights_that_cannot_be_had_are_a_reason(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timm.models, "is_model_pretrained", lambda name: False)
        args = ("--images", PHOTOS["coffee"], "--device", "cpu", "--out", tmp_path / "zoo.csv")
        assert run("zoo", "test_vit", *args).exit_code == 0
        (row,) = table(tmp_path / "zoo.csv")
        assert row["layer"] == "blocks.4" and row["images_per_second"] == ""
        assert row["error"].startswith("ValueError: timm has no published weights for 'test_vit'")

    def test_a_strip_grows_by_lines_and_cuts_labels(self) -> None:
        photo = torch.ones(20, 30, 3).numpy()
        one, ten = (draw_strip([photo] * n, [("label " * 30, "42%")] * n, "name " * 60, "") for n in (1, 10))
        assert one.width == 352 and ten.width == 8 * 182 - 6
        assert ten.height == one.height - (352 + 26) + 2 * (176 + 26)
