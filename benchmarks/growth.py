"""How seconds and peak memory grow: with the batch, the image, classes, methods, layers dissected and D-RISE's masks.

    python -m benchmarks.growth [--model resnet50] [--device cpu] [--quick] [--out DIR]

Within a series all lines and values are timed in turn, round after round, so that what else the machine does hits all
alike; each timed run comes right after an untimed one of its own. Peak memory is that of one run, in a process of its
own. Captum's loop over classes and methods stands beside ours, on the same model, layer and image, after their maps
have been compared. How each line grows is said in a sentence, which is made from the numbers.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.growth_fit import Point, said
from benchmarks.growth_series import OURS, Line, Setting, lines_of, run_of, subject_of, warmed_run
from benchmarks.options import Options
from benchmarks.pairs import RESULTS, environment, timed
from benchmarks.panel import ONE, checked
from benchmarks.peaks import peak_alone
from benchmarks.records import Row
from benchmarks.suites import run_suite

MODEL, QUICK_MODEL = "resnet50", "test_resnet"
SIDE, QUICK_SIDE = 224, 64
LEAST_ROUNDS, MOST_ROUNDS = 3, 7
SECONDS = 30.0  # that a series may take in more rounds than the least

Key = TypeVar("Key", bound=Hashable)


def run(options: Options) -> tuple[dict[str, Any], Iterator[Row]]:
    """The environment, and the rows as they are found: one for each value of each line.

    The row of a line's last value carries its ``fit`` and ``sentence``. Of the options this suite has no use for batch
    sizes, pairs, seconds, peers, modes and the detector.
    """
    where = environment(options.device, options.dtype, options.seed)
    return where | {"side": QUICK_SIDE if options.quick else SIDE}, rows(options)


def rows(options: Options) -> Iterator[Row]:
    """All models and series.

    Raises:
        DisagreementError: Captum's maps are others than ours, and nothing of the model explains it.
    """
    for name in options.models or (QUICK_MODEL if options.quick else MODEL,):
        side = QUICK_SIDE if options.quick else SIDE
        setting = Setting(name, options.device, options.dtype, options.seed, side)
        agreement = checked(subject_of(setting), ONE)
        for lines in lines_of(setting, options.quick):
            yield from series_rows(setting, lines, agreement, 1 if options.quick else MOST_ROUNDS)


def series_rows(setting: Setting, lines: Sequence[Line], agreement: dict[str, Any], most_rounds: int) -> Iterator[Row]:
    """The lines of one series; Captum's with the agreement of its maps with ours."""
    runs = {(line, value): run_of(setting, line, value) for line in lines for value in line.values}
    seconds = in_rounds(runs, most_rounds)
    for line in lines:
        points = [
            point(value, seconds[line, value], peak_alone(warmed_run, setting, line, value, device=setting.device))
            for value in line.values
        ]
        found = line_rows(setting, line, points)
        print(f"{line.series.name}. {found[-1]['sentence']}", flush=True)
        yield from (row if line.library == OURS else row | agreement for row in found)


def in_rounds(
    runs: Mapping[Key, Callable[[], Any]],
    most_rounds: int = MOST_ROUNDS,
    clock: Callable[[], float] | None = None,
) -> dict[Key, list[float]]:
    """Seconds of every run, one of each after another, in as many rounds as fit into ``SECONDS``, within bounds."""
    found: dict[Key, list[float]] = {key: [] for key in runs}
    now = clock or time.perf_counter
    start = now()
    for done in range(1, most_rounds + 1):
        for key, call in runs.items():
            found[key].append(timed(call, clock))
        if done >= LEAST_ROUNDS and (now() - start) * (done + 1) / done > SECONDS:
            break
    return found


def point(value: int, seconds: Sequence[float], mib: float) -> Point:
    """Median and interquartile interval of the rounds.

    Example:
        >>> point(2, [4.0, 1.0, 2.0], 7.5)
        Point(value=2, seconds=2.0, low=1.5, high=3.0, runs=3, mib=7.5)
    """
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [*seconds] * 3
    return Point(value, middle, low, high, len(seconds), mib)


def line_rows(setting: Setting, line: Line, points: Sequence[Point]) -> list[Row]:
    """A row for each point, the last with what they say."""
    series = line.series
    place = {"model": setting.model, "series": series.name, "what": line.what, "library": line.library}
    found = [place | asdict(at) for at in points]
    found[-1] |= said(points, series.law, line.title, series.unit, series.units)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"a timm name; {MODEL}, where nothing else is said")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="two values a series, small images, one round")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args(arguments)
    models = (args.model,) if args.model else ()
    options = Options(device=args.device, models=models, quick=args.quick, out=args.out)
    warnings.filterwarnings("ignore", category=UserWarning)
    print(run_suite("growth", options))


if __name__ == "__main__":
    main()
