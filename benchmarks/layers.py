"""Which layer each rule picks for the models of timm, and whether a map of it says what the model answered with.

    python -m benchmarks.layers [--zoo benchmarks/results/zoo_layers.csv] [--models NAME …]

Models: of every timm module the smallest of each model class, chosen from the zoo's table. Every rule's layer is judged
in the same way, by running the model (random weights, float32, one image of its own size), with nothing of
``drnet_captum``. A layer is good when

- it is a cut: with its output replaced by leaves, no path is left from the image to the logits;
- it has a grid: its output, or one of its outputs, is (N, C, h, w), (N, h, w, C) or (N, prefix + h·w, C) with at most
  ten prefix tokens, h × w in the image's proportions and more than one position; outputs with several grids (branches)
  have none that a map could be made from;
- it is live: a random mixture of the logits has a gradient at more than half of the grid's positions;
- it has the final resolution: as many positions as the smallest grid that ``forward_features`` returns; where that
  returns no maps, as the maps of the module that ``feature_info[-1]`` names; where there are no maps, as the tokens of
  the one or the other.

A rule that raises or returns nothing has not found a layer. Where it raised and no module is good (networks that end in
several branches), it said so. The other rules: ``pip install --no-deps torchcam torchxai-explain``.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import drnet_captum as dc
from benchmarks.pairs import RESULTS, environment, write

SEED = 0
MOST_PARAMETERS = 150e6
MOST_PREFIX_TOKENS = 10
CONDITIONS = ("cut", "grid", "live", "final")
Rule = Callable[[nn.Module, Tensor], str | None]


def last_convolution(model: nn.Module, x: Tensor) -> str | None:
    """The last two-dimensional convolution in the order of the modules."""
    return next((name for name, m in reversed(list(model.named_modules())) if isinstance(m, nn.Conv2d)), None)


def feature_info(model: nn.Module, x: Tensor) -> str | None:
    """The last of the modules that timm extracts features from."""
    info = getattr(model, "feature_info", None)
    if not info:
        return None
    name = str(info[-1]["module"])
    return name if name in dict(model.named_modules()) else None


def torchcam(model: nn.Module, x: Tensor) -> str | None:
    """The layer that torchcam takes when it is given none."""
    from torchcam.methods._utils import locate_candidate_layer

    return locate_candidate_layer(model, tuple(x.shape[1:]))


def torchxai(model: nn.Module, x: Tensor) -> str | None:
    """The layer that torchxai-explain takes when it is given none."""
    from torchxai.models import detect_architecture, resolve_target_layer

    found = resolve_target_layer(model, detect_architecture(model))
    return next((name for name, m in model.named_modules() if m is found), None)


def ours(model: nn.Module, x: Tensor) -> str | None:
    """The layer that this library takes when it is given none."""
    return dc.find_target_layer(model).name


RULES: dict[str, Rule] = {
    "the last `nn.Conv2d`": last_convolution,
    "torchxai's `resolve_target_layer`": torchxai,
    "torchcam's `locate_candidate_layer`": torchcam,
    "timm's `feature_info[-1]`": feature_info,
    "`drnet_captum.find_target_layer`": ours,
}


@dataclass(frozen=True)
class Grid:
    """Where the positions of a layer's output are."""

    layout: str
    size: tuple[int, int]
    prefix: int = 0

    @property
    def positions(self) -> int:
        return self.size[0] * self.size[1]

    def rows(self, values: Tensor) -> Tensor:
        """(h·w, C), a row for each position, of a batch of one."""
        if self.layout == "NCHW":
            return values[0].flatten(1).T
        return values[0].flatten(0, -2)[self.prefix :]


@dataclass(frozen=True)
class Verdict:
    """What running the model says of a layer."""

    cut: bool = False
    grid: bool = False
    live: bool = False
    final: bool = False
    note: str = ""

    @property
    def good(self) -> bool:
        return self.cut and self.grid and self.live and self.final


def grid_of(shape: Sequence[int], image: Sequence[int]) -> Grid | None:
    """The grid of an output of this shape for an image of (H, W); None where it has none.

    Example:
        >>> grid_of((1, 197, 768), (224, 224))
        Grid(layout='tokens', size=(14, 14), prefix=1)
    """
    if not shape or shape[0] != 1:
        return None
    if len(shape) == 4:
        found = [Grid("NCHW", (shape[2], shape[3])), Grid("NHWC", (shape[1], shape[2]))]
    elif len(shape) == 3:
        counts = [(shape[1] - prefix, prefix) for prefix in range(min(MOST_PREFIX_TOKENS + 1, shape[1]))]
        found = [Grid("tokens", size, prefix) for count, prefix in counts for size in factors(count)]
    else:
        return None
    return next((g for g in found if g.positions > 1 and in_proportion(g.size, image)), None)


