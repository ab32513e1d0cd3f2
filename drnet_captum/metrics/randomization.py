"""The sanity check by randomised parameters: a map that stays the same explains something else than the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .maps import heat_of
from .rank import rank_correlation


@dataclass(frozen=True)
class Randomization:
    """How like the original's the maps are.

    Attributes:
        layers: L names, in the order of randomisation.
        signed: (L + 1, N), Spearman's rank correlation of the maps; the first row is the original with itself.
        absolute: (L + 1, N), the same of their absolute values.
    """

    layers: tuple[str, ...]
    signed: Tensor
    absolute: Tensor


def randomization(
    model: nn.Module,
    explain: Callable[[nn.Module], Tensor],
    *,
    mode: Literal["cascading", "independent"] = "cascading",
    layers: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Randomization:
    """Maps of a model whose layers are randomised, compared with those of the model itself.

    "cascading" randomises layer after layer from the logits down, and leaves them random; "independent" randomises one
    layer at a time, the others as they were learnt. All of it happens on one deep copy; the model itself is explained
    once and stays as it is.

    A layer's new parameters come from its own ``reset_parameters`` (which also resets the running statistics of batch
    norms). Where a module has none, or is reparametrised, the values of each of its parameters change places at random,
    which keeps their distribution.

    Args:
        model: any module.
        explain: a model -> its maps (N, H, W) or (N, C, H, W), channels summed; it must look up layers in the model
            that it is given, by name or by itself.
        mode: "cascading" or "independent".
        layers: names of modules, in order, each with all that is in it: a layer, a block, or "" for the whole model.
            None: every module that has parameters of its own, those alone, the last registered first.
        generator: on the CPU. None: seed 0.

    Returns:
        `Randomization`; NaN where a map is constant, as that has no order.

    Raises:
        ValueError: another mode, a name of no module or of one without parameters, a model without any, maps that
            change their shape.

    Source: Adebayo et al. 2018, arXiv 1810.03292.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> x = torch.rand(1, 3, 8, 8)
        >>> edges = randomization(model, lambda m: x)
        >>> edges.layers, edges.absolute.shape, bool((edges.absolute > 0.99).all())
        (('3', '0'), torch.Size([3, 1]), True)
    """
    if mode not in ("cascading", "independent"):
        raise ValueError(f'expected mode to be "cascading" or "independent", got {mode!r}')
    steps = _steps(model, layers)
    drawn = generator if generator is not None else torch.Generator().manual_seed(0)
    changed = copy.deepcopy(model)
    original = heat_of(explain(model))
    found = [original]
    for name, inside in steps.items():
        parts = [changed.get_submodule(part) for part in inside]
        own = [t for part in parts for t in (*part.parameters(recurse=False), *part.buffers(recurse=False))]
        learnt = [(t, t.detach().clone()) for t in own]
        for part in parts:
            randomize(part, int(torch.randint(2**62, (), generator=drawn)))
        found.append(heat_of(explain(changed)))
        if found[-1].shape != original.shape:
            raise ValueError(
                f"expected maps of shape {tuple(original.shape)}, got {tuple(found[-1].shape)} after {name!r} was "
                "randomised"
            )
        if mode == "independent":
            with torch.no_grad():
                for tensor, value in learnt:
                    tensor.copy_(value)
    return Randomization(
        tuple(steps),
        torch.stack([rank_correlation(maps, original) for maps in found]),
        torch.stack([rank_correlation(maps.abs(), original.abs()) for maps in found]),
    )


def randomize(layer: nn.Module, seed: int) -> None:
    """New values for a module's own parameters, in place; the global generators are left as they were."""
    own = list(layer.parameters(recurse=False))
    devices = sorted({p.device.index for p in own if p.device.type == "cuda"})
    reset = getattr(layer, "reset_parameters", None)
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        if callable(reset) and not is_parametrized(layer):
            reset()
            return
        for parameter in own:
            order = torch.randperm(parameter.numel()).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _steps(model: nn.Module, layers: Sequence[str] | None) -> dict[str, list[str]]:
    """Of every name to randomise, the modules with parameters of their own, the last registered first."""
    having = [name for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))][::-1]
    if not having:
        raise ValueError("expected a model with parameters, got one without")
    if layers is None:
        return {name: [name] for name in having}
    if isinstance(layers, str) or not layers:
        raise ValueError(f"expected layers as a list of at least one name, got {layers!r}")
    steps = {
        name: [part for part in having if not name or part == name or part.startswith(f"{name}.")] for name in layers
    }
    for name, inside in steps.items():
        if not inside:
            raise ValueError(f"expected names of modules with parameters, got {name!r}: there are {', '.join(having)}")
    return steps
