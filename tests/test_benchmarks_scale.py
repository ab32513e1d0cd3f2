"""The scale benchmark: a quick run from end to end, and the memory of a process with its children."""

import json
import subprocess
import sys
import time

import pytest

from benchmarks import scale
from benchmarks.options import Options
from benchmarks.report_scale import scale_block
from benchmarks.suites import run_suite
from benchmarks.trees import peak_of_tree

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_quick(tmp_path, monkeypatch):
    """All is run, and timed by a clock of ten images a second for loops, and eight for the engines."""

    def told(go, photos):
        go(photos)
        return 2 + len(list(photos.iterdir())) / (10 if "readers" in go.keywords else 8)

    monkeypatch.setattr(scale, "QUICK", scale.Scale(less=4, more=8, rounds=1, few=2, many=4))
    monkeypatch.setattr(scale, "seconds", told)
    found = json.loads(run_suite("scale", Options(quick=True, out=tmp_path)).read_text())
    rates = {row["case"]: row for row in found["rows"] if row["measure"] == "images a second"}
    assert list(rates) == ["loop", "loader", "local", "ray, 1 worker", "ray, 2 workers"]
    assert rates["loader"]["value"] == pytest.approx(10) and rates["loader"]["of_loop"] == pytest.approx(1)
    for way in ("local", "ray, 1 worker", "ray, 2 workers"):
        assert rates[way]["value"] == pytest.approx(8) and rates[way]["of_loop"] == pytest.approx(0.8)
        assert rates[way]["start_seconds"] == pytest.approx(2)
    others = [row for row in found["rows"] if row not in rates.values()]
    assert all(row["value"] > 0 for row in others)
    memory = [(row["case"], row["images"]) for row in others if row["measure"].startswith("peak memory")]
    assert memory == [("local", 2), ("ray", 2), ("local", 4), ("ray", 4)]
    assert "| `explain_dataset`, in this process | 8 | **0.80×**" in scale_block(found)


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
