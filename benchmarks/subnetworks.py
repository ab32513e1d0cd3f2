"""Sub-networks of classes: how much of a network's accuracy a share of its parameters keeps, and how fast it is.

    python -m benchmarks.subnetworks --root DIR [--data cifar10] [--network resnet18] [--cache DIR] [--quick]

1. All 45 pairs of classes at budgets of 2% to 50% of the parameters: the test images of the two classes, scored over
   the two outputs and over all ten. Beside the channels that the two classes need: those that two other classes need,
   those that all ten need together, those of the largest weights, and random ones (5 seeds). Each of these others once
   at the widths of ours, layer by layer, and once with the same share of every layer.
2. The same after corrections without training, on 256 training images of the two classes: batch norms recalibrated;
   scales and shifts by least squares.
3. Sets of 2 to 10 classes.
4. Seconds of the sub-network at 11% against the whole network, in pairs; milliseconds to choose channels, over all
   sets of classes.

The network is trained first, and kept in ``--cache``. One dissection of 2,000 training images; no fine-tuning. Budgets
count with all ten rows of the classifier. ``--quick`` is for trying it out: three pairs, few images.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pairs import RESULTS, environment, paired, row, write
from benchmarks.small_images import DATA, NETWORKS, Recipe, trained
from benchmarks.subnetwork_bench import CLASSES, PER_CLASS, Bench, Correction, Criterion, spread_over_classes
from benchmarks.subnetwork_plot import plot
from drnet_captum.reconstruct.slicing import sliced

BUDGETS = (0.02, 0.03, 0.05, 0.08, 0.11, 0.15, 0.20, 0.30, 0.50)
CORRECTED = (0.02, 0.03, 0.05, 0.11, 0.20)
MERGED_BUDGETS = (0.05, 0.11)
MERGED_SETS = 10  # of each size
CACHE = Path.home() / ".cache" / "drnet_captum"
SEEDS = 5
SEED = 0
BATCH, FASTER, PAIRS = 64, 3.0, 15
SOON = 50.0  # milliseconds, to choose channels
QUICK = 20  # test images of a class


def pair_rows(bench: Bench, pairs: Sequence[tuple[int, ...]], budgets: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Cases 1 and 2."""
    for number, pair in enumerate(pairs, start=1):
        start = time.perf_counter()
        yield bench.whole(pair)
        for budget in budgets:
            is_corrected = bench.is_chain and budget in CORRECTED
            corrections: tuple[Correction, ...] = ("none", "recalibrated", "matched") if is_corrected else ("none",)
            ours = bench.choose(pair, budget)
            yield from bench.scored(pair, budget, "classes", 0, "ours", ours, corrections)
            for criterion, seed in others():
                for widths in ("ours", "even"):
                    if widths == "ours":
                        keep = bench.as_wide(ours, pair, criterion, seed)
                    else:
                        keep = bench.evenly(pair, budget, criterion, seed)
                    yield from bench.scored(pair, budget, criterion, seed, widths, keep, corrections)
        print(f"pair {number} of {len(pairs)}: {time.perf_counter() - start:.0f} s", flush=True)


def others() -> list[tuple[Criterion, int]]:
    """What is compared with, and its seed."""
    alone: list[tuple[Criterion, int]] = [("other classes", 0), ("all classes", 0), ("weight norm", 0)]
    return alone + [("random", seed) for seed in range(SEEDS)]


def merged_rows(bench: Bench, sets: int) -> Iterator[dict[str, Any]]:
    """Case 3: as many sets of each size as there are, at most ``sets``."""
    generator = np.random.default_rng(SEED)
    for size in range(2, CLASSES + 1):
        every = list(combinations(range(CLASSES), size))
        some = generator.choice(len(every), min(sets, len(every)), replace=False)
        for classes in (every[i] for i in sorted(some)):
            yield bench.whole(classes)
            for budget in MERGED_BUDGETS:
                ours = bench.choose(classes, budget)
                yield from bench.scored(classes, budget, "classes", 0, "ours", ours)
                agnostic = bench.as_wide(ours, classes, "all classes", 0)
                yield from bench.scored(classes, budget, "all classes", 0, "ours", agnostic)


def speed_rows(bench: Bench, network: str, pairs: int) -> list[dict[str, Any]]:
    """Case 4: at 11% of the parameters, ``sliced`` against the whole network."""
    small = sliced(bench.model, bench.choose((0, 1), 0.11), bench.example, (0, 1))
    images = bench.data.test[0][:BATCH].contiguous()
    with torch.inference_mode():
        ratio = paired(lambda: small(images), lambda: bench.model(images), pairs)
    count = sum(p.numel() for p in small.parameters())
    found = [row("sliced, 11%", network, "time", FASTER, ratio, batch_size=BATCH, parameters=count)]
    milliseconds = []
    for size in range(1, CLASSES + 1):
        for classes in combinations(range(CLASSES), size):
            start = time.perf_counter()
            bench.choose(classes, 0.05)
            milliseconds.append(1000 * (time.perf_counter() - start))
    return [
        *found,
        {
            "case": "channels for a set of classes",
            "model": network,
            "measure": "milliseconds",
            "goal": SOON,
            "median": statistics.median(milliseconds),
            "largest": max(milliseconds),
            "sets": len(milliseconds),
        },
    ]


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
        for score in ("among", "over_all"):
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
            writer.writerow(
                {key: f"{value:.4f}" if key in ("among", "over_all") else value for key, value in r.items()}
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="where the data set's files are")
    parser.add_argument("--data", choices=list(DATA), default="fashion-mnist")
    parser.add_argument("--network", choices=list(NETWORKS), default="vgg16_bn")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "drnet_captum", help="of trained networks"
    )
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="of training")
    parser.add_argument("--device", default="cpu", help="to train on; everything else runs on the CPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = Recipe(steps=args.steps)
    data = DATA[args.data](args.root)
    model = trained(args.network, data, recipe, args.cache, args.device)
    tested = spread_over_classes(data.test[1], QUICK, SEED) if args.quick else None
    start = time.perf_counter()
    bench = Bench(model, data, tested, SEED)
    print(f"dissected in {time.perf_counter() - start:.0f} s", flush=True)
    pairs = list(combinations(range(CLASSES), 2))[:: 15 if args.quick else 1]
    timings = speed_rows(bench, args.network, 3 if args.quick else PAIRS)
    rows = list(pair_rows(bench, pairs, BUDGETS[2:6:3] if args.quick else BUDGETS))
    merged = list(merged_rows(bench, 1 if args.quick else MERGED_SETS))
    accuracy = float((bench.answers.argmax(1) == bench.labels).double().mean())
    where = environment("cpu", "float32", SEED) | {
        "data": data.name,
        "network": args.network,
        "parameters": bench.total,
        "recipe": asdict(recipe),
        "accuracy": accuracy,
        "test_images": len(bench.labels),
        "dissected_images": CLASSES * PER_CLASS,
    }
    name = f"subnetworks_{args.network}_{args.data}" + "_quick" * args.quick
    print("wrote", write(name, where, [*timings, *summary(rows)]))
    save_rows(RESULTS / f"{name}.csv", [*rows, *merged])
    plot(summary(rows), merged, where, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
