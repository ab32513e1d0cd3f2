"""The picture of a growth benchmark's results: seconds and peak memory of every series.

python -m benchmarks.growth_plot benchmarks/results/growth_cpu_float32_torch2.15.0.json [--out docs/growth.png]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.growth_series import OURS
from benchmarks.report_growth import of_first_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).parents[1] / "docs" / "growth.png"
COLUMNS = 3
# Okabe and Ito's colours, told apart by the colour-blind; a marker each, for grey print
LOOKS = {"Grad-CAM": ("#0072B2", "o"), "Guided Backprop": ("#E69F00", "s"), "six methods": ("#009E73", "^")}
OTHER = ("#333333", "D")
AXES = {
    "batch size": "images",
    "image side": "pixels a side",
    "classes": "classes explained",
    "methods": "methods in one call",
    "layers dissected": "layers dissected",
    "D-RISE masks": "masks of D-RISE",
}


def plot(results: Mapping[str, Any], path: Path) -> None:
    """A column a series, in bands of three: seconds above, MiB below; of the first model."""
    from matplotlib.figure import Figure  # only pictures need it
    from matplotlib.lines import Line2D

    measured, where = of_first_model(results), results["environment"]
    series = list(dict.fromkeys(row["series"] for row in measured))
    bands = -(-len(series) // COLUMNS)
    figure = Figure(figsize=(10.5, 4.4 * bands + 0.9), layout="constrained")
    grid = figure.subplots(2 * bands, COLUMNS, squeeze=False)
    for place, name in enumerate(series):
        band, column = divmod(place, COLUMNS)
        rows = [row for row in measured if row["series"] == name]
        pair = grid[2 * band][column], grid[2 * band + 1][column]
        for axes, measure in zip(pair, ("seconds", "mib"), strict=True):
            draw(axes, rows, measure)
        pair[0].set_title(name, fontsize=11, fontweight="bold")
        pair[1].set_xlabel(AXES.get(name, name))
        if column == 0:
            pair[0].set_ylabel("seconds")
            pair[1].set_ylabel("peak MiB")
    for place in range(len(series), bands * COLUMNS):
        for half in (0, 1):
            grid[2 * (place // COLUMNS) + half][place % COLUMNS].set_axis_off()
    handles = [Line2D([], [], color=c, marker=m, label=what) for what, (c, m) in LOOKS.items()]
    handles += [
        Line2D([], [], color=OTHER[0], marker=OTHER[1], label="all that is asked for"),
        Line2D([], [], color=OTHER[0], linestyle="--", marker="o", markerfacecolor="white", label="Captum, in a loop"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=10)
    figure.supxlabel(
        f"{measured[0]['model']}, {where['machine']}, {where['threads']} threads, torch {where['torch']}. "
        "Bars: interquartile intervals.",
        fontsize=8,
    )
    figure.savefig(path, dpi=130)


def draw(axes: Axes, rows: Sequence[Mapping[str, Any]], measure: str) -> None:
    """One panel: all lines of a series, from zero."""
    for what, library in dict.fromkeys((row["what"], row["library"]) for row in rows):
        points = [row for row in rows if (row["what"], row["library"]) == (what, library)]
        colour, marker = LOOKS.get(what, OTHER)
        spread = None
        if measure == "seconds":
            spread = [[p["seconds"] - p["low"] for p in points], [p["high"] - p["seconds"] for p in points]]
        axes.errorbar(
            [p["value"] for p in points],
            [p[measure] for p in points],
            spread,
            color=colour,
            marker=marker,
            markersize=4.5,
            linewidth=1.4,
            capsize=2,
            linestyle="-" if library == OURS else "--",
            markerfacecolor=colour if library == OURS else "white",
        )
    axes.set_xticks(sorted({row["value"] for row in rows}))
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.1 * max(row["high" if measure == "seconds" else measure] for row in rows))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the JSON file that benchmarks.growth wrote")
    parser.add_argument("--out", type=Path, default=PICTURE, metavar="PNG")
    args = parser.parse_args(arguments)
    plot(json.loads(args.results.read_text()), args.out)
    print(args.out)


if __name__ == "__main__":
    main()
