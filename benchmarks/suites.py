"""The suites by name, and how one is run: its rows are written as they are found."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from benchmarks.options import Options, UnsuitableError

SUITES = {
    "throughput": "benchmarks.throughput",
    "memory": "benchmarks.memory",
    "panel": "benchmarks.panel",
    "drise": "benchmarks.detection_speed",
    "dissect": "benchmarks.dissection",
    "faithfulness": "benchmarks.faithfulness",
    "growth": "benchmarks.growth",
    "scale": "benchmarks.scale",
}

CPU_ONLY = ("dissect",)
UNCAPTURED = ("memory", "panel")  # have all modes but "captured"
# How a row is said in a line; the other suites do so themselves.
WITH_LINES = dict.fromkeys(records.MERGED, lambda module: records.said) | {"faithfulness": lambda module: module.said}


def run_suite(name: str, options: Options, **more: Any) -> Path:
    """Measure a suite and write its results; returns the file.

    Args:
        name: one of ``SUITES``.
        options: of the command line.
        more: what this suite alone takes.

    Raises:
        UnsuitableError: the results that are there come from elsewhere (see ``benchmarks.records.kept``), or the suite
            has none of the modes.
    """
    if name in UNCAPTURED and set(options.modes) == {"captured"}:
        raise UnsuitableError(f"{name} has no mode captured: pass --modes same, best or both, or run throughput")
    module = import_module(SUITES[name])
    path = records.path_of(name, options, torch.__version__)
    environment, found = module.run(options, **more)
    rows = records.kept(path, name, environment)
    for row in found:
        new = [row | {"commit": environment["commit"]}]
        rows = records.merged(rows, new) if name in records.MERGED else rows + new
        records.write(path, name, environment, rows)
        if name in WITH_LINES:
            print(WITH_LINES[name](module)(row), flush=True)
    return path
