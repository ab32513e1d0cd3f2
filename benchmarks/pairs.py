"""Timing two sides in pairs: A B A B … in one process, so that what else the machine does hits both alike."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import captum
import timm
import torch
import torchvision
from torch.utils.benchmark import Timer

SHORT = 10.0  # seconds
LEAST_PAIRS = 3
RESULTS = Path(__file__).parent / "results"
OTHERS = ("grad-cam", "torchcam", "zennit")


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
    *,
    seconds: float | None = None,
    clock: Callable[[], float] | None = None,
) -> Ratio:
    """Run both sides once to warm up, then ``pairs`` times in turn.

    Short runs are each preceded by an untimed one of the same side: what the other side left of the memory allocator
    (pages given back, which cost as much to get again as the arithmetic on them) is then not charged to it.

    Args:
        ours, theirs: the two sides.
        pairs: how many times each is timed, at most.
        seconds: about how long all of it may take; at least three pairs are run (or ``pairs``, where that is fewer).
        clock: seconds, in place of the Timer's own, which waits for the device.
    """
    sides = (ours, theirs)
    first = [timed(side, clock, rehearse=False) for side in sides]
    short = [s < SHORT for s in first]
    if seconds is not None:
        one_pair = sum(s * (1 + is_short) for s, is_short in zip(first, short, strict=True))
        pairs = min(pairs, max(LEAST_PAIRS, int(seconds / max(one_pair, 1e-9))))
    found = []
    for _ in range(pairs):
        a, b = (timed(side, clock, rehearse=is_short) for side, is_short in zip(sides, short, strict=True))
        found.append((a, b))
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


def timed(run: Callable[[], Any], clock: Callable[[], float] | None = None, *, rehearse: bool = True) -> float:
    """Seconds of one run by ``torch.utils.benchmark.Timer``, which waits for the device; with an untimed one before.

    The Timer warms up by two runs of its own. They are taken for the untimed one, or left out: its setup is run once
    before the warm-up and once before what is timed, and says how many runs are real.
    """
    real = iter((int(rehearse), 1))
    left = 0

    def begin() -> None:
        nonlocal left
        left = next(real)

    def once() -> None:
        nonlocal left
        if left:
            left -= 1
            run()

    given: dict[str, Any] = {} if clock is None else {"timer": clock}
    names = {"begin": begin, "once": once}
    timer = Timer("once()", "begin()", globals=names, num_threads=torch.get_num_threads(), **given)
    return float(timer.timeit(1).median)


def environment(device: str, dtype: str, seed: int) -> dict[str, Any]:
    """What a reader needs to know of where the numbers come from."""
    found: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "dtype": dtype,
        "memory_format": "ours: auto; theirs: contiguous",
        "seed": seed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "captum": captum.__version__,
        "timm": timm.__version__,
        "others": {name: version_of(name) for name in OTHERS},
        "commit": commit(),
    }
    if device.startswith("cuda"):
        found["tf32"] = {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
    return found


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """The commit that is measured; with "+" where the code was changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=RESULTS.parents[1])
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)


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


def report(found: dict[str, Any]) -> None:
    """One line while it runs."""
    ratio = Ratio(*(found[key] for key in ("median", "low", "high", "pairs", "ours_median", "theirs_median")))
    print(
        f"{found['model']:10} {found['case']:28} {found['measure']:12} {ratio.median:5.2f}× "
        f"[{ratio.low:.2f}, {ratio.high:.2f}]  goal {found['goal']:.2f}: {found['verdict']}"
        f"  (ours {ratio.ours_median:.3g}, theirs {ratio.theirs_median:.3g})",
        flush=True,
    )
