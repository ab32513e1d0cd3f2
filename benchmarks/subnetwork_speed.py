"""Sub-networks: how fast they are, and how fast their channels are chosen.

    python -m benchmarks.subnetwork_speed --root DIR [--network resnet18] [--threads 2]

1. Seconds of a batch of 64: the network sliced to 11% and to 5% of its parameters for two classes, against the whole
   network, in pairs; both channels last, which is the faster format for both, and both contiguous.
2. Milliseconds to choose channels, for every set of the ten classes.

The network is that of ``benchmarks.subnetworks``.
"""

from __future__ import annotations

import copy
import statistics
import time
from itertools import combinations, product
from typing import Any

import torch

from benchmarks.pairs import paired, row, write
from benchmarks.subnetwork_bench import CLASSES, Bench
from benchmarks.subnetworks import arguments, file_name, prepared
from drnet_captum.reconstruct.slicing import sliced

BATCH, BUDGETS, FASTER, PAIRS = 64, (0.11, 0.05), 3.0, 15
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
SOON = 50.0  # milliseconds


def sliced_rows(bench: Bench, network: str, pairs: int) -> list[dict[str, Any]]:
    """Case 1."""
    found = []
    for budget, (name, layout) in product(BUDGETS, LAYOUTS.items()):
        small = sliced(bench.model, bench.choose((0, 1), budget), bench.example, (0, 1)).to(memory_format=layout)
        whole = copy.deepcopy(bench.model).to(memory_format=layout)
        images = bench.data.test[0][:BATCH].contiguous(memory_format=layout)
        with torch.inference_mode():
            ratio = paired(lambda: small(images), lambda: whole(images), pairs)  # noqa: B023
        size = {"batch_size": BATCH, "parameters": sum(p.numel() for p in small.parameters())}
        found.append(row(f"sliced, {budget:.0%}, {name}", network, "time", FASTER, ratio, **size))
    return found


def choosing_row(bench: Bench, network: str) -> dict[str, Any]:
    """Case 2."""
    milliseconds = []
    for size in range(1, CLASSES + 1):
        for classes in combinations(range(CLASSES), size):
            start = time.perf_counter()
            bench.choose(classes, BUDGETS[0])
            milliseconds.append(1000 * (time.perf_counter() - start))
    return {
        "case": "channels for a set of classes",
        "model": network,
        "measure": "milliseconds",
        "goal": SOON,
        "median": statistics.median(milliseconds),
        "largest": max(milliseconds),
        "sets": len(milliseconds),
    }


def main() -> None:
    args = arguments(__doc__).parse_args()
    bench, where = prepared(args)
    rows = [*sliced_rows(bench, args.network, 3 if args.quick else PAIRS), choosing_row(bench, args.network)]
    print("wrote", write(file_name("subnetwork_speed", args), where, rows))


if __name__ == "__main__":
    main()
