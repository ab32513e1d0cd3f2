"""Keeping what chosen layers put out, or take in, while a model runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from drnet_captum.engine.naming import Layer, layer_name

Kept = dict[Layer, tuple[Tensor, ...]]


@contextlib.contextmanager
def tapped(modules: Mapping[Layer, nn.Module], at_layer_inputs: bool) -> Iterator[Kept]:
    """Hooks on the modules, gone when the block ends; gives the tensors that the last run of each of them kept.

    Where no graph has reached a layer yet, its tensors become leaves: the graph begins there.
    """
    thread = threading.get_ident()
    kept: Kept = {}
    handles = []

    def keep(name: Layer, value: Any) -> Any:
        if threading.get_ident() != thread:
            raise ValueError(
                "the model runs this layer in other threads (DataParallel over several devices): "
                "pass the model itself, not the wrapper or a function around it"
            )
        parts = value if isinstance(value, (tuple, list)) else (value,)
        if not any(isinstance(t, Tensor) for t in parts):
            raise TypeError(
                f"expected layer {layer_name(name)} to put out a tensor or a tuple of tensors, got "
                f"{type(value).__name__}: choose another layer"
            )
        with torch._C.DisableTorchFunction():
            parts = [t if not isinstance(t, Tensor) or t.requires_grad else leaf(t) for t in parts]
            kept[name] = tuple(t for t in parts if isinstance(t, Tensor))
            # Copies, as what comes after the layer may write into what it gets; sizes beside tensors go on as they are.
            copies = [t.clone() if isinstance(t, Tensor) else t for t in parts]
        if not isinstance(value, (tuple, list)):
            return copies[0]
        return type(value)(copies) if type(value) in (tuple, list) else type(value)(*copies)

    try:
        for name, module in modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                raise ValueError(
                    f"layer {layer_name(name)} is scripted, and cannot be looked into: pass the eager model"
                )
            if at_layer_inputs:
                handles.append(module.register_forward_pre_hook(lambda m, args, name=name: tuple(keep(name, args))))
            else:
                handles.append(module.register_forward_hook(lambda m, args, out, name=name: keep(name, out)))
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def leaf(value: Tensor) -> Tensor:
    value = value.detach()
    return value.requires_grad_() if value.dtype.is_floating_point else value
