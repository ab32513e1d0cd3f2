"""The command `python -m benchmarks` as tests call it."""

from __future__ import annotations

import json

import jsonschema
from typer.testing import CliRunner

from benchmarks import records
from benchmarks.__main__ import app

SCHEMA = jsonschema.Draft202012Validator(json.loads(records.SCHEMA.read_text()))


def run(out, *words):
    """What the command says, and its results files by name."""
    done = CliRunner().invoke(app, [*words, "--quick", "--out", str(out)])
    found = {path.name.split("_")[0]: json.loads(path.read_text()) for path in out.glob("*.json")}
    for one in found.values():
        SCHEMA.validate(one)
    return done, found


def unboxed(done):
    """What an error says, without the lines of its box."""
    return " ".join(done.output.replace("│", " ").split())
