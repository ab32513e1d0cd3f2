"""Dominators of the output in the autograd graph: the nodes that every path from the input passes through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

#: Nodes of layers with weights: the last of them on the way to the output is the classifier.
WEIGHTED = ("AddmmBackward", "MmBackward", "ConvolutionBackward", "BmmBackward", "LinearBackward")
AVERAGES = ("AvgPool", "MeanBackward")


def cut_nodes(root: Any, sources: Iterable[Any]) -> list[Any]:
    """The nodes through which every path from the sources to the root goes, output to input.

    One sweep in topological order: a node is a cut where nothing else is open, that is, where no edge jumps over it.
    """
    sources = set(sources)
    reaching, order = reaching_nodes(root, sources)
    waiting = Counter(child for node in order for child in children(node, reaching))
    open_nodes: set[Any] = {root}
    cuts = []
    ready = [root]
    while ready:
        node = ready.pop()
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
    return cuts


def children(node: Any, among: set[Any]) -> list[Any]:
    return [child for child, _ in node.next_functions if child in among]


def reaching_nodes(root: Any, sources: set[Any]) -> tuple[set[Any], list[Any]]:
    """The nodes from which a source can be reached, as a set and inputs first. No recursion: graphs are deep."""
    reaching, order, done = set(sources), list(sources), set(sources)
    stack = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            if node not in reaching and any(child in reaching for child, _ in node.next_functions):
                reaching.add(node)
                order.append(node)
            continue
        if node in done:
            continue
        done.add(node)
        stack.append((node, True))
        stack.extend((child, False) for child, _ in node.next_functions if child is not None and child not in done)
    return reaching, order


def average_pools(cuts: list[Any]) -> set[Any]:
    """Cut nodes that average over positions: a map made there has lost its places, or repeats the layer before."""
    return {node for node in cuts if any(word in node.name() for word in AVERAGES)}


def before_classifier(cuts: list[Any]) -> set[Any]:
    """The cut nodes on the input's side of the last layer with weights."""
    for i, node in enumerate(cuts):
        if node.name().startswith(WEIGHTED):
            return set(cuts[i + 1 :])
    return set(cuts)
