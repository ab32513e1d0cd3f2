"""A source by what is found where the caller points: a folder, Parquet files, tar shards."""

from __future__ import annotations

from pathlib import Path

from drnet_captum.data.card import ModelCard
from drnet_captum.scale import folder_source, parquet_source, webdataset_source
from drnet_captum.scale.locate import located
from drnet_captum.scale.source import Source


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
