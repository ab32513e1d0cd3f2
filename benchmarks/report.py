"""The tables of README and of benchmarks/README, from the results files and the registry.

python -m benchmarks.report          # rewrites the tables between the markers, and the plots in docs/
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drnet_captum as dc
from benchmarks.growth_plot import plot as plot_growth
from benchmarks.pairs import RESULTS
from benchmarks.plot_throughput import plot
from benchmarks.report_detection import detection_speed_table, detection_table
from benchmarks.report_faithfulness import faithfulness_table
from benchmarks.report_goals import goals_block
from benchmarks.report_growth import growth_lines
from benchmarks.report_scale import scale_block
from benchmarks.report_throughput import speed_tables

README = Path(__file__).parents[1] / "README.md"
PAGES = (README, Path(__file__).parent / "README.md")
DOCS = README.parent / "docs"


def layers_table(results: dict[str, Any]) -> str:
    """Rows rules, columns what their layers are."""
    rows, where = results["rows"], results["environment"]
    columns = {
        "good": f"good, of {rows[0]['models']} models",
        "cut": "a cut",
        "grid": "has a grid",
        "live": "gradient at more than half of the positions",
        "final": "final resolution",
        "not_found": "not found",
        "says_so": "no layer is good, and says so",
    }
    lines = [f"| rule | {' | '.join(columns.values())} |", "|---|" + "---|" * len(columns)]
    for row in rows:
        cells = [f"**{row[key]}**" if key == "good" else str(row[key]) for key in columns]
        lines.append(f"| {row['rule']} | {' | '.join(cells)} |")
    source = (
        f"{len(where['left_out'])} models of more than 150 million parameters are left out. Random weights, seed "
        f"{where['seed']}, torch {where['torch']}, timm {where['timm']}, torchcam {where['torchcam']}, "
        f"torchxai-explain {where['torchxai-explain']}"
    )
    return "\n".join(lines) + f"\n\nCounts of models. {source}."


POINTING = "share of the positive map in the right cell"
CURVES = {
    "insertion": "area of insertion",
    "to mean": "area of deletion to mean",
    "to blur": "area of deletion to blur",
}
RULES = {
    "Grad-CAM (Captum)": "Grad-CAM (Captum)",
    "Grad-CAM, log_prob": '`GradCAM`, `score="log_prob"`',
    "gradient, log_prob, features alone": "`DRNet`, λ all on the last layer",
    "DRNet as it comes": "`DRNet`",
    "DRNet as it comes, but score='logit'": '`DRNet`, `score="logit"`',
    "DRNet as it comes, but weights='local'": '`DRNet`, `weights="local"`',
}


def grounding_table(results: dict[str, Any]) -> str:
    """Rows rules, columns the grid pointing game, insertion and deletion."""
    rows, where = results["rows"], results["environment"]
    found = {(r["rule"], r["measure"]): r for r in rows}
    first = next(iter(RULES))
    lines = [
        "| map | in the right cell (chance .25) | above Grad-CAM by | insertion ↑ | deletion to mean ↓ | to blur ↓ |",
        "|---|---|---|---|---|---|",
    ]
    for rule, title in RULES.items():
        cells = [title]
        pointing = found.get((rule, POINTING))
        cells.append("" if pointing is None else f"**{pointing['mean']:.3f}**")
        difference = None if pointing is None or rule == first else pointing["difference_over_photos"]
        cells.append(
            ""
            if difference is None
            else f"{difference['mean']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"
        )
        for measure in CURVES.values():
            area = found.get((rule, measure))
            cells.append("" if area is None else f"{area['mean']:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    chosen = found["DRNet chosen on the other fold", POINTING]["mean"]
    source = (
        f"{where['mosaics']} mosaics of four photos, of {len(where['photos'])} that the embedded model names right. "
        f"With λ chosen on other photos than those scored {chosen:.3f}. Intervals: 95%, paired bootstrap over photos. "
        f"Seed {where['seed']}, torch {where['torch']}, captum {where['captum']}"
    )
    return "\n".join(lines) + f"\n\n{source}."


def dissection_table(results: dict[str, Any]) -> str:
    """Rows cases, as multiples of ours or of theirs."""
    rows, where = results["rows"], results["environment"]
    lines = ["| what | goal | measured |", "|---|---|---|"]
    for r in rows:
        goal, case = r["goal"], r["case"]
        if case.startswith("one plain"):
            measured = f"**{1 / r['median']:.2f}×** as long ({1 / r['high']:.2f}–{1 / r['low']:.2f})"
            lines.append(
                f"| importance of all {r['units']} layers, against {case} | at most {1 / goal:.2g}× | {measured} |"
            )
        elif case.startswith("Captum"):
            faster = f"**{r['median']:.0f}×** faster ({r['low']:.0f}–{r['high']:.0f})"
            lines.append(f"| the same by Captum's `LayerGradientXActivation`, layer by layer | | {faster} |")
        elif case.startswith("labels"):
            lines.append(f"| labels of {r['units']:,} units by stimuli | 60 s | **{r['ours_median']:.0f} s** |")
    source = (
        f"resnet50, batch 8, 224 pixels; labels: the embedded model. {where['machine']}, {where['threads']} threads, "
        f"torch {where['torch']}, captum {where['captum']}, seed {where['seed']}"
    )
    return "\n".join(lines) + f"\n\nMedian of paired ratios (interquartile interval). {source}."


CHANNELS = {
    "classes": "**of the two classes**",
    "all classes": "of all ten classes",
    "weight norm": "of the largest weights",
    "random": "random, mean of 5",
    "other classes": "of two other classes",
}
SHOWN_BUDGETS = (0.02, 0.05, 0.11, 0.2, 0.3)


def subnetworks_table(results: dict[str, dict[str, Any]]) -> str:
    """Rows networks and channels, columns budgets; points below the whole network over two outputs, and over ten."""
    lines = [
        "| network | channels that stay | " + " | ".join(f"{budget:.0%}" for budget in SHOWN_BUDGETS) + " |",
        "|---|---|" + "---|" * len(SHOWN_BUDGETS),
    ]
    for name, found in results.items():
        rows = found["rows"]
        whole = next(r for r in rows if r["criterion"] == "whole network")
        first = f"{name}: {whole['among']:.2%} of two, {whole['over_all']:.2%} over ten"
        for correction, said in (("none", ""), ("recalibrated", ", norms recalibrated")):
            for criterion, title in CHANNELS.items():
                title = "random, one seed" if said and criterion == "random" else title
                cells = [_lost(rows, criterion, correction, budget) for budget in SHOWN_BUDGETS]
                if any(cells):
                    lines.append(f"| {first} | {title}{said} | {' | '.join(cells)} |")
                    first = ""
    where = next(iter(results.values()))["environment"]
    source = (
        f"VGG16-BN, {where['parameters'] / 1e6:.1f} million parameters; {where['data']}, {where['test_images']:,} test "
        f"images, {where['dissected_images']:,} training images dissected; torch {where['torch']}, seed {where['seed']}"
    )
    return "\n".join(lines) + f"\n\nPoints: over the two outputs / over all ten. {source}."


def _lost(rows: list[dict[str, Any]], criterion: str, correction: str, budget: float) -> str:
    """Of the widths that were tried, those that suit the criterion best."""
    found = [r for r in rows if (r["criterion"], r["correction"], r["budget"]) == (criterion, correction, budget)]
    if not found:
        return ""
    among, over_all = (max(r[f"{score}_points"] for r in found) for score in ("among", "over_all"))
    return f"{among + 0.0:+z.1f} / {over_all + 0.0:+z.1f}"


def subnetwork_speed(results: dict[str, dict[str, Any]]) -> str:
    """A table, and a sentence."""
    rows = {name: {r["case"]: r for r in found["rows"]} for name, found in results.items()}
    cases = [case for case in next(iter(rows.values())) if case.startswith("sliced")]
    lines = [
        "| against the whole network, of the same format | " + " | ".join(rows) + " |",
        "|---|" + "---|" * len(rows),
    ]
    for case in cases:
        found = [of[case] for of in rows.values()]
        cells = [f"**{r['median']:.1f}×** faster ({r['low']:.1f}–{r['high']:.1f})" for r in found]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    choosing = [of["channels for a set of classes"] for of in rows.values()]
    where, first = next(iter(results.values()))["environment"], rows[next(iter(rows))][cases[0]]
    return "\n".join(lines) + (
        f"\n\nMedian of paired ratios (interquartile interval); batch {first['batch_size']}, {where['machine']}, "
        f"{where['threads']} threads. Channels for any of {choosing[0]['sets']:,} sets of classes are chosen in "
        f"**{max(r['median'] for r in choosing):.0f} ms** (at most {max(r['largest'] for r in choosing):.0f})."
    )


def methods_table() -> str:
    """Every method of the registry."""
    lines = ["| name | class | paper | needs | maps |", "|---|---|---|---|---|"]
    for m in dc.methods().values():
        size = "layer size" if m.output == "layer" else "input size"
        lines.append(f"| `{m.name}` | `{m.cls.__name__}` | {m.paper} | {m.needs} | {size} |")
    return "\n".join(lines)


def latest(*patterns: str) -> dict[str, Any]:
    """The newest results file of a name; of the first name that there is one of. Quick runs are none."""
    for pattern in patterns:
        files = sorted(path for path in RESULTS.glob(pattern) if not path.stem.endswith("_quick"))
        if files:
            found: dict[str, Any] = json.loads(files[-1].read_text())
            return found
    raise FileNotFoundError(f"expected a file {' or '.join(patterns)} in {RESULTS}: run python -m benchmarks")


def speed_results() -> dict[str, list[dict[str, Any]]]:
    """By device the results that the tables of speed are made of, of the newest torch that there are any of."""
    found: dict[str, list[dict[str, Any]]] = {}
    for device in ("cpu", "cuda"):
        for suite in ("throughput", "panel", "memory"):
            with contextlib.suppress(FileNotFoundError):
                newest = latest(f"{suite}_{device}_float32_*.json")
                found.setdefault(device, []).append(newest)
    return found


def filled(text: str) -> str:
    """A page with its tables made anew, those that it has markers for."""
    kinds = {"plain": "", "trained on for sparse norms": "_sparse"}

    def of_kinds(name: str) -> dict[str, dict[str, Any]]:
        return {title: latest(f"{name}_vgg16_bn_fashion-mnist{kind}.json") for title, kind in kinds.items()}

    tables: dict[str, Callable[[], str]] = {
        "speed": lambda: goals_block(speed_results()),
        "speed by model": lambda: speed_tables(speed_results()),
        "layers": lambda: layers_table(latest("layers_*.json")),
        "grounding": lambda: grounding_table(latest("grounding.json")),
        "dissection": lambda: dissection_table(latest("dissect_cpu_*.json", "dissection_cpu_*.json")),
        "subnetworks": lambda: subnetworks_table(of_kinds("subnetworks")),
        "subnetwork speed": lambda: subnetwork_speed(of_kinds("subnetwork_speed")),
        "detection": lambda: detection_table(latest("detection_localisation.json")),
        "detection speed": lambda: detection_speed_table(latest("drise_cpu_*.json", "detection_speed_cpu.json")),
        "faithfulness": lambda: faithfulness_table(latest("faithfulness*.json")),
        "faithfulness with intervals": lambda: faithfulness_table(latest("faithfulness*.json"), intervals=True),
        "growth": lambda: growth_lines(latest("growth_cpu_*.json")),
        "scale": lambda: scale_block(latest("scale_cpu_*.json")),
        "methods": methods_table,
    }
    for name, table in tables.items():
        if f"<!-- {name} -->" in text:
            block = f"<!-- {name} -->\n{table()}\n<!-- /{name} -->"
            text = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def main() -> None:
    """Rewrite the pages' tables, and the plots of speed and growth."""
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    for device, files in speed_results().items():
        throughput = [found for found in files if found["suite"] == "throughput"]
        if throughput:
            plot(throughput[0]["rows"], throughput[0]["environment"], DOCS / f"speed_{device}.png")
    plot_growth(latest("growth_cpu_*.json"), DOCS / "growth.png")


if __name__ == "__main__":
    main()
