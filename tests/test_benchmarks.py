"""The timer, with a fake clock; the judge of layers, on known ones; the tables; README says what the results say."""

import csv
import json
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import nn

from benchmarks.layer_verdicts import Grid, Verdict, final_positions, good_layer, grid_of, judge
from benchmarks.layers import smallest, summary
from benchmarks.pairs import Ratio, paired, ratio_of, timed
from benchmarks.records import MERGED, SCHEMA
from benchmarks.report import PAGES, README, RESULTS, filled, layers_table
from drnet_captum import methods

MEASURED = {"case", "model", "measure", "median", "low", "high", "pairs"}


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


@pytest.mark.parametrize(
    ("pairs", "seconds", "found"), [(9, None, 9), (9, 45.0, 4), (9, 1.0, 3), (9, 1e3, 9), (2, 1.0, 2)]
)
def test_pairs_adapt_to_the_time_there_is(pairs, seconds, found):
    clock = Clock()  # a pair takes 10 seconds, as each side runs twice
    ratio = paired(clock.side("ours", 4.0), clock.side("theirs", 1.0), pairs, seconds=seconds, clock=clock)
    assert (ratio.pairs, ratio.median) == (found, 0.25)
    assert len(clock.order) == 2 + 4 * found


def test_one_run_is_timed_after_one_that_is_not():
    clock, seconds = Clock(), iter((5.0, 2.0))

    def run():
        clock.order.append("run")
        clock.now += next(seconds)

    assert timed(run, clock) == 2.0
    assert clock.order == ["run", "run"]


class Tiny(nn.Module):
    """A stem and a stage, a skip around the stage, and a head that reads all positions, or a corner of them."""

    def __init__(self, skip=False, corner=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.stage = nn.Conv2d(4, 4, 2, stride=2)
        self.unused = nn.Conv2d(4, 4, 1)
        self.skip, self.corner = skip, corner
        self.head = nn.Linear(4, 2)

    def forward_features(self, x):
        x = self.stem(x)
        return self.stage(x) + nn.functional.avg_pool2d(x, 2) if self.skip else self.stage(x)

    def forward(self, x):
        return self.head(self.forward_features(x)[:, :, : self.corner].mean((2, 3)))


class Branches(nn.Module):
    """Two grids to the end, from one module that is called for each, and a container that puts out both."""

    def __init__(self):
        super().__init__()
        self.both = nn.ModuleDict({"fine": nn.Conv2d(3, 4, 2, stride=2), "coarse": nn.Conv2d(3, 4, 4, stride=4)})
        self.stage = Both(self.both)
        self.drop = nn.Dropout()

    def forward_features(self, x):
        return [self.drop(value) for value in self.stage(x)]

    def forward(self, x):
        return sum(value.mean((2, 3)) for value in self.forward_features(x))


class Both(nn.Module):
    def __init__(self, convolutions):
        super().__init__()
        self.convolutions = convolutions

    def forward(self, x):
        return [convolution(x) for convolution in self.convolutions.values()]


class Tokens(nn.Module):
    """A class token before a grid of patches; the head reads the class token, or all of them."""

    def __init__(self, class_token):
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, stride=4)
        self.block = nn.Linear(4, 4)
        self.class_token = class_token

    def forward_features(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.block(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))

    def forward(self, x):
        tokens = self.forward_features(x)
        return tokens[:, 0] if self.class_token else tokens.mean(1)


def judged(model, name, final=16):
    torch.manual_seed(0)
    model.eval().requires_grad_(False)
    return judge(model, model.get_submodule(name), torch.randn(1, 3, 16, 16), final)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((1, 8, 4, 6), Grid("NCHW", (4, 6))),
        ((1, 8, 12, 4), Grid("NHWC", (8, 12))),
        ((1, 24, 8), Grid("tokens", (4, 6))),
        ((1, 26, 8), Grid("tokens", (4, 6), 2)),
        ((1, 8, 6, 4), None),
        ((1, 8, 1, 1), None),
        ((1, 8), None),
        ((1, 1, 8), None),
        ((4, 8, 4, 6), None),
    ],
)
def test_grids(shape, grid):
    assert grid_of(shape, (64, 96)) == grid


