"""Layers by their dotted names."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import nn

INPUT = "input"
Layer = nn.Module | str


def layer_name(layer: Layer) -> str:
    return "the input" if layer == INPUT else repr(layer) if isinstance(layer, str) else type(layer).__name__


def find_module(model: Any, layer: Layer) -> nn.Module:
    """A layer by its dotted name, or the module itself."""
    if isinstance(layer, nn.Module):
        return layer
    if not isinstance(layer, str):
        raise TypeError(f"expected layer to be a module or a dotted name, got {type(layer).__name__}")
    if not isinstance(model, nn.Module):
        raise ValueError(f"layer {layer!r} is a name, and the model is a function: pass the module itself")
    names: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if layer not in names or layer == "":
        near = get_close_matches(layer, names, n=3, cutoff=0.4) or [n for n in names if n][-3:]
        raise ValueError(f"the model has no layer {layer!r}; near names: {', '.join(near)}")
    return names[layer]
