"""Timing two sides in pairs: A B A B … in one process, so that what else the machine does hits both alike."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import captum
import timm
import torch
import torchvision

SHORT = 10.0  # seconds
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Ratio:
    """Paired ratios theirs ÷ ours: median and interquartile interval; above 1, ours is faster (or smaller)."""

    median: float
    low: float
    high: float
    pairs: int
    ours_median: float
    theirs_median: float

    def verdict(self, goal: float) -> str:
        """Met when the median meets the goal; missed only when the whole interquartile interval lies below."""
        if self.median >= goal:
            return "met"
        return "missed" if self.high < goal else "not shown either way"


def paired(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    pairs: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """Run both sides once to warm up, then ``pairs`` times in turn.

    Short runs are each preceded by an untimed one of the same side: what the other side left of the memory allocator
    (pages given back, which cost as much to get again as the arithmetic on them) is then not charged to it.
    """
    sides = (ours, theirs)
    short = [timed(side, device, clock) < SHORT for side in sides]
    found = []
    for _ in range(pairs):
        seconds = []
        for side, is_short in zip(sides, short, strict=True):
            if is_short:
                side()
            seconds.append(timed(side, device, clock))
        found.append((seconds[0], seconds[1]))
    return ratio_of(found)


def ratio_of(found: list[tuple[float, float]]) -> Ratio:
    """The paired ratios of (ours, theirs)."""
    ratios = [b / a for a, b in found]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Ratio(
        statistics.median(ratios),
        low,
        high,
        len(found),
        statistics.median(a for a, _ in found),
        statistics.median(b for _, b in found),
    )


def timed(run: Callable[[], Any], device: str, clock: Callable[[], float]) -> float:
    """Seconds of one run, the device's queue included."""
    start = clock()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def environment(device: str, dtype: str, seed: int) -> dict[str, Any]:
    """What a reader needs to know of where the numbers come from."""
    return {
        "machine": torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name(),
        "threads": torch.get_num_threads(),
        "device": device,
        "dtype": dtype,
        "seed": seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "captum": captum.__version__,
        "timm": timm.__version__,
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
        ).stdout.strip(),
    }


def cpu_name() -> str:
    """The processor's model name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write(name: str, environment: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """One JSON file: where it was measured, and the rows."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    return path


def row(case: str, model: str, measure: str, goal: float, ratio: Ratio, **more: Any) -> dict[str, Any]:
    """A row of a results file."""
    return {"case": case, "model": model, "measure": measure, "goal": goal, "verdict": ratio.verdict(goal)} | {
        **asdict(ratio),
        **more,
    }
