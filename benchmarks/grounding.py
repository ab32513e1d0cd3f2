"""Which DRNet finds the right object: the grid pointing game, insertion and deletion, against Captum's Grad-CAM.

    python -m benchmarks.grounding --photos DIR [--mosaics 120] [--seed 0]

Photos: the files ``*_LABEL.jpg`` or ``.png`` of a folder (LABEL: the class's index of ImageNet-1k) and the embedded
ones; those that the embedded model names right at a probability of at least .15 are used. They are parted into two
folds by chance, and mosaics are made of the photos of one fold. What is scored is the share of a map's positive values
in the cell of the class that is explained (chance: .25).

Every rule (weights α, score y, shares λ of the layers) is measured on all mosaics. "chosen on the other fold" is, for
the mosaics of one fold, the best rule on the mosaics of the other: the score without hindsight. Those of single rules
are not, where a rule is picked for its score. Intervals are paired bootstraps over mosaics, and over photos, which are
far fewer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import drnet_captum as dc
from benchmarks.games import (
    CHOSEN,
    DEFAULT,
    GRAD_CAM,
    GRAD_CAM_LOG_PROB,
    INTEGRATED_STEPS,
    Shares,
    best,
    block_layers,
    curves,
    default_layers,
    play,
    play_integrated,
    play_random,
)
from benchmarks.mosaics import (
    CHANCE,
    Mosaic,
    Photo,
    bootstrap,
    by_name,
    first_crops,
    known_photos,
    make_mosaics,
    two_folds,
)
from benchmarks.pairs import environment, write

INTEGRATED_MOSAICS = 2  # of a fold: one takes as long as a dozen with gradients
RANDOM_MOSAICS = 10  # of a fold, for the model with shuffled weights


def row(measure: str, rule: str, values: Tensor, against: Tensor, names: Sequence[str], seed: int) -> dict[str, Any]:
    """One line of the results: the mean, and how far it lies from what it is compared with.

    Args:
        values, against: (items, cells), paired; items are what the bootstrap draws.
        names: the photo of each value, items by cells.
    """
    difference = (values - against).double()
    over_photos = bootstrap(by_name(names, difference.flatten().tolist()), seed)
    return {
        "measure": measure,
        "rule": rule,
        "mean": float(values.mean()),
        "items": len(values),
        "interval": asdict(bootstrap(values.double().mean(1).tolist(), seed)),
        "difference": asdict(bootstrap(difference.mean(1).tolist(), seed)),
        "difference_over_photos": asdict(over_photos),
        "above": float((difference > 0).double().mean()),
    }


def rule_name(rule: Any) -> str:
    """A rule in words."""
    return rule if isinstance(rule, str) else "{}, {}, {}".format(*rule)


def rows_of(measure: str, found: Shares, names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """A row for each rule, all against the first."""
    against = next(iter(found.values()))
    return [row(measure, rule_name(rule), values, against, names, seed) for rule, values in found.items()]


def names_of(mosaics: Sequence[Mosaic]) -> list[str]:
    """The photo of every cell."""
    return [cell.name for mosaic in mosaics for cell in mosaic.cells]


def report(rows: Sequence[dict[str, Any]]) -> None:
    """A table of one measure."""
    print(f"\n{rows[0]['measure']}, {rows[0]['items']} items; the difference is from {rows[0]['rule']}")
    for found in rows:
        d, p = found["difference"], found["difference_over_photos"]
        print(
            f"  {found['rule']:62} {found['mean']:.3f}   {d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
            f"   over photos [{p['low']:+.3f}, {p['high']:+.3f}]",
            flush=True,
        )


def measure(model: nn.Module, folds: Sequence[Sequence[Photo]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of the results."""
    generator = torch.Generator().manual_seed(args.seed)
    count = args.mosaics // 2
    halves = [make_mosaics(model, fold, count, generator) for fold in folds]
    mosaics = [mosaic for half in halves for mosaic in half]
    default = default_layers(model, mosaics[0].x)
    share = "share of the positive map in the right cell"

    found = play(model, mosaics, block_layers(model, default), default)
    first, second = slice(0, count), slice(count, 2 * count)
    chosen = [best(found, second), best(found, first)]
    found = {CHOSEN: torch.cat([found[chosen[0]][first], found[chosen[1]][second]])} | found
    reference = [GRAD_CAM, GRAD_CAM_LOG_PROB, DEFAULT, CHOSEN]
    found = {rule: found[rule] for rule in (*reference, *(r for r in found if r not in reference))}
    rows = rows_of(share, found, names_of(mosaics), args.seed)
    for line in rows:
        if line["rule"] == CHOSEN:
            line["chosen"] = [rule_name(rule) for rule in chosen]
    print("chosen:", *(f"on fold {2 - i}: {rule_name(rule)};" for i, rule in enumerate(chosen)))
    report(rows)

    alone = [("gradient", "log_prob", f"{layer} alone") for layer in default]
    some = {
        alone[-1]: found[alone[-1]],
        "mean of the layers' own shares": torch.stack([found[rule] for rule in alone]).mean(0),
        **{rule: found[rule] for rule in reference},
    }
    rows.extend(rows_of(f"{share}, against the last layer with the same weights", some, names_of(mosaics), args.seed))
    report(rows[-len(some) :])

    few = [mosaic for half in halves for mosaic in half[:INTEGRATED_MOSAICS]]
    places = [i for i, mosaic in enumerate(mosaics) if any(mosaic is other for other in few)]
    some = {rule: found[rule][places] for rule in reference} | play_integrated(model, few, default)
    rows.extend(rows_of(f"{share}, integrated weights of {INTEGRATED_STEPS} steps", some, names_of(few), args.seed))
    report(rows[-len(some) :])

    few = [mosaic for half in halves for mosaic in half[:RANDOM_MOSAICS]]
    some = play_random(model, few, args.seed)
    rows.extend(rows_of(f"{share}, shuffled weights of the model", some, names_of(few), args.seed))
    for line, values in zip(rows[-len(some) :], some.values(), strict=True):
        line["nothing_positive"] = int((values == CHANCE).sum())  # such maps count as chance
    report(rows[-len(some) :])

    crops = first_crops(mosaics, args.crops)
    for name, areas in curves(model, crops).items():
        rows.extend(rows_of(f"area of {name}", areas, [crop.name for crop in crops], args.seed))
        report(rows[-len(areas) :])
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument("--mosaics", type=int, default=120)
    parser.add_argument("--crops", type=int, default=2, help="of a photo, for insertion and deletion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="grounding", help="of the results file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter(), time.process_time()
    model = dc.load_model("embedded")
    photos, others = known_photos(model, args.photos)
    folds = two_folds(photos, torch.Generator().manual_seed(args.seed))
    where = environment("cpu", "float32", args.seed) | {
        "model": dc.model_card(model).name,
        "mosaics": args.mosaics,
        "photos": [
            {"name": p.name, "label": p.label, "probability": round(p.probability, 4), "fold": i + 1}
            for i, fold in enumerate(folds)
            for p in fold
        ],
        "left_out": others,
    }
    rows = measure(model, folds, args)
    where["seconds"] = round(time.perf_counter() - start[0])
    where["processor_seconds"] = round(time.process_time() - start[1])
    print(write(args.name, where, rows))


if __name__ == "__main__":
    main()
