"""Which layer each rule picks for the models of timm, and whether a map of it says what the model answered with.

    python -m benchmarks.layers [--zoo benchmarks/results/zoo_layers.csv] [--models NAME …]

Models: of every timm module the smallest of each model class, chosen from the zoo's table. Every rule's layer is judged
in the same way, by running the model (random weights, float32, one image of its own size), with nothing of
``drnet_captum``. A layer is good when

- it is a cut: with its output replaced by leaves, no path is left from the image to the logits;
- it has a grid: its output, or one of its outputs, is (N, C, h, w), (N, h, w, C) or (N, prefix + h·w, C) with at most
  ten prefix tokens, h × w in the image's proportions and more than one position; outputs with several grids (branches)
  have none that a map could be made from;
- it is live: a random mixture of the logits has a gradient at more than half of the grid's positions;
- it has the final resolution: as many positions as the smallest grid that ``forward_features`` returns; where that
  returns no maps, as the maps of the module that ``feature_info[-1]`` names; where there are no maps, as the tokens of
  the one or the other.

A rule that raises or returns nothing has not found a layer. Where it raised and no module is good (networks that end in
several branches), it said so. The other rules: ``pip install --no-deps torchcam torchxai-explain``.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.layer_rules import RULES
from benchmarks.layer_verdicts import SEED, Verdict, final_positions, good_layer, judge
from benchmarks.pairs import RESULTS, environment, write

MOST_PARAMETERS = 150e6
CONDITIONS = ("cut", "grid", "live", "final")


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model with random weights, and noise of its size.

    Weights that start as one constant (residual branches and heads that are zero, layer scales of 1e-6) get noise: of a
    trained model they are no constants, and no gradient should be zero for them.
    """
    torch.manual_seed(SEED)
    model = timm.create_model(name).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, torch.randn(1, *input_size(model))


def input_size(model: nn.Module) -> tuple[int, ...]:
    """(C, H, W): the size that a patch embedding insists on, else the pretrained configuration's."""
    channels, *size = model.pretrained_cfg["input_size"]  # type: ignore[index, union-attr]
    embedding = getattr(model, "patch_embed", None)
    if getattr(embedding, "strict_img_size", False) and getattr(embedding, "img_size", None):
        size = embedding.img_size  # type: ignore[union-attr]
    return (channels, *size)


def compare(name: str, module: str = "") -> list[dict[str, Any]]:
    """A row for each rule on a model."""
    model, x = build(name)
    modules = dict(model.named_modules())
    final = final_positions(model, x)
    rows, verdicts = [], {}
    for rule, pick in RULES.items():
        raised = ""
        try:
            layer = pick(model, x)
        except Exception as error:  # whatever another package's rule fails with
            layer, raised = None, f"{type(error).__name__}: {' '.join(str(error).split())}"
        if layer is not None and layer not in verdicts:
            verdicts[layer] = judge(model, modules[layer], x, final)
        verdict = Verdict(note=raised) if layer is None else verdicts[layer]
        answers = {key: asdict(verdict)[key] for key in CONDITIONS} | {"good": verdict.good}
        row = {"model": name, "module": module, "rule": rule, "layer": layer} | answers
        rows.append(row | {"says_so": bool(raised), "note": verdict.note})
    if any(row["says_so"] for row in rows):
        there = any(row["good"] for row in rows) or good_layer(model, x, final) is not None
        rows = [row | {"says_so": row["says_so"] and not there} for row in rows]
    return rows


def smallest(zoo: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Of every module the model with fewest parameters of each class."""
    chosen: dict[tuple[str, str], dict[str, str]] = {}
    for row in zoo:
        if row["parameters"]:
            key = row["module"], row["class"]
            chosen[key] = min(chosen.get(key, row), row, key=lambda r: int(r["parameters"]))
    return [chosen[key] for key in sorted(chosen)]


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts for each rule."""
    found = []
    for rule in dict.fromkeys(row["rule"] for row in rows):
        own = [row for row in rows if row["rule"] == rule]
        counts = {key: sum(row[key] for row in own) for key in ("good", *CONDITIONS)}
        said = sum(row["says_so"] for row in own)
        missing = sum(row["layer"] is None for row in own) - said
        found.append({"rule": rule, "models": len(own)} | counts | {"not_found": missing, "says_so": said})
    return found


def report(number: int, of: int, rows: Sequence[dict[str, Any]], seconds: float) -> None:
    """One line while it runs: which rules found a good layer."""
    marks = " ".join("says so" if r["says_so"] else "good" if r["good"] else "—" for r in rows)
    print(f"{number:3}/{of} {rows[-1]['model']:40} {marks:30} {rows[-1]['layer']}  {seconds:.1f} s", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=RESULTS / "zoo_layers.csv")
    parser.add_argument("--models", nargs="+", help="these only, and nothing is written")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    packages = {package: version(package) for package in ("torchcam", "torchxai-explain")}
    where = environment("cpu", "float32", SEED) | packages  # before it runs: the commit that is measured

    if args.models:
        chosen = [{"name": name, "module": "", "parameters": "0"} for name in args.models]
    else:
        with args.zoo.open() as file:
            chosen = smallest(csv.DictReader(file))
    left_out = [row["name"] for row in chosen if int(row["parameters"]) > MOST_PARAMETERS]
    chosen = [row for row in chosen if row["name"] not in left_out]
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for number, row in enumerate(chosen, 1):
        before = time.perf_counter()
        rows += compare(row["name"], row["module"])
        report(number, len(chosen), rows[-len(RULES) :], time.perf_counter() - before)
    counts = summary(rows)
    print(*counts, sep="\n")
    if args.models:
        return
    where |= {"left_out": left_out, "seconds": round(time.perf_counter() - start)}
    path = write(f"layers_torch{torch.__version__.split('+')[0]}", where, counts)
    with path.with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(path)


if __name__ == "__main__":
    main()
