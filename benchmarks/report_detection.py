"""README's tables of D-RISE, from the results files."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from benchmarks.detection import DEFAULT

MEASURES = {
    "points inside": "maximum inside",
    "energy inside": "energy inside",
    "energy inside, above median": "above the median",
    "enrichment": "÷ the box's share",
    "deletion": "deletion ↓",
    "insertion": "insertion ↑",
}
LEAST_AGREEMENT = 0.5  # between two runs of ours: below it maps are mostly noise, and no one's correlate
CASES = {
    "one target, against the bare passes": "one detection, against the detector's bare passes",
    "five targets, against one": "five detections, against one",
}


def detection_table(results: dict[str, Any]) -> str:
    """Every detection at the default setting; then, over those that were asked for by class, every setting."""
    rows, where = results["rows"], results["environment"]
    if not where["complete"]:
        raise ValueError("the localisation was interrupted: run the same command again, and it goes on")
    lines = [f"| photo | detection | the box's share | {' | '.join(MEASURES.values())} |", _rule(3 + len(MEASURES))]
    for r in rows:
        if is_made(r, DEFAULT):
            cells = [r["photo"], f"{r['class']} {r['score']:.0%}", f"{r['box share']:.2f}", *_measures([r])]
            lines.append(f"| {' | '.join(cells)} |")
    asked = [r for r in rows if not r["everything"]]
    count = sum(is_made(r, DEFAULT) for r in asked)
    lines += ["", f"| map, mean of {count} detections | {' | '.join(MEASURES.values())} |", _rule(1 + len(MEASURES))]
    for made in _settings(asked):
        cells = [title(made), *_measures([r for r in asked if is_made(r, made)])]
        lines.append(f"| {' | '.join(cells)} |")
    source = (
        f"{where['detector']}, {where['n_masks']:,} masks of {where['grid']}×{where['grid']} cells; deletion to the "
        f"mean colour, insertion into the blurred photo, {where['steps']} steps. By chance, the maximum is inside as "
        f"often as the box's share says. Seed {where['seed']}, torch {where['torch']}"
    )
    return "\n".join(lines) + f"\n\n{source}."


def title(made: dict[str, Any]) -> str:
    """A setting by what differs from the default one."""
    if made["map"] != DEFAULT["map"]:
        return f"control: {made['map']}"
    names = {"fill": "baselines", "class_similarity": "class_similarity", "normalize": "normalize"}
    changed = [f'`{names[key]}="{made[key]}"`' for key in names if made[key] != DEFAULT[key]]
    return f"`{DEFAULT['map']}`, {', '.join(changed)}" if changed else f"**`{DEFAULT['map']}`**"


def is_made(row: dict[str, Any], made: dict[str, Any]) -> bool:
    """Whether a row is of a setting."""
    return all(row[key] == value for key, value in made.items())


def _settings(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of the rows, controls last."""
    found = dict.fromkeys(tuple(row[key] for key in DEFAULT) for row in rows)
    settings = [dict(zip(DEFAULT, values, strict=True)) for values in found]
    return sorted(settings, key=lambda made: made["map"] != DEFAULT["map"])


def _measures(rows: list[dict[str, Any]]) -> list[str]:
    return [f"{fmean(r[measure] for r in rows):.2f}" for measure in MEASURES]


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def detection_speed_table(results: dict[str, Any]) -> str:
    """Rows cases, as multiples of the passes or of theirs, or as megabytes."""
    rows, where = results["rows"], results["environment"]
    lines = ["| what | goal | measured |", "|---|---|---|"]
    for r in rows:
        at = f"{r['size'][0]}×{r['size'][1]}, {r['n_masks']:,} masks"
        if r["measure"] == "MB":
            what = f"peak memory beyond the bare passes, {r['model']}, {at}"
            goal, measured = f"at most {r['goal']:.0f} MB", f"**{r['median']:.0f} MB** ({r['low']:.0f}–{r['high']:.0f})"
        elif r["case"] in CASES:
            what, goal = f"{CASES[r['case']]}, {at}", f"at most {1 / r['goal']:.2f}×"
            measured = f"**{1 / r['median']:.3f}×** as long ({1 / r['high']:.3f}–{1 / r['low']:.3f})"
        else:
            what, goal = f"against {r['other']}, {r['model']}, {at}", f"{r['goal']:g}×"
            measured = f"**{r['median']:.2f}×** faster ({r['low']:.2f}–{r['high']:.2f})"
        lines.append(f"| {what} | {goal} | {measured} |")
    agreed = next((r for r in rows if (r.get("ours with ours") or 0) >= LEAST_AGREEMENT), None)
    source = (
        f"Median of paired ratios (interquartile interval); {where['detector']}, {where['machine']}, "
        f"{where['threads']} threads, torch {where['torch']}"
    )
    if agreed is not None:
        source += (
            f". At {agreed['agreement_masks']:,} masks, others on each side, their map and ours correlate by "
            f"{agreed['correlation with theirs']:.2f}, ours with ours by {agreed['ours with ours']:.2f}, theirs with "
            f"theirs by {agreed['theirs with theirs']:.2f}"
        )
    return "\n".join(lines) + f"\n\n{source}."
