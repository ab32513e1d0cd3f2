"""Small sources of images of every kind, and what is in them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from drnet_captum.data import ModelCard
from drnet_captum.scale.find_source import find_source
from drnet_captum.scale.source import Record, Source

NAMES = ("tabby cat", "Egyptian cat", "espresso", "7", "pier")
CARD = ModelCard("mine", (3, 8, 8), (0.5,) * 3, (0.5,) * 3, lambda photo: torch.zeros(3, 8, 8), NAMES)
KINDS = ("folder", "bytes", "struct", "paths", "webdataset")
LABELS = (0, 0, 1, 1, 2, 4, 4)


def encoded(seed: int, size: int = 24) -> bytes:
    """A photo of noise: files of nearly, but not quite, one length."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = tuple(encoded(seed) for seed in range(len(LABELS)))


def write(path: Path, data: bytes = IMAGES[0]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def parquet(path: Path, rows_per_group: int = 2, /, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def tar(path: Path, *members: tuple[str, bytes | str], mode: Any = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def made(
    kind: str, root: Path, images: Sequence[bytes] = IMAGES, labels: Sequence[int] = LABELS, stem: str = "photo"
) -> Path:
    """The images in their order as a source of a kind, in two files where it has files."""
    names = [f"{stem}-{i}.png" for i in range(len(images))]
    if kind == "folder":
        for name, data, label in zip(names, images, labels, strict=True):
            write(root / str(label) / name, data)
        return root
    for part, rows in enumerate((slice(0, 4), slice(4, None))):
        if kind == "webdataset":
            found = zip(names[rows], images[rows], labels[rows], strict=True)
            members = [m for name, data, label in found for m in ((name[:-4] + ".cls", str(label)), (name, data))]
            tar(root / f"{part}.tar", *members)
        elif kind == "paths":
            for name, data in zip(names[rows], images[rows], strict=True):
                write(root / "images" / name, data)
            parquet(root / "data" / f"{part}.parquet", path=[f"../images/{n}" for n in names[rows]], label=labels[rows])
        else:
            column: list[Any] = list(images[rows])
            if kind == "struct":
                column = [{"bytes": data, "path": name} for name, data in zip(names[rows], images[rows], strict=True)]
            parquet(root / f"{stem}-{part}.parquet", image=column, label=labels[rows])
    return root / "data" if kind == "paths" else root


def source(place: str | Path, **options: Any) -> Source:
    return find_source(place, card=CARD, classes=len(NAMES), **options)


def records(found: Source) -> list[Record]:
    return list(found.read(0, len(found)))


def labels(place: str | Path, **options: Any) -> list[int | None]:
    return [record.label for record in records(source(place, **options))]
