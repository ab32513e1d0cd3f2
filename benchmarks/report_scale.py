"""The scale benchmark for README: a table, and what it says of a million images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WAYS = {
    "loop": "loop: read, explain, keep in memory",
    "loader": "the same with a `DataLoader` that reads ahead",
    "local": "`explain_dataset`, in this process",
    "ray, 1 worker": '`engine="ray"`, one worker',
    "ray, 2 workers": '`engine="ray"`, two workers of half the threads',
}
MILLION, GPUS, EACH = 1_000_000, 8, 500  # images, and images a second of one GPU, which is an assumption


def scale_block(results: Mapping[str, Any]) -> str:
    """Rates as multiples of the faster loop, memory, and the arithmetic.

    Example:
        >>> where = {"machine": "m", "threads": 2, "torch": "t", "batch_size": 32, "photo": [500, 375]}
        >>> rate = {"measure": "images a second", "images": 64, "value": 80.0, "of_loop": 0.97, "least_of_loop": 0.9}
        >>> rows = [rate | {"case": "local", "most_of_loop": 1.0, "start_seconds": 2.0, "rounds": 3}]
        >>> rows += [{"case": "local", "measure": "peak memory, MiB", "images": n, "value": 300.0} for n in (5, 50)]
        >>> rows += [{"measure": "core seconds an image", "value": 0.01}, {"measure": "bytes an image", "value": 4e3}]
        >>> print(scale_block({"environment": where, "rows": rows}).splitlines()[2])
        | `explain_dataset`, in this process | 80 | **0.97×** (0.90–1.00) | 2 s |
    """
    rows, where = results["rows"], results["environment"]
    rates = [row for row in rows if row["measure"] == "images a second"]
    lines = ["| | images a second | of the faster loop | to start |", "|---|---|---|---|"]
    for row in rates:
        spread = f"**{row['of_loop']:.2f}×** ({row['least_of_loop']:.2f}–{row['most_of_loop']:.2f})"
        start = max(0.0, row["start_seconds"])
        lines.append(f"| {WAYS[row['case']]} | {row['value']:.0f} | {spread} | {start:.0f} s |")
    width, height = where["photo"]
    source = (
        f"Embedded model, Grad-CAM, batches of {where['batch_size']}, {rates[0]['images']:,} photos of {width} × "
        f"{height}; medians of {rates[0]['rounds']} rounds (least and most). {where['machine']}, "
        f"{where['threads']} threads, torch {where['torch']}"
    )
    return "\n".join(lines) + f"\n\n{source}.\n\n{memory_said(rows)}\n\n{million_said(rows)}"


def memory_said(rows: list[dict[str, Any]]) -> str:
    """A sentence for each engine."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["measure"].startswith("peak memory"):
            found.setdefault(row["case"], []).append(row)
    said = [
        f"{case} {few['value']:.0f} MiB at {few['images']:,} images and {many['value']:.0f} at {many['images']:,} "
        f"({many['value'] / few['value'] - 1:+.0%})"
        for case, (few, many) in found.items()
    ]
    return f"Peak memory: {'; '.join(said)}."


def million_said(rows: list[dict[str, Any]]) -> str:
    """What the figures come to, for as many GPUs as it says there."""
    value = {row["measure"]: row["value"] for row in rows}
    decode, size = value["core seconds an image"], value["bytes an image"]
    rate = GPUS * EACH
    return (
        f"A million images on {GPUS} GPUs, by these figures: decoding takes {1000 * decode:.1f} ms of a core an image, "
        f"{MILLION * decode / 3600:.1f} core hours. GPUs of r images a second need {GPUS} · r · "
        f"{decode:.4f} cores to decode: at r = {EACH} that is {rate * decode:.0f} cores, and all takes "
        f"{MILLION / rate / 60:.0f} minutes (r depends on network and GPU, and was not measured here). With maps "
        f"of the layer's size and thumbnails a row takes {size / 1000:.1f} kB, {MILLION * size / 1e9:.1f} GB in all; "
        f"pixels travel as bytes, {rate * 150528 / 1e6:.0f} MB a second to all workers together."
    )
