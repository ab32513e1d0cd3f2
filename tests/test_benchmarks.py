"""The timer, with a fake clock; the tables; and that README says what the results files say."""

from pathlib import Path

import pytest

from benchmarks.pairs import Ratio, paired, ratio_of, row
from benchmarks.report import README, RESULTS, filled, speed_table
from drnet_captum import methods


class Clock:
    """Time that passes only while a side runs."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def side(self, name, seconds):
        def run():
            self.order.append(name)
            self.now += seconds

        return run

    def __call__(self):
        return self.now


def test_sides_run_in_turn_and_short_ones_twice():
    clock = Clock()
    found = paired(clock.side("ours", 2.0), clock.side("theirs", 12.0), pairs=2, clock=clock)
    assert clock.order == ["ours", "theirs", *["ours", "ours", "theirs"] * 2]
    assert (found.median, found.low, found.high, found.pairs) == (6.0, 6.0, 6.0, 2)
    assert (found.ours_median, found.theirs_median) == (2.0, 12.0)


def test_ratios_are_paired():
    found = ratio_of([(1.0, 3.0), (2.0, 2.0), (1.0, 2.0)])
    assert found.median == 2.0
    assert (found.low, found.high) == (1.5, 2.5)


@pytest.mark.parametrize(
    ("median", "low", "high", "verdict"),
    [(3.6, 3.0, 4.0, "met"), (3.4, 3.0, 3.6, "not shown either way"), (3.0, 2.9, 3.4, "missed")],
)
def test_verdicts(median, low, high, verdict):
    assert Ratio(median, low, high, 5, 1.0, median).verdict(3.5) == verdict


def test_speed_table():
    ratio = Ratio(2.5, 2.0, 3.0, 5, 1.0, 2.5)
    rows = [row("Grad-CAM", "resnet50", "time", 2.0, ratio), row("Grad-CAM", "resnet50", "peak memory", 2.5, ratio)]
    where = {"machine": "m", "threads": 2, "torch": "t", "captum": "c", "seed": 0}
    table = speed_table({"rows": rows, "environment": where})
    assert "| Grad-CAM: time | 2× | **2.50×** faster (2.00–3.00) |" in table
    assert "| Grad-CAM: peak memory | at most 0.4× | **0.40×** (0.33–0.50) |" in table


def test_readme_says_what_the_results_say():
    text = README.read_text()
    assert filled(text) == text
    for method in methods().values():
        assert f"`{method.name}`" in text


def test_results_files_say_where_they_come_from():
    import json

    files = list(Path(RESULTS).glob("*.json"))
    assert files
    for file in files:
        found = json.loads(file.read_text())
        assert {"machine", "threads", "device", "dtype", "seed", "torch", "captum", "commit"} <= set(
            found["environment"]
        )
        assert all({"case", "model", "measure", "median", "low", "high", "pairs"} <= set(r) for r in found["rows"])
