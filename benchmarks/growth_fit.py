"""How something grows, from measured points: a straight line, a power law, or steps; and a sentence that says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import exp, log
from typing import Any, Literal

Law = Literal["line", "power", "steps"]
LEAST_SECONDS, LEAST_MIB = 1e-6, 1.0  # what is below counts as that much, where it is divided by
SMALL = 0.005
PANEL = 6  # methods


@dataclass(frozen=True)
class Point:
    """What was measured at one value: seconds (median, interquartile interval) of ``runs``, and peak MiB of one."""

    value: int
    seconds: float
    low: float
    high: float
    runs: int
    mib: float


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        start: a of a + b·v, or of a·v^b.
        slope: b.
        share: of a line, what each further step of the first value's size costs, as a share of what the first costs:
            1 is proportional, 0 is constant.
        error: the greatest deviation of the law from a point, as a share of it.
    """

    start: float
    slope: float
    share: float | None
    error: float


def straight_line(values: Sequence[float], measured: Sequence[float], least: float) -> Fit:
    """Least squares of relative errors, as noise grows with what is measured.

    Raises:
        ValueError: fewer than two different values.

    Example:
        >>> straight_line([1, 5, 10], [2.0, 10.0, 20.0], least=1e-6)
        Fit(start=0.0, slope=2.0, share=1.0, error=0.0)
    """
    sizes = [max(y, least) for y in measured]
    start, slope = weighted_line(values, measured, [size**-2 for size in sizes])
    at = [start + slope * v for v in values]
    error = max(abs(a - y) / size for a, y, size in zip(at, measured, sizes, strict=True))
    return Fit(start, slope, slope * values[0] / max(at[0], least), error)


def power_law(values: Sequence[float], measured: Sequence[float], least: float) -> Fit:
    """A straight line through the logarithms.

    Raises:
        ValueError: fewer than two different values.
    """
    sizes = [max(y, least) for y in measured]
    start, slope = weighted_line([log(v) for v in values], [log(y) for y in sizes], [1.0] * len(sizes))
    error = max(abs(exp(start) * v**slope - y) / y for v, y in zip(values, sizes, strict=True))
    return Fit(exp(start), slope, None, error)


def weighted_line(x: Sequence[float], y: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """(a, b) with the least Σ w (a + b x − y)²."""
    if len(set(x)) < 2:
        raise ValueError(
            f"expected measurements at two values at least, got {sorted(set(x))}: there is no growth in one"
        )
    total = sum(weights)
    x_mean = sum(w * a for w, a in zip(weights, x, strict=True)) / total
    y_mean = sum(w * b for w, b in zip(weights, y, strict=True)) / total
    slope = sum(w * (a - x_mean) * (b - y_mean) for w, a, b in zip(weights, x, y, strict=True)) / sum(
        w * (a - x_mean) ** 2 for w, a in zip(weights, x, strict=True)
    )
    return y_mean - slope * x_mean, slope


def said(points: Sequence[Point], law: Law, what: str, unit: str, units: str) -> dict[str, Any]:
    """The fits of seconds and MiB, and the sentence, as fields of the results.

    Args:
        points: by rising values.
        law: "line", "power", or "steps", which fits nothing.
        what: whose points they are.
        unit: what one of the values is called.
        units: and several of them.

    Example:
        >>> points = [Point(n, 1 + 0.02 * n, 0, 0, 3, 50.0) for n in (1, 11)]
        >>> print(said(points, "line", "Grad-CAM", "class", "classes")["sentence"])
        Grad-CAM: each further class costs 2.0% of the time and less than 0.5% of the memory of the first (1 to 11: ...
    """
    what = what[0].upper() + what[1:]
    if law == "steps":
        return {"sentence": f"{what}: {steps(points, units)} ({extremes(points)})."}
    values = [point.value for point in points]
    fit = straight_line if law == "line" else power_law
    seconds = fit(values, [p.seconds for p in points], LEAST_SECONDS)
    mib = fit(values, [p.mib for p in points], LEAST_MIB)
    if law == "power":
        grows = f"time grows as the {unit} to the power of {seconds.slope:.1f}, memory to that of {mib.slope:.1f}"
    else:
        first = values[0]
        step, verb, of_first = (unit, "costs", "") if first == 1 else (f"{first:,} {units}", "cost", f" {first:,}")
        time, memory = percent(seconds.share), percent(mib.share)
        both = f"{time} of the time and {memory} of the memory" if time != memory else f"{time} of the time and memory"
        grows = f"each further {step} {verb} {both} of the first{of_first}"
    fits = f"within {100 * seconds.error:.0f}% and {100 * mib.error:.0f}% of the fit"
    return {
        "fit": {"law": law, "seconds": asdict(seconds), "mib": asdict(mib)},
        "sentence": f"{what}: {grows} ({extremes(points)}; {fits}).",
    }


def steps(points: Sequence[Point], units: str) -> str:
    """The last against the panel, and the panel against the first."""
    marks = [p for p in points if p.value == PANEL or p in (points[0], points[-1])]
    found = []
    for before, after in pairwise(marks):
        longer = after.seconds / max(before.seconds, LEAST_SECONDS)
        more = max(after.mib, LEAST_MIB) / max(before.mib, LEAST_MIB)
        found.append(
            f"{after.value} {units} take {longer:.2f} times the time and {more:.2f} times the memory of {before.value}"
        )
    return ", ".join(found)


def extremes(points: Sequence[Point]) -> str:
    """From where to where.

    Example:
        >>> extremes([Point(1, 0.0512, 0, 0, 3, 20.2), Point(32, 12.4, 0, 0, 3, 810)])
        '1 to 32: 0.051 to 12 s, 20 to 810 MiB'
    """
    first, last = points[0], points[-1]
    return (
        f"{first.value:,} to {last.value:,}: {first.seconds:.2g} to {last.seconds:.2g} s, "
        f"{first.mib:,.0f} to {last.mib:,.0f} MiB"
    )


def percent(share: float | None) -> str:
    """As it is read.

    Example:
        >>> percent(0.97), percent(0.034), percent(0.0002), percent(-0.01)
        ('97%', '3.4%', 'less than 0.5%', 'less than 0.5%')
    """
    if share is None or share < SMALL:
        return f"less than {100 * SMALL:g}%"
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.1f}%"
