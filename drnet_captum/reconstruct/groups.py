"""Channels that can only be removed together: by residual sums, depthwise and grouped convolutions, gates."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from drnet_captum.engine.inputs import as_tuple
from drnet_captum.engine.state import check_parameters, differentiable
from drnet_captum.engine.unwrap import uncompiled

#: Layer (dotted name of a convolution or linear) -> its channels that stay, sorted. Other layers stay whole.
KeepSet = Mapping[str, tuple[int, ...]]

CONVOLUTION = nn.modules.conv._ConvNd
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


@dataclass(frozen=True)
class Group:
    """Channels that stand or fall together.

    Attributes:
        channels: by layer (dotted name of a convolution or linear), its output channels in the group, sorted.
        parameters: how many parameters of the model go when this group goes and all others stay.
    """

    channels: Mapping[str, tuple[int, ...]]
    parameters: int


@dataclass(frozen=True)
class Ties:
    """Channels of one layer, and what goes with them, by Torch-Pruning.

    Attributes:
        root: the layer.
        items: Torch-Pruning's group: pairs (dependency, indices), each with ``root_idxs`` of the same length.
        is_output: whether they reach the model's output as they are: they are its classes.
    """

    root: nn.Module
    items: Any
    is_output: bool


def find_groups(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> list[Group]:
    """The output channels of all convolutions and linear layers, in groups of those that can only go together.

    A residual sum ties the channels of all that is added, a squeeze-and-excitation's gates are tied to what they
    gate, a depthwise convolution's channels to those that it reads. A grouped convolution needs equally many channels
    in each of its groups: channel j of every one of them is one group here. So it is with group norms.
    Any union of groups may be removed that leaves every layer a channel. Channels that reach the output, as the
    classifier's do, are in no group.

    Args:
        model: the model; it is traced as a copy, in eval mode.
        inputs: what it takes.

    Returns:
        In the order of the model's modules, by first layer and first channel.

    Raises:
        ImportError: without Torch-Pruning.
        ValueError: the model cannot be traced.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 5, 1))
        >>> find_groups(net, torch.zeros(1, 3, 8, 8))[1]
        Group(channels={'0': (1,), '2': (1,)}, parameters=43)
    """
    graph = traced(model, inputs)
    names = {module: name for name, module in graph.model.named_modules()}
    ties = list(all_ties(graph))
    sets = _Sets()
    congruent: dict[Any, tuple[str, int]] = {}
    touched: list[tuple[tuple[str, int], Any, str, int]] = []  # (channel, node, "in" or "out", index there)
    fixed: list[tuple[str, int]] = []
    for tie in ties:
        for item in tie.items:
            node, side = item.dep.target, side_of(graph, item.dep)
            period = _period(node.module, side)
            for index, root in zip(item.idxs, item.root_idxs, strict=True):
                channel = (names[tie.root], root)
                touched.append((channel, node, side, index))
                if is_layer(node.module) and side == "out":
                    sets.unite(channel, (names[node.module], index))
                if period is not None:
                    sets.unite(channel, congruent.setdefault((node, side, index % period), channel))
                if tie.is_output:
                    fixed.append(channel)
    kept = {sets.top(channel) for channel in fixed}
    found: dict[tuple[str, int], dict[Any, dict[str, set[int]]]] = {}
    for channel, node, side, index in touched:
        top = sets.top(channel)
        if top not in kept:
            found.setdefault(top, {}).setdefault(node, {"in": set(), "out": set()})[side].add(index)
    order = {name: i for i, name in enumerate(names.values())}
    groups = []
    for nodes in found.values():
        channels = {
            names[node.module]: tuple(sorted(parts["out"]))
            for node, parts in nodes.items()
            if is_layer(node.module) and parts["out"]
        }
        lost = sum(_lost(node, len(parts["out"]), len(parts["in"])) for node, parts in nodes.items())
        groups.append(Group({name: channels[name] for name in sorted(channels, key=order.__getitem__)}, lost))
    return sorted(groups, key=lambda g: next((order[name], of[0]) for name, of in g.channels.items()))


def kept_groups(groups: Sequence[Group], keep: KeepSet) -> NDArray[np.bool_]:
    """(G,): which groups stay by a keep-set; channels of layers that are not in it do.

    Example:
        >>> kept_groups([Group({"conv": (k,)}, 9) for k in range(3)], {"conv": (0, 2)})
        array([ True, False,  True])
    """
    stay = {layer: frozenset(channels) for layer, channels in keep.items()}
    return np.array([all(stay.get(n, frozenset(of)).issuperset(of) for n, of in g.channels.items()) for g in groups])


def traced(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> Any:
    """Torch-Pruning's dependency graph of a copy of the model, which is ``graph.model``, in eval mode."""
    values = as_tuple(inputs)
    pruning = _torch_pruning()
    check_parameters(model)
    with differentiable(), uncompiled():
        twin = copy.deepcopy(model).eval().requires_grad_()
        graph = pruning.DependencyGraph()
        try:
            given = tuple(v.detach()[:1].clone() for v in values)
            graph.build_dependency(twin, given, forward_fn=lambda m, x: m(*x), verbose=False)
        except Exception as error:  # whatever a model does to a tracer
            raise ValueError(
                f"Torch-Pruning cannot trace {type(model).__name__} ({type(error).__name__}: {error}), so that its "
                "channels cannot be grouped and sliced; a MaskedModel with keep-sets of your own still runs"
            ) from error
    return graph


