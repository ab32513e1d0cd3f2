"""Results files: JSON with all there is, and CSV with the rows, named by suite, device, dtype and torch's version."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.options import Options, UnsuitableError

Row = dict[str, Any]
KEY = ("model", "case", "measure", "batch_size", "mode", "side")
PLACE = ("machine", "threads", "device", "dtype", "seed", "torch", "torchvision", "captum", "timm", "tf32")
MERGED = ("throughput", "memory", "panel")
SCHEMA = Path(__file__).parent / "schema.json"


def path_of(suite: str, options: Options, torch_version: str) -> Path:
    """Where a suite's results are; those of quick runs lie apart.

    Example:
        >>> path_of("panel", Options(), "2.15.0+cu132").name
        'panel_cpu_float32_torch2.15.0.json'
    """
    quick = "_quick" if options.quick else ""
    device = options.device.replace(":", "")
    return options.out / f"{suite}_{device}_{options.dtype}_torch{torch_version.split('+')[0]}{quick}.json"


def read(path: Path) -> dict[str, Any]:
    """A results file; without rows where there is none."""
    if not path.exists():
        return {"environment": None, "rows": []}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def kept(path: Path, suite: str, environment: Mapping[str, Any]) -> list[Row]:
    """The rows that are there already, which new ones are merged with; none of suites that are measured as a whole.

    Raises:
        UnsuitableError: they come from another machine, or from other versions or settings.
    """
    found = read(path)
    if suite not in MERGED or not found["rows"]:
        return []
    apart = [name for name in PLACE if found["environment"].get(name) != environment.get(name)]
    if apart:
        said = ", ".join(f"{name} {found['environment'].get(name)} (now {environment.get(name)})" for name in apart)
        raise UnsuitableError(f"{path} was measured with {said}: pass another --out, or move the file away")
    return list(found["rows"])


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a row from others."""
    return tuple(row.get(name) for name in KEY)


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """New rows in the place of old ones of the same key, others at the end.

    Example:
        >>> merged([{"case": "a", "median": 1}, {"case": "b"}], [{"case": "c"}, {"case": "a", "median": 2}])
        [{'case': 'a', 'median': 2}, {'case': 'b'}, {'case': 'c'}]
    """
    return list(({key_of(row): row for row in old} | {key_of(row): row for row in new}).values())


def write(path: Path, suite: str, environment: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """JSON and CSV; a file is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"suite": suite, "environment": environment, "rows": rows}
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def said(row: Row) -> str:
    """A row of times or memory in a line."""
    what = f"{row['model']:22} {row['case']:26} {row['measure']:11} batch {row['batch_size']:<3} {row['mode']}, against"
    if row["status"] != "measured":
        return f"{what} {row['side']}: {row['status']}"
    goal = "" if row["goal"] is None else f"  goal {row['goal']:.2f}: {row['verdict']}"
    differs = f"  (differs: {row['why']})" if row["agrees"] is False else ""
    return f"{what} {row['side']:26} {row['median']:5.2f}× [{row['low']:.2f}, {row['high']:.2f}]{goal}{differs}"
