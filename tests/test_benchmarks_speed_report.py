"""README's tables of speed and their plot, from made-up rows."""

from __future__ import annotations

import pytest
from PIL import Image

from benchmarks import plot_throughput as plots
from benchmarks import report
from benchmarks import report_goals as goals
from benchmarks import report_throughput as speed
from benchmarks.comparison import BACKWARD, CAPTUM, CAPTUM_AUTOCAST, CAPTUM_FLOAT32, FORWARD, NOTHING, Comparison
from benchmarks.pairs import Ratio
from benchmarks.subjects import CNNS

WHERE = {"machine": "m", "threads": 2, "torch": "t", "captum": "c", "timm": "i", "seed": 0, "dtype": "float32"}


def made(model, case, median, side=CAPTUM, mode="same", batch=8, measure="time", spread=0.0, **found):
    ratio = Ratio(median, median - spread, median + spread, 5, 1.0, median)
    per_second = {"ours_per_second": batch / 1.0, "theirs_per_second": batch / median}
    one = Comparison(model, batch, case, mode, side, found=NOTHING | {"agrees": True} | found)
    return one.measured(measure, ratio, **per_second if measure == "time" else {})


def test_goals_are_geometric_means_over_the_cnns():
    medians = dict(zip(CNNS, (1.0, 2.0, 4.0, 2.0, 2.0), strict=True))
    rows = [made(model, "grad_cam", median) for model, median in medians.items()]
    rows += [made(model, "grad_cam", 4.0, measure="peak memory", spread=1.0) for model in CNNS]
    rows += [made(model, "guided_backprop", 1.2, spread=0.1) for model in CNNS]
    rows += [made("swin_tiny", "grad_cam", 99.0), made(CNNS[0], "grad_cam", 99.0, batch=64)]
    table = goals.goals_table(goals.CPU_GOALS, rows, "cpu")
    assert "| Grad-CAM: time | 1.1× | **2.00×** (2.00–2.00) | met |" in table
    assert "| Grad-CAM: peak memory | at most 0.4× | **0.25×** (0.20–0.33) | met |" in table
    assert "| Guided Backprop: time | 1.25× | **1.20×** (1.10–1.30) | not shown either way |" in table
    assert "| Guided Grad-CAM: time | 1.7× | not measured | |" in table
    rows = [row for row in rows if row["model"] != CNNS[3]]
    assert "| Grad-CAM: time | 1.1× | not measured" in goals.goals_table(goals.CPU_GOALS, rows, "cpu")


def test_goals_of_a_gpu_are_over_batch_sizes_too():
    rows = [
        made(model, "grad_cam", median, batch=batch) for model in CNNS for batch, median in ((8, 1), (64, 2), (256, 4))
    ]
    rows += [made(model, "grad_cam", 0.7, FORWARD, "best", batch) for model in CNNS for batch in (8, 64, 256)]
    table = goals.goals_table(goals.GPU_GOALS, rows, "cuda")
    assert "| Grad-CAM: time | 1.2× | **2.00×** (2.00–2.00); batch 8: 1.00×, 64: 2.00×, 256: 4.00× | met |" in table
    assert "| Grad-CAM, best mode, against the bare forward pass: time | 0.8× | **0.70×** (0.70–0.70); batch" in table
    assert table.count("missed") == 1
    assert table.count("not measured") == 5


def test_models_tables():
    rows = [
        made("a", "grad_cam", 1.5, spread=0.1),
        made("a", "grad_cam", 0.9, FORWARD),
        made("a", "grad_cam", 4.0, measure="peak memory"),
        made("b", "guided_backprop", 2.0, agrees=False, why="the model calls gelu"),
        made("b", "guided_backprop", 1.1, CAPTUM_AUTOCAST, "best"),
        made("b", "guided_backprop", 3.0, CAPTUM_FLOAT32, "best"),
        made("b", "guided_backprop", 0.8, BACKWARD, "best"),
        made("c", "grad_cam", 9.0, batch=64),
        Comparison("d", 8, "grad_cam", "same", CAPTUM).row("time", "out of memory"),
    ]
    same = speed.models_table(rows, "same", "time", 8)
    assert same.startswith("**Same precision, batch 8: time**; then the share of the bare passes' throughput")
    assert "| | Grad-CAM | Guided Backprop |\n|---|---|---|\n" in same
    assert "| a | **1.50×** (1.40–1.60); 0.90 |  |" in same
    assert "| b |  | **2.00×** (2.00–2.00) † |" in same and "| c |" not in same and "| d |" not in same
    memory = speed.models_table(rows, "same", "peak memory", 8)
    assert memory.startswith("**Same precision, batch 8: peak memory**\n") and "| a | **0.25×** (0.25–0.25) |" in memory
    assert "| c | **9.00×** (9.00–9.00) |" in speed.models_table(rows, "same", "time", 64)
    best = speed.models_table(rows, "best", "time", 8)
    assert "| b | **1.10×** (1.10–1.10); **3.00×** (3.00–3.00); 0.80 |" in best
    assert speed.models_table(rows, "best, not compiled", "time", 8) == ""


