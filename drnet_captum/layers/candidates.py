"""The layers of a model that a map could be made from, and which of them decides the answer alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from drnet_captum.layers.cuts import Flow, flow, is_average
from drnet_captum.layers.layout import Placement, placement_of
from drnet_captum.layers.positions import receiving
from drnet_captum.layers.statements import is_headless
from drnet_captum.layers.trace import Call, trace

#: Of the layers with weights, as many come after the last cut layer where a network ends in branches.
SHARE_OF_BRANCHES = 0.25


@dataclass(frozen=True)
class Candidate:
    """A layer with a grid, by name, so that remembering it does not keep the model alive.

    Attributes:
        name: dotted name in the model.
        placement: its layout, grid and channels.
        is_cut: every path from the inputs to the output passes through it.
        is_eligible: it may be the target layer: it lies before the classifier, and its positions receive gradient.
    """

    name: str
    placement: Placement
    is_cut: bool
    is_eligible: bool


@dataclass(frozen=True)
class Found:
    """What one forward pass says: the cut layers from input to output, and the ends of branches after the last."""

    cuts: tuple[Candidate, ...] = ()
    branches: tuple[Candidate, ...] = ()


def find_candidates(model: nn.Module, inputs: Sequence[Tensor], additional: Sequence[Any]) -> Found:
    """One forward pass, one walk over its graph."""
    recorded = trace(model, inputs, additional)
    if recorded.output.grad_fn is None:
        return Found()
    graph = flow(recorded.output.grad_fn, recorded.sources)
    classes = recorded.output.shape[1] if recorded.output.dim() > 1 else 1
    classifier = None if is_headless(model) else graph.classifier(classes)
    classifier_rank = -1 if classifier is None else graph.rank[classifier]

    shape = (1, *inputs[0].shape[1:])
    cuts: list[tuple[Any, Candidate]] = []
    others: list[tuple[Any, Candidate]] = []
    for call in outermost(recorded.calls):
        placed = _placed(call, shape, model, graph)
        if placed is None:
            continue
        node, placement = placed
        alive = placement.layout != "tokens" or _is_alive(graph, node, placement)
        eligible = alive and graph.rank[node] > classifier_rank
        candidate = Candidate(call.name, placement, _is_cut(graph, call, node), eligible)
        (cuts if candidate.is_cut else others).append((node, candidate))
    cuts.sort(key=lambda row: -graph.rank[row[0]])
    heads = _heads(model, recorded.calls, shape)
    if any(c.is_eligible and not _is_inside(c.name, heads) for _, c in cuts):
        cuts = [(node, replace(c, is_eligible=c.is_eligible and not _is_inside(c.name, heads))) for node, c in cuts]
    return Found(tuple(c for _, c in cuts), tuple(_branches(model, graph, cuts, others)))


def _placed(call: Call, input_shape: Sequence[int], model: nn.Module, graph: Flow) -> tuple[Any, Placement] | None:
    """The one output of a call that has a grid of more than one position, and on which the answer depends."""
    found = []
    for node, shape in zip(call.nodes, call.shapes, strict=True):
        if node not in graph.rank or (len(shape) < len(input_shape) and "Convolution" in node.name()):
            continue  # the channels of a convolution over a flattened grid are not tokens
        placement = placement_of(shape, input_shape, model)
        if placement is not None and prod(placement.grid) > 1:
            found.append((node, placement))
    return found[0] if len(found) == 1 else None


def _is_cut(graph: Flow, call: Call, node: Any) -> bool:
    """Whether the call's output, all its tensors together, cuts the input from the output."""
    if is_average(node):
        return False
    return node in graph.cut_set or (len(set(call.nodes)) > 1 and graph.is_cut_by({*call.nodes} & graph.rank.keys()))


def _is_alive(graph: Flow, node: Any, placement: Placement) -> bool:
    """Whether more than half of the grid's positions receive gradient."""
    live = [position for position in receiving(graph, node) if position >= placement.prefix_tokens]
    return 2 * len(live) > prod(placement.grid)


def _heads(model: nn.Module, calls: Sequence[Call], input_shape: Sequence[int]) -> set[str]:
    """Modules that put out no grid and have less than half of the model's layers with weights: pooling, classifiers.

    What they compute inside on their way out of the grid (keys of an attention pooling) is no place to look at.
    """
    gridless = [call.name for call in calls if not any(placement_of(s, input_shape, model) for s in call.shapes)]
    weights = {name: _weighted_layers(model.get_submodule(name)) for name in gridless}
    return {name for name, count in weights.items() if 2 * count < _weighted_layers(model)}


def _weighted_layers(module: nn.Module) -> int:
    return sum(any(p.dim() > 1 for p in m.parameters(recurse=False)) for m in module.modules())


def _is_inside(name: str, modules: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in modules for i in range(1, len(parts)))


def _branches(
    model: nn.Module, graph: Flow, cuts: Sequence[tuple[Any, Candidate]], others: Sequence[tuple[Any, Candidate]]
) -> list[Candidate]:
    """The last layers of the branches that a network ends in; none where a cut layer comes after most of the network.

    Of every grid that is coarser than the last cut layer's and comes after it, the layer with most weights is taken (of
    several, the one closest to the output), and those kept from which a path leads to the output past the others.
    """
    node, last = next((row for row in reversed(cuts) if row[1].is_eligible), (None, None))
    rank, most = (len(graph.order), None) if last is None else (graph.rank[node], prod(last.placement.grid))
    if graph.share_after(rank) < SHARE_OF_BRANCHES:
        return []
    ends: dict[tuple[int, ...], tuple[int, int, Any, Candidate]] = {}
    for node, candidate in others:
        grid = candidate.placement.grid
        if candidate.is_eligible and graph.rank[node] < rank and (most is None or prod(grid) < most):
            weights = sum(p.numel() for p in model.get_submodule(candidate.name).parameters() if p.dim() > 1)
            if weights and (grid not in ends or (weights, -graph.rank[node]) > ends[grid][:2]):
                ends[grid] = (weights, -graph.rank[node], node, candidate)
    met = graph.first_met({row[2] for row in ends.values()})
    return [row[3] for row in sorted(ends.values(), key=lambda row: row[1]) if row[2] in met]


def outermost(calls: Iterable[Call]) -> list[Call]:
    """Of the modules that return the same tensors: the one that made them, or its outermost parent."""
    chosen: dict[tuple[Any, ...], Call] = {}
    for call in calls:
        first = chosen.get(call.nodes)
        if first is None or first.name.startswith(call.name + "."):
            chosen[call.nodes] = call
    return list(chosen.values())
