"""The scale benchmark: a quick run from end to end, and the memory of a process with its children."""

import json
import subprocess
import sys
import time

import pytest

from benchmarks import scale
from benchmarks.options import Options
from benchmarks.suites import run_suite
from benchmarks.trees import peak_of_tree

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_quick(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "QUICK", scale.Scale(less=32, more=96, rounds=1, few=4, many=8))
    monkeypatch.setattr(scale, "SHARD", 32)
    path = run_suite("scale", Options(quick=True, out=tmp_path))
    found = json.loads(path.read_text())
    rates = {row["case"]: row for row in found["rows"] if row["measure"] == "images a second"}
    assert list(rates) == ["loop", "loader", "local", "ray, 1 worker", "ray, 2 workers"]
    assert all(row["value"] > 0 for row in found["rows"])
    assert max(rates["loop"]["of_loop"], rates["loader"]["of_loop"]) == 1
    memory = [(row["case"], row["images"]) for row in found["rows"] if row["measure"].startswith("peak memory")]
    assert memory == [("local", 4), ("ray", 4), ("local", 8), ("ray", 8)]


def child():
    return lambda: subprocess.run(
        [sys.executable, "-c", "import time; b = bytearray(90 << 20); b[::4096] = b'1' * 23040; time.sleep(1)"],
        check=True,
    )


def nothing():
    return lambda: time.sleep(0.5)


def raising():
    raise ValueError("not today")


def test_children_count():
    assert 70 < peak_of_tree(child) - peak_of_tree(nothing) < 140
    with pytest.raises(ValueError, match="not today"):
        peak_of_tree(raising)