def factors(count: int) -> Iterator[tuple[int, int]]:
    """The pairs of whole numbers with this product."""
    return ((h, count // h) for h in range(1, count + 1) if count % h == 0)


def in_proportion(size: Sequence[int], image: Sequence[int]) -> bool:
    """Whether the height is the width in the image's proportions to within a cell: for square images, equal."""
    return abs(size[0] * image[1] - size[1] * image[0]) < max(image)


def tensors(output: Any) -> list[Tensor]:
    """All tensors in tuples, lists and dictionaries."""
    found: list[Tensor] = []
    replaced(output, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    return found


def replaced(output: Any, by: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with other tensors."""
    if isinstance(output, Tensor):
        return by(output)
    if isinstance(output, dict):
        return {key: replaced(value, by) for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        return type(output)([replaced(value, by) for value in output])
    return output


def judge(model: nn.Module, layer: nn.Module, x: Tensor, final: int) -> Verdict:
    """Run the model with the layer's outputs replaced by leaves, and see what its answer depends on.

    Args:
        model: in eval mode, its parameters frozen.
        layer: one of its modules.
        x: the image, (1, C, H, W).
        final: the number of positions of the model's last grid.
    """
    calls: list[list[Tensor]] = []

    def cut_off(output: Tensor) -> Tensor:
        if not output.is_floating_point():
            return output
        calls[-1].append(output.detach().requires_grad_())
        return calls[-1][-1].clone()  # what comes after may write into it

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        calls.append([])
        return replaced(output, cut_off)

    x = x.clone().requires_grad_()
    handle = layer.register_forward_hook(hook)
    try:
        score = mixture(model(x.clone()))
    finally:
        handle.remove()
    if not calls:
        return Verdict(note="not called")
    leaves = [leaf for call in calls for leaf in call]
    gradients: Sequence[Tensor | None] = [None] * (1 + len(leaves))
    if score.requires_grad:
        gradients = torch.autograd.grad(score, [x, *leaves], allow_unused=True)
    of = {id(leaf): gradient for leaf, gradient in zip(leaves, gradients[1:], strict=True)}
    # Of all calls, the outputs that the answer depends on; where it depends on no grid, the last call's.
    reached = [leaf for leaf in leaves if of[id(leaf)] is not None]
    found = with_grid(reached, x) or with_grid(calls[-1], x)
    cut = gradients[0] is None
    note = "output " + " and ".join("×".join(map(str, t.shape)) for t in reached or calls[-1])
    if len(found) != 1:
        return Verdict(cut, note=note + (", several grids" if found else ", no grid"))
    leaf, grid = found[0]
    share = live_share(grid, of[id(leaf)])
    note += f", {grid.positions} of {final} positions, {share:.0%} live"
    return Verdict(cut, True, share > 0.5, grid.positions == final, note)


def with_grid(found: Iterable[Tensor], x: Tensor) -> list[tuple[Tensor, Grid]]:
    """The tensors that have a grid; next to maps, (N, …, …) are states and no tokens."""
    grids = [(t, grid) for t in found if (grid := grid_of(t.shape, x.shape[2:])) is not None]
    maps = [row for row in grids if row[0].dim() == 4]
    return maps or grids


def live_share(grid: Grid, gradient: Tensor | None) -> float:
    """The share of the grid's positions where some channel has a gradient."""
    if gradient is None:
        return 0.0
    values = grid.rows(gradient)
    return float((values.isfinite() & (values != 0)).any(1).float().mean())


def mixture(answer: Any) -> Tensor:
    """A random mixture of all outputs: no logit's gradient is zero by accident."""
    values = torch.cat([t.flatten() for t in tensors(answer) if t.is_floating_point()])
    return values @ torch.randn(len(values), generator=torch.Generator().manual_seed(SEED))


def final_positions(model: nn.Module, x: Tensor) -> int:
    """The number of positions of the model's last grid, as timm's ``forward_features`` and ``feature_info`` have it."""
    with torch.no_grad():
        features = with_grid(tensors(model.forward_features(x.clone())), x)  # type: ignore[operator]
    name = feature_info(model, x)
    module = with_grid([t for at, t in outputs(model, x) if at == name], x) if name is not None else []
    maps = [[row for row in found if row[0].dim() == 4] for found in (features, module)]
    return min((grid.positions for _, grid in next(filter(None, (*maps, features, module)), [])), default=0)


def outputs(model: nn.Module, x: Tensor) -> list[tuple[str, Tensor]]:
    """Every tensor that a module puts out, in the order in which the modules end; without its values."""
    found: list[tuple[str, Tensor]] = []
    handles = []
    for name, module in model.named_modules():

        def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            found.extend((name, t.to("meta")) for t in tensors(output))

        handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return found


def good_layer(model: nn.Module, x: Tensor, final: int) -> str | None:
    """Any module that is good: all with a grid of the final resolution are tried, from the output on."""
    modules = dict(model.named_modules())
    fitting = [name for name, t in outputs(model, x) if any(g.positions == final for _, g in with_grid([t], x))]
    return next((n for n in reversed(dict.fromkeys(fitting)) if judge(model, modules[n], x, final).good), None)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model with random weights, and noise of its size.

    Weights that start as one constant (residual branches and heads that are zero, layer scales of 1e-6) get noise: of a
    trained model they are no constants, and no gradient should be zero for them.
    """
    torch.manual_seed(SEED)
    model = timm.create_model(name).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, torch.randn(1, *input_size(model))


def input_size(model: nn.Module) -> tuple[int, ...]:
    """(C, H, W): the size that a patch embedding insists on, else the pretrained configuration's."""
    channels, *size = model.pretrained_cfg["input_size"]  # type: ignore[index, union-attr]
    embedding = getattr(model, "patch_embed", None)
    if getattr(embedding, "strict_img_size", False) and getattr(embedding, "img_size", None):
        size = embedding.img_size  # type: ignore[union-attr]
    return (channels, *size)


def compare(name: str, module: str = "") -> list[dict[str, Any]]:
    """A row for each rule on a model."""
    model, x = build(name)
    modules = dict(model.named_modules())
    final = final_positions(model, x)
    rows, verdicts = [], {}
    for rule, pick in RULES.items():
        raised = ""
        try:
            layer = pick(model, x)
        except Exception as error:  # whatever another package's rule fails with
            layer, raised = None, f"{type(error).__name__}: {' '.join(str(error).split())}"
        if layer is not None and layer not in verdicts:
            verdicts[layer] = judge(model, modules[layer], x, final)
        verdict = Verdict(note=raised) if layer is None else verdicts[layer]
        answers = {key: asdict(verdict)[key] for key in CONDITIONS} | {"good": verdict.good}
        row = {"model": name, "module": module, "rule": rule, "layer": layer} | answers
        rows.append(row | {"says_so": bool(raised), "note": verdict.note})
    if any(row["says_so"] for row in rows):
        there = any(row["good"] for row in rows) or good_layer(model, x, final) is not None
        rows = [row | {"says_so": row["says_so"] and not there} for row in rows]
    return rows


def smallest(zoo: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Of every module the model with fewest parameters of each class."""
    chosen: dict[tuple[str, str], dict[str, str]] = {}
    for row in zoo:
        if row["parameters"]:
            key = row["module"], row["class"]
            chosen[key] = min(chosen.get(key, row), row, key=lambda r: int(r["parameters"]))
    return [chosen[key] for key in sorted(chosen)]


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts for each rule."""
    found = []
    for rule in dict.fromkeys(row["rule"] for row in rows):
        own = [row for row in rows if row["rule"] == rule]
        counts = {key: sum(row[key] for row in own) for key in ("good", *CONDITIONS)}
        said = sum(row["says_so"] for row in own)
        missing = sum(row["layer"] is None for row in own) - said
        found.append({"rule": rule, "models": len(own)} | counts | {"not_found": missing, "says_so": said})
    return found


def report(number: int, of: int, rows: Sequence[dict[str, Any]], seconds: float) -> None:
    """One line while it runs: which rules found a good layer."""
    marks = " ".join("says so" if r["says_so"] else "good" if r["good"] else "—" for r in rows)
    print(f"{number:3}/{of} {rows[-1]['model']:40} {marks:30} {rows[-1]['layer']}  {seconds:.1f} s", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=RESULTS / "zoo_layers.csv")
    parser.add_argument("--models", nargs="+", help="these only, and nothing is written")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    packages = {package: version(package) for package in ("torchcam", "torchxai-explain")}
    where = environment("cpu", "float32", SEED) | packages  # before it runs: the commit that is measured

    if args.models:
        chosen = [{"name": name, "module": "", "parameters": "0"} for name in args.models]
    else:
        with args.zoo.open() as file:
            chosen = smallest(csv.DictReader(file))
    left_out = [row["name"] for row in chosen if int(row["parameters"]) > MOST_PARAMETERS]
    chosen = [row for row in chosen if row["name"] not in left_out]
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for number, row in enumerate(chosen, 1):
        before = time.perf_counter()
        rows += compare(row["name"], row["module"])
        report(number, len(chosen), rows[-len(RULES) :], time.perf_counter() - before)
    counts = summary(rows)
    print(*counts, sep="\n")
    if args.models:
        return
    where |= {"left_out": left_out, "seconds": round(time.perf_counter() - start)}
    path = write(f"layers_torch{torch.__version__.split('+')[0]}", where, counts)
    with path.with_suffix(".csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(path)


if __name__ == "__main__":
    main()
