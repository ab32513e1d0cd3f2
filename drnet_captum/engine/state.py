"""Keeping the caller's state: random generators, buffers of layers in train mode, grad and inference mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def kept(model: Any, devices: Iterable[torch.device]) -> Iterator[None]:
    """What a forward pass may change, as it was before: random generators, running statistics in train mode."""
    cpu = torch.random.get_rng_state()
    cuda = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}
    buffers = running_statistics(model)
    try:
        yield
    finally:
        torch.random.set_rng_state(cpu)
        for device, state in cuda.items():
            torch.cuda.set_rng_state(state, device)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.data.copy_(value)  # by way of .data: a graph that saved the buffer stays valid


@contextlib.contextmanager
def attributes_kept(model: Any) -> Iterator[None]:
    """What a forward pass stores in its modules (tables cached by shape or device), as it was before."""
    before = [
        (vars(m), dict(vars(m)), {k: dict(v) for k, v in vars(m).items() if type(v) is dict}) for m in modules_of(model)
    ]
    try:
        yield
    finally:
        for attributes, values, tables in before:
            for name in attributes.keys() - values.keys():
                del attributes[name]
            for name, value in values.items():
                if attributes.get(name) is not value:
                    attributes[name] = value
            for name, entries in tables.items():
                table = values[name]
                if table.keys() != entries.keys() or any(table[k] is not entries[k] for k in entries):
                    table.clear()
                    table.update(entries)


def running_statistics(model: Any) -> list[tuple[Tensor, Tensor]]:
    """The buffers that layers in train mode update as they run, with copies of their values."""
    owners = (m for m in modules_of(model) if m.training)
    return [(b, b.clone()) for m in owners for b in m.buffers(recurse=False) if isinstance(b, Tensor)]


def modules_of(model: Any) -> Iterator[nn.Module]:
    """Every module of a model once, in no order; none of a function. ``Module.modules`` takes ten times as long."""
    stack = [model] if isinstance(model, nn.Module) else []
    seen = set(stack)
    while stack:
        module = stack.pop()
        yield module
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)


def is_autocast(device: torch.device) -> bool:
    """Whether the caller's autocast is on for a device; some kinds of device have none."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Backward passes run in the dtypes of their forward pass, whatever the caller's autocast."""
    return torch.autocast(device.type, enabled=False) if is_autocast(device) else contextlib.nullcontext()


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Gradients on, whatever the caller switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def check_parameters(model: Any) -> None:
    """Parameters made in inference mode cannot be saved for a backward pass."""
    own = (parameter for module in modules_of(model) for parameter in module._parameters.values())
    if any(parameter is not None and parameter.is_inference() for parameter in own):
        raise ValueError(
            "the model's parameters were made under torch.inference_mode() and cannot take part in gradients: "
            "build or load the model outside of it"
        )
