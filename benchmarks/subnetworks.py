"""Sub-networks of classes: how much of a network's accuracy a share of its parameters keeps.

    python -m benchmarks.subnetworks --root DIR [--data cifar10] [--network resnet18] [--sparse] [--cache DIR] [--quick]

1. All 45 pairs of classes at budgets of 2% to 50% of the parameters: the test images of the two classes, scored over
   the two outputs and over all ten. Beside the channels that the two classes need: those that two other classes need,
   those that all ten need together, those of the largest weights, and random ones (5 seeds). The last two once with the
   same share of every layer, and once at the widths that suit all ten classes, which they could not know.
2. The same after batch norms were recalibrated, on 256 training images of the two classes (one seed, one kind of
   widths).
3. Sets of 2 to 10 classes.

The network is trained first, and kept in ``--cache``; ``--sparse`` trains it on with an ℓ1 penalty on its norms. One
dissection of 2,000 training images; no fine-tuning. Budgets count with all ten rows of the classifier. ``--quick`` is
for trying it out: three pairs, few images.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pairs import RESULTS, environment, write
from benchmarks.small_images import DATA, NETWORKS, PLAIN, SPARSE, trained
from benchmarks.subnetwork_bench import CLASSES, PER_CLASS, Bench, Criterion, Widths, record, spread_over_classes
from benchmarks.subnetwork_plot import SCORES, plot
from drnet_captum.reconstruct.baselines import at_the_widths_of, evenly
from drnet_captum.reconstruct.groups import KeepSet

QUICK_BUDGETS = (0.05, 0.2)
BUDGETS = (0.02, 0.03, 0.05, 0.08, 0.11, 0.15, 0.20, 0.30, 0.50)
RECALIBRATED = (0.05, 0.11)
MERGED_BUDGETS = (0.05, 0.11)
MERGED_SETS = 6  # of each size
CACHE = Path.home() / ".cache" / "drnet_captum"
SEEDS = 5
SEED = 0
QUICK = 20  # test images of a class


def pair_rows(bench: Bench, pairs: Sequence[tuple[int, ...]], budgets: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Cases 1 and 2."""
    for pair in pairs:
        yield bench.whole(pair)
    for budget in budgets:
        start = time.perf_counter()
        fixed = fixed_choices(bench, budget)
        for pair in pairs:
            choices = {
                ("classes", 0, "own"): bench.choose(pair, budget),
                ("other classes", 0, "own"): bench.choose(bench.others(pair), budget),
            }
            for (criterion, seed, widths), keep in (choices | fixed).items():
                name = record(pair, budget, criterion, seed, widths)
                yield name | {"correction": "none"} | bench.scored(pair, keep, fixed=(criterion, seed, widths) in fixed)
                if budget in RECALIBRATED and criterion != "other classes" and widths != "even" and seed == 0:
                    yield name | {"correction": "recalibrated"} | bench.recalibrated(pair, keep)
        print(f"{budget:.0%} of the parameters: {time.perf_counter() - start:.0f} s", flush=True)


def fixed_choices(bench: Bench, budget: float) -> dict[tuple[Criterion, int, Widths], KeepSet]:
    """Channels that are the same for every pair."""
    agnostic = bench.choose(range(CLASSES), budget)
    found: dict[tuple[Criterion, int, Widths], KeepSet] = {("all classes", 0, "own"): agnostic}
    named: list[tuple[Criterion, int]] = [("weight norm", 0), *(("random", seed) for seed in range(SEEDS))]
    for criterion, seed in named:
        importance = bench.importance(criterion, seed)
        found[criterion, seed, "even"] = evenly(bench.groups, importance, bench.costs, budget)
        found[criterion, seed, "all classes'"] = at_the_widths_of(agnostic, bench.groups, importance)
    return found


