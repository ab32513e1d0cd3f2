"""The suite ``panel``: several methods or classes by one call, against Captum's classes called one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from benchmarks.agreement import agreement, compared, least, without_tf32
from benchmarks.comparison import CAPTUM, CAPTUM_AUTOCAST, CAPTUM_FLOAT32, Comparison, guarded, variants
from benchmarks.options import DTYPES, Options
from benchmarks.pairs import environment
from benchmarks.records import Row
from benchmarks.side_captum import REACH, captum_panel
from benchmarks.sides import SIX, our_panel, under_autocast
from benchmarks.subjects import MODELS, QUICK, Subject, build

CPU_BATCHES, CUDA_BATCHES = (8,), (8, 64, 256)
ONE, FIVE, FIVE_CAMS = "six methods, one class", "six methods, five classes", "grad_cam, five classes"
CASES: dict[str, tuple[tuple[str, ...], int]] = {ONE: (SIX, 1), FIVE: (SIX, 5), FIVE_CAMS: (("grad_cam",), 5)}


def run(options: Options) -> tuple[dict[str, Any], Iterator[Row]]:
    """The environment, and the rows as they are found."""
    return environment(options.device, options.dtype, options.seed), rows(options)


def rows(options: Options) -> Iterator[Row]:
    """All models, batch sizes and cases."""
    for name in options.models or (QUICK if options.quick else MODELS):
        subject = build(name, options.device, DTYPES[options.dtype], options.seed)
        for batch in options.batches(CPU_BATCHES, CUDA_BATCHES):
            shown = subject.with_images(batch, options.seed)
            for case in CASES:
                found = cache(partial(checked, shown, case))
                if "same" in options.modes:
                    yield row(shown, Comparison(name, batch, case, "same", CAPTUM), options, found)
                if "best" in options.modes:
                    for mode, chosen in variants(options):
                        for side in (CAPTUM_AUTOCAST, CAPTUM_FLOAT32):
                            yield row(shown, Comparison(name, batch, case, mode, side, chosen), options, found)


def row(subject: Subject, comparison: Comparison, options: Options, checked: Callable[[], Row]) -> Row:
    """One case against Captum's classes, in one mode."""
    chosen, (methods, classes) = comparison.options, CASES[comparison.case]

    def make() -> Row:
        found = checked()
        mine = our_panel(subject, methods, classes, **chosen)
        theirs = captum_panel(subject, methods, classes)
        if comparison.side == CAPTUM_AUTOCAST:
            theirs = under_autocast(theirs, options.device)
        if chosen:
            a, b = mine(), theirs()
            found = found | least(compared(a[method], b[method]) for method in methods)
        return replace(comparison, found=found).timed(mine, theirs, options)

    return guarded(comparison, make)


def checked(subject: Subject, case: str) -> Row:
    """Whether all maps of both sides are the same, at full precision and in float32 at least."""
    methods, classes = CASES[case]
    if subject.x.dtype == torch.bfloat16:
        subject = subject.copied(torch.float32)
    with without_tf32():
        mine, theirs = our_panel(subject, methods, classes)(), captum_panel(subject, methods, classes)()
    return agreement(mine, theirs, REACH, subject.facts, f"captum on {subject.name}, {case}")
