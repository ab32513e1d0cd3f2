"""The rows that a run writes, as Parquet: one for each image, in files of one shard each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drnet_captum.scale.decode import Row
from drnet_captum.scale.extra import distributed
from drnet_captum.scale.measures import Floats, Measures, Packed
from drnet_captum.scale.run_folder import write_whole
from drnet_captum.scale.shards import Shard

ROWS, ERRORS, ALL_ERRORS = "rows", "errors", "errors.parquet"


@dataclass(frozen=True)
class Failure:
    """An image that could not be explained."""

    index: int
    path: str
    reason: str


@dataclass
class Explained:
    """The readable rows of a batch, explained.

    Attributes:
        rows: n of them.
        predicted, probability: (n,), the likeliest class.
        target, target_probability: (n,), the class explained.
        box_share: (n,), the boxes' share of the crop; NaN without any.
        measures: by method.
        maps: by method, n of them; empty where maps are not kept.
    """

    rows: list[Row]
    predicted: list[int]
    probability: Floats
    target: list[int]
    target_probability: Floats
    box_share: Floats
    measures: dict[str, Measures]
    maps: dict[str, list[Packed]]


def schema(methods: Sequence[str], with_maps: bool) -> Any:
    """The columns of a file of rows."""
    pa = distributed("pyarrow")
    columns = [
        ("index", pa.int64()),
        ("path", pa.string()),
        ("label", pa.int64()),
        ("predicted", pa.int64()),
        ("probability", pa.float32()),
        ("target", pa.int64()),
        ("target_probability", pa.float32()),
        ("thumbnail", pa.binary()),
        ("box_share", pa.float32()),
    ]
    for name in methods:
        columns += [(f"{name}_{measure}", pa.float32()) for measure in ("sum", "low", "high", "inside")]
        columns += [(f"{name}_pooled", pa.list_(pa.float32()))]
        if with_maps:
            columns += [
                (f"{name}_map", pa.list_(pa.float16())),
                (f"{name}_scale", pa.float32()),
                (f"{name}_shape", pa.list_(pa.int32())),
            ]
    return pa.schema(columns)


def write_rows(out: Path, shard: Shard, batches: Sequence[Explained], methods: Sequence[str], with_maps: bool) -> None:
    """The file of a shard; it is there when it is complete."""
    pa, parquet = distributed("pyarrow"), distributed("pyarrow.parquet")
    columns = schema(methods, with_maps)
    tables = [pa.table(_columns(batch, methods, with_maps), columns) for batch in batches]
    table = pa.concat_tables(tables) if tables else columns.empty_table()
    path = out / ROWS / f"{shard.name}.parquet"
    write_whole(path, lambda part: parquet.write_table(table, part, compression="zstd"))


def note_failures(out: Path, shard: Shard, failures: Sequence[Failure]) -> None:
    """The file of a shard's failures; none, and none of an earlier try, where there are no failures."""
    path = out / ERRORS / f"{shard.name}.parquet"
    if failures:
        write_failures(path, failures)
    else:
        path.unlink(missing_ok=True)


def write_failures(path: Path, failures: Iterable[Failure]) -> None:
    """A file of what failed, by row."""
    pa, parquet = distributed("pyarrow"), distributed("pyarrow.parquet")
    columns = pa.schema([("index", pa.int64()), ("path", pa.string()), ("reason", pa.string())])
    found = [asdict(failure) for failure in sorted(failures, key=lambda failure: failure.index)]
    table = pa.Table.from_pylist(found, columns)
    write_whole(path, lambda part: parquet.write_table(table, part))


def read_failures(path: Path) -> list[Failure]:
    """What failed, of a file; none where it is not there."""
    if not path.is_file():
        return []
    return [Failure(**row) for row in distributed("pyarrow.parquet").read_table(path).to_pylist()]


def failures_of(out: Path, shards: Iterable[Shard]) -> list[Failure]:
    """What failed of some shards: as is noted of each, or in the file of all that a finished run leaves."""
    found = read_failures(out / ALL_ERRORS)
    some: list[Failure] = []
    for shard in sorted(shards):
        path = out / ERRORS / f"{shard.name}.parquet"
        known = (failure for failure in found if shard.start <= failure.index < shard.stop)
        some += read_failures(path) if path.is_file() else known
    return some


def _columns(batch: Explained, methods: Sequence[str], with_maps: bool) -> dict[str, Any]:
    rows = batch.rows
    found: dict[str, Any] = {
        "index": [row.index for row in rows],
        "path": [row.path for row in rows],
        "label": [row.label for row in rows],
        "predicted": batch.predicted,
        "probability": batch.probability,
        "target": batch.target,
        "target_probability": batch.target_probability,
        "thumbnail": [row.thumbnail for row in rows],
        "box_share": _nullable(batch.box_share),
    }
    for name in methods:
        measures = batch.measures[name]
        found |= {
            f"{name}_sum": measures.sum,
            f"{name}_low": measures.low,
            f"{name}_high": measures.high,
            f"{name}_inside": _nullable(measures.inside),
            f"{name}_pooled": list(measures.pooled),
        }
        if with_maps:
            maps = batch.maps[name]
            found |= {
                f"{name}_map": [m.values for m in maps],
                f"{name}_scale": [m.scale for m in maps],
                f"{name}_shape": [list(m.shape) for m in maps],
            }
    return found


def _nullable(values: Floats) -> Any:
    """Numbers with nulls for NaN."""
    return distributed("pyarrow").array(values, mask=np.isnan(values))
