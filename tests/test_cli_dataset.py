"""``drnet-captum explain-dataset`` and ``dissect-dataset``, as they are typed."""

import json

import pytest
from data_sets import make_odd, make_photos, rows_of
from typer.testing import CliRunner

from drnet_captum.cli import app
from drnet_captum.dissect.dissection import Dissection

RUNNER = CliRunner()


def invoke(*arguments):
    return RUNNER.invoke(app, [*map(str, arguments), "--threads", "1"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"), 5, classes=("espresso", "tabby", "285"))


def test_explain_dataset(photos, tmp_path):
    out = tmp_path / "run"
    arguments = ("explain-dataset", photos, "--batch-size", 2, "--rows-per-shard", 2, "--out", out)
    shown = invoke(*arguments, "--method", "grad_cam", "--method", "saliency", "--target", "label")
    assert shown.exit_code == 0, shown.output
    assert "5 images explained" in shown.output and "drnet-captum report" in shown.output
    rows = rows_of(out)
    assert [row["label"] for row in rows] == [285, 967, 967, 281, 281]
    assert all(row["target"] == row["label"] for row in rows) and "saliency_map" in rows[0]
    again = invoke(*arguments, "--maps", "none")
    assert again.exit_code == 2 and "a run with other arguments" in again.output


def test_what_failed_is_said(tmp_path):
    make_odd(tmp_path / "odd")
    arguments = ("explain-dataset", tmp_path / "odd", "--out", tmp_path / "run", "--maps", "none")
    shown = invoke(*arguments, "--max-errors", 1)
    assert shown.exit_code == 2 and "3 images failed, more than max_errors=1" in shown.output
    shown = invoke(*arguments)
    assert shown.exit_code == 0 and "3 images failed" in shown.output and "errors.parquet" in shown.output
    assert "5 images explained" in shown.output


def test_dissect_dataset(photos, tmp_path):
    out = tmp_path / "run"
    shown = invoke("dissect-dataset", photos, "--layer", "features.0", "--no-stimuli", "--out", out)
    assert shown.exit_code == 0, shown.output
    assert "5 images dissected" in shown.output
    assert dict(Dissection.load(out).counts) == {281: 2, 285: 1, 967: 2}
    assert json.loads((out / "manifest.json").read_text())["complete"]


def test_ctrl_c_says_how_to_go_on(photos, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("drnet_captum.scale.explanation_run.do", stop)
    shown = invoke("explain-dataset", photos, "--out", tmp_path / "run")
    assert shown.exit_code == 130
    assert f"what is complete is in {tmp_path / 'run'}; the same command goes on" in shown.output.replace("\n", "")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nowhere",), "nowhere"),
        (("PHOTOS", "--method", "grad_camm"), "grad_camm"),
        (("PHOTOS", "--concurrency", "2"), "one worker in this process"),
        (("PHOTOS", "--target", "column"), "column"),
    ],
)
def test_mistakes(photos, tmp_path, arguments, message):
    given = [str(photos) if a == "PHOTOS" else a for a in arguments]
    shown = invoke("explain-dataset", *given, "--out", tmp_path / "run")
    assert shown.exit_code == 2 and message in shown.output.replace("\n", " ")
    assert not (tmp_path / "run").exists()
