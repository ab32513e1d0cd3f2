"""README's table of faithfulness, from its results file."""

from __future__ import annotations

from typing import Any

ARROWS = {"higher": "↑", "lower": "↓", "zero": "→ 0"}


def faithfulness_table(results: dict[str, Any], intervals: bool = False) -> str:
    """Rows methods, then the maps that know nothing; columns measures, the best method of each in bold."""
    rows, where = [r for r in results["rows"] if "status" not in r], results["environment"]
    measures = {r["measure"]: r["better"] for r in rows}
    cases = {r["case"]: r for r in rows}
    cells = {(r["case"], r["measure"]): r for r in rows}
    best = {}
    for measure, better in measures.items():
        shown = [_mean(r) for r in rows if r["measure"] == measure and not r["baseline"]]
        order = {"higher": lambda mean: -mean, "lower": lambda mean: mean, "zero": abs}[better]
        best[measure] = min(shown, key=order, default=None)
    lines = [
        "| method | " + " | ".join(f"{measure} {ARROWS[better]}" for measure, better in measures.items()) + " |",
        "|---|" + "---|" * len(measures),
    ]
    for case, head in cases.items():
        found = [cells.get((case, measure)) for measure in measures]
        texts = [_cell(r, best[measure], intervals) for r, measure in zip(found, measures, strict=True)]
        title = f"*{head['title']}*" if head["baseline"] else head["title"]
        lines.append(f"| {title} | {' | '.join(texts)} |")
    few = list(dict.fromkeys(r["title"] for r in rows if r["photos"] < len(where["photos"])))
    note = f" Some cells of {', '.join(few)} are of fewer photos: see the results file." if few else ""
    out = [f"{r['title']}, {r['measure']} ({r['status']})" for r in results["rows"] if "status" in r]
    left = f" Left out: {'; '.join(out)}." if out else ""
    source = f"{where['model']}, torch {where['torch']}, captum {where['captum']}, seed {where['seed']}"
    spread = " (95 % bootstrap intervals)" if intervals else ""
    return "\n".join(lines) + (
        f"\n\nMeans over {len(where['photos'])} photos{spread}; {source}. In italics: maps that "
        f"know nothing of the model.{note}{left}"
    )


def _mean(row: dict[str, Any]) -> float:
    """As it is shown, so that what looks equal is equally good."""
    return float(f"{row['mean']:.3g}")


def _cell(row: dict[str, Any] | None, best: float | None, interval: bool) -> str:
    if row is None:
        return ""
    mean = f"{_mean(row):g}"
    mean = f"**{mean}**" if not row["baseline"] and _mean(row) == best else mean
    return f"{mean} ({row['low']:.2g}–{row['high']:.2g})" if interval else mean
