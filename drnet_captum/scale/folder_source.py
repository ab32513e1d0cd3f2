"""Images in files of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drnet_captum.data.card import ModelCard
from drnet_captum.dissect.photos import PhotoFolder
from drnet_captum.scale.boxes import Boxes, boxes_for
from drnet_captum.scale.locate import Place
from drnet_captum.scale.source import Content, Source, fingerprint_of, index_of


@dataclass(frozen=True, eq=False)
class FileSource(Source):
    """Image files by their paths in ``root``. The index has the column ``file``: null where none was named."""

    def contents(self, start: int, rows: Sequence[Mapping[str, Any]]) -> Iterator[Content]:
        """The files' bytes, one file open at a time."""
        return (file_content(self.root, row["file"]) for row in rows)


def find(place: Place, card: ModelCard, classes: int, boxes: str | Path | None) -> FileSource:
    """The images of a folder, with the classes of its subfolders, or a single image."""
    labels: list[int | None] = [None]
    files: Sequence[Path] = place.files
    if not files:
        photos = PhotoFolder(place.root, card, classes)
        files, labels = photos.paths, [None if label == -1 else label for label in photos.labels]
    paths = [place.name(file) for file in files]
    given = [None] * len(paths) if boxes is None else boxes_for(paths, boxes)
    return file_source(place, paths, paths, labels, [None] * len(paths), given)


def file_source(
    place: Place,
    paths: Sequence[str],
    files: Sequence[str | None],
    labels: Sequence[int | None],
    targets: Sequence[int | None],
    boxes: Sequence[Boxes | None],
) -> FileSource:
    """A source of files, absolute or by their paths in the place's root; they need not be there."""
    sizes = [None if file is None else _size(place.root / file) for file in files]
    index = index_of(paths, labels, targets, boxes, file=files, size=sizes)
    return FileSource(place.kind, str(place.root), index, fingerprint_of(index))


def file_content(root: str | Path, file: str | None) -> Content:
    """The bytes of a file in ``root``, or why there are none."""
    if file is None:
        return b"", "the image column has no value here"
    try:
        return Path(root, file).read_bytes(), None
    except OSError as error:
        return b"", why(error)


def why(error: Exception) -> str:
    """The reason that an error gives, without the file's name where that can be left out."""
    return getattr(error, "strerror", None) or str(error)


def _size(file: Path) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:
        return None
