"""Cut layers and the target layer, from the autograd graph of one forward pass and no table of names."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from drnet_captum.engine.recording import Recording
from drnet_captum.engine.rules import Switch
from drnet_captum.engine.state import differentiable, kept
from drnet_captum.engine.targets import check_output
from drnet_captum.engine.unwrap import eager, uncompiled
from drnet_captum.layers.cuts import average_pools, before_classifier, cut_nodes
from drnet_captum.layers.layout import Layout, layout_of


class LayerDiscoveryError(ValueError):
    """The model has no layer that a map can be made from, or several and no way to choose."""


@dataclass(frozen=True)
class TargetLayer:
    """A layer that every path from the input to the output passes through.

    Attributes:
        name: dotted name in the model.
        module: the module itself.
        layout: how its output is laid out: "NCHW" (also for signals and volumes: channels are dimension 1) or "NHWC".
        grid: its spatial size, (h, w); (t,) for signals, (d, h, w) for volumes.
        channels: C.
    """

    name: str
    module: nn.Module
    layout: Layout
    grid: tuple[int, ...]
    channels: int


@dataclass(frozen=True)
class Candidate:
    """A cut layer by name, so that remembering it does not keep the model alive."""

    name: str
    layout: Layout
    grid: tuple[int, ...]
    channels: int
    eligible: bool  # before the classifier, and before the grid becomes a sequence of tokens


#: Per model, by the inputs' shapes.
_found: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[Candidate]]] = weakref.WeakKeyDictionary()


def find_cut_layers(model: nn.Module, input_size: tuple[int, ...] | None = None) -> list[TargetLayer]:
    """The layers with a spatial grid that every path from input to output passes through, input to output.

    Args:
        model: any ``nn.Module`` that takes one image tensor.
        input_size: (C, H, W), or (H, W) for three channels. Default: what the model says of itself (timm's
            ``pretrained_cfg``), else (3, 224, 224).

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...                             torch.nn.Flatten(), torch.nn.Linear(8, 2))
        >>> [layer.name for layer in find_cut_layers(model, (3, 16, 16))]
        ['0', '1']
    """
    return [layer for layer, _ in _candidates(model, (example_input(model, input_size),), ())]


def find_target_layer(model: nn.Module, input_size: tuple[int, ...] | None = None) -> TargetLayer:
    """The last cut layer that still has a spatial grid and lies before the classifier.

    Args:
        model: any ``nn.Module`` that takes one image tensor.
        input_size: as for :func:`find_cut_layers`.

    Raises:
        LayerDiscoveryError: no layer qualifies; the message says what there is, and to pass ``layer=``.

    Example:
        >>> import timm
        >>> find_target_layer(timm.create_model("resnet18")).name
        'layer4'
    """
    return target_layer_for(model, (example_input(model, input_size),), ())


def example_input(model: nn.Module, input_size: tuple[int, ...] | None) -> Tensor:
    """Noise of the size that the model expects, where its parameters are."""
    if input_size is None:
        config = getattr(model, "pretrained_cfg", None)
        input_size = tuple((config or {}).get("input_size", (3, 224, 224)))
    if len(input_size) == 2:
        input_size = (3, *input_size)
    parameter = next((p for p in model.parameters() if p.dtype.is_floating_point), torch.empty(0))
    noise = torch.rand((1, *input_size), generator=torch.Generator().manual_seed(0))
    return noise.to(parameter.device, parameter.dtype)


def target_layer_for(
    forward_func: Callable[..., Any], inputs: tuple[Tensor, ...], additional: tuple[Any, ...], head: bool = False
) -> TargetLayer:
    """The target layer for these inputs; ``head=True``: the last layer with a grid, the classifier's own included."""
    model = eager(forward_func)
    if not isinstance(model, nn.Module):
        raise LayerDiscoveryError("a layer can be found in an nn.Module only, and the model is a function: pass layer=")
    candidates = _candidates(model, inputs, additional)
    eligible = [layer for layer, before in candidates if before or head]
    if eligible:
        return eligible[-1]
    there = ", ".join(layer.name for layer, _ in candidates) or "none"
    raise LayerDiscoveryError(
        "found no layer with a spatial output (N, C, h, w) of more than one position that every path to the output "
        f"passes through, close before the classifier (layers with a grid: {there}): pass layer= with a module or its "
        "dotted name"
    )


def _candidates(
    model: nn.Module, inputs: tuple[Tensor, ...], additional: tuple[Any, ...]
) -> list[tuple[TargetLayer, bool]]:
    key = (tuple((v.shape[1:], v.dtype) for v in inputs), model.training)
    known = _found.setdefault(model, {})
    if key not in known:
        known[key] = _discover(model, inputs, additional)
    modules = dict(model.named_modules())
    return [
        (TargetLayer(c.name, modules[c.name], c.layout, c.grid, c.channels), c.eligible)
        for c in known[key]
        if c.name in modules
    ]


def _discover(model: nn.Module, inputs: tuple[Tensor, ...], additional: tuple[Any, ...]) -> list[Candidate]:
    """The cut layers with a grid, input to output."""
    produced: dict[Any, list[tuple[str, tuple[int, ...]]]] = {}
    names = {module: name for name, module in model.named_modules()}
    last: dict[str, Any] = {}  # of a module called several times the tape keeps the last output
    handles = []

    def note(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.grad_fn is not None:
            produced.setdefault(out.grad_fn, []).append((names[module], tuple(out.shape)))
            last[names[module]] = out.grad_fn

    with differentiable(), kept(model, {v.device for v in inputs}), uncompiled():
        n = len(inputs[0])
        leaves = [v.detach()[:1].clone() for v in inputs]  # one example is enough
        additional = tuple(a[:1] if isinstance(a, Tensor) and a.dim() and len(a) == n else a for a in additional)
        leaves = [v.requires_grad_() if v.dtype.is_floating_point else v for v in leaves]
        copies = [v.clone() for v in leaves]
        try:
            handles += [module.register_forward_hook(note) for module in names]
            with Recording(Switch()):
                output = check_output(model(*copies, *additional))
        finally:
            for handle in handles:
                handle.remove()
    if output.grad_fn is None:
        return []
    cuts = cut_nodes(output.grad_fn, [c.grad_fn for c in copies if c.grad_fn is not None])
    pools, before = average_pools(cuts), before_classifier(cuts)
    layers: list[Candidate] = []
    for node in reversed(cuts):  # input to output
        makers = [(name, shape) for name, shape in produced.get(node, []) if name and last[name] is node]
        if not makers or node in pools:
            continue
        name, shape = outermost(makers)
        layout = layout_of(shape, inputs[0].shape)
        if node in before and len(shape) == 3 < inputs[0].dim() and shape[1] > 1:
            layers = [replace(layer, eligible=False) for layer in layers]
        if layout is None:
            continue
        grid, channels = (shape[2:], shape[1]) if layout == "NCHW" else (shape[1:-1], shape[-1])
        if torch.Size(grid).numel() > 1:
            layers.append(Candidate(name, layout, grid, channels, node in before))
    return layers


def outermost(makers: list[tuple[str, tuple[int, ...]]]) -> tuple[str, tuple[int, ...]]:
    """Of the modules that return one tensor, in order: the one that made it, or its outermost parent."""
    chosen = makers[0]
    for name, shape in makers[1:]:
        if chosen[0].startswith(name + "."):
            chosen = (name, shape)
    return chosen
