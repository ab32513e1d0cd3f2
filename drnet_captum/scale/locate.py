"""What a source's name stands for: files of one kind below one folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from drnet_captum.data.images import SUFFIXES

_KINDS = {"folder": "image files", "parquet": "Parquet files", "webdataset": "tar files"}
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Place:
    """Files of one kind.

    Attributes:
        kind: "folder", "parquet" or "webdataset".
        root: an absolute folder above them all.
        files: absolute, in order; empty for a folder of images, which ``find_images`` goes through.
    """

    kind: str
    root: Path
    files: tuple[Path, ...]

    def name(self, file: Path) -> str:
        """The file by its path in the root."""
        return file.relative_to(self.root).as_posix()


def located(source: str | Path) -> Place:
    """The files of a folder, of a single file, or of a pattern with ``*``, ``?``, ``[…]`` and ``{00..11}``.

    Raises:
        FileNotFoundError: nothing is there, or one of a range is missing.
        ValueError: files of several kinds, or of none.

    Example:
        >>> from drnet_captum.data import embedded_photos
        >>> place = located(embedded_photos()["rocket"])
        >>> place.kind, [place.name(file) for file in place.files]
        ('folder', ['rocket.jpg'])
    """
    path = Path(os.path.abspath(source))
    if path.is_dir():
        return _inside(path)
    files = [path] if path.exists() else _matching(str(source))
    kinds = {kind_of(file) for file in files}
    if len(kinds) > 1 or None in kinds or (kinds == {"folder"} and files != [path]):
        raise ValueError(
            f"expected .parquet or .tar files, or one image or a folder of them, for {source}, got "
            f"{', '.join(file.name for file in files[:5])}"
        )
    (kind,) = kinds
    return Place(str(kind), Path(os.path.commonpath([file.parent for file in files])), tuple(files))


def kind_of(file: Path) -> str | None:
    """The kind of source that a file is of, by its suffix."""
    name = file.name.lower()
    if name.endswith(_TARS):
        return "webdataset"
    if name.endswith(".parquet"):
        return "parquet"
    return "folder" if file.suffix.lower() in SUFFIXES else None


def _inside(folder: Path) -> Place:
    found: dict[str, list[Path]] = {}
    for file in folder.rglob("*"):
        kind = kind_of(file)
        if kind and file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            found.setdefault(kind, []).append(file)
    if len(found) > 1:
        some = " and ".join(f"{_KINDS[kind]} ({min(files).name}, …)" for kind, files in sorted(found.items()))
        raise ValueError(f"expected images of one kind in {folder}, got {some}: name the files that are meant")
    kind = next(iter(found), "folder")
    return Place(kind, folder, tuple(sorted(found[kind])) if kind != "folder" else ())


def _matching(pattern: str) -> list[Path]:
    if not any(character in pattern for character in "*?[{"):
        raise FileNotFoundError(f"no such file or folder: {pattern}")
    found: dict[Path, None] = {}
    for one in _ranges(pattern):
        files = sorted(file for file in glob(one, recursive=True) if os.path.isfile(file))
        if not files:
            raise FileNotFoundError(f"no file matches {one}")
        found |= dict.fromkeys(Path(os.path.abspath(file)) for file in files)
    if not found:
        raise FileNotFoundError(f"no number is in the range of {pattern}")
    return list(found)


def _ranges(pattern: str) -> Sequence[str]:
    """A pattern for each number of a range; numbers are as wide as the first is written."""
    if (found := _RANGE.search(pattern)) is None:
        return [pattern]
    first, last = found.groups()
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [one for n in numbers for one in _ranges(pattern[: found.start()] + n + pattern[found.end() :])]
