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
from drnet_captum.scale.locate import located

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


def find_source(
    source: str | Path,
    *,
    card: ModelCard,
    classes: int,
    image_column: str | None = None,
    label_column: str | None = None,
    target_column: str | None = None,
    boxes: str | Path | None = None,
) -> Source:
    """The images of a folder, of Parquet files or of tar shards, by what is found there.

    ============ ======================================== ======================================================
    kind         named as                                 labels
    ============ ======================================== ======================================================
    "folder"     a folder of image files, or one image    one subfolder a class, as ``dissect`` has it; flat: none
    "parquet"    a .parquet file, a folder of them, or a  a column of integers, which are the model's classes, or
                 pattern, ``data/train-*.parquet``        of class names; None, NaN and −1: not known
    "webdataset" a .tar file, a folder of them, or a      of each sample, ``.cls`` (an integer or a class name), or
                 pattern, ``train-{0000..0011}.tar``      "label" or "cls" of its ``.json``
    ============ ======================================== ======================================================

    Args:
        source: where the images are.
        card: of the model, for its classes' names.
        classes: how many classes the model has.
        image_column: of Parquet files: encoded images, Hugging Face's {bytes, path}, or paths of image files, relative
            to the Parquet file's folder. None: the first of "image", "bytes", "image_bytes", "jpg", "jpeg", "png",
            "webp", "path", "image_path", "file_name" and "filename" that is one.
        label_column: of Parquet files. None: the first of "label", "labels", "cls" and "class" that is one, if any.
        target_column: of Parquet files, like labels: the classes to explain.
        boxes: where the objects are, xyxy in pixels: a file for :func:`~drnet_captum.scale.boxes.read_boxes`; of
            Parquet files also a column, of four numbers or of several times four; of tar shards also "json", the
            "boxes" of a sample's ``.json``.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: nothing is there.
        ValueError: no images, or of several kinds; labels that are none of the model's classes; a column that is not
            there, or that only Parquet files have; boxes of no image; a compressed tar.

    Example:
        >>> from drnet_captum.data import embedded_photos, load_model, model_card
        >>> card = model_card(load_model("embedded"))
        >>> source = find_source(embedded_photos()["coffee"], card=card, classes=1000)
        >>> [(record.index, record.path, len(record.data) > 0) for record in source.read(0, len(source))]
        [(0, 'coffee.jpg', True)]
    """
    from drnet_captum.scale import folder_source, parquet_source, webdataset_source

    place = located(source)
    columns = {"image_column": image_column, "label_column": label_column, "target_column": target_column}
    asked = [f"{name}={column!r}" for name, column in columns.items() if column is not None]
    if place.kind == "parquet":
        found: Source = parquet_source.find(place, card, classes, image_column, label_column, target_column, boxes)
    elif asked:
        raise ValueError(f"{asked[0]} names a column, which only Parquet files have: {source} is a {place.kind}")
    elif place.kind == "webdataset":
        found = webdataset_source.find(place, card, classes, boxes)
    else:
        found = folder_source.find(place, card, classes, boxes)
    if boxes is not None and found.index.column("boxes").null_count == len(found):
        raise ValueError(f"boxes={str(boxes)!r} has none for any of the {len(found)} images of {source}")
    return found


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
