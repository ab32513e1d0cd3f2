"""The growth benchmark: known laws give known sentences; turns by a fake clock; a quick run from end to end."""

from __future__ import annotations

import csv
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from detectors import BrightRectangles

from benchmarks import growth, growth_plot, growth_series, panel, peaks
from benchmarks.agreement import DisagreementError
from benchmarks.growth_fit import Point, power_law, said, straight_line
from benchmarks.growth_series import BATCH, CAPTUM, CLASSES, LAYERS, MASKS, OURS, SIDE, Line, Setting
from benchmarks.options import Options
from benchmarks.report_growth import growth_lines

QUICK = Setting("test_resnet", side=64)


def points(values, seconds, mib):
    return [Point(v, s, s, s, 3, m) for v, s, m in zip(values, seconds, mib, strict=True)]


def test_straight_line():
    exact = straight_line([1, 2, 8], [0.5, 0.6, 1.2], 1e-6)
    assert (exact.start, exact.slope) == (pytest.approx(0.4), pytest.approx(0.1))
    assert exact.share == pytest.approx(0.2) and exact.error == pytest.approx(0.0, abs=1e-9)
    weights, x, y = (1, 1 / 4, 1 / 16), (0, 1, 2), (1, 2, 4)
    best = straight_line(x, y, 1e-6)

    def cost(a, b):
        return sum(w * (a + b * v - m) ** 2 for w, v, m in zip(weights, x, y, strict=True))

    least = cost(best.start, best.slope)
    for a, b in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
        assert cost(best.start + a, best.slope + b) > least
    assert best.error == pytest.approx(max(abs(best.start + best.slope * v - m) / m for v, m in zip(x, y, strict=True)))
    with pytest.raises(ValueError, match="no growth in one"):
        straight_line([4, 4], [1.0, 2.0], 1e-6)


def test_power_law():
    fit = power_law([128, 256, 512], [3.0, 12.0, 48.0], 1e-6)
    assert fit.slope == pytest.approx(2.0) and fit.start == pytest.approx(3 / 128**2) and fit.share is None
    assert fit.error == pytest.approx(0.0, abs=1e-9)
    bent = power_law([1, 2, 4], [1.0, 2.0, 1.0], 1e-6)  # level at 2^(1/3), 2/2^(1/3) − 1 … from the points
    assert bent.slope == pytest.approx(0.0) and bent.error == pytest.approx(1 - 2 ** (1 / 3) / 2)


def test_sentences():
    values = (1, 5, 10, 20)
    cheap = points(values, [0.4 * (1 + 0.03 * (v - 1)) for v in values], [50.0] * 4)
    assert said(cheap, "line", "Grad-CAM", "class", "classes")["sentence"] == (
        "Grad-CAM: each further class costs 3.0% of the time and less than 0.5% of the memory of the first "
        "(1 to 20: 0.4 to 0.63 s, 50 to 50 MiB; within 0% and 0% of the fit)."
    )
    masks = points((250, 500, 1000), (1.0, 2.0, 4.0), (20.0, 20.0, 20.0))
    found = said(masks, "line", "D-RISE", "mask", "masks")
    assert found["sentence"] == (
        "D-RISE: each further 250 masks cost 100% of the time and less than 0.5% of the memory of the first 250 "
        "(250 to 1,000: 1 to 4 s, 20 to 20 MiB; within 0% and 0% of the fit)."
    )
    assert found["fit"]["seconds"]["share"] == pytest.approx(1.0)
    side = points((128, 512), (0.1, 1.6), (10.0, 80.0))
    assert said(side, "power", "six methods", "side", "pixels")["sentence"] == (
        "Six methods: time grows as the side to the power of 2.0, memory to that of 1.5 "
        "(128 to 512: 0.1 to 1.6 s, 10 to 80 MiB; within 0% and 0% of the fit)."
    )
    steps = points((1, 3, 6, 11), (1.0, 1.5, 2.0, 2.1), (100.0, 110.0, 130.0, 130.0))
    assert said(steps, "steps", "one call", "method", "methods") == {
        "sentence": "One call: 6 methods take 2.00 times the time and 1.30 times the memory of 1, 11 methods take 1.05 "
        "times the time and 1.00 times the memory of 6 (1 to 11: 1 to 2.1 s, 100 to 130 MiB)."
    }


