"""A physically smaller network: removed channels are cut out of every tensor that has them, by Torch-Pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from drnet_captum.engine.inputs import as_tuple
from drnet_captum.reconstruct.groups import KeepSet, all_ties, is_layer, out_channels, side_of, ties_of, traced
from drnet_captum.reconstruct.masks import MaskedModel, checked_keep

#: How far the answers may be apart, as a share of the largest: rounding, in sums of other lengths.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


def sliced(
    model: nn.Module, keep: KeepSet, inputs: Tensor | tuple[Tensor, ...], classes: Sequence[int] | None = None
) -> nn.Module:
    """A copy of the model without the removed channels, and with the outputs of some classes only.

    It is an ordinary module in eval mode: train it, save it with ``torch.save``, export it. Before it is handed out,
    its answer to the inputs is compared with that of the :class:`MaskedModel`.

    Args:
        model: the model, in eval mode; nothing of it changes.
        keep: by layer, the channels that stay; a union of groups (:func:`find_groups`). Other layers stay whole.
        inputs: what the model takes.
        classes: the outputs that stay, in this order; ``None``: all.

    Raises:
        ImportError: without Torch-Pruning.
        TypeError: the keep-set or the classes are not as described.
        ValueError: a model in train mode; an unknown layer, channel or class; channels that stay though others that
            they are tied to go; a model that cannot be traced, or whose slices do not run or answer differently.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
        >>> net = net.eval()
        >>> small = sliced(net, {"0": (1, 3)}, torch.zeros(1, 3, 8, 8), classes=[4, 0])
        >>> {name: tuple(p.shape) for name, p in small.named_parameters()}
        {'0.weight': (2, 3, 3, 3), '0.bias': (2,), '4.weight': (2, 2), '4.bias': (2,)}
    """
    values = as_tuple(inputs)
    stay = checked_keep(model, keep)
    masked = MaskedModel(model, stay, values)
    graph = traced(model, inputs)
    small: nn.Module = graph.model
    names = {module: name for name, module in small.named_modules()}
    cuts: dict[Any, set[int]] = {}
    for name, channels in stay.items():
        layer = small.get_submodule(name)
        gone = sorted(set(range(out_channels(layer))) - set(channels))
        if gone and layer not in graph.module2node:
            raise ValueError(f"expected layers on which the answer depends, got {name!r}: it is not run")
        if gone:
            tie = ties_of(graph, layer, gone)
            if tie.is_output:
                raise ValueError(f"expected layers other than the classifier, got {name!r}: its channels are classes")
            for item in tie.items:
                cuts.setdefault((item.dep.target, side_of(graph, item.dep)), set()).update(item.idxs)
    _check_ties(graph, stay, cuts, names)
    heads = _heads(graph) if classes is not None else []
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        for (node, side), gone_there in cuts.items():
            _cut(graph, node, side, sorted(gone_there))
        for head in heads:
            _choose(head, _checked_classes(head, classes or ()))
        for name, parameter in small.named_parameters():
            parameter.requires_grad_(required[name])
        with torch.no_grad():
            answer = small(*values)
    except (RuntimeError, IndexError, AssertionError, AttributeError, KeyError) as error:
        raise ValueError(
            f"Torch-Pruning's slices of {type(model).__name__} do not run ({type(error).__name__}: {error}); a "
            "MaskedModel with the same keep-set does"
        ) from error
    _compare(masked, values, answer, classes)
    return small


def _check_ties(graph: Any, stay: KeepSet, cuts: dict[Any, set[int]], names: dict[nn.Module, str]) -> None:
    for (node, side), gone in cuts.items():
        if is_layer(node.module) and side == "out":
            name = names[node.module]
            torn = gone & set(stay.get(name, range(out_channels(node.module))))
            if torn:
                raise ValueError(
                    f"expected a keep-set of whole groups, got one that keeps channel {min(torn)} of {name!r} and "
                    "removes channels that it is tied to: build keep-sets from find_groups"
                )


def _cut(graph: Any, node: Any, side: str, gone: list[int]) -> None:
    module = node.module
    if isinstance(module, nn.LayerNorm):
        # Torch-Pruning 1.6.1 leaves the channels of layer norms in the order of a set, which is not always sorted.
        left = torch.tensor([i for i in range(module.normalized_shape[-1]) if i not in set(gone)])
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach()[..., left.to(parameter.device)]))
        module.normalized_shape = (*module.normalized_shape[:-1], len(left))
        return
    pruner = graph.get_pruner_of_module(module)
    pruner.pruning_dim = node.pruning_dim
    cut = pruner.prune_out_channels if side == "out" else pruner.prune_in_channels
    result = cut(module, gone)
    if isinstance(module, nn.Parameter):
        owner, _, attribute = graph._param_to_name[module].rpartition(".")
        setattr(graph.model.get_submodule(owner), attribute, result)


def _heads(graph: Any) -> list[nn.Module]:
    """The layers that put out the classes."""
    found: dict[nn.Module, None] = {}
    for tie in all_ties(graph):
        if tie.is_output:
            targets = [item.dep.target.module for item in tie.items if side_of(graph, item.dep) == "out"]
            found.update({module: None for module in targets if is_layer(module)})
    if not found:
        raise ValueError("expected a model that ends in a convolution or linear layer, to cut its outputs to classes")
    return list(found)


def _choose(head: Any, classes: Sequence[int]) -> None:
    for name in ("weight", "bias"):
        if getattr(head, name) is not None:
            setattr(head, name, nn.Parameter(getattr(head, name).detach()[list(classes)]))
    setattr(head, "out_features" if isinstance(head, nn.Linear) else "out_channels", len(classes))


def _checked_classes(head: Any, classes: Sequence[int]) -> Sequence[int]:
    count = out_channels(head)
    if not classes or len(set(classes)) != len(classes) or not all(0 <= c < count for c in classes):
        raise ValueError(f"expected different classes from 0 to {count - 1}, got {list(classes)}")
    return classes


def _compare(masked: MaskedModel, values: tuple[Tensor, ...], answer: Tensor, classes: Sequence[int] | None) -> None:
    with torch.no_grad():
        expected = masked(*values)
    if classes is not None:
        expected = expected[:, list(classes)]
    apart = float((answer - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not apart <= _TOLERANCE.get(expected.dtype, 0.05):
        raise ValueError(
            f"Torch-Pruning's slices of {type(masked.model).__name__} answer differently from the model with masked "
            f"channels (by {apart:.1e} of the largest): it has a step that Torch-Pruning does not see; use a "
            "MaskedModel"
        )
