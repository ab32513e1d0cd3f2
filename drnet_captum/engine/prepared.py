"""Making a captured graph cheaper: what depends on weights alone is computed once, and norms join convolutions."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from drnet_captum.engine.waiting import with_norm

aten = torch.ops.aten
NORMS = {
    aten.native_batch_norm.default,
    aten.cudnn_batch_norm.default,
    aten.miopen_batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    aten._batch_norm_no_update.default,
}
STATISTICS = ("running_mean", "running_var", "weight", "bias")  # of a norm, by the names of its schema
UNMARKED_VIEWS = {aten._unsafe_view.default}  # their schemas do not say that they may share memory


def prepare(module: fx.GraphModule) -> fx.GraphModule:
    """The graph of ATen calls, made cheaper in place. Its constants are taken as fixed.

    Raises:
        ValueError: the graph writes into a constant: the model changes its own buffers as it runs. Or the shape of a
            tensor depends on values.
    """
    check_constants(module.graph)
    fold_constants(module)
    clean(module)
    check_shapes(module.graph)
    fold_norms(module)
    clean(module)
    for node in module.graph.nodes:
        node.meta.clear()
    module.recompile()
    return module


def clean(module: fx.GraphModule) -> None:
    """Take out what nothing reads. Calls that write in place stay, constants that are left over go."""
    module.graph.eliminate_dead_code()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [*module._parameters, *module._buffers]:
        if name not in used:
            delattr(module, name)


def fold_constants(module: fx.GraphModule) -> None:
    """Compute once what depends on constants alone: narrowed weights, scales of norms, tables of positions.

    What is written into later, or drawn at random, is left. Views of a weight stay views, and cost no memory.
    """
    changed = written(module.graph)
    known: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(module, node.target)
        elif is_foldable(node) and node not in changed and all(n in known for n in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        if node.op != "get_attr" and isinstance(value, Tensor) and any(user not in known for user in node.users):
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(constant(module, value))


def is_foldable(node: fx.Node) -> bool:
    """Whether a call gives the same for the same constants, and has some."""
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags


def is_random(graph: fx.Graph) -> bool:
    """Whether a call draws random numbers."""
    return any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph.nodes)


def constant(module: fx.GraphModule, value: Tensor) -> fx.Node:
    """A node for a new constant of the module."""
    name = f"_prepared{sum(name.startswith('_prepared') for name in module._buffers)}"
    module.register_buffer(name, value, persistent=False)
    return module.graph.get_attr(name)


def written(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose memory some call writes into, also by way of views of it."""
    found: set[fx.Node] = set()
    stack = [node for call in graph.nodes for node in overwritten(call)]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            if is_view(node):
                stack.extend(node.all_input_nodes)
    return found


def overwritten(node: fx.Node) -> Iterator[fx.Node]:
    """What a call writes into."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for argument in node.target._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from nodes_in(arguments(node).get(argument.name))


def nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def is_view(node: fx.Node) -> bool:
    """Whether a call's result may share memory with what it was given."""
    if node.target is operator.getitem or node.target in UNMARKED_VIEWS:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def arguments(node: fx.Node) -> dict[str, Any]:
    """What a call was given, by the names of its schema."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def check_constants(graph: fx.Graph) -> None:
    if any(node.op == "get_attr" for node in written(graph)):
        raise ValueError(
            "compile=True cannot capture a model that writes into its own buffers as it runs: leave it out"
        )


def check_shapes(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
            continue
        if node.target is not aten.index.Tensor or any(map(is_mask, node.all_input_nodes[1:])):
            raise ValueError(
                f"compile=True cannot capture a model in which shapes depend on values ({node.target}): leave it out"
            )


def is_mask(node: fx.Node) -> bool:
    """Whether indexing by this gives as many values as the inputs happen to make true."""
    return node.op != "get_attr" and node.meta["val"].dtype in (torch.bool, torch.uint8)


def fold_norms(module: fx.GraphModule) -> None:
    """Let convolutions do the batch norms that follow them: W·s and (b − mean)·s + β, s = γ / sqrt(var + ε).

    Only where the norm is all that reads the convolution, and only with running statistics.
    """
    for node in list(module.graph.nodes):
        if node.target in NORMS:
            fold_norm(module, node)


def fold_norm(module: fx.GraphModule, norm: fx.Node) -> None:
    given = arguments(norm)
    convolution = given["input"]
    while convolution.target is aten.clone.default and len(convolution.users) == 1:  # another memory layout
        convolution = convolution.args[0]
    if convolution.target is not aten.convolution.default or len(convolution.users) != 1:
        return
    if given.get("training") or any(u.target is not operator.getitem or u.args[1] != 0 for u in norm.users):
        return
    into = arguments(convolution)
    read = [into["weight"], into["bias"], *(given.get(name) for name in STATISTICS)]
    if into["transposed"] or any(node is not None and node.op != "get_attr" for node in read):
        return
    kernel, bias, mean, var, gamma, beta = (None if node is None else getattr(module, node.target) for node in read)
    if kernel is None or mean is None or var is None:
        return
    weight, bias = with_norm(kernel, bias, mean, var, gamma, beta, given["eps" if "eps" in given else "epsilon"])
    with module.graph.inserting_before(convolution):
        convolution.args = (
            convolution.args[0],
            constant(module, torch.empty_like(kernel).copy_(weight)),  # in the layout that was chosen for the kernels
            constant(module, bias),
            *convolution.args[3:],
        )
    for item in list(norm.users):
        item.replace_all_uses_with(given["input"])
