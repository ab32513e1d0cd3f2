"""Files that the commands write: named without clashes, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO


def output_names(images: Sequence[Path], folder: Path) -> list[str]:
    """A name for each image's outputs in ``folder``: its stem, numbered where stems are alike.

    No two are alike on a file system that ignores case, and none makes ``name.png`` one of the images.

    Example:
        >>> output_names([Path("a/cat.jpg"), Path("b/Cat.png"), Path("dog.png")], Path("out"))
        ['cat', 'Cat-2', 'dog']
        >>> output_names([Path("photos/cat.png")], Path("photos"))
        ['cat-2']
    """
    originals = {_key(image) for image in images}
    taken: set[str] = set()
    names = []
    for image in images:
        name, number = image.stem, 1
        while name.casefold() in taken or _key(folder / f"{name}.png") in originals:
            number += 1
            name = f"{image.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def make_folder(folder: Path) -> None:
    """Make the folder for the results, if it is not there.

    Raises:
        ValueError: a file is in its place.
        OSError: it may not be made.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected --out to be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)


def write(path: Path, writer: Callable[[IO[bytes]], object]) -> None:
    """Write a file by ``writer``, under its name only when it is complete."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            writer(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _key(path: Path) -> str:
    return str(path.resolve()).casefold()
