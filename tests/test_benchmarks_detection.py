"""The benchmarks of D-RISE: the scripts on a tiny detector, and the tables."""

from __future__ import annotations

import argparse
import doctest
import json

import pytest
import torch
from PIL import Image

from benchmarks import (
    detection,
    detection_games,
    detection_memory,
    detection_passes,
    detection_picture,
    detection_speed,
    detection_subjects,
    pairs,
    report_detection,
)
from drnet_captum import DRISE
from drnet_captum.attr.detection_similarity import cosine, dot
from drnet_captum.detect import CallableDetector, Detections, find_detections

DETECTOR = '''
import torch

CLASSES = ("cat", "cup")


def detector(images):
    """A cat in the upper left, the surer the redder it is there; a cup in the lower right, the surer the bluer."""
    found = []
    for x in images:
        h, w = x.shape[1:]
        cat, cup = x[0, : h // 2, : w // 2].mean(), x[2, h // 2 :, w // 2 :].mean()
        boxes = torch.tensor([[0.0, 0, w / 2, h / 2], [w / 2, h / 2, w, h]])
        sure, probs = torch.stack([cat, cup]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        found.append({"boxes": boxes, "scores": sure, "class_probs": probs, "objectness": sure})
    return found
'''
MODULES = (detection, detection_games, detection_passes, detection_picture, detection_subjects)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A detector, photos, and a folder for the results."""
    (tmp_path / "own.py").write_text(DETECTOR)
    for name, size in (("a.png", (32, 24)), ("b.png", (24, 40))):
        Image.new("RGB", size, (200, 40, 180)).save(tmp_path / name)
    monkeypatch.setattr(pairs, "RESULTS", tmp_path / "results")
    return tmp_path


def detector_of(place):
    return ["--detector", f"python:{place / 'own.py'}:detector"]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.split(".")[-1])
def test_examples(module):
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


def brightness(images):
    """One box, whose objectness is the mean of the image."""
    box, probs = torch.tensor([[0.0, 0, 2, 2]]), torch.ones(1, 1)
    return [Detections(box, x.mean()[None], probs, objectness=x.mean()[None]) for x in images]


def localise(place, *more):
    given = ["a.png=cat,cup", "b.png=*", "--root", str(place), *detector_of(place), "--steps", "4", "--grid", "4"]
    detection.main([*given, "--n-masks", "150", "--min-score", "0.1", *more])
    return json.loads((place / "results" / "detection_localisation.json").read_text())


def test_localisation_from_end_to_end(place, capsys):
    found = localise(place, "--mosaic", "--fills", "mean", "grey")
    assert "a.png, grey: 100 of 150 masks" in capsys.readouterr().out
    where, rows = found["environment"], found["rows"]
    assert where["complete"] and (where["detector"], where["n_masks"]) == ("own:detector", 150)
    assert {"machine", "threads", "device", "dtype", "seed", "torch", "captum", "commit"} <= set(where)
    of = {photo: [r for r in rows if r["photo"] == photo] for photo in ("a.png", "b.png", "mosaic of 1")}
    # Five of one set of masks, one of grey, two controls; everything is looked at in one way.
    assert [len(of[photo]) for photo in of] == [2 * 8, 2 * 3, 2 * 8]
    best = [r for r in rows if report_detection.is_made(r, detection.DEFAULT)]
    assert [r["class"] for r in best] == ["cat", "cup"] * 3
    assert all(r["points inside"] == 1 and r["energy inside"] > 0.4 and r["box share"] == 0.25 for r in best)
    assert all(r["deletion"] < r["insertion"] and r["score"] > 0.5 for r in best)
    control = next(r for r in rows if r["map"] == "shuffled weights")
    assert control["maps"] == detection.SHUFFLES and abs(control["energy inside"] - 0.25) < 0.15
    table = report_detection.detection_table(found)
    assert "| a.png | cat 78% | 0.25 | 1.00 |" in table and "mean of 4 detections" in table
    for said in ('`D-RISE`, `baselines="grey"`', '`normalize="coverage"`', '`class_similarity="dot"`', "control: "):
        assert said in table
    assert table.count("\n| a.png") == 2 and table.count("\n| b.png") == 2


@pytest.mark.parametrize(("name", "baselines"), [("mean", "mean"), ("grey", 114 / 255)])
def test_maps_are_those_of_drise(place, name, baselines):
    detector = detection_subjects.load_detector(detector_of(place)[1])
    image = detection_subjects.read(place / "a.png", detector, "cpu")
    shown = detection_subjects.subject(detector, "a.png", image, ["cup"], 0.1)
    args = argparse.Namespace(n_masks=70, grid=5, batch_size=3, seed=2)
    found = [one for one in detection.settings(detector, shown, name, args) if one.made["map"] == "D-RISE"]
    assert len(found) == (5 if name == "mean" else 1)
    for one in found:
        drise = DRISE(detector, class_similarity={"cosine": cosine, "dot": dot}[one.made["class_similarity"]])
        options = {"n_masks": 70, "grid": (5, 5), "baselines": baselines, "normalize": one.made["normalize"]}
        generator = torch.Generator().manual_seed(2)
        (maps,) = drise.attribute_detections(image, shown.targets, generator=generator, **options)
        torch.testing.assert_close(one.maps[0][0].float(), maps[0], rtol=1e-4, atol=1e-4)


def test_an_interrupted_measurement_goes_on(place, monkeypatch):
    whole, asked = detection.rows_of, []

    def once(detector, subject, name, args):
        if asked:
            raise KeyboardInterrupt
        asked.append(name)
        return whole(detector, subject, name, args)

    monkeypatch.setattr(detection, "rows_of", once)
    with pytest.raises(KeyboardInterrupt):
        localise(place)
    path = place / "results" / "detection_localisation.json"
    begun = json.loads(path.read_text())
    assert not begun["environment"]["complete"] and len(begun["rows"]) == 2 * 7
    with pytest.raises(ValueError, match="was interrupted"):
        report_detection.detection_table(begun)
    monkeypatch.setattr(detection, "rows_of", lambda *given: asked.append(given[2]) or [])
    assert localise(place)["rows"] == begun["rows"]
    assert asked == ["mean", "black", "grey", "blur", "mean"]
    assert localise(place, "--seed", "1")["rows"] == []  # another measurement


@pytest.mark.parametrize(
    ("spec", "said"),
    [("a.png=cats", "no class 'cats': try cat"), ("a.png=1", None), ("a.png", "PHOTO=CLASS"), ("a.png=9", "found c")],
)
def test_subjects_say_what_is_wrong(place, spec, said):
    detector = detection_subjects.load_detector(detector_of(place)[1])
    if said is None:
        (found,) = detection_subjects.subjects(detector, place, [spec], 0.1, "cpu", False)
        assert found.labels == ["cup"]
    else:
        with pytest.raises(ValueError, match=said):
            detection_subjects.subjects(detector, place, [spec], 0.1, "cpu", False)


def test_the_surest_of_a_class_is_explained():
    boxes, scores = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 2, 4, 4]]), torch.tensor([0.4, 0.8, 0.9])
    found = {"boxes": boxes, "scores": scores, "labels": torch.tensor([0, 0, 1])}
    detector, image = CallableDetector(lambda images: [found]), torch.zeros(1, 3, 4, 4)
    assert detection_subjects.subject(detector, "x", image, ["0"], 0.1).targets.scores.tolist() == pytest.approx([0.8])
    everything = detection_subjects.subject(detector, "x", image, ["*"], 0.5)
    assert everything.everything and everything.labels == ["class 1", "class 0"]


def test_speed_from_end_to_end(place, monkeypatch):
    asked = []

    def peak(side, which, args):
        asked.append((side, which, args.n_masks, args.batch_size))
        return 30.0 if side == "ours" else 10.0

    monkeypatch.setattr(detection_memory, "peak", peak)
    sizes = ["--size", "24", "32", "--large-size", "30", "40", "--n-masks", "6", "--memory-masks", "9"]
    detection_speed.main([*detector_of(place), *sizes, "--pairs", "2", "--cases", "passes", "targets", "memory"])
    found = json.loads((place / "results" / "detection_speed_cpu.json").read_text())
    passes, targets, cheap, real = found["rows"]
    assert sum(passes["batches"]) == 6 and passes["goal"] == pytest.approx(1 / 1.1)
    assert targets["size"] == [24, 32] and cheap["size"] == [30, 40]
    assert (cheap["median"], cheap["verdict"], cheap["n_masks"], real["n_masks"]) == (20.0, "met", 9, 6)
    assert asked[:2] == [("ours", "tiny", 9, None), ("bare", "tiny", 9, 9)] and ("bare", "real", 6, 6) in asked
    passes["median"], passes["low"], passes["high"] = 0.8, 0.5, 1.0
    table = report_detection.detection_speed_table(found)
    assert "bare passes, 24×32, 6 masks | at most 1.10× | **1.250×** as long (1.000–2.000) |" in table
    assert "| at most 500 MB | **20 MB** (20–20) |" in table


@pytest.mark.parametrize("side", ["ours", "bare"])
def test_peak_memory_of_one_side(place, capsys, side):
    detection_memory.main([side, "tiny", *detector_of(place), "--large-size", "64", "64", "--n-masks", "5"])
    assert float(capsys.readouterr().out) >= 0


def test_bare_passes_are_of_the_masked_images(place):
    detector, x = CallableDetector(brightness), torch.rand(1, 3, 20, 20)
    parts = detection_passes.masked(detector, x, n_masks=7, perturbations_per_eval=3)
    assert [len(part) for part in parts] == [3, 3, 1]
    assert not torch.equal(parts[0][0], parts[0][1]) and not torch.equal(parts[0], parts[1])
    assert len(find_detections(detector, x)) == 1 == len(detection_passes.surest(detector, x))


def test_the_other_implementation_agrees(place):
    pytest.importorskip("vision_explanation_methods")
    other = pytest.importorskip("benchmarks.detection_other")
    detector = detection_subjects.load_detector(detector_of(place)[1])
    x = torch.full((1, 3, 32, 32), 0.7)
    target = find_detections(detector, x, 0.1)[0]
    found = other.agreement(detector, x, target, 600, None)
    assert all(value > 0.4 for value in found.values())
    sizes = ["--size", "24", "32", "--large-size", "30", "40", "--n-masks", "4", "--agreement-masks", "20"]
    detection_speed.main([*detector_of(place), *sizes, "--pairs", "1", "--cases", "theirs"])
    found = json.loads((place / "results" / "detection_speed_cpu.json").read_text())
    assert [(r["model"], r["size"]) for r in found["rows"]] == [
        (model, size) for size in ([24, 32], [30, 40]) for model in ("own:detector", detection_memory.TINY)
    ]
    table = report_detection.detection_speed_table(found)
    assert "own:detector, 24×32, 4 masks | 1.4× |" in table and "correlate" not in table  # after 4 masks
    for r in found["rows"]:
        r["ours with ours"] = 0.9
    assert "their map and ours correlate by " in report_detection.detection_speed_table(found)


def test_picture(place):
    out = place / "picture.jpg"
    given = ["--photos", "coffee", "rocket", "--n-masks", "4", "--min-score", "0.01", "--out", str(out)]
    heights = []
    for more in ([], ["--mosaic"]):
        detection_picture.main([*detector_of(place), *given, *more])
        with Image.open(out) as found:
            heights.append(found.height)
    assert heights[0] > 1.3 * heights[1]
