"""The picture of a sub-networks' results: accuracy by budget, and by the number of classes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LINES = {
    "classes": ("the two classes'", "tab:blue"),
    "all classes": ("all ten classes'", "tab:orange"),
    "other classes": ("two other classes'", "tab:red"),
    "weight norm": ("largest weights", "tab:green"),
    "random": ("random", "tab:gray"),
}
SCORES = {"among": "over the two outputs", "over_all": "over all ten outputs"}


def plot(
    summary: Sequence[dict[str, Any]], merged: Sequence[dict[str, Any]], where: Mapping[str, Any], path: Path
) -> None:
    """Three panels: both scorings by budget, and sets of more classes."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (score, title) in zip(axes, SCORES.items(), strict=False):
        _by_budget(axis, summary, score)
        axis.set_title(f"pairs of classes, {title}")
    axes[0].legend(title="channels", fontsize="small")
    _by_classes(axes[2], merged)
    figure.suptitle(f"{where['network']}, {where['data']}: no fine-tuning, no recalibration", fontsize="medium")
    figure.savefig(path, dpi=110)


def best_widths(summary: Sequence[dict[str, Any]], criterion: str, budget: float, score: str) -> dict[str, Any]:
    """Of the widths that were tried for a criterion, those that suit it best at a budget."""
    found = [r for r in summary if (r["criterion"], r["budget"], r["correction"]) == (criterion, budget, "none")]
    return max(found, key=lambda r: r[score])


def _by_budget(axis: Axes, summary: Sequence[dict[str, Any]], score: str) -> None:
    budgets = sorted({r["budget"] for r in summary if r["criterion"] == "classes"})
    whole = next(r for r in summary if r["criterion"] == "whole network")
    axis.axhline(100 * whole[score], color="black", linewidth=0.8, linestyle="--")
    for criterion, (name, colour) in LINES.items():
        values = [100 * best_widths(summary, criterion, budget, score)[score] for budget in budgets]
        axis.plot([100 * b for b in budgets], values, "o-", label=name, color=colour, markersize=4)
    axis.set_xscale("log")
    axis.set_xticks([100 * b for b in budgets], [f"{100 * b:g}" for b in budgets])
    axis.minorticks_off()
    axis.set_xlabel("% of the parameters")
    axis.set_ylabel("% right")


def _by_classes(axis: Axes, merged: Sequence[dict[str, Any]]) -> None:
    sizes = sorted({len(r["classes"].split()) for r in merged})
    budgets = sorted({r["budget"] for r in merged if r["criterion"] == "classes"})
    styles = {"whole network": ("--", "black"), "classes": ("o-", "tab:blue"), "all classes": ("o-", "tab:orange")}
    for criterion, (style, colour) in styles.items():
        for number, budget in enumerate(budgets if criterion != "whole network" else [1.0]):
            values = [
                100 * statistics.mean(r["among"] for r in merged if _is(r, size, criterion, budget)) for size in sizes
            ]
            label = {"whole network": "whole network"}.get(criterion, f"{criterion}, {budget:.0%}")
            axis.plot(sizes, values, style, color=colour, alpha=0.5 + 0.5 * number, label=label, markersize=4)
    axis.set_title("sets of classes, over their outputs")
    axis.set_xlabel("number of classes")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _is(r: dict[str, Any], size: int, criterion: str, budget: float) -> bool:
    return (len(r["classes"].split()), r["criterion"], r["budget"]) == (size, criterion, budget)
