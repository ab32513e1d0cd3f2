"""The sentences of the growth benchmark as a list for README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def growth_lines(results: Mapping[str, Any]) -> str:
    """One point a series with the sentences of its lines, and a line on where they come from; of the first model.

    Example:
        >>> where = {"side": 224, "machine": "m", "threads": 2, "torch": "t", "captum": "c", "seed": 0}
        >>> said = ("Grad-CAM: it grows.", "Guided Backprop: it does not.")
        >>> rows = [{"model": "resnet50", "series": "classes", "sentence": sentence} for sentence in said]
        >>> print(growth_lines({"environment": where, "rows": rows}).splitlines()[0])
        - **Classes.** Grad-CAM: it grows. Guided Backprop: it does not.
    """
    rows, where = of_first_model(results), results["environment"]
    sentences: dict[str, list[str]] = {}
    for row in (row for row in rows if "sentence" in row):
        sentences.setdefault(row["series"], []).append(row["sentence"])
    points = [f"- **{series[0].upper()}{series[1:]}.** {' '.join(found)}" for series, found in sentences.items()]
    source = (
        f"{rows[0]['model']}, random weights; where it does not grow: one image of {where['side']} pixels, one class. "
        "Seconds are medians of rounds in which all values of a series took turns; memory is the peak of one run in a "
        f"process of its own, beyond what the model takes. {where['machine']}, {where['threads']} threads, torch "
        f"{where['torch']}, captum {where['captum']}, seed {where['seed']}"
    )
    return "\n".join(points) + f"\n\n{source}."


def of_first_model(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the model that was measured first.

    Example:
        >>> of_first_model({"rows": [{"model": "a", "value": 1}, {"model": "b"}, {"model": "a", "value": 2}]})
        [{'model': 'a', 'value': 1}, {'model': 'a', 'value': 2}]
    """
    return [row for row in results["rows"] if row["model"] == results["rows"][0]["model"]]
