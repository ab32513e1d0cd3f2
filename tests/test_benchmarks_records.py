"""Results files: merging, stopping, and what the schema refuses."""

from __future__ import annotations

import jsonschema
import pytest
from benchmark_runs import SCHEMA, run, unboxed

from benchmarks import comparison, pairs, suites


class Fake:
    """A module of a suite whose rows are known."""

    def __init__(self, environment, rows):
        self.environment, self.rows = environment, rows

    def run(self, options):
        return self.environment, self.rows


def never():
    raise AssertionError("nothing is to be measured")
    yield


def whole_environment():
    return pairs.environment("cpu", "float32", 0)


def row_of(model, median, **more):
    made = comparison.Comparison(model, more.pop("batch_size", 8), "grad_cam", "same", "captum")
    speed = {"ours_per_second": 8.0 * median, "theirs_per_second": 8.0}
    return made.measured("time", pairs.Ratio(median, median, median, 3, 1 / median, 1.0), **speed, **more)


def test_rows_are_merged_by_what_they_are_about(tmp_path, monkeypatch):
    def module(*rows):
        where = whole_environment()
        monkeypatch.setattr(suites, "import_module", lambda name: Fake(where | {"commit": commit}, rows))

    commit = "aaaaaaa"
    module(row_of("resnet50", 1.0), row_of("vgg16_bn", 1.0))
    run(tmp_path, "throughput")
    commit = "bbbbbbb"
    module(row_of("vgg16_bn", 2.0), row_of("vgg16_bn", 3.0, batch_size=64))
    _, found = run(tmp_path, "throughput")
    rows = [(r["model"], r["batch_size"], r["median"], r["commit"]) for r in found["throughput"]["rows"]]
    assert rows == [("resnet50", 8, 1.0, "aaaaaaa"), ("vgg16_bn", 8, 2.0, "bbbbbbb"), ("vgg16_bn", 64, 3.0, "bbbbbbb")]
    for place in ({"threads": 7}, {"captum": "0.1"}, {"machine": "another"}):
        where = whole_environment() | place
        monkeypatch.setattr(suites, "import_module", lambda name, where=where: Fake(where, never()))
        done, again = run(tmp_path, "throughput")
        assert done.exit_code == 2 and "pass another --out" in unboxed(done)
        assert again == found


def test_suites_that_are_measured_as_a_whole_are_written_anew(tmp_path, monkeypatch):
    rows = [{"model": "m", "series": "classes", "value": value} for value in (1, 2)]
    monkeypatch.setattr(suites, "import_module", lambda name: Fake(whole_environment(), rows))
    for _ in range(2):
        _, found = run(tmp_path, "growth")
        assert [r["value"] for r in found["growth"]["rows"]] == [1, 2]


def test_errors_of_a_suite_come_through(tmp_path, monkeypatch):
    def rows():
        raise ValueError("a mistake of ours")
        yield

    monkeypatch.setattr(suites, "import_module", lambda name: Fake(whole_environment(), rows()))
    done, _ = run(tmp_path, "throughput")
    assert str(done.exception) == "a mistake of ours"


def test_interrupted_runs_keep_their_rows(tmp_path, monkeypatch):
    def rows():
        yield row_of("resnet50", 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(suites, "import_module", lambda name: Fake(whole_environment(), rows()))
    done, found = run(tmp_path, "throughput", "panel")
    assert done.exit_code == 130 and "rows found so far" in done.output
    assert list(found) == ["throughput"] and len(found["throughput"]["rows"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"status": "guessed"},
        {"agrees": False, "why": None},
        {"unknown": 1},
        {"median": 0},
        {"side": "somebody"},
        {"ours_per_second": None},
        {"commit": "not one"},
    ],
)
def test_schema_refuses(change):
    whole = {"suite": "throughput", "environment": whole_environment(), "rows": [row_of("a", 1.0) | {"commit": ""}]}
    SCHEMA.validate(whole)
    whole["rows"][0] |= change
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(whole)


@pytest.mark.parametrize("gone", ["model", "verdict", "high", "ours_per_second", "agrees", "commit"])
def test_schema_misses(gone):
    row = row_of("a", 1.0) | {"commit": ""}
    del row[gone]
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate({"suite": "panel", "environment": whole_environment(), "rows": [row]})


def test_schema_of_environments():
    for gone in ("machine", "cpu", "cores", "others", "commit"):
        where = whole_environment()
        del where[gone]
        with pytest.raises(jsonschema.ValidationError):
            SCHEMA.validate({"suite": "growth", "environment": where, "rows": []})
    where = whole_environment() | {"device": "cuda"}
    with pytest.raises(jsonschema.ValidationError, match="tf32"):
        SCHEMA.validate({"suite": "growth", "environment": where, "rows": []})
    tf32 = {"matmul": False, "cudnn": True}
    SCHEMA.validate({"suite": "growth", "environment": where | {"tf32": tf32}, "rows": []})
