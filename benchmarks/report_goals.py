"""What is aimed at against Captum, and how far it is met: geometric means over the CNNs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison import BACKWARD, CAPTUM, CAPTUM_FLOAT32, FORWARD
from benchmarks.pairs import Ratio
from benchmarks.panel import FIVE, FIVE_CAMS, ONE
from benchmarks.report_throughput import DEVICES, LIBRARIES, SHOWN_BATCH, TITLES, source, times
from benchmarks.subjects import CNNS

Row = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A geometric mean over the CNNs (and over batch sizes) that is aimed at.

    Attributes:
        case, measure, mode, side: of the rows.
        least: theirs ÷ ours.
        batches: of the rows.
    """

    case: str
    least: float
    measure: str = "time"
    mode: str = "same"
    side: str = CAPTUM
    batches: tuple[int, ...] = (SHOWN_BATCH,)

    @property
    def title(self) -> str:
        """What is compared."""
        mode = ", best mode" if self.mode == "best" else ""
        against = "" if self.side == CAPTUM else f", against {LIBRARIES[self.side]}"
        return f"{TITLES[self.case]}{mode}{against}: {self.measure}"


GPU = (8, 64, 256)
CPU_GOALS = (
    Goal("grad_cam", 1.1),
    Goal("grad_cam", 1 / 0.4, "peak memory"),
    Goal(FIVE_CAMS, 6.0),
    Goal("guided_backprop", 1.25),
    Goal("guided_backprop", 1 / 0.5, "peak memory"),
    Goal("guided_grad_cam", 1.7),
    Goal(ONE, 3.5),
    Goal(FIVE, 4.5),
)
GPU_GOALS = (
    Goal("grad_cam", 1.2, batches=GPU),
    Goal("guided_backprop", 1.3, batches=GPU),
    Goal("grad_cam", 5.0, "time", "best", CAPTUM_FLOAT32, GPU),
    Goal("guided_backprop", 5.0, "time", "best", CAPTUM_FLOAT32, GPU),
    Goal("grad_cam", 0.8, "time", "best", FORWARD, GPU),
    Goal("guided_backprop", 0.8, "time", "best", BACKWARD, GPU),
    Goal(FIVE, 12.0, "time", "best", CAPTUM_FLOAT32, GPU),
)


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean of the logarithms.

    Example:
        >>> geometric_mean([1.0, 4.0])
        2.0
    """
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def mean_ratio(rows: Sequence[Row]) -> Ratio:
    """Geometric means of the medians, and of the ends of the interquartile intervals."""
    names = ("median", "low", "high", "ours_median", "theirs_median")
    means = {name: geometric_mean(row[name] for row in rows) for name in names}
    return Ratio(pairs=min(row["pairs"] for row in rows), **means)


def rows_of(goal: Goal, rows: Iterable[Row]) -> list[Row]:
    """The rows that a goal is about: of all CNNs and batch sizes, or none where any of them is missing."""
    wanted = (goal.case, goal.measure, goal.mode, goal.side)
    found = {
        (row["model"], row["batch_size"]): row
        for row in rows
        if (row["case"], row["measure"], row["mode"], row["side"]) == wanted and row["status"] == "measured"
    }
    keys = [(model, batch) for model in CNNS for batch in goal.batches]
    return [found[key] for key in keys] if all(key in found for key in keys) else []


def goals_table(goals: Sequence[Goal], rows: Sequence[Row], device: str) -> str:
    """Rows goals: geometric means, and whether they are met; of several batch sizes each beside the mean."""
    lines = [f"| against Captum, {DEVICES[device]} | goal | geometric mean | |", "|---|---|---|---|"]
    for goal in goals:
        memory = goal.measure == "peak memory"
        aim = f"at most {1 / goal.least:g}×" if memory else f"{goal.least:g}×"
        found = rows_of(goal, rows)
        if not found:
            lines.append(f"| {goal.title} | {aim} | not measured | |")
            continue
        ratio = mean_ratio(found)
        said = times(ratio, memory)
        if len(goal.batches) > 1:
            means = [mean_ratio([row for row in found if row["batch_size"] == batch]) for batch in goal.batches]
            parts = (f"{batch}: {one.median:.2f}×" for batch, one in zip(goal.batches, means, strict=True))
            said += f"; batch {', '.join(parts)}"
        lines.append(f"| {goal.title} | {aim} | {said} | {ratio.verdict(goal.least)} |")
    return "\n".join(lines)


def goals_block(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The tables of goals, by device the results files; of a device without any, how to measure there."""
    parts = []
    for device, goals in (("cpu", CPU_GOALS), ("cuda", GPU_GOALS)):
        files = results.get(device, ())
        parts.append(goals_table(goals, [row for found in files for row in found["rows"]], device))
        measure = f"`python -m benchmarks throughput panel memory --device {device}`"
        parts.append(source(files[0]["environment"]) if files else f"Nothing is measured there yet: {measure} does it.")
    return "\n\n".join(parts)
