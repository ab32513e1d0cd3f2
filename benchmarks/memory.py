"""The suite ``memory``: the peak of one call of each side, in a process of its own, beyond what was held before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.comparison import CAPTUM, CAPTUM_AUTOCAST, Comparison, variants
from benchmarks.options import DTYPES, Options
from benchmarks.pairs import environment, ratio_of
from benchmarks.peaks import peak_alone
from benchmarks.records import Row
from benchmarks.side_captum import captum
from benchmarks.sides import Call, ours, under_autocast
from benchmarks.subjects import MODELS, QUICK, build

CPU_BATCHES, CUDA_BATCHES = (8,), (8, 64, 256)
GOALS = {"grad_cam": 1 / 0.4, "guided_backprop": 1 / 0.5}  # theirs ÷ ours
RUNS = 3
PAGE = 4096 / 2**20  # MiB; what is less cannot be told


def run(options: Options) -> tuple[dict[str, Any], Iterator[Row]]:
    """The environment, and the rows as they are found."""
    return environment(options.device, options.dtype, options.seed), rows(options)


def rows(options: Options) -> Iterator[Row]:
    """All models, batch sizes and methods."""
    for name in options.models or (QUICK[:1] if options.quick else MODELS):
        for batch in options.batches(CPU_BATCHES, CUDA_BATCHES):
            for method in ("grad_cam",) if options.quick else GOALS:
                for mode, chosen in modes(options):
                    side = CAPTUM_AUTOCAST if chosen else CAPTUM
                    comparison = Comparison(name, batch, method, mode, side, chosen, GOALS[method])
                    found = [
                        tuple(peak(who, name, batch, method, chosen, options) for who in ("ours", "theirs"))
                        for _ in range(1 if options.quick else RUNS)
                    ]
                    yield comparison.measured("peak memory", ratio_of([(a, b) for a, b in found]))


def modes(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those that were asked for, and our keywords."""
    if "same" in options.modes:
        yield "same", {}
    if "best" in options.modes:
        yield from variants(options)


def peak(who: str, name: str, batch: int, method: str, chosen: dict[str, Any], options: Options) -> float:
    """MiB; a page at least."""
    return max(PAGE, peak_alone(prepared, who, name, batch, method, chosen, options, device=options.device))


def prepared(who: str, name: str, batch: int, method: str, chosen: dict[str, Any], options: Options) -> Call:
    """The call of one side, after one of the same kind: kernels are loaded, and code compiled for the shape.

    Where nothing is compiled one image goes before, so that the buffers of a whole batch count.
    """
    subject = build(name, options.device, DTYPES[options.dtype], options.seed).with_images(batch, options.seed)

    def call_of(images: int) -> Call:
        shown = subject.first(images)
        if who == "ours":
            return ours(shown, method, **chosen)
        theirs = captum(method).prepare(shown)
        return under_autocast(theirs, options.device) if chosen else theirs

    call = call_of(batch)
    (call if chosen else call_of(1))()
    return call
