"""The faithfulness benchmark: from end to end in small, its maps that know nothing, and its table."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from models import ConvNet, images, seeded

import drnet_captum as dc
from benchmarks import faithfulness
from benchmarks.faithfulness import LAYERS, MEASURES, QUICK, Scale, Setting, arranged, prepared, rows, run
from benchmarks.map_subjects import SLOW, Subject, baselines, centred, edges, fillers, methods
from benchmarks.mosaics import Photo, known_photos
from benchmarks.options import Options
from benchmarks.report_faithfulness import faithfulness_table
from benchmarks.suites import run_suite


def test_from_end_to_end(tmp_path):
    path = run_suite("faithfulness", Options(quick=True, out=tmp_path))
    found = json.loads(path.read_text())
    assert {"machine", "torch", "commit", "seed", "photos", "scale"} <= set(found["environment"])
    assert [(r["case"], r["measure"]) for r in found["rows"]] == [
        (case, measure) for case in ("saliency", "grad_cam", "random", "edges", "gaussian") for measure in MEASURES
    ]
    assert all(r["low"] <= r["mean"] <= r["high"] and r["photos"] == 1 for r in found["rows"])
    by_measure = {(r["case"], r["measure"]): r["mean"] for r in found["rows"]}
    assert by_measure["edges", "all layers random"] == pytest.approx(1, abs=1e-3)
    assert by_measure["gaussian", "max-sensitivity"] == 0
    assert by_measure["gaussian", "grid pointing"] == pytest.approx(0.25, abs=1e-3)
    assert abs(by_measure["random", "top layer random"]) < 0.2
    with path.with_suffix(".csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(r["mean"]) for r in table] == [r["mean"] for r in found["rows"]]
    assert faithfulness_table(found).count("\n| ") == 5


def test_chosen_methods_come_one_by_one():
    where, found = run(Options(quick=True), chosen=["hires_cam"])
    first = next(found)
    assert (first["case"], first["measure"], first["better"]) == ("hires_cam", "insertion", "higher")
    assert where["photos"] == ["chelsea"]


def setting(n=3):
    x = images(n)
    mosaics = arranged([Photo(f"p{i}", i, 0.9, image) for i, image in enumerate(images(4))], 2, 0)
    return Setting(seeded(ConvNet), x, [0, 1, 2][:n], [f"p{i}" for i in range(n)], mosaics, QUICK, 0)


def test_what_is_not_defined_is_a_row_that_says_why():
    def fails(model, x, target):
        raise ValueError("no pool")

    (row,) = rows(setting(), [Subject("cam", "CAM", fails)])
    assert row["status"] == "not defined for this model: no pool"
    assert (row["case"], row["measure"], row["side"]) == ("cam", "all", "ours")


def test_slow_methods_are_measured_on_fewer_photos_where_many_maps_are_needed(monkeypatch):
    monkeypatch.setattr(faithfulness, "LAYERS", ("fc", ""))
    seen = []

    def explain(model, x, target):
        seen.append(len(x))
        return x.sum(1, keepdim=True)

    for name, few in ((SLOW[0], 1), ("other", 3)):
        found = {r["measure"]: r for r in rows(setting(), [Subject(name, name, explain)])}
        assert {m: found[m]["photos"] for m in ("insertion", "infidelity", "grid pointing")} == {
            "insertion": 3,
            "infidelity": 3,
            "grid pointing": 3,
        }
        assert {found[m]["photos"] for m in ("max-sensitivity", "top layer random", "all layers random")} == {few}


def test_mosaics_are_scored_on_known_photos_alone():
    s = setting(2)
    shares = faithfulness.grid_shares(s, Subject("s", "s", lambda model, x, target: cell_of(x, s.mosaics)))
    assert shares == pytest.approx([1, 1])


def cell_of(x, mosaics):
    """Maps that are positive in the right cell alone."""
    maps = torch.zeros(4, 1, *x.shape[2:])
    h, w = x.shape[2] // 2, x.shape[3] // 2
    for k in range(4):
        i, j = divmod(k, 2)
        maps[k, :, i * h : (i + 1) * h, j * w : (j + 1) * w] = 1
    return maps


def test_the_first_photo_and_some_mosaics():
    whole = replace(setting(), scale=Scale(slow_mosaics=1))
    few = whole.few()
    assert (len(few.x), few.target, few.names) == (1, [0], ["p0", "p1", "p2"])
    assert few.mosaics == whole.mosaics[:1] and few.scale.random_networks == 1


def test_constant_maps_have_no_order_and_are_left_out(monkeypatch):
    monkeypatch.setattr(faithfulness, "LAYERS", ("fc", ""))
    s = replace(setting(), scale=replace(QUICK, random_networks=2))
    calls = []

    def explain(model, x, target):
        calls.append(model)
        maps = x.sum(1).clone()
        maps[0] = maps[0] * (model is s.model)  # constant in all random networks
        maps[1:2] = maps[1:2] * (len(calls) < 4)  # in the second one
        return maps

    found = dict(faithfulness.randomised(s, Subject("m", "M", explain)))
    assert len(calls) == 6
    assert found == {"top layer random": pytest.approx([1, 1]), "all layers random": pytest.approx([1, 1])}
    alone = [r for r in rows(s.few(), [Subject("m", "M", explain)]) if r["measure"] == "top layer random"]
    assert [r["status"] for r in alone] == ["every map was constant"]


def test_the_real_setting_has_a_mosaic_of_four_photos_of_which_the_known_are_scored():
    s = prepared(Options(), None)
    assert s.names == ["chelsea", "coffee", "rocket"] and s.x.shape == (3, 3, 224, 224)
    assert all({cell.name for cell in m.cells} == {*s.names, "astronaut"} for m in s.mosaics)
    known, others = known_photos(s.model, None)
    assert others == [] and [p.label for p in known] == s.target
    names = dict(s.model.named_modules())
    assert all(layer in names for layer in LAYERS)
    inside = [n for n, m in names.items() if any(True for _ in m.parameters(recurse=False))]
    assert all(n.startswith(LAYERS) for n in inside)
    assert [n for n in inside if n.startswith("classifier")] == ["classifier.1"]


def test_enough_photos_need_no_others():
    model = dc.load_model("embedded")
    four = [Photo(str(i), i, 0.9, images(1)[0]) for i in range(4)]
    assert fillers(model, four) == []
    assert [p.name for p in fillers(model, four[:3])] == ["astronaut"]


def test_methods_of_the_registry_with_fewer_passes():
    assert [m.name for m in methods(())] == list(dc.methods())
    (rise,) = methods(["rise"])
    assert rise.options == {"n_masks": 200}
    (smooth,) = methods(["smooth_grad"], quick=True)
    x = images(2)
    assert smooth.options == {"n_samples": 4} and smooth.explain(seeded(ConvNet), x, [0, 1]).shape == x.shape


def test_maps_that_know_nothing():
    x = torch.zeros(2, 3, 9, 9)
    x[:, :, :, 5:] = 1.0
    found = edges(x)
    assert found.shape == (2, 1, 9, 9)
    assert found[0, 0].sum(0).nonzero().flatten().tolist() == [4, 5] and (found[0, 0, :, 4] == 4).all()
    assert torch.equal(edges(x.transpose(2, 3))[0, 0], found[0, 0].T)
    blob = centred(x)[1, 0]
    assert blob.flatten().argmax() == 40 and torch.equal(blob, blob.T) and torch.equal(blob, blob.flip(0))
    chance = baselines()[0].explain
    a, b = chance(None, x, 0), chance(None, x, 0)
    assert a.shape == (2, 1, 9, 9) and not torch.equal(a, b)
    assert torch.equal(a, baselines()[0].explain(None, x, 0))


def result(case, measure, better, mean, baseline=False, photos=3):
    row = {"case": case, "title": case.upper(), "baseline": baseline, "measure": measure, "better": better}
    return row | {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "photos": photos}


def test_table():
    found = [
        result("a", "insertion", "higher", 0.5),
        result("a", "deletion", "lower", 0.3),
        result("a", "top", "zero", -0.4, photos=1),
        result("b", "insertion", "higher", 0.6),
        result("b", "deletion", "lower", 0.3001),
        result("b", "top", "zero", 0.2),
        result("r", "insertion", "higher", 0.9, baseline=True),
        {"case": "c", "title": "C", "measure": "all", "status": "not defined for this model: why"},
    ]
    where = {"photos": ["x", "y", "z"], "model": "m", "torch": "t", "captum": "c", "seed": 0}
    assert "| A | 0.5 | **0.3** | -0.4 |" in faithfulness_table({"rows": found, "environment": where})
    lines = faithfulness_table({"rows": found, "environment": where}, intervals=True).splitlines()
    assert lines[:2] == ["| method | insertion ↑ | deletion ↓ | top → 0 |", "|---|---|---|---|"]
    assert lines[2] == "| A | 0.5 (0.4–0.6) | **0.3** (0.2–0.4) | -0.4 (-0.5–-0.3) |"
    assert lines[3] == "| B | **0.6** (0.5–0.7) | **0.3** (0.2–0.4) | **0.2** (0.1–0.3) |"
    assert lines[4] == "| *R* | 0.9 (0.8–1) |  |  |"
    assert "Means over 3 photos" in lines[6]
    assert "Some cells of A are of fewer photos" in lines[6]
    assert lines[6].endswith("Left out: C, all (not defined for this model: why).")
