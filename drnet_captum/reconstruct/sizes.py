"""What a network costs by the channels that stay: parameters and multiplications, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drnet_captum.engine.inputs import as_tuple
from drnet_captum.engine.unwrap import uncompiled
from drnet_captum.reconstruct.groups import (
    CONVOLUTION,
    Group,
    all_ties,
    is_layer,
    out_channels,
    side_of,
    traced,
)

BudgetOf = Literal["parameters", "channels", "macs"]
ALWAYS = -1  # in place of a group's number: the channel is in none and always stays

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
_CONSTANT = "(all else)"


@dataclass(frozen=True)
class LayerSize:
    r"""What a layer costs, by how many channels stay on its two sides.

    .. math:: \text{parameters} = \text{pair} \cdot n_\text{in} n_\text{out} + \text{each} \cdot n_\text{out}, \qquad
              \text{MACs} = \text{pair} \cdot \text{positions} \cdot n_\text{in} n_\text{out}

    Norms and single parameters have no pairs. A depthwise convolution has one input, which always stays.

    Attributes:
        layer: dotted name.
        inputs: for each input channel the number of the group with which it falls, or -1 where it always stays.
        outputs: the same for each output channel.
        pair: weights between one input and one output channel: the kernel's area over the convolution's groups.
        each: further parameters of one output channel: its bias, its scale and shift.
        positions: at which the kernel is applied to one example, over all runs of the layer; 0 where it is not run.
    """

    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    pair: float
    each: float = 0.0
    positions: int = 1


@dataclass(frozen=True)
class _Sides:
    """By index, the group with which each input and output of a module falls."""

    ins: dict[int, int] = field(default_factory=dict)
    outs: dict[int, int] = field(default_factory=dict)


def find_sizes(model: nn.Module, inputs: Tensor | tuple[Tensor, ...], groups: Sequence[Group]) -> list[LayerSize]:
    """The sizes of all that has parameters, in the order of the model's modules.

    They are exact: with all groups the costs add up to the model's parameters, with any union of groups to those of
    its :func:`sliced` copy. Multiplications (MACs) are those of convolutions and linear layers, for one example.

    Args:
        model: the model; it is traced and run as a copy, in eval mode.
        inputs: what it takes; MACs are those at this size.
        groups: of this model, by :func:`find_groups`; channels in none of them always stay.

    Raises:
        ImportError: without Torch-Pruning.
        ValueError: the model cannot be traced; the groups do not fit it; a module that loses channels has parameters
            that do not go with its channels, or shares them with another one.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from drnet_captum.reconstruct.groups import find_groups
        >>> net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 5, 1))
        >>> x = torch.zeros(1, 3, 8, 8)
        >>> for size in find_sizes(net, x, find_groups(net, x)):
        ...     print(size)
        LayerSize(layer='0', inputs=(-1, -1, -1), outputs=(0, 1), pair=9.0, each=1.0, positions=36)
        LayerSize(layer='2', inputs=(-1,), outputs=(0, 1), pair=9.0, each=1.0, positions=16)
        LayerSize(layer='3', inputs=(0, 1), outputs=(-1, -1, -1, -1, -1), pair=1.0, each=1.0, positions=16)
    """
    graph = traced(model, inputs)
    names = {module: name for name, module in graph.model.named_modules()}
    names |= {parameter: name for name, parameter in graph.model.named_parameters()}
    sides = _sides(graph, names, groups)
    positions = _positions(graph.model, as_tuple(inputs))
    parameters = [p for m in graph.model.modules() for p in m.parameters(recurse=False)]  # shared ones several times
    sizes = []
    for module, name in names.items():
        if module in sides or is_layer(module):
            size = _size(name, graph.module2node.get(module), module, sides.get(module, _Sides()))
            own = [module] if isinstance(module, nn.Parameter) else list(module.parameters())
            if module in sides and _whole(size) != sum(p.numel() for p in own):
                raise ValueError(
                    f"{type(module).__name__} {name!r} loses channels, and its parameters do not go with them one by "
                    "one: budget_of='channels' needs no sizes"
                )
            if module in sides and any(sum(p is other for other in parameters) > 1 for p in own):
                raise ValueError(f"{name!r} loses channels and shares its parameters, of which slices have copies")
            sizes.append(replace(size, positions=positions.get(module, 0)))
    rest = sum(p.numel() for p in graph.model.parameters()) - sum(map(_whole, sizes))
    return [*sizes, LayerSize(_CONSTANT, (ALWAYS,), (ALWAYS,), 0.0, rest, 0)] if rest else sizes


class Costs:
    """Costs of sets of groups: sums over layers of products of what stays on their two sides. Whole numbers.

    What is linear in the groups is summed up beforehand, so that only layers between groups are multiplied out.

    Args:
        groups: G of them; sets are (G,) booleans.
        sizes: the layers' sizes; not read for a budget of channels, which are those in groups.
        budget_of: what is counted.

    Raises:
        ValueError: sizes that are missing or of other groups.

    Example:
        >>> groups = [Group({"a": (k,)}, 0) for k in range(3)]
        >>> costs = Costs(groups, [LayerSize("a", (ALWAYS,) * 2, (0, 1, 2), pair=9, each=1)], "parameters")
        >>> costs.of(np.array([True, False, True])), costs.total
        (38.0, 57.0)
    """

    def __init__(self, groups: Sequence[Group], sizes: Sequence[LayerSize], budget_of: BudgetOf) -> None:
        if budget_of not in get_args(BudgetOf):
            raise ValueError(f"expected budget_of to be one of {', '.join(get_args(BudgetOf))}, got {budget_of!r}")
        if not sizes and budget_of != "channels":
            raise ValueError(f"a budget of {budget_of} needs the layers' sizes: pass sizes=, or budget_of='channels'")
        count, macs = len(groups), budget_of == "macs"
        self.budget_of, self.constant = budget_of, 0.0
        self.alone = np.zeros(count)  # (G,) what each group adds whatever else stays
        if budget_of == "channels":
            self.alone += [sum(map(len, group.channels.values())) for group in groups]
            sizes = ()
        found: list[tuple[float, Values, Values]] = []
        for size in sizes:
            n_in, n_out = (_by_group(side, count) for side in (size.inputs, size.outputs))
            pair, each = (size.pair * size.positions, 0.0) if macs else (size.pair, size.each)
            self.constant += (pair * n_in[-1] + each) * n_out[-1]
            self.alone += (pair * n_in[-1] + each) * n_out[:-1] + pair * n_out[-1] * n_in[:-1]
            if pair and n_in[:-1].any() and n_out[:-1].any():
                found.append((pair, n_in[:-1], n_out[:-1]))
        # One entry for each layer with groups on both of its sides, and each of them; layer by layer.
        touched = [np.flatnonzero((n_in > 0) | (n_out > 0)) for _, n_in, n_out in found]
        self._pair = np.array([pair for pair, _, _ in found])  # (L,)
        self._starts = np.cumsum([0, *map(len, touched)])[:-1]  # (L,)
        self._layer = np.repeat(np.arange(len(found)), [len(g) for g in touched])  # (E,)
        self._group = np.concatenate([np.zeros(0, np.int64), *touched])
        rows = [np.stack([n_in, n_out])[:, g] for (_, n_in, n_out), g in zip(found, touched, strict=True)]
        self._sides = np.concatenate([np.zeros((2, 0)), *rows], axis=1)  # (2, E) channels
        self.total = self.of(np.ones(count, dtype=np.bool_))

    def counts(self, kept: Flags) -> Values:
        """(2, L): channels of the groups that stay, on the input and the output side of layers between groups."""
        n: Values = np.zeros((2, 0))
        if len(self._pair):
            n = np.add.reduceat(self._sides * kept[self._group], self._starts, axis=1)
        return n

    def of(self, kept: Flags) -> float:
        """What a set of groups costs."""
        return float(np.rint(self.constant + self.alone @ kept + self._pair @ np.multiply(*self.counts(kept))))

    def along(self, order: Numbers, stays: Flags) -> Values:
        """What ``stays`` costs together with the first 1, 2, … groups of an order; they are not in it already."""
        count = len(order)
        place = np.full(len(stays), count)  # what is not in the order comes last
        place[order] = np.arange(count)
        time = place[self._group]
        rows = np.argsort(self._layer * (count + 1) + time)  # layer by layer, in the order of time
        time, change = time[rows], self._sides[:, rows]
        passed = np.cumsum(change, axis=1)
        passed += (self.counts(stays) - passed[:, self._starts] + change[:, self._starts])[:, self._layer]
        added = self._pair[self._layer] * (np.multiply(*passed) - np.multiply(*(passed - change)))
        steps = np.bincount(time, added, count + 1)[:count] + self.alone[order]
        result: Values = np.rint(self.of(stays) + steps.cumsum())
        return result

    def prices(self, counts: Values) -> Values:
        """(G,): what each group would add where this many channels (2, L) stay."""
        n_in, n_out = self._sides
        inner = self._pair[self._layer] * (n_in * counts[1, self._layer] + n_out * (counts[0, self._layer] + n_in))
        price: Values = self.alone + np.bincount(self._group, inner, len(self.alone))
        return price


def _sides(graph: Any, names: Mapping[Any, str], groups: Sequence[Group]) -> dict[Any, _Sides]:
    """Of every module and parameter that loses something with the groups."""
    number = {(name, c): g for g, group in enumerate(groups) for name, of in group.channels.items() for c in of}
    met: set[tuple[str, int]] = set()
    sides: dict[Any, _Sides] = {}
    for tie in all_ties(graph):
        of_root = [number.get((names[tie.root], c), ALWAYS) for c in range(out_channels(tie.root))]
        for item in tie.items:
            module, is_out = item.dep.target.module, side_of(graph, item.dep) == "out"
            if module not in names:
                continue
            side = sides.setdefault(module, _Sides())
            known = side.outs if is_out else side.ins
            for index, channel in zip(item.idxs, item.root_idxs, strict=True):
                g = of_root[channel]
                of_layer = is_out and is_layer(module)
                own = number.get((names[module], index), ALWAYS) if of_layer else g
                if own != g or known.setdefault(index, g) != g:
                    raise ValueError(
                        f"channel {channel} of {names[tie.root]!r} and channel {index} of {names[module]!r} can only "
                        "go together, and the groups part them: take those of find_groups"
                    )
                if of_layer:
                    met.add((names[module], index))
    if unmet := sorted(number.keys() - met):
        raise ValueError(f"the groups have channel {unmet[0][1]} of {unmet[0][0]!r}, which the model does not run")
    return {m: s for m, s in sides.items() if any(g != ALWAYS for g in (*s.ins.values(), *s.outs.values()))}


def _size(name: str, node: Any, module: Any, sides: _Sides) -> LayerSize:
    def groups(of: Mapping[int, int], width: int) -> tuple[int, ...]:
        return tuple(of.get(index, ALWAYS) for index in range(width))

    if is_layer(module):
        weight, bias = module.weight, float(module.bias is not None)
        outputs = groups(sides.outs, out_channels(module))
        if isinstance(module, nn.Linear):
            return LayerSize(name, groups(sides.ins, module.in_features), outputs, 1.0, bias)
        area = float(prod(weight.shape[2:]))
        if module.groups == module.in_channels == module.out_channels:
            return LayerSize(name, (ALWAYS,), outputs, area, bias)
        return LayerSize(name, groups(sides.ins, module.in_channels), outputs, area / module.groups, bias)
    if isinstance(module, nn.Parameter):
        width = int(module.shape[node.pruning_dim])
        return LayerSize(name, (ALWAYS,), groups(sides.outs, width), 0.0, float(module.numel() // width))
    own = list(module.parameters())
    if isinstance(module, _NORMS) and own:
        width = own[0].shape[-1]
        is_shared = isinstance(module, nn.PReLU) and width == 1
        each = sum(p.numel() for p in own) / width
        return LayerSize(name, (ALWAYS,), (ALWAYS,) if is_shared else groups(sides.outs, width), 0.0, each)
    return LayerSize(name, (ALWAYS,), (ALWAYS,), 0.0)


def _whole(size: LayerSize) -> int:
    return round((size.pair * len(size.inputs) + size.each) * len(size.outputs))


def _positions(model: nn.Module, values: tuple[Tensor, ...]) -> dict[nn.Module, int]:
    """At how many positions of one example each layer multiplies, over all of its runs."""
    found: dict[nn.Module, int] = {}

    def count(module: Any, args: tuple[Any, ...], options: dict[str, Any], output: Tensor) -> None:
        if isinstance(module, CONVOLUTION) and module.transposed:  # its kernel goes over the inputs
            met = (*args, *options.values())[0].numel() // module.in_channels
        else:
            met = output.numel() // out_channels(module)
        found[module] = found.get(module, 0) + met

    handles = [m.register_forward_hook(count, with_kwargs=True) for m in model.modules() if is_layer(m)]
    with torch.no_grad(), uncompiled():
        model(*(v[:1] for v in values))
    for handle in handles:
        handle.remove()
    return found


def _by_group(side: tuple[int, ...], count: int) -> Values:
    """(G + 1,): how many channels of a side are in each group; last, those that always stay."""
    numbers = np.asarray(side, dtype=np.int64)
    if numbers.min(initial=ALWAYS) < ALWAYS or numbers.max(initial=ALWAYS) >= count:
        raise ValueError(f"the sizes name group {numbers.max()}, and there are {count}: they are of other groups")
    found: Values = np.bincount(np.where(numbers < 0, count, numbers), minlength=count + 1).astype(np.float64)
    return found
