"""The plot of ``throughput``: images a second by method and library, a panel a model, and one with the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import BACKWARD, CAPTUM, FORWARD
from benchmarks.report_throughput import SHOWN_BATCH, TITLES
from benchmarks.sides import METHODS

Row = dict[str, Any]
COLUMNS = 4
OURS, BOUND = "drnet_captum", "bare passes"
COLOURS = {  # Okabe and Ito's, which the colour-blind can tell apart
    OURS: "#0072B2",
    CAPTUM: "#E69F00",
    "pytorch-grad-cam": "#009E73",
    "torchcam": "#CC79A7",
    "zennit": "#56B4E9",
    BOUND: "#BBBBBB",
}


def speeds(rows: Sequence[Row], batch_size: int = SHOWN_BATCH) -> dict[tuple[str, str], dict[str, float]]:
    """(model, method) -> library -> images a second, in the same precision."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        what = (row["mode"], row["measure"], row["batch_size"], row["status"])
        if what == ("same", "time", batch_size, "measured") and row["case"] in METHODS:
            name = BOUND if row["side"] in (FORWARD, BACKWARD) else row["side"]
            of = found.setdefault((row["model"], row["case"]), {})
            of[name] = row["theirs_per_second"]
            if name == CAPTUM:
                of[OURS] = row["ours_per_second"]
    return found


def plot(rows: Sequence[Row], where: Mapping[str, Any], path: Path) -> None:
    """A PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    found = speeds(rows)
    models = list(dict.fromkeys(model for model, _ in found))
    columns = min(COLUMNS, len(models) + 1)
    lines = -(-(len(models) + 1) // columns)  # one more, for the legend
    figure, axes = pyplot.subplots(lines, columns, figsize=(4 * columns, 3 * lines + 0.4), squeeze=False)
    width = 0.9 / len(COLOURS)
    for axis, model in zip(axes.flat, models, strict=False):
        for i, method in enumerate(METHODS):
            shown = {name: found[model, method][name] for name in COLOURS if name in found.get((model, method), {})}
            for place, (name, speed) in enumerate(shown.items()):
                axis.bar(i + (place - (len(shown) - 1) / 2) * width, speed, width, color=COLOURS[name])
        axis.set_title(model, fontsize=10)
        axis.set_xticks(range(len(METHODS)), [TITLES[m].replace(" ", "\n", 1) for m in METHODS], fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(models) :]:
        axis.set_axis_off()
    for line in axes:
        line[0].set_ylabel("images a second", fontsize=8)
    there = {name for of in found.values() for name in of}
    handles = [Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in there]
    figure.suptitle(f"{where['machine']}, {where['dtype']}, batch {SHOWN_BATCH}, same precision", fontsize=10)
    axes.flat[-1].legend(handles=handles, loc="center", fontsize=10, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