def test_a_bad_fit_says_so():
    # weights 1, 1/9, 1: level, at (1 + 1/3 + 1) / (2 + 1/9) = 21/19, which is 36/57 of 3 below it
    bent = points((1, 2, 3), (1.0, 3.0, 1.0), (1.0, 1.0, 1.0))
    assert (
        "less than 0.5% of the time and memory of the first (1 to 3: 1 to 1 s, 1 to 1 MiB; within 63% and 0% of"
        in said(bent, "line", "a", "b", "c")["sentence"]
    )


def test_all_values_take_turns():
    order = []

    def counts(most=growth.MOST_ROUNDS, **seconds):
        """Runs that take so long by a clock that goes on while they run only: what is measured of each."""
        order.clear()
        calls = {name: partial(order.append, name) for name in seconds}
        return growth.in_rounds(calls, most, clock=lambda: sum(seconds[name] for name in order))

    # a round takes 11 s, each run after an untimed one: three rounds are the least, and four would be over 30 s
    assert counts(one=0.5, two=1.0, three=4.0) == {"one": [0.5] * 3, "two": [1.0] * 3, "three": [4.0] * 3}
    assert order == ["one", "one", "two", "two", "three", "three"] * 3
    assert len(counts(a=3.0)["a"]) == 5
    assert len(counts(a=0.25)["a"]) == growth.MOST_ROUNDS
    assert len(counts(1, a=0.25)["a"]) == 1


def test_peaks():
    small, large = (peaks.peak_alone(partial, torch.ones, mib << 18) for mib in (40, 160))
    assert small > 38
    assert 90 < large - small < 150  # what a process touches for the first time is in both, and differs by machine
    torch.ones(160 << 18)  # here it is touched before
    assert 158 < peaks.peak(lambda: torch.ones(160 << 18)) < 190
    assert 38 < peaks.peak(lambda: torch.ones(40 << 18)) < 70  # the mark of 160 was reset
    heap = [torch.ones(1 << 15) for _ in range(400)]  # 50 MiB in small pieces, which the C library would keep
    del heap
    assert 38 < peaks.peak(lambda: [torch.ones(1 << 15) for _ in range(320)]) < 70
    assert peaks.status("VmHWM") >= peaks.status("VmRSS") > 0
    with pytest.raises(TypeError, match="must be callable"):
        peaks.peak_alone(partial, "no function")


