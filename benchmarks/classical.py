"""The classical methods against Captum's classes, called one after another: time in pairs, and peak memory.

    python -m benchmarks.classical [--models resnet50 vgg16_bn] [--batch-size 8] [--pairs 5] [--device cpu]

Both sides: same model, layer, inputs and dtype, and their outputs are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr as captum_attr
import torch
import torchvision
from torch import Tensor, nn

import drnet_captum as dc
from benchmarks.pairs import Ratio, environment, paired, ratio_of, row, write

SIX = ("saliency", "grad_x_image", "guided_backprop", "deconvnet", "grad_cam", "guided_grad_cam")
SEED = 0


class Case:
    """One comparison: our call and Captum's, on the same model and images."""

    def __init__(self, name: str, model: nn.Module, layer: nn.Module, x: Tensor, classes: int) -> None:
        self.name, self.model, self.layer, self.x = name, model, layer, x
        self.classes = list(range(classes))

    def ours(self) -> Any:
        """Maps by this library."""
        model, layer, x = self.model, self.layer, self.x
        if self.name.startswith("six methods"):
            return dc.explain(model, x, classes=self.classes, methods=SIX, layer=layer, interpolate_mode="nearest")
        if self.name == "Grad-CAM, one class":
            return dc.GradCAM(model, layer).attribute(x, self.classes[0])
        if self.name.startswith("Grad-CAM"):
            maps = dc.explain(
                model, x, classes=self.classes, methods="grad_cam", layer=layer, interpolate_mode="nearest"
            )
            return maps["grad_cam"]
        return dc.GuidedBackprop(model).attribute(x, self.classes[0])

    def theirs(self) -> Any:
        """Maps by Captum's classes."""
        model, layer, x = self.model, self.layer, self.x
        if self.name.startswith("six methods"):
            makers: list[Callable[[], Any]] = [
                lambda: captum_attr.Saliency(model),
                lambda: captum_attr.InputXGradient(model),
                lambda: captum_attr.GuidedBackprop(model),
                lambda: captum_attr.Deconvolution(model),
                lambda: captum_attr.LayerGradCam(model, layer),
                lambda: captum_attr.GuidedGradCam(model, layer),
            ]
            maps = [torch.stack([make().attribute(x, target=c) for c in self.classes]) for make in makers]
            return dict(zip(SIX, maps, strict=True))
        if self.name == "Grad-CAM, one class":
            return captum_attr.LayerGradCam(model, layer).attribute(x, self.classes[0])
        if self.name.startswith("Grad-CAM"):
            maps = [captum_attr.LayerGradCam(model, layer).attribute(x, target=c) for c in self.classes]
            return torch.stack(maps)
        return captum_attr.GuidedBackprop(model).attribute(x, self.classes[0])

    def compare(self) -> float:
        """The smallest correlation between the two sides' maps; where grids differ, ours is at input size."""
        ours, theirs = self.ours(), self.theirs()
        if isinstance(ours, Tensor):
            ours, theirs = {"map": ours}, {"map": theirs}
        return min(correlation(ours[name], theirs[name]) for name in ours)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, over all values; a map at its layer's grid is first brought to the size of the other."""
    if a.shape != b.shape:
        b = torch.nn.functional.interpolate(b.flatten(0, 1), a.shape[-2:], mode="nearest").view_as(a)
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def build(name: str, batch_size: int, device: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A torchvision classifier with random weights, its target layer, and noise images."""
    torch.manual_seed(SEED)
    model = getattr(torchvision.models, name)(weights=None).eval().to(device)
    layer = dc.find_target_layer(model).module
    return model, layer, torch.randn(batch_size, 3, 224, 224, device=device)


CASES = (
    # name, classes, goal for the ratio of times, goal for theirs ÷ ours in peak memory, share of the pairs
    ("six methods, one class", 1, 3.5, None),
    ("six methods, five classes", 5, 4.5, None),
    ("Grad-CAM, one class", 1, 1.0, 1 / 0.4),
    ("Grad-CAM, five classes", 5, 6.0, None),
    ("Guided Backprop, one class", 1, 1.2, 1 / 0.6),
)


def peak_memory(case: str, side: str, model: str, batch_size: int) -> float:
    """MiB above what the process held before the call, at its highest, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.classical", "--one", case, side, model, str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout.strip().splitlines()[-1])


def one(case: str, side: str, name: str, batch_size: int) -> None:
    """Run one side once and print its peak (Linux: the resident set's high-water mark, reset before the call)."""
    model, layer, x = build(name, batch_size, "cpu")
    classes = next(row[1] for row in CASES if row[0] == case)
    getattr(Case(case, model, layer, x[:1], classes), side)()  # kernels are loaded, one example's buffers held
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    getattr(Case(case, model, layer, x, classes), side)()
    print((status("VmHWM") - before) / 1024)


def status(key: str) -> int:
    """A figure of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def measure(models: list[str], batch_size: int, pairs: int, device: str) -> list[dict[str, Any]]:
    """All cases on all models."""
    rows = []
    for name in models:
        model, layer, x = build(name, batch_size, device)
        for case_name, classes, goal, memory_goal in CASES:
            case = Case(case_name, model, layer, x, classes)
            agreement = case.compare()
            repeats = max(3, pairs // 2) if case_name.startswith("six") else pairs
            ratio = paired(case.ours, case.theirs, repeats, device)
            rows.append(row(case_name, name, "time", goal, ratio, batch_size=batch_size, least_correlation=agreement))
            report(rows[-1])
            if memory_goal is not None and device == "cpu":
                found = [
                    tuple(peak_memory(case_name, side, name, batch_size) for side in ("ours", "theirs"))
                    for _ in range(3)
                ]
                ratio = ratio_of(found)  # type: ignore[arg-type]
                rows.append(row(case_name, name, "peak memory", memory_goal, ratio, batch_size=batch_size))
                report(rows[-1])
    return rows


def report(found: dict[str, Any]) -> None:
    """One line while it runs."""
    ratio = Ratio(*(found[key] for key in ("median", "low", "high", "pairs", "ours_median", "theirs_median")))
    print(
        f"{found['model']:10} {found['case']:28} {found['measure']:12} {ratio.median:5.2f}× "
        f"[{ratio.low:.2f}, {ratio.high:.2f}]  goal {found['goal']:.2f}: {found['verdict']}"
        f"  (ours {ratio.ours_median:.3g}, theirs {ratio.theirs_median:.3g})",
        flush=True,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vgg16_bn"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=4, metavar=("CASE", "SIDE", "MODEL", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    if args.one:
        one(*args.one[:3], int(args.one[3]))
        return
    where = environment(args.device, "float32", SEED)  # before it runs: the commit that is measured
    rows = measure(args.models, args.batch_size, args.pairs, args.device)
    print(write(f"classical_{args.device}_float32_torch{torch.__version__.split('+')[0]}", where, rows))


if __name__ == "__main__":
    main()
