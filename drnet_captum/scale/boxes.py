"""Where the objects of images are, from a file beside them."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Box = tuple[float, float, float, float]
Boxes = tuple[Box, ...]

_HEADER = ("path", "x0", "y0", "x1", "y1")


def read_boxes(file: str | Path) -> dict[str, Boxes]:
    """Boxes by the image's path, xyxy in pixels of the upright photo, from a JSON or a CSV file.

    JSON: ``{"cats/tom.jpg": [x0, y0, x1, y1]}``, or a list of such boxes for an image. CSV: with the header
    ``path,x0,y0,x1,y1``, a row for each box; further columns are left alone. An image with an empty list is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another form, or a box without an area or with numbers that are not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "boxes.json").write_text('{"tom.jpg": [1, 2, 30, 40]}')
        ...     read_boxes(f"{folder}/boxes.json")
        {'tom.jpg': ((1.0, 2.0, 30.0, 40.0),)}
    """
    file = Path(file)
    readers = {".json": _from_json, ".csv": _from_csv}
    if file.suffix.lower() not in readers:
        raise ValueError(f"expected boxes in a .json or .csv file, got {file}")
    if not file.is_file():
        raise FileNotFoundError(f"no file of boxes at {file}")
    try:
        given = readers[file.suffix.lower()](file)
    except (json.JSONDecodeError, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"could not read the boxes in {file}: {error}") from error
    found = {path: as_boxes(boxes, path) for path, boxes in given.items()}
    return {path: boxes for path, boxes in found.items() if boxes is not None}


def boxes_for(paths: Sequence[str], file: str | Path) -> list[Boxes | None]:
    """The boxes in a file of images by their paths, or by their bare names, where these are of one image only.

    Raises:
        FileNotFoundError, ValueError: of `read_boxes`.
        ValueError: boxes of none of the images, or a bare name that several have.
    """
    boxes = read_boxes(file)
    known, names = set(paths), Counter(_name(path) for path in paths)
    found = [boxes.get(path) if path in boxes else _by_name(_name(path), boxes, known, names) for path in paths]
    if not any(found):
        named = f"names {next(iter(boxes))!r}, …" if boxes else "names none"
        raise ValueError(
            f"expected boxes of the images in {file}, by paths such as {paths[0]!r}: the file {named}, and none of the "
            f"{len(paths)} images is among them"
        )
    return found


def as_boxes(value: Any, path: str) -> Boxes | None:
    """One box or a list of them, checked; None where there is none. ``path`` names the image in messages.

    Raises:
        ValueError: no boxes.

    Example:
        >>> as_boxes([0, 0, 8, 9], "tom.jpg"), as_boxes([], "tom.jpg")
        (((0.0, 0.0, 8.0, 9.0),), None)
    """
    if value is None or value == []:
        return None
    rows = value if isinstance(value, list) and isinstance(value[0], list) else [value]
    return tuple(_box(row, path) for row in rows)


def _box(row: Any, path: str) -> Box:
    wrong = f"expected a box of {path} as four numbers x0, y0, x1, y1, got {row!r:.80}"
    if not isinstance(row, list) or len(row) != 4:
        raise ValueError(wrong)
    try:
        x0, y0, x1, y1 = (float(number) for number in row)
    except (TypeError, ValueError) as error:
        raise ValueError(wrong) from error
    if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x1 > x0 and y1 > y0):
        raise ValueError(
            f"expected a box of {path} in xyxy pixels with x1 > x0 and y1 > y0, got {row}: of x, y, width, height make "
            "x, y, x + width, y + height"
        )
    return x0, y0, x1, y1


def _by_name(name: str, boxes: dict[str, Boxes], known: set[str], names: Counter[str]) -> Boxes | None:
    if name not in boxes or name in known:
        return None
    if names[name] > 1:
        raise ValueError(f"the boxes of {name!r} are of one of {names[name]} images of that name: write its path")
    return boxes[name]


def _from_json(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"expected {{path: box or boxes}} in {file}, got a {type(found).__name__}")
    return found


def _from_csv(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.DictReader(text)
        if missing := [name for name in _HEADER if name not in (rows.fieldnames or ())]:
            raise ValueError(f"expected the header {','.join(_HEADER)} in {file}, it has no {missing[0]}")
        for row in rows:
            found.setdefault(row["path"], []).append([row[name] for name in _HEADER[1:]])
    return found


def _name(path: str) -> str:
    return path.rpartition("/")[2]
