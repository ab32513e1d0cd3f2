"""Where the images of a run come from: an ordered list of them, readable by rows from any process."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drnet_captum.data.card import ModelCard
from drnet_captum.dissect.photos import classes_of
from drnet_captum.scale.boxes import Boxes
from drnet_captum.scale.extra import distributed

Content = tuple[bytes, str | None]  # an encoded image, or why there is none

_LISTED = ("path", "size", "label", "target", "boxes")  # what tells one list from another
_CHUNK = 1024  # rows of the index looked at together


@dataclass(frozen=True)
class Record:
    """One image of a source, still encoded.

    Attributes:
        index: its row.
        path: names it for people: "cats/tom.jpg" in a folder, "train-00.parquet#17", "train-00.tar/tom.jpg".
        data: the image file; empty where that is empty or could not be had.
        label: its class, as the model counts them. None: not known.
        target: that of the target column, where one was asked for.
        boxes: xyxy in pixels of the upright photo. None: none given.
        problem: why ``data`` could not be had.

    Example:
        >>> Record(0, "tom.jpg", b"", None, None, None).problem is None
        True
    """

    index: int
    path: str
    data: bytes
    label: int | None
    target: int | None
    boxes: Boxes | None
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class Source(ABC):
    """A fixed, ordered list of images. It holds where they are, none of them; pickled, it reads the same elsewhere.

    Attributes:
        kind: "folder", "parquet" or "webdataset".
        root: the folder, absolute, that paths begin in.
        index: a pyarrow.Table with a row for each image: path, label, target, boxes, and where the kind has it.
        fingerprint: of the names, sizes, labels, targets and boxes in their order: the same after a copy or a touch.
    """

    kind: str
    root: str
    index: Any
    fingerprint: str

    def __len__(self) -> int:
        return int(self.index.num_rows)

    def read(self, start: int, stop: int) -> Iterator[Record]:
        """The images of the rows from ``start`` up to ``stop``, one after another.

        What cannot be read is a record with its ``problem``, and the others come all the same.

        Raises:
            ValueError: rows that are not there.
        """
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"expected rows from 0 up to {len(self)}, got {start} up to {stop}")
        return self._records(start, stop)

    def described(self) -> dict[str, Any]:
        """What a manifest says of it. ``labelled``: whether any image's class is known."""
        return {
            "kind": self.kind,
            "root": self.root,
            "images": len(self),
            "fingerprint": self.fingerprint,
            "labelled": self.index.column("label").null_count < len(self),
        }

    @abstractmethod
    def contents(self, start: int, rows: Sequence[Mapping[str, Any]]) -> Iterator[Content]:
        """The image of each of consecutive rows of the index, of which the first is number ``start``."""

    def _records(self, start: int, stop: int) -> Iterator[Record]:
        for batch in self.index.slice(start, stop - start).to_batches(max_chunksize=_CHUNK):
            rows = batch.to_pylist()
            for row, (data, reason) in zip(rows, self.contents(start, rows), strict=True):
                yield Record(
                    index=start,
                    path=row["path"],
                    data=data,
                    label=row["label"],
                    target=row["target"],
                    boxes=None if row["boxes"] is None else tuple((a, b, c, d) for a, b, c, d in row["boxes"]),
                    problem=None if reason is None else f"could not read the image {row['path']}: {reason}",
                )
                start += 1


def index_of(
    paths: Sequence[str],
    labels: Sequence[int | None],
    targets: Sequence[int | None],
    boxes: Sequence[Boxes | None],
    **places: Sequence[Any],
) -> Any:
    """The index of a source, a pyarrow.Table: ``places`` are further columns, which lead to the images.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a file name that is no text.
    """
    pa = distributed("pyarrow")
    try:
        columns = {"path": pa.array(paths, pa.string())}
    except UnicodeEncodeError as error:
        raise ValueError(f"expected file names in UTF-8, got {error.object!r}: rename that file") from error
    columns |= {name: pa.array(values) for name, values in places.items()}
    columns |= {name: pa.array(values, pa.int32()) for name, values in (("label", labels), ("target", targets))}
    columns["boxes"] = pa.array(boxes, pa.list_(pa.list_(pa.float64())))
    return pa.table(columns)


def fingerprint_of(index: Any, *facts: Any) -> str:
    """A key, hexadecimal, of what an index lists, and of further facts as JSON has them."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for batch in index.select([name for name in _LISTED if name in index.column_names]).to_batches(
        max_chunksize=_CHUNK
    ):
        for row in batch.to_pylist():
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def class_numbers(values: Sequence[Any], card: ModelCard, classes: int, what: str) -> list[int | None]:
    """The model's classes by integers and names; None, NaN and −1 are None: not known.

    Args:
        values: integers, whole floats, names.
        card: for the names.
        classes: how many the model has.
        what: names the values in messages, e.g. "the column 'label' of train.parquet".

    Raises:
        ValueError: a value that is none of them.
    """
    names = sorted({value for value in values if isinstance(value, str)})
    try:
        numbers = classes_of(names, card.categories, classes, Path(what)) if names else {}
    except ValueError as error:
        raise ValueError(str(error).replace("the subfolders", "the names", 1)) from error
    return [numbers[value] if isinstance(value, str) else _number(value, classes, what) for value in values]


def _number(value: Any, classes: int, what: str) -> int | None:
    if value is None or value == -1 or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected integers or class names in {what}, got {value!r}")
    if not 0 <= value < classes:
        raise ValueError(f"expected classes from 0 to {classes - 1} in {what}, got {value}")
    return value
