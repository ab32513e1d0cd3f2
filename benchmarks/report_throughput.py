"""README's tables of speed, from the results of ``throughput``, ``panel`` and ``memory``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison import BACKWARD, CAPTUM, CAPTUM_AUTOCAST, CAPTUM_FLOAT32, FORWARD
from benchmarks.pairs import Ratio
from benchmarks.panel import FIVE, FIVE_CAMS, ONE
from benchmarks.subjects import CNNS

Row = dict[str, Any]
TITLES = {
    "grad_cam": "Grad-CAM",
    "guided_backprop": "Guided Backprop",
    "deconvnet": "DeconvNet",
    "guided_grad_cam": "Guided Grad-CAM",
    "grad_x_image": "gradient × image",
    ONE: "six methods, one class",
    FIVE: "six methods, five classes",
    FIVE_CAMS: "Grad-CAM, five classes",
}
LIBRARIES = {
    CAPTUM: "Captum",
    CAPTUM_FLOAT32: "Captum in float32",
    FORWARD: "the bare forward pass",
    BACKWARD: "the bare forward and backward pass",
}
MODES = {
    "same": "same precision",
    "best": "best mode, against Captum under autocast and in float32",
    "best, not compiled": "the same, not compiled",
}
SHOWN_BATCH = 8
CLOSE_ENOUGH = 0.98  # of bfloat16 with float64
MEASURE = {device: f"python -m benchmarks throughput panel memory --device {device}" for device in ("cpu", "cuda")}


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
    lines = [
        f"| against Captum, {'GPU' if device == 'cuda' else 'CPU'} | goal | geometric mean | |",
        "|---|---|---|---|",
    ]
    for goal in goals:
        memory = goal.measure == "peak memory"
        aim = f"at most {1 / goal.least:g}×" if memory else f"{goal.least:g}×"
        found = rows_of(goal, rows)
        if not found:
            lines.append(f"| {goal.title} | {aim} | not measured; run `{MEASURE[device]}` | |")
            continue
        ratio = mean_ratio(found)
        said = times(ratio, memory)
        if len(goal.batches) > 1:
            means = [mean_ratio([row for row in found if row["batch_size"] == batch]) for batch in goal.batches]
            parts = (f"{batch}: {one.median:.2f}×" for batch, one in zip(goal.batches, means, strict=True))
            said += f"; batch {', '.join(parts)}"
        lines.append(f"| {goal.title} | {aim} | {said} | {ratio.verdict(goal.least)} |")
    return "\n".join(lines)


def times(ratio: Ratio, memory: bool) -> str:
    """How many times faster; of memory, the share that ours takes."""
    if memory:
        return f"**{1 / ratio.median:.2f}×** ({1 / ratio.high:.2f}–{1 / ratio.low:.2f})"
    return f"**{ratio.median:.2f}×** ({ratio.low:.2f}–{ratio.high:.2f})"


def models_table(rows: Sequence[Row], mode: str) -> str:
    """Rows cases, columns models, at one batch size; † where the maps differ.

    In the same precision against Captum, with the share of the bound's throughput; in the best mode against Captum
    under autocast and in float32, and the share. Without rows of the mode nothing.
    """
    found = {
        (row["case"], row["measure"], row["model"], row["side"]): row
        for row in rows
        if (row["mode"], row["batch_size"], row["status"]) == (mode, SHOWN_BATCH, "measured")
    }
    models = list(dict.fromkeys(model for _, _, model, _ in found))
    if not models:
        return ""
    lines = [f"| {MODES[mode]}, batch {SHOWN_BATCH} | {' | '.join(models)} |", "|---|" + "---|" * len(models)]
    for case in TITLES:
        for measure in ("time", "peak memory"):
            of = [{side: row for (*key, side), row in found.items() if key == [case, measure, m]} for m in models]
            if any(of):
                lines.append(f"| {TITLES[case]}: {measure} | {' | '.join(map(_cell, of))} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Row]) -> str:
    """Of one case, measure and model, the rows by side."""
    rows = [found[side] for side in (CAPTUM, CAPTUM_AUTOCAST, CAPTUM_FLOAT32) if side in found]
    parts = [times(as_ratio(row), row["measure"] == "peak memory") for row in rows]
    bounds = [f"{found[side]['median']:.2f} of the bound" for side in (FORWARD, BACKWARD) if side in found]
    return ", ".join(parts + bounds) + " †" * any(row["agrees"] is False for row in rows)


def as_ratio(row: Row) -> Ratio:
    """The paired ratios of a row."""
    return Ratio(*(row[name] for name in ("median", "low", "high", "pairs", "ours_median", "theirs_median")))


def slower(rows: Sequence[Row]) -> list[Row]:
    """Rows of the same precision whose whole interquartile interval is below Captum's time."""
    return [
        row
        for row in rows
        if (row["mode"], row["side"], row["measure"], row["status"]) == ("same", CAPTUM, "time", "measured")
        and row["high"] < 1
    ]


def notes(rows: Sequence[Row]) -> list[str]:
    """Sentences: where we are slower, why maps differ, and how near bfloat16 comes."""
    found = slower(rows)
    listed = "; ".join(
        f"{TITLES[row['case']]}, {row['model']}, batch {row['batch_size']}: {row['median']:.2f}×" for row in found
    )
    said = [f"Slower than Captum in {len(found)} rows of the same precision{': ' + listed if found else ''}."]
    why = list(dict.fromkeys(row["why"] for row in rows if row["agrees"] is False and row["side"] == CAPTUM))
    if why:
        said.append(
            f"† Captum's maps differ, as it overrides `nn.ReLU` modules and averages over NCHW: {'; '.join(why)}."
        )
    for name, of in (("rank_correlation", "Grad-CAM's ranks"), ("pooled_correlation", "maps of input size, pooled")):
        close = [row["closeness"][name] for row in rows if name in (row["closeness"] or {})]
        if close:
            verdict = "met" if min(close) >= CLOSE_ENOUGH else "missed"
            said.append(
                f"bfloat16 with float64, {of}: correlation {min(close):.3f} at least (goal {CLOSE_ENOUGH}: {verdict})."
            )
    return said


def source(where: Mapping[str, Any]) -> str:
    """What it was measured on, with what."""
    tf32 = where.get("tf32")
    flags = "" if tf32 is None else f", TF32 {', '.join(f'{name} {on}' for name, on in tf32.items())}"
    return (
        f"Median of paired ratios (interquartile interval). {where['machine']}, {where['threads']} threads, torch "
        f"{where['torch']}, captum {where['captum']}, timm {where['timm']}, seed {where['seed']}, random "
        f"weights{flags}."
    )


def speed_block(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """By device the results files: goals of the CPU, models, and goals of the GPU."""
    parts = []
    for device, goals in (("cpu", CPU_GOALS), ("cuda", GPU_GOALS)):
        files = results.get(device, ())
        rows = [row for found in files for row in found["rows"]]
        parts.append(goals_table(goals, rows, device))
        if rows:
            parts += [models_table(rows, mode) for mode in MODES]
            parts += [" ".join(notes(rows)), source(files[0]["environment"])]
    return "\n\n".join(part for part in parts if part)
