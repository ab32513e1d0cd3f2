"""What makes a layer the target layer, checked on the model itself and with nothing of the package but ``to_map``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from drnet_captum import TargetLayer, to_map


def tensors(output: Any) -> list[Tensor]:
    """What a module put out: a tensor, or those of a tuple or list."""
    return [v for v in (output if isinstance(output, (tuple, list)) else [output]) if isinstance(v, Tensor)]


def cut_at(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """The output with all that the layer puts out cut off from the input: differentiable where another path is left."""

    depends = []  # for each run: the first one of a layer that runs several times cuts the later ones off

    def detached(module: nn.Module, args: Any, out: Any) -> Any:
        depends.append(any(t.requires_grad for t in tensors(out)))
        if isinstance(out, Tensor):
            return out.detach()
        return type(out)(v.detach() if isinstance(v, Tensor) else v for v in out)

    output = hooked(model, layer, x, detached)
    assert any(depends), "the layer does not depend on the input"
    return output


def hooked(model: nn.Module, layer: nn.Module, x: Tensor, hook: Any) -> Tensor:
    handle = layer.register_forward_hook(hook)
    try:
        return model(x)
    finally:
        handle.remove()


def is_cut(model: nn.Module, layer: nn.Module, x: Tensor) -> bool:
    return not cut_at(model.requires_grad_(False), layer, x.detach().clone().requires_grad_()).requires_grad


def kept_output(model: nn.Module, layer: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The model's output and what the layer put out on the way."""
    seen: list[Tensor] = []
    output = hooked(model, layer, x, lambda m, args, out: seen.__setitem__(slice(None), tensors(out)))
    return output, seen


def with_grid(found: TargetLayer, values: list[Tensor]) -> Tensor:
    """The tensor of the layer that ``found`` describes, as a map (N, C, h, w)."""
    for value in values:
        try:
            return to_map(value, found)
        except ValueError:
            continue
    raise AssertionError(f"{found.name} put out {[tuple(v.shape) for v in values]}, none with a grid of {found.grid}")


def activation_map(model: nn.Module, found: TargetLayer, x: Tensor) -> Tensor:
    with torch.no_grad():
        return with_grid(found, kept_output(model, found.module, x)[1])


def live_share(model: nn.Module, found: TargetLayer, x: Tensor, target: int = 1) -> float:
    """The share of the grid's positions at which a class score has gradient."""
    model.requires_grad_(False)
    output, values = kept_output(model, found.module, x.detach().clone().requires_grad_())
    gradients = torch.autograd.grad(output[:, target].sum(), values, allow_unused=True)
    found_map = with_grid(
        found, [torch.zeros_like(v) if g is None else g for v, g in zip(values, gradients, strict=True)]
    )
    return float((found_map.abs().amax(1) > 0).double().mean())