def test_a_good_layer_meets_all_conditions():
    verdict = judged(Tiny(), "stage")
    assert verdict.good
    assert verdict.note == "output 1×4×4×4, 16 of 16 positions, 100% live"
    assert verdict == Verdict(True, True, True, True, verdict.note)


def test_each_condition_alone():
    assert not judged(Tiny(skip=True), "stage").cut
    assert judged(Tiny(skip=True), "stage").live
    stem = judged(Tiny(), "stem")
    assert (stem.cut, stem.live, stem.final, stem.good) == (True, True, False, False)
    corner = judged(Tiny(corner=2), "stage")
    assert (corner.cut, corner.grid, corner.live, corner.final) == (True, True, False, True)
    head = judged(Tiny(), "head")
    assert (head.cut, head.grid, head.good) == (True, False, False)
    assert judged(Tiny(), "unused") == Verdict(note="not called")


def test_token_layers():
    assert judged(Tokens(class_token=False), "block").good
    read = judged(Tokens(class_token=True), "block")
    assert (read.cut, read.grid, read.live) == (True, True, False)
    assert judged(Tokens(class_token=True), "patches").good


def test_no_layer_of_branches_is_good():
    model, x = Branches().eval().requires_grad_(False), torch.randn(1, 3, 16, 16)
    assert final_positions(model, x) == 16
    for name in ("stage", "drop"):
        assert judged(model, name).note.endswith("several grids")
    assert good_layer(model, x, 16) is None
    assert good_layer(Tiny().eval().requires_grad_(False), x, 16) == "stage"


def test_smallest_of_each_class_in_a_module():
    rows = [("a", "m", "A", "3"), ("b", "m", "A", "2"), ("c", "m", "B", "9"), ("d", "n", "A", "4"), ("e", "n", "A", "")]
    zoo = [dict(zip(("name", "module", "class", "parameters"), r, strict=True)) for r in rows]
    assert [r["name"] for r in smallest(zoo)] == ["b", "c", "d"]


def test_layers_table():
    found = {"rule": "last", "models": 9, "good": 3, "cut": 4, "grid": 8, "live": 7, "final": 6}
    where = {"torch": "t", "timm": "i", "torchcam": "c", "torchxai-explain": "x", "seed": 0, "left_out": ["a", "b"]}
    table = layers_table({"rows": [found | {"not_found": 1, "says_so": 0}], "environment": where})
    assert "| rule | good, of 9 models | a cut |" in table
    assert "| last | **3** | 4 | 8 | 7 | 6 | 1 | 0 |" in table
    assert "2 models of more than 150 million" in table


def test_counts_are_those_of_the_models():
    files = list(RESULTS.glob("layers_*.json"))
    assert files
    for file in files:
        with file.with_suffix(".csv").open() as models:
            rows = list(csv.DictReader(models))
        flags = ("cut", "grid", "live", "final", "good", "says_so")
        read = [r | {key: r[key] == "True" for key in flags} | {"layer": r["layer"] or None} for r in rows]
        assert json.loads(file.read_text())["rows"] == summary(read)


def test_pages_say_what_the_results_say():
    for page in PAGES:
        assert filled(page.read_text()) == page.read_text()
    text = README.read_text()
    for method in methods().values():
        assert f"`{method.name}`" in text


def test_results_files_say_where_they_come_from():
    files = list(Path(RESULTS).glob("*.json"))
    assert files
    schema = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for file in files:
        found = json.loads(file.read_text())
        schema.validate(found)
        others = {
            "layers": {"rule", "models", "good", "not_found"},
            "detection_localisation": {"photo", "class", "map", "box share", "points inside"},
            "grounding": {"measure", "rule", "mean", "difference"},
            "subnetworks": {"criterion", "widths", "correction", "budget", "pairs", "among", "over_all"},
            "subnetwork_speed": {"case", "model", "measure", "median"},
            "faithfulness": {"case", "model", "measure"},
            "growth": {"series", "model"},
            "scale": {"case", "measure", "images", "value"},
        }
        known = MEASURED if found.get("suite") not in MERGED else set()  # the schema's
        keys = next((keys for name, keys in others.items() if file.name.startswith(name)), known)
        assert all(keys <= set(r) for r in found["rows"])
