"""The units of a network: the channels of its convolutions, where a mask would act, and of other layers."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from drnet_captum.engine.naming import Layer, find_module
from drnet_captum.engine.rules import is_rule_node
from drnet_captum.engine.watch import CONVOLUTIONS, NORMS
from drnet_captum.layers.cuts import Flow, flow
from drnet_captum.layers.fields import Field, fields, fitted
from drnet_captum.layers.layout import Layout, Placement, placement_of
from drnet_captum.layers.notes import Notes, Put
from drnet_captum.layers.statements import is_headless
from drnet_captum.layers.trace import trace

Kind = Literal["convolution", "layer"]
NO_UNITS = "the model has no convolution that has a grid, runs once and reaches the answer: pass layers= with others"


@dataclass(frozen=True)
class UnitLayer:
    """A layer whose channels are units.

    Attributes:
        name: dotted name of the module.
        kind: "convolution": the units are taken after the convolution's own norm and activation, where it has them:
            what a mask there removes is gone for good. "layer": they are the module's own output.
        channels: how many units there are.
        grid: the spatial size of their maps.
        field: the receptive fields of the positions.
    """

    name: str
    kind: Kind
    channels: int
    grid: tuple[int, ...]
    field: Field


@dataclass(frozen=True)
class Site:
    """Where a layer's units are met in a run of the model.

    Attributes:
        layer: the layer.
        placement: how its tensor is laid out.
        call: the number of the watched call that puts the units out; None: the module itself does.
        function: the plain name of that call's function.
        shape: of what is put out for one example.
        overwritten: whether the model writes into that tensor later on.
        order: its place among the layers, input to output.
    """

    layer: UnitLayer
    placement: Placement
    call: int | None
    function: str
    shape: tuple[int, ...]
    overwritten: bool
    order: int


@dataclass(frozen=True)
class Missing:
    """Why a layer has no units to look at."""

    why: str
    kind: Kind


#: Per model, by the inputs' shapes, by the layers' names.
_found: weakref.WeakKeyDictionary[nn.Module, dict[Any, dict[str, Site | Missing]]] = weakref.WeakKeyDictionary()


def find_units(
    model: nn.Module, inputs: Sequence[Tensor], additional: Sequence[Any] = (), layers: Sequence[Layer] | None = None
) -> list[Site]:
    """Where the units of these layers are met; ``None``: of every convolution with a grid, input to output.

    Convolutions that run more than once, as heads that pyramid levels share, are then left out with a warning.

    Raises:
        ValueError: a layer that is unknown, shares its module, has no grid or no gradient, or puts out several tensors.
    """
    places = look_for_units(model, inputs, additional)
    if layers is None:
        layers = [
            name for name, place in places.items() if isinstance(place, Site) and place.layer.kind == "convolution"
        ]
        left_out = {n: p.why for n, p in places.items() if isinstance(p, Missing) and p.kind == "convolution"}
        if left_out:
            said = "; ".join(f"{name}, as {why}" for name, why in left_out.items())
            warnings.warn(f"convolutions are left out: {said}", stacklevel=2)
    names = {module: name for name, module in model.named_modules()}
    chosen: dict[str, Site] = {}
    for layer in layers:
        module = find_module(model, layer)
        if module not in names:
            raise ValueError(f"expected layers of the model, got a {type(module).__name__} that is no part of it")
        name = names[module]
        if name in chosen:
            raise ValueError(f"expected different layers, got the module {name!r} twice: names may share a module")
        place = places.get(name, Missing("it is not run, or the answer does not depend on it", "layer"))
        if isinstance(place, Missing):
            there = [n for n, p in places.items() if isinstance(p, Site)]
            raise ValueError(
                f"layer {name!r} has no units to look at: {place.why}; layers that have: {', '.join(there)}"
            )
        chosen[name] = place
    return list(chosen.values())


def look_for_units(
    model: nn.Module, inputs: Sequence[Tensor], additional: Sequence[Any] = ()
) -> dict[str, Site | Missing]:
    """By name, where the units of every layer are met, or why there are none; looked for once for a size of inputs."""
    modules = tuple(id(module) for module in model.modules())
    key = (tuple((v.shape[1:], v.dtype) for v in inputs), model.training, modules)
    known = _found.setdefault(model, {})
    if key not in known:
        known[key] = _look(model, inputs, additional)
    return known[key]


def _look(model: nn.Module, inputs: Sequence[Tensor], additional: Sequence[Any]) -> dict[str, Site | Missing]:
    """One run on one example, one walk over its graph."""
    notes = Notes(model)
    recorded = trace(model, inputs, additional, notes.taken())
    if recorded.output.grad_fn is None:
        return {}
    graph = flow(recorded.output.grad_fn, recorded.sources)
    classes = recorded.output.shape[1] if recorded.output.dim() > 1 else 1
    classifier = None if is_headless(model) else graph.classifier(classes)
    convolutions: dict[str, list[Put]] = {}
    for put in notes.calls.values():
        is_unit_layer = put.function in CONVOLUTIONS and put.node is not classifier  # whose channels are the classes
        if is_unit_layer and put.module and put.node in graph.rank:
            convolutions.setdefault(put.module, []).append(put)
    found: list[tuple[int, str, Kind, Put]] = []
    missing: dict[str, Missing] = {}
    for name in dict.fromkeys([*convolutions, *notes.runs]):
        kind: Kind = "convolution" if name in convolutions else "layer"
        puts = convolutions.get(name) or [put for run in notes.runs[name] for put in run if put.node in graph.rank]
        runs = len(puts if name in convolutions else notes.runs[name])
        if runs > 1:
            missing[name] = Missing(
                f"it runs {runs} times in one forward pass, and its channels are not one unit", kind
            )
        elif len(puts) > 1:
            missing[name] = Missing(f"it puts out {len(puts)} tensors", "layer")
        elif puts:
            put = _finished(puts[0], notes, graph) if name in convolutions else puts[0]
            found.append((graph.rank[put.node], name, kind, put))
    return missing | _sites(model, graph, inputs[0], sorted(found, key=lambda row: -row[0]))


def _finished(put: Put, notes: Notes, graph: Flow) -> Put:
    """What a convolution put out after the norm and the activation that are all that reads it."""
    for is_next in (is_norm, is_activation):
        readers = graph.consumers.get(put.node, [])
        after = notes.calls.get(readers[0][0]) if len(readers) == 1 else None
        if after is not None and is_next(after):
            put = after
    return put


def is_norm(put: Put) -> bool:
    return put.function in NORMS


def is_activation(put: Put) -> bool:
    return is_rule_node(put.node)


def _sites(
    model: nn.Module, graph: Flow, image: Tensor, found: Sequence[tuple[int, str, Kind, Put]]
) -> dict[str, Site | Missing]:
    shape = (1, *image.shape[1:])
    seen = fields(graph, shape[2:])
    sites: dict[str, Site | Missing] = {}
    for _, name, kind, put in found:
        placement = placement_of(put.shape, shape, model)
        if kind == "convolution" and len(put.shape) == len(shape):
            placement = Placement("NCHW", put.shape[2:], put.shape[1])
        if placement is None or prod(placement.grid) == 1:
            sites[name] = Missing(f"it puts out {put.shape}, which has no grid of positions", "layer")
            continue
        field = fitted(seen[put.node], placement.grid, shape[2:])
        layer = UnitLayer(name, kind, placement.channels, placement.grid, field)
        sites[name] = Site(layer, placement, put.call, put.function, put.shape[1:], put.is_overwritten, len(sites))
    return sites


def importance(activation: Tensor, gradient: Tensor, layout: Layout) -> Tensor:
    """s_k = Σ_positions F_k · ∂y/∂F_k: how much y would fall, to first order, if unit k were zero.

    Args:
        activation: F, (N, C, …), or channels last, as ``layout`` says.
        gradient: ∂y/∂F, of the same shape.
        layout: where the channels are.

    Returns:
        (N, C).

    Example:
        >>> import torch
        >>> importance(torch.ones(2, 5, 4, 4), torch.full((2, 5, 4, 4), 0.5), "NCHW")[0]
        tensor([8., 8., 8., 8., 8.])
    """
    channel = 0 if layout == "NCHW" else -1
    if activation.device.type != "cpu":
        product = activation * gradient
        return product.movedim(1 if layout == "NCHW" else -1, 1).flatten(2).sum(2)
    # An example at a time: the product stays in the cache.
    rows = zip(activation, gradient, strict=True)
    return torch.stack([(f * g).movedim(channel, 0).flatten(1).sum(1) for f, g in rows])
