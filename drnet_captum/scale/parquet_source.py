"""Images in the rows of Parquet files."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from drnet_captum.data.card import ModelCard
from drnet_captum.scale.boxes import as_boxes, boxes_for
from drnet_captum.scale.extra import distributed
from drnet_captum.scale.folder_source import file_content, file_source, why
from drnet_captum.scale.locate import Place
from drnet_captum.scale.source import Content, Source, class_numbers, fingerprint_of, index_of

IMAGES = (
    *("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp"),
    *("path", "image_path", "file_name", "filename"),
)
LABELS = ("label", "labels", "cls", "class")

_BYTES = ("binary", "large_binary", "binary_view")
_TEXT = ("string", "large_string", "string_view")
_READING = Lock()  # threads that decode the batches of one row group wait for it, instead of each reading it


@dataclass(frozen=True)
class Group:
    """A row group: the number of its file, its own number in there, and the rows ``start`` … ``stop`` of the source."""

    file: int
    number: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class ParquetSource(Source):
    """Encoded images in a column of Parquet files.

    A row group is read when a row of it is asked for, that column alone, and the last two are kept in each process.

    Attributes:
        files: by their paths in ``root``.
        column: of the images.
        groups: that have rows, in order.
    """

    files: tuple[str, ...]
    column: str
    groups: tuple[Group, ...]

    def contents(self, start: int, rows: Sequence[Mapping[str, Any]]) -> Iterator[Content]:
        """The column's values, row group after row group."""
        stop = start + len(rows)
        first = bisect_right(self.groups, start, key=lambda group: group.start) - 1
        for group in self.groups[first : bisect_right(self.groups, stop - 1, key=lambda group: group.start)]:
            yield from self._values(group, max(start, group.start), min(stop, group.stop))

    def _values(self, group: Group, start: int, stop: int) -> Iterator[Content]:
        file = Path(self.root, self.files[group.file])
        try:
            with _READING:
                values = _row_group(str(file), file.stat().st_mtime_ns, group.number, self.column)
        except (OSError, distributed("pyarrow").ArrowException) as error:
            yield from [(b"", why(error))] * (stop - start)
            return
        for value in values.slice(start - group.start, stop - start):
            yield _content(value.as_py(), file.parent)


@dataclass
class _Columns:
    """The columns of the files, by name; None: not asked for. ``form``: "bytes" or "path", what images are."""

    image: str
    form: str
    label: str | None
    target: str | None
    boxes: str | None

    @property
    def listed(self) -> list[str]:
        """Those that the index needs."""
        path = self.image if self.form == "path" else None
        return [name for name in dict.fromkeys((path, self.label, self.target, self.boxes)) if name is not None]


@dataclass
class _Rows:
    """What the files say of their images, but for the images."""

    paths: list[str] = field(default_factory=list)
    files: list[str | None] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)


def find(
    place: Place,
    card: ModelCard,
    classes: int,
    image_column: str | None,
    label_column: str | None,
    target_column: str | None,
    boxes: str | Path | None,
) -> Source:
    """The images of Parquet files, which all have the columns of the first."""
    schema = _schema(place.files[0])
    image = image_column or _first(schema, IMAGES, _form)
    if image is None:
        raise ValueError(
            f"found no images in {place.files[0]}: looked for the columns {', '.join(IMAGES)}, there are "
            f"{', '.join(schema.names)}: name one as image_column"
        )
    _check(schema, image, _form, "images as bytes or by their paths", place.files[0])
    label = label_column or _first(schema, LABELS, _is_class)
    of_boxes = _boxes_column(schema, boxes, place.files[0])
    columns = _Columns(image, str(_form(schema.field(image).type)), label, target_column, of_boxes)
    rows = _rows(place, columns)
    if not rows.paths:
        raise ValueError(f"no images in {place.root}: the Parquet files there have no rows")
    none: list[Any] = [None] * len(rows.paths)
    labels, targets = (_classes(rows, name, card, classes, place) for name in (label, target_column))
    given = none if boxes is None or of_boxes else boxes_for(rows.paths, boxes)
    if of_boxes is not None:
        given = [as_boxes(value, path) for value, path in zip(rows.values[of_boxes], rows.paths, strict=True)]
    if columns.form == "path":
        return file_source(place, rows.paths, rows.files, labels, targets, given)
    index = index_of(rows.paths, labels, targets, given)
    sizes = [(place.name(file), file.stat().st_size) for file in place.files]
    return ParquetSource(
        kind=place.kind,
        root=str(place.root),
        index=index,
        fingerprint=fingerprint_of(index, image, sizes),
        files=tuple(name for name, _ in sizes),
        column=image,
        groups=tuple(rows.groups),
    )


