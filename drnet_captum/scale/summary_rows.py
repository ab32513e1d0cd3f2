"""The folder that ``explain_dataset`` wrote, read column by column: never more than a few hundred images at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drnet_captum.scale.explanation_run import CONTENT
from drnet_captum.scale.extra import distributed
from drnet_captum.scale.measures import POOLED
from drnet_captum.scale.rows import ERRORS, ROWS
from drnet_captum.scale.run_folder import MANIFEST, read_manifest

Values = npt.NDArray[Any]

_BATCH = 1024


class Explanations:
    """A run's folder.

    Attributes:
        folder, manifest: where it is, and what it says of itself.
        model: the model's name.
        classes: how many classes the model has.
        categories: their names; None where they are not known.
        methods: names of the methods that explained.
        complete: whether every image was explained, or failed.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder that holds no explanations, or a damaged manifest.
        ImportError: without pyarrow.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder at {self.folder}: name the one that explain_dataset wrote")
        manifest = read_manifest(self.folder)
        if manifest is None or manifest["content"] != CONTENT:
            found = f"no {MANIFEST}" if manifest is None else f"the manifest of {manifest['content']!r}"
            raise ValueError(f"expected the folder that explain_dataset wrote, got {self.folder} with {found}")
        self.manifest: Mapping[str, Any] = manifest
        try:
            self.model = str(manifest["model"]["name"])
            self.classes = int(manifest["model"]["classes"])
            names = manifest["model"].get("categories")
            self.categories = None if names is None else tuple(map(str, names))
            self.methods = tuple(map(str, manifest["methods"]))
            self.complete = bool(manifest["complete"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{self.folder / MANIFEST} is damaged ({why}): explain the data set again") from error
        self._parquet = distributed("pyarrow.parquet")
        self._types = distributed("pyarrow").types

    def batches(self, columns: Sequence[str]) -> Iterator[dict[str, Values]]:
        """The columns, some rows at a time, in the order of the rows.

        Yields:
            By column: (n,) int64, −1 for null; (n,) float, NaN for null; or pooled maps (n, 196).

        Raises:
            ValueError: a damaged file, or one without such a column.
        """
        for file in self._files(ROWS, columns):
            for batch in file.iter_batches(_BATCH, columns=list(columns)):
                yield {name: self._array(batch.column(name)) for name in columns}

    def rows(self, indices: Collection[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """The rows of some images, by index; row groups without any of them are not read."""
        wanted = np.unique(np.array(sorted(indices), dtype=np.int64))
        found: dict[int, dict[str, Any]] = {}
        for file in self._files(ROWS, ["index", *columns]) if len(wanted) else ():
            groups = [i for i in range(file.num_row_groups) if _may_hold(file.metadata.row_group(i), wanted)]
            for batch in file.iter_batches(_BATCH, row_groups=groups, columns=["index", *columns]) if groups else ():
                hits = np.flatnonzero(np.isin(self._array(batch.column("index")), wanted))
                found |= {row.pop("index"): row for row in batch.take(hits).to_pylist()}
        return found

    def failures(self) -> Iterator[tuple[str, str]]:
        """(path, reason) of the images that could not be explained; of a run that goes on, of its shards so far."""
        columns = ["path", "reason"]
        whole = (self.folder / f"{ERRORS}.parquet").exists()
        for file in self._files("" if whole else ERRORS, columns, f"{ERRORS}.parquet" if whole else "*.parquet"):
            for batch in file.iter_batches(_BATCH, columns=columns):
                yield from ((row["path"], row["reason"]) for row in batch.to_pylist())

    def _files(self, kind: str, columns: Sequence[str], pattern: str = "*.parquet") -> Iterator[Any]:
        for path in sorted((self.folder / kind).glob(pattern)):
            try:
                file = self._parquet.ParquetFile(path)
            except (OSError, ValueError) as error:
                raise ValueError(f"{path} is damaged ({error}): remove it, and run the same again") from error
            with file:
                if missing := sorted(set(columns) - set(file.schema_arrow.names)):
                    raise ValueError(f"{path} has no column {missing[0]!r}: it is not of this run, explain again")
                yield file

    def _array(self, column: Any) -> Values:
        if self._types.is_list(column.type):
            values: Values = column.flatten().to_numpy(zero_copy_only=False)
            if values.size != len(column) * POOLED * POOLED:
                raise ValueError(
                    f"expected {POOLED * POOLED} values of each pooled map, got {values.size} of {len(column)} maps: "
                    "the rows are damaged, explain again"
                )
            return values.reshape(len(column), POOLED * POOLED)
        filled = column.fill_null(np.nan if self._types.is_floating(column.type) else -1)
        numbers: Values = filled.to_numpy(zero_copy_only=False)
        return numbers


def _may_hold(group: Any, wanted: Values) -> bool:
    """Whether a row group can have one of the indices, by its statistics."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "index" and column.statistics is not None and column.statistics.has_min_max:
            low, high = column.statistics.min, column.statistics.max
            return bool(((wanted >= low) & (wanted <= high)).any())
    return True
