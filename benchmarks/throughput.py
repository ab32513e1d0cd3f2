"""The suite ``throughput``: images explained a second, by method, model, batch and library, and how far from the bound.

Same precision: both sides eager, of one dtype; captured: ours replays its passes. Best mode: ours in bfloat16, channels
last and compiled (on a CPU also not compiled), against Captum under autocast and in float32. Beside every method: the
pass that it cannot do without.
Maps are compared before they are timed; a difference that no fact of the model explains raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.agreement import agreement, check_plain, closeness, compared, without_tf32
from benchmarks.comparison import (
    BACKWARD,
    CAPTUM_AUTOCAST,
    CAPTUM_FLOAT32,
    FORWARD,
    Comparison,
    guarded,
    variants,
)
from benchmarks.options import DTYPES, Options
from benchmarks.pairs import environment
from benchmarks.records import Row
from benchmarks.side_captum import captum
from benchmarks.side_peers import MODULES, PEERS
from benchmarks.sides import CAPTURED, METHODS, Side, bound, ours, plain_gradient, under_autocast
from benchmarks.subjects import MODELS, QUICK, Subject, build

CPU_BATCHES, CUDA_BATCHES = (1, 8, 64), (1, 8, 64, 256)
NEAR_BOUND = 0.8  # of the bound's throughput, in the best mode on a GPU
CHECKED = 8  # images whose maps in bfloat16 are compared with those in float64


def run(options: Options) -> tuple[dict[str, Any], Iterator[Row]]:
    """The environment, and the rows as they are found."""
    return environment(options.device, options.dtype, options.seed), rows(options)


def rows(options: Options) -> Iterator[Row]:
    """All models, batch sizes and methods."""
    for name in options.models or (QUICK if options.quick else MODELS):
        subject = build(name, options.device, DTYPES[options.dtype], options.seed)
        exact = partial(exactness, subject.with_images(2 if options.quick else CHECKED, options.seed), options=options)
        found = {method: exact(method) for method in METHODS} if "best" in options.modes else {}
        for batch in options.batches(CPU_BATCHES, CUDA_BATCHES):
            shown = subject.with_images(batch, options.seed)
            for method in METHODS:
                yield from method_rows(shown, method, options, found.get(method, {}))


def method_rows(subject: Subject, method: str, options: Options, close: dict[str, Row]) -> Iterator[Row]:
    """One method, model and batch."""
    if "same" in options.modes:
        for side in (captum(method), *(PEERS.get(method, ()) if options.peers else ())):
            yield same_row(subject, method, side, options)
        yield bound_row(subject, method, "same", {}, options)
    if "captured" in options.modes:
        yield same_row(subject, method, captum(method), options, "captured", CAPTURED)
        yield bound_row(subject, method, "captured", CAPTURED, options, {})
    if "best" in options.modes:
        found = cache(partial(checked, subject, method, captum(method)))
        for mode, chosen in variants(options):
            for name in (CAPTUM_AUTOCAST, CAPTUM_FLOAT32):
                comparison = Comparison(subject.name, len(subject.x), method, mode, name, chosen)
                yield best_row(subject, comparison, options, found) | {"closeness": close[mode]}
            yield bound_row(subject, method, mode, chosen, options)


def same_row(
    subject: Subject,
    method: str,
    side: Side,
    options: Options,
    mode: str = "same",
    chosen: dict[str, Any] | None = None,
) -> Row:
    """Against one library, in the same precision."""
    chosen = chosen or {}
    comparison = Comparison(subject.name, len(subject.x), method, mode, side.library, chosen)
    if side.package is not None and find_spec(MODULES[side.library]) is None:
        return comparison.row("time", "not installed", why=f"pip install {side.package}")

    def make() -> Row:
        found = checked(subject, method, side, **chosen)
        theirs = side.prepare(subject if side.package is None else subject.copied())
        return replace(comparison, found=found).timed(ours(subject, method, **chosen), theirs, options)

    return guarded(comparison, make)


def best_row(subject: Subject, comparison: Comparison, options: Options, checked: Callable[[], Row]) -> Row:
    """Our best mode against Captum, under autocast or in float32; what is timed is compared, and judged in float32."""
    method, chosen = comparison.case, comparison.options

    def make() -> Row:
        found = checked()
        mine, theirs = ours(subject, method, **chosen), captum(method).prepare(subject)
        if comparison.side == CAPTUM_AUTOCAST:
            theirs = under_autocast(theirs, options.device)
        return replace(comparison, found=found | compared(mine(), theirs())).timed(mine, theirs, options)

    return guarded(comparison, make)


def bound_row(
    subject: Subject,
    method: str,
    mode: str,
    chosen: dict[str, Any],
    options: Options,
    beside: dict[str, Any] | None = None,
) -> Row:
    """Against the pass that the method cannot do without: the share of its throughput.

    Args:
        beside: the options of that pass; None: those ``chosen`` for ours.
    """
    name = FORWARD if method == "grad_cam" else BACKWARD
    goal = NEAR_BOUND if mode == "best" and options.is_cuda and method in ("grad_cam", "guided_backprop") else None
    comparison = Comparison(subject.name, len(subject.x), method, mode, name, chosen, goal)

    def make() -> Row:
        theirs = bound(subject, method, options.device, chosen if beside is None else beside)
        return comparison.timed(ours(subject, method, **chosen), theirs, options)

    return guarded(comparison, make)


def checked(subject: Subject, method: str, side: Side, **chosen: Any) -> Row:
    """Whether a library's maps are ours, at full precision and in float32 at least.

    Raises:
        DisagreementError: they are not, for no reason that lies in the model.
    """
    if subject.x.dtype == torch.bfloat16:
        subject = subject.copied(torch.float32)
    who = f"{side.library} on {subject.name}"
    with without_tf32():
        theirs = side.prepare(subject if side.package is None else subject.copied())().to(subject.x.device)
        mine = side.form(ours(subject, method, **chosen)(), subject)
        if side.reach.relu_modules and not subject.facts.relus and method in ("guided_backprop", "deconvnet"):
            check_plain(theirs, plain_gradient(subject), who)
    return agreement({method: mine}, {method: theirs}, side.reach, subject.facts, who)


def exactness(subject: Subject, method: str, options: Options) -> dict[str, Row]:
    """By mode, how near maps of reduced precision are to those in float64; beside it Captum's autocast to its own."""
    double, at_layer = subject.copied(torch.float64), method == "grad_cam"
    side, captums = captum(method), {}
    if not at_layer:
        theirs = under_autocast(side.prepare(subject), options.device)(), side.prepare(double)()
        if theirs[1].numel():  # there is no map where Captum cannot resize Grad-CAM's
            captums = {f"captum_{name}": value for name, value in closeness(*theirs, at_layer).items()}
    exact = ours(double, method)()
    return {
        mode: closeness(ours(subject, method, **chosen)(), exact, at_layer) | captums
        for mode, chosen in variants(options)
    }
