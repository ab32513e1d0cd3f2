"""``drnet-captum report``: what it says, what it writes, and how it ends."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from summary_runs import RAMP, jpeg, row, write_run
from typer.testing import CliRunner

from drnet_captum.cli.report import command
from drnet_captum.viz import dataset_report

APP = typer.Typer()
APP.command()(command)


def run(*args: str | Path) -> Any:
    """The command's result; an exception that is no exit fails the test."""
    result = CliRunner().invoke(APP, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def out(tmp_path: Path) -> Path:
    labels, answers = [0, 0, 0, 1, 2], [0, 0, 1, 1, 0]
    rows = [row(i, labels[i], answers[i], RAMP**i, thumbnail=jpeg("red")) for i in range(5)]
    return write_run(tmp_path / "out", rows, errors=[(5, "x.jpg", "no such file")])


def articles(page: Path) -> list[str]:
    return re.findall(r'<article class="class" id="class-(\d+)"', page.read_text())


def test_the_page_is_in_the_folder_of_the_run(out: Path) -> None:
    before = {path.name for path in out.iterdir()}
    result = run(out)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "5 images of 3 classes, 60.0% right, 1 failed",
        f"report: {out / 'report.html'}",
    ]
    assert {path.name for path in out.iterdir()} == before | {"report.html"}
    assert articles(out / "report.html") == ["2", "0", "1"]
    assert run(out).exit_code == 0  # a page that is there is written anew


def test_the_page_is_where_it_is_asked_for(out: Path, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "page.html"
    assert run(out, "--out", path).exit_code == 0
    assert path.read_text().startswith("<!doctype html>")
    assert not (out / "report.html").exists()
    result = run(out, "--out", tmp_path)
    assert result.exit_code == 2 and "expected --out to be a file, got the folder" in result.stderr


def test_classes_by_name_or_number(out: Path) -> None:
    assert run(out, "--class", "CUP, 1").exit_code == 0
    assert articles(out / "report.html") == ["2", "1"]
    result = run(out, "--class", "tabi cat")
    assert result.exit_code == 2 and "no image of" in result.stderr and "did you mean tabby cat?" in result.stderr
    result = run(out, "--class", "3")
    assert result.exit_code == 2 and "is of a class '3': pass a name or a number" in result.stderr


def test_names_with_commas_are_names(tmp_path: Path) -> None:
    model = {"name": "m", "classes": 2, "categories": ["tabby, tabby cat", "cup"]}
    out = write_run(tmp_path, [row(0, 0, 0, RAMP), row(1, 1, 1, RAMP)], model=model)
    assert run(out, "--class", "Tabby, tabby cat").exit_code == 0
    assert articles(out / "report.html") == ["0"]


def test_top_and_methods(out: Path) -> None:
    assert run(out, "--top", "1", "--method", "grad_cam").exit_code == 0
    assert (out / "report.html").read_text().count('<figure class="case"') == 2 + 1 + 1
    result = run(out, "--method", "lime")
    assert result.exit_code == 2 and "no method 'lime': there are grad_cam" in result.stderr


def test_a_run_that_is_not_complete(tmp_path: Path) -> None:
    out = write_run(tmp_path, [row(0, None, 0, RAMP)], complete=False)
    assert run(out).stdout.splitlines()[0] == "the run is not complete; so far: 1 image of 1 class"


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        result = run(place)
        assert result.exit_code == 2 and "explain_dataset wrote" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    result = run(out)
    assert result.exit_code == 2 and 'pip install "drnet-captum[distributed]"' in result.stderr


def test_a_page_that_fails_leaves_the_one_before(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(out).exit_code == 0
    before = (out / "report.html").read_text()

    def full(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(dataset_report, "render_dataset", lambda report: "page")
    monkeypatch.setattr(Path, "replace", full)
    result = run(out)
    assert result.exit_code == 2 and "no room" in result.stderr
    assert (out / "report.html").read_text() == before
    assert not list(out.glob("*.part"))


def test_help_needs_no_torch() -> None:
    code = "import sys, drnet_captum.cli.report; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
