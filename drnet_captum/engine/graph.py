"""Reading a recorded autograd graph: its nodes, the activations that escaped, and what can be merged in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from typing import Any

from torch import Tensor

from drnet_captum.engine.lean import BatchNorm, Convolution

#: Native nodes of activation functions, and custom ones named after them.
ACTIVATION_NAMES = re.compile(
    r"Relu|ReLU|Elu|Gelu|GELU|Silu|SiLU|[Ss]wish|Mish|Softplus|Softsign|Hardtanh|Prelu|Threshold|Tanh|shrink|LogSigmoid"
)
#: Nodes that stand for a whole compiled or scripted region.
OPAQUE_NAMES = re.compile(r"CompiledFunction|DifferentiableGraph|torch::jit")


def nodes(roots: Iterable[Tensor]) -> Iterator[Any]:
    """Every autograd node from the roots down, each once."""
    return nodes_until(roots, set())


def nodes_until(roots: Iterable[Tensor], stop: set[Any]) -> Iterator[Any]:
    """The nodes from the roots down to some, exclusive: what is computed from those."""
    stack = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen = {*stack, *stop}
    while stack:
        node = stack.pop()
        yield node
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)


def escaped_activations(found: Iterable[Any], gates: set[Any]) -> list[str]:
    """Names of nodes that are activations, or may hide some, and do not follow the tape's switch."""
    names = {node.name() for node in found if node not in gates}
    return sorted(n for n in names if ACTIVATION_NAMES.search(n) or OPAQUE_NAMES.search(n))


def lowest(chosen: set[Any]) -> set[Any]:
    """Those of the chosen nodes below which there is no other: a backward pass to them goes by all of them."""
    above: set[Any] = set()  # nodes from which one of them can be reached, itself not counted
    done: set[Any] = set()
    for start in chosen:
        stack = [(start, False)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                if any(child in chosen or child in above for child, _ in node.next_functions):
                    above.add(node)
            elif node not in done:
                done.add(node)
                stack.append((node, True))
                stack.extend((child, False) for child, _ in node.next_functions if child is not None)
    return chosen - above


def fold_batch_norms(found: list[Any], apart: Container[Any] = (), always: bool = False) -> None:
    """Let a convolution's backward pass do its batch norm's: g·s then Wᵀ is (s·W)ᵀ, one pass over memory less.

    Only where the norm is all that reads the convolution's output, and the weight is smaller than the output, or
    ``always`` because it is done once for many passes; and not below convolutions that are kept ``apart``, because the
    gradient by their output is wanted.
    """
    readers = Counter(child for node in found for child, _ in node.next_functions)
    for node in found:
        if getattr(node, "_forward_cls", None) is not BatchNorm:
            continue
        below = node.next_functions[0][0]
        alone = getattr(below, "_forward_cls", None) is Convolution and readers[below] == 1
        if alone and below not in apart and (always or below.saves_by_folding):
            below.scale, node.folded = node.scale, True