def test_other_libraries():
    rows = [
        made("a", "grad_cam", 1.5),
        made("a", "grad_cam", 1.2, "torchcam"),
        made("a", "grad_x_image", 1.3, "zennit", spread=0.1),
        made("b", "grad_x_image", 0.9, "zennit", batch=1),
        Comparison("c", 8, "grad_cam", "same", "torchcam").row("time", "not installed"),
    ]
    table = speed.peers_table(rows)
    assert "| model | batch | library | Grad-CAM | gradient × image |\n|---|---|---|---|---|\n" in table
    assert "| a | 8 | torchcam | **1.20×** (1.20–1.20) |  |" in table
    assert "| a | 8 | zennit |  | **1.30×** (1.20–1.40) |" in table
    assert "| b | 1 | zennit |  | **0.90×** (0.90–0.90) |" in table and "| c |" not in table
    assert speed.peers_table(rows[:1]) == ""


def test_rows_that_are_slower_are_named():
    rows = [
        made("a", "grad_cam", 0.9, spread=0.05),
        made("b", "grad_cam", 0.9, spread=0.2),
        made("c", "grad_cam", 0.5, FORWARD),
        made("d", "grad_cam", 0.5, CAPTUM_AUTOCAST, "best"),
        made("e", "deconvnet", 2.0, agrees=False, why="one reason; another"),
        made("e", "guided_backprop", 0.5, agrees=False, why="one reason", batch=1),
        made("e", "guided_backprop", 1.2, mode="captured", batch=1),
        made("e", "guided_backprop", 0.7, FORWARD, mode="captured", batch=1),
        made("e", "guided_backprop", 0.6, mode="captured"),
        made("f", "grad_cam", 2.0, CAPTUM_FLOAT32, "best", closeness={"rank_correlation": 0.97}),
        made("g", "deconvnet", 2.0, CAPTUM_FLOAT32, "best", closeness={"pooled_correlation": 0.99}),
        made(
            "h",
            "grad_x_image",
            2.0,
            CAPTUM_FLOAT32,
            "best",
            closeness={"pooled_correlation": 0.985, "captum_pooled_correlation": 0.98},
        ),
    ]
    why, ranks, pooled = speed.notes(rows)
    assert why.startswith("†") and why.endswith(": one reason; another.")
    assert ranks.endswith("correlation 0.970 at least (goal 0.98: missed), of Grad-CAM on f.")
    assert pooled.endswith("(goal 0.98: met), of gradient × image on h; Captum's own under the same autocast 0.980.")
    table = speed.slower_table(rows)
    assert table.startswith("**Slower than Captum in 2 of 4 rows of the same precision**")
    assert "| a | 8 | Grad-CAM | **0.90×** (0.85–0.95) |  |" in table and "| b |" not in table
    assert "| e | 1 | Guided Backprop | **0.50×** (0.50–0.50) † | **1.20×** (1.20–1.20) |" in table
    assert speed.notes(rows[1:2]) == []
    assert speed.slower_table(rows[1:2]) == "Slower than Captum in no row of the same precision."


def test_the_blocks_say_what_is_not_measured():
    block = goals.goals_block({})
    for device in ("cpu", "cuda"):
        assert f"`python -m benchmarks throughput panel memory --device {device}` does it" in block
    assert "Median" not in block and speed.speed_tables({}) == ""
    where = WHERE | {"tf32": {"matmul": False, "cudnn": True}}
    results = {
        "cuda": [{"environment": where, "rows": [made("a", "grad_cam", 1.5)]}, {"environment": where, "rows": []}]
    }
    block = goals.goals_block(results)
    assert (
        "--device cpu` does it" in block and "--device cuda" not in block and "TF32 matmul False, cudnn True." in block
    )
    tables = speed.speed_tables(results)
    assert tables.startswith("### GPU\n") and "TF32 matmul False, cudnn True." in tables
    assert "| a | **1.50×** (1.50–1.50) |" in tables and tables.endswith("in no row of the same precision.")


def test_results_are_the_newest_and_no_quick_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for name in ("panel_cpu_float32_torch2.6.0", "panel_cpu_float32_torch2.7.0", "panel_cpu_float32_torch2.8.0_quick"):
        (tmp_path / f"{name}.json").write_text(f'{{"suite": "panel", "name": "{name}"}}')
    assert [found["name"] for found in report.speed_results()["cpu"]] == ["panel_cpu_float32_torch2.7.0"]
    assert list(report.speed_results()) == ["cpu"]
    assert report.latest("drise_*.json", "panel_*.json")["name"].endswith("2.7.0")
    with pytest.raises(FileNotFoundError, match="run python -m benchmarks"):
        report.latest("drise_*.json")


def test_plot(tmp_path):
    rows = [made(model, "grad_cam", 2.0) for model in "abcd"] + [made("a", "grad_cam", 0.5, FORWARD)]
    rows += [made("a", "deconvnet", 4.0, BACKWARD), made("a", "grad_cam", 1.0, "zennit"), made("a", "saliency", 1.0)]
    found = plots.speeds([*rows, made("a", "grad_cam", 9.0, batch=64), made("a", "grad_cam", 9.0, mode="best")])
    assert found["a", "grad_cam"] == {CAPTUM: 4.0, plots.OURS: 8.0, plots.BOUND: 16.0, "zennit": 8.0}
    assert found["a", "deconvnet"] == {plots.BOUND: 2.0} and len(found) == 5
    plots.plot(rows, WHERE, tmp_path / "speed.png")
    with Image.open(tmp_path / "speed.png") as picture:
        assert picture.width > 800
