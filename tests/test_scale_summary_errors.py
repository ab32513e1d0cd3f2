"""Folders that are no runs, and runs that are damaged: what a summary says of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from summary_runs import GRAD_CAM, RAMP, row, write_run

from drnet_captum.scale.rows import schema
from drnet_captum.scale.summary import summarize


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        ({"content": "drnet_captum dissections"}, r"explain_dataset wrote, got .* manifest of 'drnet_captum dissec"),
        ({"format": 2}, "format 2"),
        ({"model": {"name": "resnet18"}}, "damaged .'classes' is missing"),
        ({"model": None}, "damaged"),
        ({"complete": None, "methods": {}, "model": {}}, "damaged"),
        ({"model": {"name": "m", "classes": 2}}, "answers below 2, the model's classes, got 3 to 3"),
    ],
)
def test_a_folder_of_something_else(tmp_path: Path, manifest: dict[str, Any], match: str) -> None:
    write_run(tmp_path, [row(0, None, 3, RAMP)], **manifest)
    with pytest.raises(ValueError, match=match):
        summarize(tmp_path)


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the folder that explain_dataset wrote, got .* no manifest\.json"):
        summarize(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder at .*nowhere"):
        summarize(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="top to be at least 1"):
        summarize(tmp_path, top=0)


def test_damaged_rows(tmp_path: Path) -> None:
    write_run(tmp_path, [row(0, 0, 0, RAMP)])
    file = tmp_path / "rows" / "000000001.parquet"
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"000000001\.parquet is damaged"):
        summarize(tmp_path)
    pq.write_table(pa.table({"index": [1]}), file)
    with pytest.raises(ValueError, match="has no column 'box_share'"):
        summarize(tmp_path)
    short = row(1, 0, 0, RAMP) | {"grad_cam_pooled": [1.0, 2.0]}
    pq.write_table(pa.Table.from_pylist([short], schema(GRAD_CAM, False)), file)
    with pytest.raises(ValueError, match="196 values of each pooled map"):
        summarize(tmp_path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, [row(0, 0, 0, RAMP)])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"drnet-captum\[distributed\]"):
        summarize(tmp_path)
