"""A comparison as a row: what both sides answer is compared, then they are timed in pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.options import Options
from benchmarks.pairs import Ratio, paired
from benchmarks.records import Row
from benchmarks.sides import BEST, Call

NEVER_SLOWER = 1.0
CAPTUM, CAPTUM_AUTOCAST, CAPTUM_FLOAT32 = "captum", "captum, autocast", "captum, float32"
FORWARD, BACKWARD = "forward pass", "forward and backward pass"
NOTHING: Row = dict.fromkeys(("agrees", "why", "correlation", "scale", "largest_difference", "closeness"))


@dataclass(frozen=True)
class Comparison:
    """One case of one model, batch size and mode against one side.

    Attributes:
        model: timm's name.
        batch_size: images.
        case: the method, or the panel.
        mode: "same", "captured", "best", or "best, not compiled".
        side: whom it is compared with.
        options: our side's keywords.
        goal: of this row by itself; None where there is none.
        found: the fields of `NOTHING`, as far as they are known.
    """

    model: str
    batch_size: int
    case: str
    mode: str
    side: str
    options: dict[str, Any] = field(default_factory=dict)
    goal: float | None = NEVER_SLOWER
    found: Row = field(default_factory=dict)

    def row(self, measure: str, status: str = "measured", **more: Any) -> Row:
        """All that is known without a measurement."""
        return {
            "model": self.model,
            "case": self.case,
            "measure": measure,
            "batch_size": self.batch_size,
            "mode": self.mode,
            "side": self.side,
            "status": status,
            "options": self.options,
            "goal": self.goal,
            **NOTHING,
            **self.found,
            **more,
        }

    def measured(self, measure: str, ratio: Ratio, **more: Any) -> Row:
        """With the paired ratios."""
        verdict = None if self.goal is None else ratio.verdict(self.goal)
        return self.row(measure) | {"verdict": verdict} | asdict(ratio) | more

    def timed(self, ours: Call, theirs: Call, options: Options) -> Row:
        """Both sides timed in pairs; images a second of each."""
        ratio = paired(ours, theirs, options.pairs_at_most, seconds=options.seconds)
        medians = {"ours": ratio.ours_median, "theirs": ratio.theirs_median}
        speed = {f"{side}_per_second": self.batch_size / seconds for side, seconds in medians.items()}
        return self.measured("time", ratio, **speed)


def variants(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """Our best modes: compiled; on a CPU also not compiled."""
    yield "best", BEST
    if not options.is_cuda and BEST.get("compile"):
        yield "best, not compiled", BEST | {"compile": False}


def guarded(comparison: Comparison, make: Callable[[], Row]) -> Row:
    """The row of times, or one that says that the device's memory did not suffice."""
    try:
        return make()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return comparison.row("time", "out of memory")
