"""What running a model says of one of its layers: whether it is a cut with a live grid of the final resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layer_rules import feature_info

SEED = 0
MOST_PREFIX_TOKENS = 10


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
