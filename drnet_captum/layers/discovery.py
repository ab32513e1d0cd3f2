"""Cut layers and the target layer of any model, from one forward pass and no table of names."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drnet_captum.engine.state import check_parameters
from drnet_captum.engine.unwrap import eager
from drnet_captum.layers.candidates import Candidate, Found, find_candidates
from drnet_captum.layers.layout import Layout
from drnet_captum.layers.statements import input_sizes


class LayerDiscoveryError(ValueError):
    """The model has no layer that a map can be made from, or several and no way to choose."""


@dataclass(frozen=True)
class TargetLayer:
    """A layer that every path from the input to the output passes through.

    Attributes:
        name: dotted name in the model.
        module: the module itself.
        layout: how its output is laid out: "NCHW" (also for signals and volumes: channels are dimension 1), "NHWC", or
            "tokens", (N, prefix_tokens + h·w, C).
        grid: its spatial size, (h, w); (t,) for signals, (d, h, w) for volumes.
        channels: C.
        prefix_tokens: the number of tokens before the grid's: class, distillation and register tokens.
    """

    name: str
    module: nn.Module
    layout: Layout
    grid: tuple[int, ...]
    channels: int
    prefix_tokens: int = 0


#: Per model, by the inputs' shapes.
_found: weakref.WeakKeyDictionary[nn.Module, dict[Any, Found]] = weakref.WeakKeyDictionary()


def find_cut_layers(model: nn.Module, input_size: tuple[int, ...] | None = None) -> list[TargetLayer]:
    """The layers with a spatial grid that every path from input to output passes through, input to output.

    Args:
        model: any ``nn.Module`` that takes one image tensor.
        input_size: (C, H, W), or (H, W) with the channels that the first convolution takes. Default: what the model
            says of itself (timm's ``pretrained_cfg``, Hugging Face's ``config``), else 224×224.

    Raises:
        LayerDiscoveryError: the model did not run on an image of this size; the message says why, and what to pass.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...                             torch.nn.Flatten(), torch.nn.Linear(8, 2))
        >>> [layer.name for layer in find_cut_layers(model, (3, 16, 16))]
        ['0', '1']
    """
    module = _module(model)
    return [_layer(module, c) for c in _run(module, input_size).cuts]


def find_target_layer(model: nn.Module, input_size: tuple[int, ...] | None = None) -> TargetLayer:
    """The last cut layer that still has a spatial grid, lies before the classifier, and receives gradient everywhere.

    The last block of a class-token ViT does not: its head reads the class token alone, and the block before is found.

    Args:
        model: any ``nn.Module`` that takes one image tensor.
        input_size: as for :func:`find_cut_layers`.

    Raises:
        LayerDiscoveryError: no layer qualifies; the message says what there is, and to pass ``layer=``.

    Example:
        >>> import timm
        >>> find_target_layer(timm.create_model("resnet18")).name
        'layer4'
        >>> found = find_target_layer(timm.create_model("test_vit"))
        >>> found.name, found.layout, found.grid, found.prefix_tokens
        ('blocks.4', 'tokens', (10, 10), 1)
    """
    module = _module(model)
    return _choose(module, _run(module, input_size))


def target_layer_for(
    forward_func: Callable[..., Any], inputs: Sequence[Tensor], additional: Sequence[Any], head: bool = False
) -> TargetLayer:
    """The target layer for these inputs; ``head=True``: the last layer with a grid, the classifier's own included."""
    model = eager(forward_func)
    if not isinstance(model, nn.Module):
        raise LayerDiscoveryError("a layer can be found in an nn.Module only, and the model is a function: pass layer=")
    return _choose(model, _remembered(model, inputs, additional), head)


def cut_layers_for(
    forward_func: Callable[..., Any], inputs: Sequence[Tensor], additional: Sequence[Any]
) -> list[TargetLayer]:
    """The cut layers before the classifier for these inputs, input to output; at least one."""
    last = target_layer_for(forward_func, inputs, additional)
    model = _module(forward_func)
    found = [_layer(model, c) for c in _remembered(model, inputs, additional).cuts if c.is_eligible]
    return found or [last]


def example_inputs(model: nn.Module, input_size: tuple[int, ...] | None = None) -> list[Tensor]:
    """Noise of the sizes that the model may expect, likeliest first, where its parameters are."""
    sizes = input_sizes(model)
    if input_size is not None:
        sizes = [(size[0], *input_size) if len(input_size) == 2 else tuple(input_size) for size in sizes]
    parameter = next((p for p in model.parameters() if p.dtype.is_floating_point), torch.empty(0))
    noise = [torch.rand((1, *size), generator=torch.Generator().manual_seed(0)) for size in dict.fromkeys(sizes)]
    return [example.to(parameter.device, parameter.dtype) for example in noise]


def _module(model: Any) -> nn.Module:
    module = eager(model)
    if not isinstance(module, nn.Module):
        raise LayerDiscoveryError(f"expected an nn.Module to find layers in, got {type(module).__name__}")
    return module


def _run(model: nn.Module, input_size: tuple[int, ...] | None) -> Found:
    """Run the model on an image that it did not ask for, and say what may be wrong with that where it fails."""
    check_parameters(model)
    failures: list[Exception] = []
    examples = example_inputs(model, input_size)
    for example in examples:
        try:
            return _remembered(model, (example,), ())
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            failures.append(error)
    size, why = tuple(examples[0].shape[1:]), failures[0]
    if isinstance(why, TypeError) and "argument" in str(why):
        advice = (
            "use an attribution class with additional_forward_args=, which finds the layer on the inputs that it is "
            "given, or a wrapper that fills the arguments in"
        )
    elif input_size is None:
        advice = "pass input_size=(C, H, W) if it takes another size"
    else:
        advice = "pass the input_size=(C, H, W) that it takes"
    raise LayerDiscoveryError(
        f"{type(model).__name__} does not run on an image of {size}: {str(why) or type(why).__name__}; {advice}"
    ) from why


def _remembered(model: nn.Module, inputs: Sequence[Tensor], additional: Sequence[Any]) -> Found:
    modules = tuple(id(module) for module in model.modules())  # a model whose head was replaced is another model
    key = (tuple((v.shape[1:], v.dtype) for v in inputs), model.training, modules)
    known = _found.setdefault(model, {})
    if key not in known:
        known[key] = find_candidates(model, inputs, additional)
    return known[key]


def _layer(model: nn.Module, candidate: Candidate) -> TargetLayer:
    at = candidate.placement
    module = model.get_submodule(candidate.name)
    return TargetLayer(candidate.name, module, at.layout, at.grid, at.channels, at.prefix_tokens)


def _choose(model: nn.Module, found: Found, head: bool = False) -> TargetLayer:
    if found.branches:
        ends = ", ".join(f"{c.name} {c.placement.grid}" for c in found.branches)
        raise LayerDiscoveryError(
            f"{type(model).__name__} ends in several branches, and no layer decides its answer alone: pass layer= with "
            f"the last layer of one of them, {ends}, or another module"
        )
    eligible = [c for c in found.cuts if c.is_eligible or head]
    if eligible:
        return _layer(model, eligible[-1])
    there = ", ".join(c.name for c in found.cuts) or "none"
    raise LayerDiscoveryError(
        "found no layer before the classifier that every path to the output passes through and that puts out a grid of "
        "more than one position, (N, C, h, w), (N, h, w, C) or (N, tokens, C) (layers with a grid: "
        f"{there}): pass layer= with a module or its dotted name"
    )
