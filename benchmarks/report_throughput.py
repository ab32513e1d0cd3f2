"""The tables of speed, model by model, from the results of ``throughput``, ``panel`` and ``memory``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.comparison import BACKWARD, CAPTUM, CAPTUM_AUTOCAST, CAPTUM_FLOAT32, FORWARD
from benchmarks.pairs import Ratio
from benchmarks.panel import FIVE, FIVE_CAMS, ONE
from benchmarks.subjects import MODELS

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
    "same": "Same precision",
    "captured": "Same precision, our passes captured (`compile=True`)",
    "best": "Best mode, against Captum under autocast, and in float32",
    "best, not compiled": "Best mode but not compiled, against Captum under autocast, and in float32",
}
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
SHOWN_BATCH = 8
CLOSE_ENOUGH = 0.98  # of bfloat16 with float64


def times(ratio: Ratio, memory: bool) -> str:
    """How many times faster; of memory, the share that ours takes."""
    if memory:
        return f"**{1 / ratio.median:.2f}×** ({1 / ratio.high:.2f}–{1 / ratio.low:.2f})"
    return f"**{ratio.median:.2f}×** ({ratio.low:.2f}–{ratio.high:.2f})"


def models_table(rows: Sequence[Row], mode: str, measure: str, batch: int) -> str:
    """Rows models, columns cases, of one mode, measure and batch size; nothing where there are none.

    In the same precision against Captum, in the best mode against Captum under autocast and in float32; then the share
    of the bound's throughput. † where the maps differ.
    """
    found = {
        (row["model"], row["case"], row["side"]): row
        for row in rows
        if (row["mode"], row["measure"], row["batch_size"], row["status"]) == (mode, measure, batch, "measured")
    }
    models = sorted({model for model, _, _ in found}, key=_place)
    cases = [case for case in TITLES if any(case == there for _, there, _ in found)]
    if not models:
        return ""
    lines = [f"| | {' | '.join(TITLES[case] for case in cases)} |", "|---|" + "---|" * len(cases)]
    for model in models:
        of = [{side: row for (*key, side), row in found.items() if key == [model, case]} for case in cases]
        lines.append(f"| {model} | {' | '.join(map(_cell, of))} |")
    share = "; then the share of the bare passes' throughput" if any(s in _BOUNDS for _, _, s in found) else ""
    return f"**{MODES[mode]}, batch {batch}: {measure}**{share}\n\n" + "\n".join(lines)


_BOUNDS = (FORWARD, BACKWARD)


def _place(model: str) -> tuple[int, str]:
    """In the order of the suites, others after them."""
    return (MODELS.index(model) if model in MODELS else len(MODELS), model)


def _cell(found: Mapping[str, Row]) -> str:
    """Of one case, measure and model, the rows by side."""
    rows = [found[side] for side in (CAPTUM, CAPTUM_AUTOCAST, CAPTUM_FLOAT32) if side in found]
    parts = [times(as_ratio(row), row["measure"] == "peak memory") for row in rows]
    bounds = [f"{found[side]['median']:.2f}" for side in _BOUNDS if side in found]
    return "; ".join(parts + bounds) + " †" * any(row["agrees"] is False for row in rows)


def as_ratio(row: Row) -> Ratio:
    """The paired ratios of a row."""
    return Ratio(*(row[name] for name in ("median", "low", "high", "pairs", "ours_median", "theirs_median")))


def peers_table(rows: Sequence[Row]) -> str:
    """Rows models and libraries other than Captum, columns methods; nothing where none was measured."""
    peers = [
        row
        for row in rows
        if (row["mode"], row["measure"], row["status"]) == ("same", "time", "measured") and row["side"] not in LIBRARIES
    ]
    found = {(row["model"], row["batch_size"], row["side"], row["case"]): row for row in peers}
    cases = [case for case in TITLES if any(case == there for *_, there in found)]
    if not found:
        return ""
    head = ["model", "batch", "library", *(TITLES[case] for case in cases)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for model, batch, side in sorted({key[:3] for key in found}, key=lambda key: (_place(key[0]), *key[1:])):
        of = [found.get((model, batch, side, case)) for case in cases]
        cells = ["" if row is None else times(as_ratio(row), memory=False) for row in of]
        lines.append(f"| {model} | {batch} | {side} | {' | '.join(cells)} |")
    return "**Same precision, against other libraries: time**\n\n" + "\n".join(lines)


def slower(rows: Sequence[Row]) -> list[Row]:
    """Rows of the same precision whose whole interquartile interval is below Captum's time."""
    return [
        row
        for row in rows
        if (row["mode"], row["side"], row["measure"], row["status"]) == ("same", CAPTUM, "time", "measured")
        and row["high"] < 1
    ]


