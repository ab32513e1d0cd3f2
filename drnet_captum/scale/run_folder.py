"""The folder of a run: what was asked for, which of its shards are complete, and that nobody else writes there."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import PIL
import timm
import torch
import torchvision

import drnet_captum
from drnet_captum.scale.shards import Shard

try:
    import fcntl
except ImportError:  # not there on Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
MANIFEST = "manifest.json"
LOCK = ".lock"
PART = ".part"  # how files end that are not complete
_NOTES = ("complete", "started", "finished", "root")  # of the manifest: what says nothing of the results


@dataclass(frozen=True)
class Finished:
    """What a run came to.

    Attributes:
        out: its folder.
        images: rows of the source.
        failed: those of them that could not be explained; they are in ``errors.parquet``, with the reason.
        manifest: what the folder's ``manifest.json`` says.
    """

    out: Path
    images: int
    failed: int
    manifest: dict[str, Any]


class RunFolder:
    """One run's folder.

    Args:
        out: the folder; made if it is not there.
        content: what its manifest says that it holds.
        asked: all that decides the results; a run goes on only where it is the same.

    Raises:
        ValueError: a folder with anything else in it, a run with other arguments.
        OSError: it may not be written to, or another process is at it.
    """

    def __init__(self, out: str | Path, content: str, asked: dict[str, Any]) -> None:
        self.out = Path(out).absolute()  # workers have other working folders
        self.asked = {"content": content, "format": FORMAT, **asked}

    @contextlib.contextmanager
    def held(self) -> Iterator[dict[str, Any]]:
        """The manifest, of this run or of the one that it goes on with. No other process may write meanwhile."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / LOCK).open("w") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise OSError(f"another process writes to {self.out}: wait, or name another folder") from error
                except OSError:  # a file system without locks
                    pass
            manifest = read_manifest(self.out)
            if manifest is None:
                names = sorted(path.name for path in self.out.iterdir())
                others = [name for name in names if name != LOCK and PART not in name]
                if others:
                    raise ValueError(f"{self.out} holds {others[0]} and no run: name another folder")
                manifest = {**self.asked, "complete": False, "started": now()}
                self.note(manifest)
            elif differences := differing(manifest, self.asked):
                raise ValueError(
                    f"{self.out} holds a run with other arguments ({'; '.join(differences[:4])}): give the same "
                    "ones to go on with it, or name another folder"
                )
            for path in list(self.out.rglob(f".*{PART}*")):  # of a process that died
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            yield manifest

    def note(self, manifest: dict[str, Any]) -> None:
        """Write the manifest."""
        text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
        write_whole(self.out / MANIFEST, lambda part: part.write_text(text, encoding="utf-8"))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Say that everything is there."""
        manifest |= {"complete": True, "finished": now()}
        self.note(manifest)

    def check_done(self, kind: str, shards: Sequence[Shard]) -> None:
        """Raise OSError where shards that workers have done are not here."""
        if missing := set(shards) - self.done(kind):
            raise OSError(
                f"{len(missing)} of {len(shards)} shards were written and are not in {self.out}: name a folder that "
                "all workers share with this process"
            )

    def done(self, kind: str) -> set[Shard]:
        """The shards whose file or folder of one kind is there, and so complete."""
        place = self.out / kind
        found = (Shard.named(path.name) for path in place.iterdir()) if place.is_dir() else ()
        return {shard for shard in found if shard is not None}


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file or folder written beside its place, and renamed when it is complete.

    A folder that is there already stays: it is complete, and what is written by the same name is the same.

    Raises:
        OSError: it could not be written, such as for want of room; what was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex}{PART}")
    try:
        write(part)
        for file in [part] if part.is_file() else part.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        part.replace(path)
    except OSError as error:
        if path.is_dir() and part.is_dir():
            return
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror or error}): what is complete stays; make room and run the "
            "same again to go on",
        ) from error
    finally:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def read_manifest(out: str | Path) -> dict[str, Any] | None:
    """The manifest of a run's folder; None where there is none.

    Raises:
        ValueError: a damaged one, or that of something else; a file in the folder's place.
    """
    if Path(out).is_file():
        raise ValueError(f"expected a folder of a run, got the file {out}")
    path = Path(out) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): name another folder") from error
    if not isinstance(manifest, dict) or not str(manifest.get("content", "")).startswith("drnet_captum "):
        raise ValueError(f"{path} is not the manifest of a run: name another folder")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path} has the format {manifest.get('format')!r}, this version reads {FORMAT}: update it")
    return manifest


def differing(there: dict[str, Any], asked: dict[str, Any], name: str = "") -> list[str]:
    """What two manifests do not agree in, "name: there, here".

    Example:
        >>> differing({"batch_size": 8, "model": {"name": "a"}}, {"batch_size": 8, "model": {"name": "b"}})
        ["model.name: 'a' there, 'b' here"]
    """
    found: list[str] = []
    for key in sorted({*there, *asked} - set(_NOTES)):
        mine, theirs, full = asked.get(key), there.get(key), f"{name}{key}"
        if isinstance(mine, dict) and isinstance(theirs, dict):
            found += differing(theirs, mine, f"{full}.")
        elif mine != theirs:
            found.append(f"{full}: {_short(theirs)} there, {_short(mine)} here")
    return found


def versions() -> dict[str, str]:
    """Of what decides the last bits of a result."""
    return {
        "drnet_captum": drnet_captum.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "timm": str(timm.__version__),
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
