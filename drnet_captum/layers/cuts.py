"""Cuts of a recorded graph: the nodes, and the sets of nodes, that every path from the input to the output passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

#: Nodes of layers with weights: the last of them on the way to the output may be the classifier.
WEIGHTED = ("AddmmBackward", "MmBackward", "ConvolutionBackward", "BmmBackward", "LinearBackward")
NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RmsNorm")
AVERAGES = ("AvgPool", "MeanBackward")


@dataclass(frozen=True)
class Flow:
    """The part of an autograd graph that lies between an output and what it is computed from.

    Attributes:
        sources: the nodes of the inputs.
        order: the nodes on the way, output to input, each after all that read it.
        cuts: those of them that every path passes, output to input.
    """

    sources: set[Any]
    order: list[Any]
    cuts: list[Any]

    @cached_property
    def rank(self) -> dict[Any, int]:
        """Each node's place in the order, 0 for the output."""
        return {node: i for i, node in enumerate(self.order)}

    @cached_property
    def cut_set(self) -> set[Any]:
        return set(self.cuts)

    @cached_property
    def consumers(self) -> dict[Any, list[tuple[Any, int, int]]]:
        """What reads a node: (reading node, which of its arguments, which of the node's outputs)."""
        found: dict[Any, list[tuple[Any, int, int]]] = {}
        for node in self.order:
            for i, (child, output) in enumerate(node.next_functions):
                if child in self.rank:
                    found.setdefault(child, []).append((node, i, output))
        return found

    def first_met(self, nodes: set[Any]) -> set[Any]:
        """Those of the nodes, or of the sources, that a path from the output meets before any other of them."""
        stack, seen, met = [self.order[0]], set(), set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in nodes or node in self.sources:
                met.add(node)
            else:
                stack.extend(child for child, _ in node.next_functions if child in self.rank)
        return met

    def is_cut_by(self, nodes: set[Any]) -> bool:
        """Whether no path to a source is left without these nodes."""
        return self.first_met(nodes) <= nodes

    def share_after(self, rank: int) -> float:
        """The share of the steps with weights that come after a place in the order."""
        ranks = [i for i, node in enumerate(self.order) if node.name().startswith(WEIGHTED)]
        return sum(i < rank for i in ranks) / max(1, len(ranks))

    def classifier(self, classes: int) -> Any | None:
        """The convolution or linear layer over positions whose output, averaged, is the answer; None if there is none.

        It is the last layer with weights, no norm follows it, and it puts out ``classes`` channels. Classifiers after
        the pooling are no concern here: no layer with a grid comes after them.
        """
        for node in self.order:
            if any(word in node.name() for word in NORMS):
                return None
            if node.name().startswith(WEIGHTED):
                shape = output_shape(node)
                return node if len(shape) > 1 and classes in (shape[1], shape[-1]) else None
        return None


def flow(root: Any, sources: Iterable[Any]) -> Flow:
    """The nodes between the root and the sources, in order, and those through which every path goes.

    One sweep in topological order: a node is a cut where nothing else is open, that is, where no edge jumps over it.
    """
    sources = set(sources)
    reaching = reaching_nodes(root, sources)
    waiting = Counter(child for node in reaching for child in children(node, reaching))
    open_nodes: set[Any] = {root}
    order, cuts = [], []
    ready = [root]
    while ready:
        node = ready.pop()
        order.append(node)
        if len(open_nodes) == 1:
            cuts.append(node)
        open_nodes.discard(node)
        if node in sources:
            open_nodes.add(None)  # a path that has ended: nothing below is on it
        for child in children(node, reaching):
            open_nodes.add(child)
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    return Flow(sources, order, cuts)


def children(node: Any, among: set[Any]) -> list[Any]:
    return [child for child, _ in node.next_functions if child in among]


def reaching_nodes(root: Any, sources: set[Any]) -> set[Any]:
    """The nodes from which a source can be reached. No recursion: graphs are deep."""
    reaching, done = set(sources), set(sources)
    stack = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            if any(child in reaching for child, _ in node.next_functions):
                reaching.add(node)
            continue
        if node in done:
            continue
        done.add(node)
        stack.append((node, True))
        stack.extend((child, False) for child, _ in node.next_functions if child is not None and child not in done)
    return reaching


def is_average(node: Any) -> bool:
    """Whether a node averages over positions: a map made there has lost its places, or repeats the layer before."""
    return any(word in node.name() for word in AVERAGES)


def output_shape(node: Any, output: int = 0) -> tuple[int, ...]:
    """The shape of what a node put out."""
    return tuple(node._input_metadata[output].shape)