def merged_rows(bench: Bench, sets: int) -> Iterator[dict[str, Any]]:
    """Case 3: as many sets of each size as there are, at most ``sets``."""
    generator = np.random.default_rng(SEED)
    for size in range(2, CLASSES + 1):
        every = list(combinations(range(CLASSES), size))
        some = generator.choice(len(every), min(sets, len(every)), replace=False)
        for classes in (every[i] for i in sorted(some)):
            yield bench.whole(classes)
            for budget in MERGED_BUDGETS:
                for criterion, wanted in (("classes", classes), ("all classes", range(CLASSES))):
                    name = record(classes, budget, criterion, 0, "own") | {"correction": "none"}
                    keep = bench.choose(wanted, budget)
                    yield name | bench.scored(classes, keep, fixed=criterion == "all classes")


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over pairs and seeds, and how far below the whole network's, in points; the spread is over pairs."""
    whole = {r["classes"]: r for r in rows if r["criterion"] == "whole network"}
    keys = ("criterion", "widths", "correction", "budget")
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for r in rows:
        if len(r["classes"].split()) == 2:
            found.setdefault(tuple(r[key] for key in keys), []).append(r)
    means = []
    for key, group in found.items():
        entry = dict(zip(keys, key, strict=True)) | {"pairs": len({r["classes"] for r in group})}
        for score in SCORES:
            lost = [100 * (r[score] - whole[r["classes"]][score]) for r in group]
            entry[score] = statistics.mean(r[score] for r in group)
            entry[f"{score}_points"] = statistics.mean(lost)
            entry[f"{score}_worst"] = min(lost)
        means.append(entry | {"parameters": statistics.mean(r["parameters"] for r in group)})
    return means


def save_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """As a table of comma-separated values."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for r in rows:
            writer.writerow(r | {score: f"{r[score]:.4f}" for score in SCORES})


def arguments(about: str | None) -> argparse.ArgumentParser:
    """Which network, of which data."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="where the data set's files are")
    parser.add_argument("--data", choices=list(DATA), default="fashion-mnist")
    parser.add_argument("--network", choices=list(NETWORKS), default="vgg16_bn")
    parser.add_argument("--sparse", action="store_true", help="a network trained on with an ℓ1 penalty on its norms")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of trained networks")
    parser.add_argument("--device", default="cpu", help="to train on; everything else runs on the CPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--per-class", type=int, default=1000, help="test images")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="shares of the parameters")
    parser.add_argument("--steps", type=int, default=PLAIN.steps, help="of the plain network's training")
    parser.add_argument("--quick", action="store_true", help="three pairs, few images")
    return parser


def prepared(args: argparse.Namespace) -> tuple[Bench, dict[str, Any]]:
    """The network, trained and dissected, and what is to be known of it."""
    torch.set_num_threads(args.threads)
    recipe = PLAIN if args.steps == PLAIN.steps else replace(PLAIN, name=f"plain{args.steps}", steps=args.steps)
    if args.sparse:
        recipe = replace(SPARSE, start=recipe, name=recipe.name.replace("plain", "sparse"))
    data = DATA[args.data](args.root)
    model = trained(args.network, data, recipe, args.cache, args.device)
    tested = spread_over_classes(data.test[1], QUICK if args.quick else args.per_class, SEED)
    start = time.perf_counter()
    bench = Bench(model, data, tested, SEED)
    print(f"dissected in {time.perf_counter() - start:.0f} s", flush=True)
    return bench, environment("cpu", "float32", SEED) | {
        "data": data.name,
        "network": args.network,
        "parameters": round(bench.costs.total),
        "recipe": asdict(recipe),
        "accuracy": float((bench.answers.argmax(1) == bench.labels).double().mean()),
        "test_images": len(bench.labels),
        "dissected_images": CLASSES * PER_CLASS,
    }


def file_name(what: str, args: argparse.Namespace) -> str:
    return f"{what}_{args.network}_{args.data}" + "_sparse" * args.sparse + "_quick" * args.quick


def main() -> None:
    args = arguments(__doc__).parse_args()
    bench, where = prepared(args)
    pairs = list(combinations(range(CLASSES), 2))[:: 15 if args.quick else 1]
    rows = list(pair_rows(bench, pairs, QUICK_BUDGETS if args.quick else args.budgets))
    merged = list(merged_rows(bench, 1 if args.quick else MERGED_SETS))
    name = file_name("subnetworks", args)
    print("wrote", write(name, where, summary(rows)))
    save_rows(RESULTS / f"{name}.csv", [*rows, *merged])
    plot(summary(rows), merged, where, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
