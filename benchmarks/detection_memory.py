"""The peak memory of D-RISE beyond that of the bare passes, each in a process of its own.

    python -m benchmarks.detection_memory SIDE WHICH --detector SPEC [--n-masks 64] [--large-size 800 1333]

prints the megabytes of one: SIDE is ours or bare, WHICH the real detector or a tiny one, which costs next to nothing.
`benchmarks.detection_speed` makes rows of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.detection_passes import Recorded, add_options, bare, drawn, options_of, ours, photo
from benchmarks.detection_subjects import load
from benchmarks.peaks import status
from drnet_captum.detect import CallableDetector, Detector

MOST = 500.0  # MB beyond the bare passes
TINY = "a detector that costs nothing"
GROWN = 300  # masks after which no batch grows further


def tiny(images: Tensor) -> list[dict[str, Tensor]]:
    """A detector that looks at few pixels: one box, the surer the brighter they are."""
    sparse = images[:, :, ::64, ::64].mean((1, 2, 3))
    box = images.new_tensor([[0.0, 0, images.shape[3] / 2, images.shape[2] / 2]])
    label = torch.zeros(1, dtype=torch.int64, device=images.device)
    return [{"boxes": box, "scores": score[None], "labels": label} for score in sparse]


def cheap() -> Detector:
    """The detector that costs next to nothing."""
    found = CallableDetector(tiny, (0.0, 1.0))
    found.name = TINY
    return found


def memory_row(which: str, detector: Detector, n_masks: int, args: argparse.Namespace) -> dict[str, Any]:
    """Megabytes at the highest, less those of the bare passes in batches of the largest size."""
    settings = argparse.Namespace(**vars(args) | {"n_masks": n_masks})
    settings_bare = argparse.Namespace(**vars(settings) | {"batch_size": largest_batch(detector, args, n_masks)})
    found = [(peak("ours", which, settings), peak("bare", which, settings_bare)) for _ in range(args.memory_runs)]
    beyond = sorted(a - b for a, b in found)
    row = {
        "case": "memory beyond the bare passes",
        "model": detector.name,
        "measure": "MB",
        "goal": MOST,
        "verdict": "met" if median(beyond) <= MOST else "missed",
        "median": median(beyond),
        "low": beyond[0],
        "high": beyond[-1],
        "pairs": len(beyond),
        "ours_median": median(a for a, _ in found),
        "theirs_median": median(b for _, b in found),
        "size": list(args.large_size),
        "n_masks": n_masks,
    }
    print(
        f"{detector.name:10} {n_masks:,} masks: {row['median']:.0f} MB beyond the bare passes [{row['low']:.0f}, "
        f"{row['high']:.0f}]  goal {MOST:.0f}: {row['verdict']}",
        flush=True,
    )
    return row


def peak(side: str, which: str, args: argparse.Namespace) -> float:
    """Megabytes above what a process of its own held before, at its highest."""
    named = ("detector", "checkpoint", "device", "photo", "batch_size", "n_masks")
    given = {f"--{name.replace('_', '-')}": getattr(args, name) for name in named}
    options = [str(part) for option, value in given.items() if value is not None for part in (option, value)]
    options += ["--large-size", *map(str, args.large_size)] + ["--random-weights"] * args.random_weights
    command = [sys.executable, "-m", "benchmarks.detection_memory", side, which, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout.strip().splitlines()[-1])


def one(side: str, which: str, args: argparse.Namespace) -> None:
    """Run one side once and print its peak: of the device's memory, or (Linux) of the resident set."""
    detector = cheap() if which == "tiny" else load(args)
    x, options = photo(detector, args.large_size, args), options_of(args)
    bare(detector, [x])  # kernels are loaded
    before = held(args.device, reset=True)
    if side == "ours":
        ours(detector, x, drawn(args.large_size, 1), **options)
    else:
        batch = args.batch_size or 1
        part = x.repeat(batch, 1, 1, 1)
        bare(detector, [part] * ceil(args.n_masks / batch))
    print(held(args.device) - before)


def held(device: str, reset: bool = False) -> float:
    """Megabytes at the highest since the last reset; with ``reset`` those held now, from which the highest counts."""
    if device.startswith("cuda"):
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS" if reset else "VmHWM") * 1024 / 1e6


def largest_batch(detector: Detector, args: argparse.Namespace, n_masks: int) -> int:
    """How many masks our side has in a forward pass at most."""
    sizes: list[int] = []
    x = photo(detector, args.large_size, args)
    options = options_of(args) | {"n_masks": min(n_masks, GROWN)}
    ours(Recorded(detector, lambda images: sizes.append(len(images))), x, drawn(args.large_size, 1), **options)
    return max(sizes)


def memory_rows(detector: Detector, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The cheap detector's, and the real one's."""
    yield memory_row("tiny", cheap(), args.memory_masks, args)
    yield memory_row("real", detector, args.n_masks, args)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("ours", "bare"))
    parser.add_argument("which", choices=("real", "tiny"))
    add_options(parser)
    args = parser.parse_args(arguments)
    one(args.side, args.which, args)


if __name__ == "__main__":
    main()