def test_a_peak_is_taken_with_as_many_threads(monkeypatch):
    asked = []
    monkeypatch.setattr(peaks, "ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    peaks.peak_alone(partial, asked.append, "run")
    assert asked == [3, "run"]


def test_no_peaks_without_proc(monkeypatch):
    monkeypatch.setattr(peaks, "_RESET", Path("/none"))
    with pytest.raises(RuntimeError, match="expected Linux"):
        peaks.peak(lambda: None)


def test_what_runs_at_a_value():
    def shape(line, value):
        return growth_series.run_of(QUICK, line, value)()

    assert shape(Line(BATCH, "Grad-CAM", OURS, (1,)), 3)["grad_cam"].shape == (1, 3, 1, 64, 64)
    assert shape(Line(SIDE, "Guided Backprop", OURS, (1,)), 96)["guided_backprop"].shape == (1, 1, 3, 96, 96)
    for library in (OURS, CAPTUM):
        six = shape(Line(CLASSES, "six methods", library, (1,)), 2)
        assert tuple(six) == growth_series.SIX and six["guided_backprop"].shape == (2, 1, 3, 64, 64)
        assert not any(found.requires_grad for found in six.values())
    assert tuple(shape(Line(growth_series.COUNT, "one call", OURS, (1,)), 7)) == growth_series.METHODS[:7]
    depth = len(growth_series.unit_names(QUICK))
    assert [len(shape(Line(LAYERS, "", OURS, (1,)), n)) for n in (1, 4, depth)] == [1, 4, depth]
    assert shape(Line(MASKS, "", OURS, (1,)), 20)[0].shape == (1, 64, 64)


def test_as_many_masks_as_the_value(monkeypatch):
    detector = BrightRectangles((0, 0, 32, 32))
    monkeypatch.setattr(growth_series, "cheap", lambda: detector)
    growth_series.run_of(QUICK, Line(MASKS, "", OURS, (1,)), 30)()
    assert detector.seen == 1 + 30  # the image itself, and masks


def test_a_fresh_process_is_warmed_by_the_least_value(monkeypatch):
    ran = []
    monkeypatch.setattr(growth_series, "run_of", lambda setting, line, value: partial(ran.append, value))
    call = growth_series.warmed_run(QUICK, Line(BATCH, "", OURS, (2, 4, 8)), 8)
    assert ran == [2]
    call()
    assert ran == [2, 8]


def test_lines_go_from_one_to_all():
    lines = {
        (line.series.name, line.what, line.library): line.values for s in growth_series.lines_of(QUICK) for line in s
    }
    depth = len(growth_series.unit_names(QUICK))
    assert lines["layers dissected", "DRNet dissection", OURS] == (1, depth // 4, depth // 2, depth)
    assert lines["batch size", "Grad-CAM", OURS][-1] == 32 and lines["image side", "six methods", OURS][::3] == (
        128,
        512,
    )
    assert lines["methods", "one call", OURS][-2:] == (6, 11) and lines["methods", "one by one", CAPTUM][-1] == 6
    assert all(list(values) == sorted(set(values)) for values in lines.values())


def test_other_maps_are_not_timed(monkeypatch):
    theirs = panel.captum_panel

    def wrong(subject, methods, classes):
        found = theirs(subject, methods, classes)()
        return lambda: found | {"deconvnet": -found["deconvnet"]}

    monkeypatch.setattr(panel, "captum_panel", wrong)
    with pytest.raises(DisagreementError, match=r"test_resnet.*deconvnet differs"):
        list(growth.rows(Options(quick=True)))


def test_loops_keep_no_graphs():
    subject = growth_series.subject_of(QUICK)
    assert growth_series.captum_panel(subject, ("grad_cam",), 1)()["grad_cam"].requires_grad  # why there is `looped`
    assert not growth_series.looped(subject, ("grad_cam",), 1)()["grad_cam"].requires_grad


def test_quick_from_end_to_end(tmp_path, monkeypatch, capsys):
    alone = peaks.peak_alone

    def peak(prepare, setting, line, value, device):
        """Really in a process of its own where it must grow, else a number that stands for one."""
        real = line.series == BATCH and line.what == "Guided Backprop"
        return alone(prepare, setting, line, value, device=device) if real else 7.5

    monkeypatch.setattr(growth, "peak_alone", peak)
    growth.main(["--model", "test_resnet", "--quick", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("growth_cpu_float32_torch*_quick.json")
    results = json.loads(path.read_text())
    rows = results["rows"]
    counts = Counter(row["series"] for row in rows)
    assert dict(counts) == {
        "batch size": 6,
        "image side": 6,
        "classes": 12,
        "methods": 4,
        "layers dissected": 2,
        "D-RISE masks": 2,
    }
    assert {"machine", "torch", "commit", "side"} <= set(results["environment"])
    assert all(0 < row["low"] <= row["seconds"] <= row["high"] and row["runs"] == 1 for row in rows)
    assert all(("agrees" in row) == (row["library"] == CAPTUM) for row in rows)
    one, two = (row["mib"] for row in rows if (row["series"], row["what"]) == ("batch size", "Guided Backprop"))
    assert one + 1 < two  # of two images against one
    with path.with_suffix(".csv").open() as file:
        flat = list(csv.DictReader(file))
    assert len(flat) == len(rows) and float(flat[2]["mib"]) == one
    sentences = [row["sentence"] for row in rows if "sentence" in row]
    said_now = capsys.readouterr().out
    assert len(sentences) == 16 and all(sentence in said_now for sentence in sentences)
    lines = growth_lines(results).splitlines()
    assert [line.split("**")[1] for line in lines[:6]] == [
        "Batch size.",
        "Image side.",
        "Classes.",
        "Methods.",
        "Layers dissected.",
        "D-RISE masks.",
    ]
    assert all(sentence in lines[0] for sentence in sentences[:3]) and "test_resnet" in lines[-1]
    growth_plot.main([str(path), "--out", str(tmp_path / "growth.png")])
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