def _rows(place: Place, columns: _Columns) -> _Rows:
    found = _Rows(values={name: [] for name in columns.listed})
    for number, file in enumerate(place.files):
        with _opened(file) as parquet:
            _check_all(parquet.schema_arrow, columns, file)
            first = len(found.paths)
            for group in range(parquet.num_row_groups):
                if count := parquet.metadata.row_group(group).num_rows:
                    found.groups.append(Group(number, group, first, first + count))
                    first += count
            named: list[str | None] = [None] * parquet.metadata.num_rows
            if columns.listed:
                table = parquet.read(columns=columns.listed)
                for name in columns.listed:
                    found.values[name] += table.column(name).to_pylist()
                if columns.form == "path":
                    named = table.column(columns.image).to_pylist()
        folder, name = PurePosixPath(place.name(file)).parent, place.name(file)
        files = [None if one is None else str(folder / one) for one in named]
        found.files += files
        found.paths += [f"{name}#{row}" if one is None else one for row, one in enumerate(files)]
    return found


def _classes(rows: _Rows, name: str | None, card: ModelCard, classes: int, place: Place) -> list[int | None]:
    if name is None:
        return [None] * len(rows.paths)
    return class_numbers(rows.values[name], card, classes, f"the column {name!r} of {place.root}")


def _check_all(schema: Any, columns: _Columns, file: Path) -> None:
    _check(schema, columns.image, lambda kind: _form(kind) == columns.form, f"images as {columns.form}", file)
    for name in (columns.label, columns.target):
        if name is not None:
            _check(schema, name, _is_class, "integers or class names", file)
    if columns.boxes is not None:
        _check(schema, columns.boxes, _is_list, "lists of four numbers", file)


def _check(schema: Any, name: str, fits: Callable[[Any], object], what: str, file: Path) -> None:
    if name not in schema.names:
        raise ValueError(f"no column {name!r} in {file}: there are {', '.join(schema.names)}")
    if not fits(schema.field(name).type):
        raise ValueError(f"expected {what} in the column {name!r} of {file}, got {schema.field(name).type}")


def _first(schema: Any, names: Sequence[str], fits: Callable[[Any], object]) -> str | None:
    return next((name for name in names if name in schema.names and fits(schema.field(name).type)), None)


def _boxes_column(schema: Any, boxes: str | Path | None, file: Path) -> str | None:
    if boxes is None or (str(boxes) not in schema.names and Path(boxes).is_file()):
        return None
    if str(boxes) not in schema.names:
        raise FileNotFoundError(
            f"boxes={str(boxes)!r} is no file, and no column of {file}: there are {', '.join(schema.names)}"
        )
    return str(boxes)


def _form(kind: Any) -> str | None:
    """What images of an Arrow type are."""
    types = distributed("pyarrow").types
    if types.is_struct(kind):
        return "bytes" if any(part.name == "bytes" and str(part.type) in _BYTES for part in kind) else None
    return "bytes" if str(kind) in _BYTES else "path" if str(_plain(kind)) in _TEXT else None


def _is_class(kind: Any) -> bool:
    types, kind = distributed("pyarrow").types, _plain(kind)
    return bool(types.is_integer(kind) or types.is_floating(kind)) or str(kind) in _TEXT


def _is_list(kind: Any) -> bool:
    types = distributed("pyarrow").types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _plain(kind: Any) -> Any:
    return kind.value_type if distributed("pyarrow").types.is_dictionary(kind) else kind


def _schema(file: Path) -> Any:
    with _opened(file) as parquet:
        return parquet.schema_arrow


def _opened(file: Path) -> Any:
    pyarrow = distributed("pyarrow")
    try:
        return distributed("pyarrow.parquet").ParquetFile(str(file))
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"could not read the Parquet file {file}: {error}") from error


@lru_cache(maxsize=2)
def _row_group(file: str, changed: int, group: int, column: str) -> Any:
    with distributed("pyarrow.parquet").ParquetFile(file) as parquet:
        return parquet.read_row_group(group, columns=[column]).column(column)


def _content(value: Any, folder: Path) -> Content:
    if isinstance(value, bytes):
        return value, None
    if value is not None and value["bytes"] is not None:
        return value["bytes"], None
    return file_content(folder, None if value is None else value.get("path"))
