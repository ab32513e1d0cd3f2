"""Runs made by hand: rows, and the folder that they lie in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from drnet_captum.scale.rows import schema

CATEGORIES = ["tabby cat", "dog", "cup", "<b>fish</b>"]
GRAD_CAM = ("grad_cam",)


def at(*places: tuple[int, int], value: float = 1.0) -> np.ndarray:
    """A map that is zero but at some places."""
    found = np.zeros((14, 14))
    for place in places:
        found[place] = value
    return found


RAMP = np.tile(np.arange(14.0), (14, 1))


def row(index: int, label: int | None, predicted: int, map: np.ndarray, **others: Any) -> dict[str, Any]:
    """A row of a run by Grad-CAM; ``others`` are its further columns."""
    values = {
        "index": index,
        "path": f"photos/{index}.jpg",
        "label": label,
        "predicted": predicted,
        "probability": 0.5,
        "target": predicted,
        "target_probability": 0.5,
        "thumbnail": None,
        "box_share": None,
    }
    measures = {"sum": map.sum(), "low": map.min(), "high": map.max(), "inside": None, "pooled": map.ravel().tolist()}
    return values | {f"grad_cam_{name}": value for name, value in measures.items()} | others


def jpeg(colour: str | tuple[int, int, int], size: tuple[int, int] = (112, 112)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_run(
    out: Path,
    rows: Sequence[dict[str, Any]],
    *,
    methods: Sequence[str] = GRAD_CAM,
    files: int = 1,
    row_group_size: int | None = None,
    errors: Sequence[tuple[int, str, str]] = (),
    **manifest: Any,
) -> Path:
    """A folder as ``explain_dataset`` leaves it."""
    (out / "rows").mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), files)):
        table = pa.Table.from_pylist([rows[i] for i in part], schema(methods, False))
        pq.write_table(table, out / "rows" / f"{number:09d}.parquet", row_group_size=row_group_size)
    if errors:
        failed = [dict(zip(("index", "path", "reason"), one, strict=True)) for one in errors]
        pq.write_table(pa.Table.from_pylist(failed), out / "errors.parquet")
    said = {
        "content": "drnet_captum explanations",
        "format": 1,
        "complete": True,
        "model": {"name": "resnet18", "fingerprint": "00", "classes": len(CATEGORIES), "categories": CATEGORIES},
        "methods": list(methods),
        "arguments": {"target": "predicted", "batch_size": 32, "maps": "none"},
        "source": {"kind": "folder", "root": "/photos", "images": len(rows) + len(errors), "labelled": True},
        "finished": "2026-03-01T12:00:00+00:00",
    }
    (out / "manifest.json").write_text(json.dumps(said | manifest))
    return out


def many(count: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of all classes with random maps, some of them without a label or boxes."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = None if i % 7 == 0 else int(rng.integers(4))
        boxes = {} if i % 5 == 0 else {"box_share": rng.uniform(0.1, 1), "grad_cam_inside": rng.uniform(0, 1)}
        map = rng.normal(size=(14, 14)) + RAMP / 14
        rows.append(row(i, label, int(rng.integers(4)), map, target_probability=rng.uniform(), **boxes))
    return rows
