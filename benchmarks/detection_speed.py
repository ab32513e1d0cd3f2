"""What D-RISE costs beside the detector's own passes, in time and memory, and against another implementation.

    python -m benchmarks.detection_speed --detector SPEC [--size 480 640] [--n-masks 64] [--pairs 5] [--device cpu]

1. ``attribute_detections`` with one target against the bare passes: ``detector.propose`` on the same masked images,
   made beforehand, in the same batches.
2. Five targets against one.
3. Peak memory beyond that of the bare passes, each in a process of its own: with a detector that costs next to nothing
   at ``--memory-masks``, and with the real one at ``--n-masks``.
4. ``vision-explanation-methods`` (PyPI; skipped where it is not installed) on the same detector, image, target, fill
   and number of masks, at both sizes; and so with the detector that costs next to nothing, where it is the masks' own
   cost. It draws other masks: what is compared is how its maps correlate with ours, beside how either side's correlate
   with its own of other masks.

Rows are written after each of these.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from benchmarks import pairs
from benchmarks.detection_memory import cheap, memory_rows
from benchmarks.detection_passes import SEED, add_options, bare, drawn, masked, options_of, ours, photo, surest
from benchmarks.detection_subjects import image_range, load
from benchmarks.options import Options
from drnet_captum.detect import Detector

MOST_OF_PASSES = 1.10  # times the bare passes
MOST_OF_ONE = 1.02  # five targets, times one
LEAST_OF_THEIRS = 1.4  # times faster
THEIRS = "vision-explanation-methods"
CASES = ("passes", "targets", "memory", "theirs")


def passes_row(detector: Detector, args: argparse.Namespace) -> dict[str, Any]:
    """One target, against the bare passes."""
    x, options = photo(detector, args.size, args), options_of(args)
    parts = masked(detector, x, **options)
    ratio = pairs.paired(
        partial(ours, detector, x, drawn(args.size, 1), **options),
        partial(bare, detector, parts),
        args.pairs,
    )
    more = {"batches": [len(part) for part in parts]}
    return speed_row(
        "one target, against the bare passes", detector, 1 / MOST_OF_PASSES, ratio, args, args.size, **more
    )


def targets_row(detector: Detector, args: argparse.Namespace) -> dict[str, Any]:
    """Five targets, against one."""
    x, options = photo(detector, args.size, args), options_of(args)
    five, one = (partial(ours, detector, x, drawn(args.size, count), **options) for count in (5, 1))
    ratio = pairs.paired(five, one, args.pairs)
    return speed_row("five targets, against one", detector, 1 / MOST_OF_ONE, ratio, args, args.size)


def speed_row(
    case: str,
    detector: Detector,
    goal: float,
    ratio: pairs.Ratio,
    args: argparse.Namespace,
    size: Sequence[int],
    **more: Any,
) -> dict[str, Any]:
    """A row of times, printed."""
    found = pairs.row(case, detector.name, "time", goal, ratio, size=list(size), n_masks=args.n_masks, **more)
    pairs.report(found)
    return found


def theirs_rows(detector: Detector, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The other implementation, at both sizes; nothing where it is not installed."""
    if find_spec("vision_explanation_methods") is None:
        print(f"{THEIRS} is not installed: pip install --no-deps {THEIRS}, and pandas and tqdm", flush=True)
        return
    from benchmarks.detection_other import agreement, theirs

    other = f"{THEIRS} {version(THEIRS)}"
    for size in (args.size, args.large_size):
        for asked in (detector, cheap()):
            x = photo(asked, size, args)
            target, low = surest(asked, x), image_range(asked)[0]
            agreed = {} if asked is not detector else agreement(asked, x, target, args.agreement_masks, args.batch_size)
            ratio = pairs.paired(
                partial(ours, asked, x, target, baselines=low, **options_of(args)),
                partial(theirs, asked, x, target, args.n_masks),
                args.pairs,
            )
            more = {"other": other, "agreement_masks": args.agreement_masks, **agreed}
            yield speed_row(THEIRS, asked, LEAST_OF_THEIRS, ratio, args, size, **more)


def measure(detector: Detector, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows, one by one."""
    if "passes" in args.cases:
        yield passes_row(detector, args)
    if "targets" in args.cases:
        yield targets_row(detector, args)
    if "memory" in args.cases:
        yield from memory_rows(detector, args)
    if "theirs" in args.cases:
        yield from theirs_rows(detector, args)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--memory-masks", type=int, default=5000)
    parser.add_argument("--agreement-masks", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory-runs", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--name", help="of the results file; by default detection_speed and the device")
    return parser.parse_args(arguments)


def run(options: Options) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """As the suite ``drise`` of ``python -m benchmarks``: the environment, and the rows as they are found."""
    given = ["--detector", options.detector, "--device", options.device, "--pairs", str(options.pairs_at_most)]
    if options.detector.startswith("torchvision:"):
        given.append("--random-weights")
    if options.quick:
        given += ["--size", "64", "96", "--n-masks", "4", "--cases", "passes", "targets"]
    args = parsed(given)
    detector = load(args)
    return pairs.environment(args.device, "float32", SEED) | {"detector": detector.name}, measure(detector, args)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parsed(arguments)
    detector = load(args)
    where = pairs.environment(args.device, "float32", SEED) | {"detector": detector.name}
    rows: list[dict[str, Any]] = []
    for found in measure(detector, args):
        rows.append(found)
        path = pairs.write(args.name or f"detection_speed_{args.device.replace(':', '')}", where, rows)
        print(path, flush=True)


if __name__ == "__main__":
    main()