def all_ties(graph: Any) -> Iterator[Ties]:
    """All output channels of all traced convolutions and linear layers, in order of modules, each met once."""
    seen: dict[nn.Module, set[int]] = {}
    for module in graph.model.modules():
        if is_layer(module) and module in graph.module2node:
            count = out_channels(module)
            left = [channel for channel in range(count) if channel not in seen.get(module, ())]
            if left:
                tie = ties_of(graph, module, left)
                for item in tie.items:
                    if side_of(graph, item.dep) == "out":
                        seen.setdefault(item.dep.target.module, set()).update(item.idxs)
                yield tie


def ties_of(graph: Any, module: nn.Module, channels: list[int]) -> Ties:
    """What goes with these output channels of a layer."""
    pruner = graph.get_pruner_of_module(module)
    items = graph.get_pruning_group(module, pruner.prune_out_channels, channels)
    is_output = any(not item.dep.target.outputs and side_of(graph, item.dep) == "out" for item in items)
    return Ties(module, items, is_output)


def is_layer(module: Any) -> bool:
    return isinstance(module, (CONVOLUTION, nn.Linear))


def out_channels(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def side_of(graph: Any, dependency: Any) -> str:
    """Whether the outputs go, or only the inputs; where one means the other, it is the outputs."""
    return "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"


def _period(module: Any, side: str) -> int | None:
    """Channels that are congruent modulo this number must go together."""
    if isinstance(module, CONVOLUTION) and module.groups > 1:
        depthwise = module.groups == module.out_channels == module.in_channels
        count = module.out_channels if side == "out" else module.in_channels
        return None if depthwise else count // module.groups
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        return module.num_channels // module.num_groups
    return None


def _lost(node: Any, outs: int, ins: int) -> int:
    """The parameters of a module that go with this many of its outputs and inputs."""
    module = node.module
    if isinstance(module, nn.Parameter):
        return int(outs * (module.numel() // module.shape[node.pruning_dim]))
    if is_layer(module):
        weight, bias = module.weight, module.bias
        if isinstance(module, CONVOLUTION) and module.groups == module.out_channels == module.in_channels:
            left = (out_channels(module) - outs) * prod(weight.shape[1:])
        else:
            wide = module.in_features if isinstance(module, nn.Linear) else module.in_channels
            left = weight.numel() * (out_channels(module) - outs) * (wide - ins) // (out_channels(module) * wide)
        return int(weight.numel() - left + (0 if bias is None else outs))
    if isinstance(module, _NORMS):
        shared = isinstance(module, nn.PReLU) and module.num_parameters == 1
        return 0 if shared else sum(outs * p.numel() // p.shape[-1] for p in module.parameters(recurse=False))
    return 0


def _torch_pruning() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise ImportError(
            "grouping and slicing channels needs Torch-Pruning: pip install 'drnet-captum[subnetworks]'"
        ) from error


class _Sets:
    """Disjoint sets of channels."""

    def __init__(self) -> None:
        self._above: dict[tuple[str, int], tuple[str, int]] = {}

    def top(self, channel: tuple[str, int]) -> tuple[str, int]:
        above = self._above
        while above.get(channel, channel) != channel:
            above[channel] = above.get(above[channel], above[channel])
            channel = above[channel]
        return channel

    def unite(self, a: tuple[str, int], b: tuple[str, int]) -> None:
        a, b = self.top(a), self.top(b)
        if a != b:
            self._above[max(a, b)] = min(a, b)