def slower_table(rows: Sequence[Row]) -> str:
    """Where we are slower than Captum in the same precision, and how that is with our passes captured."""
    found = slower(rows)
    captured = {
        (row["model"], row["batch_size"], row["case"]): times(as_ratio(row), memory=False)
        for row in rows
        if (row["mode"], row["side"], row["status"]) == ("captured", CAPTUM, "measured")
    }
    if not found:
        return "Slower than Captum in no row of the same precision."
    lines = ["| model | batch | method | | `compile=True` |", "|---|---|---|---|---|"]
    for row in sorted(found, key=lambda row: (row["batch_size"], _place(row["model"]))):
        differs = " †" if row["agrees"] is False else ""
        ratio = times(as_ratio(row), memory=False)
        compiled = captured.get((row["model"], row["batch_size"], row["case"]), "")
        head = f"{row['model']} | {row['batch_size']} | {TITLES[row['case']]}"
        lines.append(f"| {head} | {ratio}{differs} | {compiled} |")
    total = sum(row["mode"] == "same" and row["side"] == CAPTUM and row["measure"] == "time" for row in rows)
    return f"**Slower than Captum in {len(found)} of {total} rows of the same precision**\n\n" + "\n".join(lines)


def notes(rows: Sequence[Row]) -> list[str]:
    """Sentences: why maps differ, and how near bfloat16 comes."""
    said = []
    differing = [row for row in rows if row["agrees"] is False and row["side"] == CAPTUM]
    reasons = {why: None for row in differing for why in row["why"].split("; ")}
    if reasons:
        said.append(
            f"† Captum's maps differ, as it overrides `nn.ReLU` modules and averages over NCHW: {'; '.join(reasons)}."
        )
    for name, of in (("rank_correlation", "Grad-CAM's ranks"), ("pooled_correlation", "maps of input size, pooled")):
        close = [row for row in rows if name in (row["closeness"] or {})]
        if close:
            worst = min(close, key=lambda row: row["closeness"][name])
            lowest, captums = worst["closeness"][name], worst["closeness"].get(f"captum_{name}")
            beside = "" if captums is None else f"; Captum's own under the same autocast {captums:.3f}"
            verdict = "met" if lowest >= CLOSE_ENOUGH else "missed"
            said.append(
                f"bfloat16 with float64, {of}: correlation {lowest:.3f} at least (goal {CLOSE_ENOUGH}: {verdict}), of "
                f"{TITLES[worst['case']]} on {worst['model']}{beside}."
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


def speed_tables(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """By device the results files: models by mode, measure and batch size, other libraries, and where we are slower."""
    parts = []
    for device, files in results.items():
        rows = [row for found in files for row in found["rows"]]
        batches = sorted({row["batch_size"] for row in rows})
        parts.append(f"### {DEVICES[device]}")
        parts += [source(files[0]["environment"]), *notes(rows)]
        parts += [models_table(rows, mode, "time", batch) for mode in MODES for batch in batches]
        parts += [models_table(rows, "same", "peak memory", batch) for batch in batches]
        parts += [peers_table(rows), slower_table(rows)]
    return "\n\n".join(part for part in parts if part)
