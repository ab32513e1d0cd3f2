"""Inputs at the door: what can be explained, and the copies of them that a tape differentiates."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Baselines = float | Tensor | tuple[float | Tensor, ...] | None
MemoryFormat = Literal["auto", "preserve", "channels_last"]
MEMORY_FORMATS = ("auto", "preserve", "channels_last")


def as_tuple(inputs: Any, *, look: bool = True) -> tuple[Tensor, ...]:
    """The inputs as a tuple of tensors with a positive number of examples and, if values are looked at, finite ones."""
    values = inputs if isinstance(inputs, tuple) else (inputs,)
    if not values:
        raise ValueError("expected at least one input tensor, got an empty tuple")
    for value in values:
        if not isinstance(value, Tensor):
            raise TypeError(f"expected inputs of type torch.Tensor or a tuple of them, got {type(value).__name__}")
        if value.dim() == 0 or len(value) == 0:
            raise ValueError(f"expected a batch with at least one example, got an input of shape {tuple(value.shape)}")
        if look and not is_finite(value):
            raise ValueError(
                "expected finite inputs, got NaN or infinite values: check how the input was read and scaled"
            )
    return values


def is_finite(value: Tensor) -> bool:
    """Whether there is no NaN and no infinite value; of a tensor on "meta" nobody knows.

    Either makes the sum so, which takes one pass; a sum that is too large for its dtype is looked into.
    """
    if not value.dtype.is_floating_point or value.is_meta:
        return True
    with torch.no_grad():
        return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def is_tokens(inputs: tuple[Tensor, ...]) -> bool:
    """Whether the first input is integers, (N,) or (N, t): without gradient, and explained at their embedding."""
    first = inputs[0]
    return not first.dtype.is_floating_point and first.dtype != torch.bool and first.dim() < 3


def check_differentiable(inputs: tuple[Tensor, ...]) -> None:
    """Gradients with respect to the inputs exist for floating-point ones only."""
    for value in inputs:
        if not value.dtype.is_floating_point:
            raise TypeError(
                f"expected floating-point inputs, got {value.dtype}: convert images with .float() and the model's own "
                "scaling; for tokens pass layer= with the model's embedding, to which they are then attributed"
            )


def check_memory_format(memory_format: str) -> None:
    if memory_format not in MEMORY_FORMATS:
        raise ValueError(f"expected memory_format to be one of {', '.join(MEMORY_FORMATS)}, got {memory_format!r}")


def layout_of(value: Tensor, memory_format: MemoryFormat) -> torch.memory_format:
    """The memory layout that convolutions run fastest on: channels last, for images on a CPU."""
    last = memory_format == "channels_last" or (memory_format == "auto" and value.device.type == "cpu")
    last = last and value.dim() == 4 and value.dtype.is_floating_point
    return torch.channels_last if last else torch.preserve_format


def arranged(value: Tensor, memory_format: MemoryFormat) -> Tensor:
    """The tensor in that layout."""
    layout = layout_of(value, memory_format)
    return value if layout == torch.preserve_format else value.contiguous(memory_format=layout)


def baseline_of(values: tuple[Tensor, ...], baselines: Baselines) -> tuple[Tensor, ...]:
    """Captum's baselines as tensors of the inputs' shapes."""
    given = baselines if isinstance(baselines, tuple) else (baselines,) * (len(values) if baselines is None else 1)
    if len(given) != len(values):
        raise ValueError(f"expected a baseline for each of the {len(values)} inputs, got {len(given)}")
    found = []
    for value, baseline in zip(values, given, strict=True):
        if isinstance(baseline, Tensor):
            if baseline.shape[1:] != value.shape[1:] or len(baseline) not in (1, len(value)):
                raise ValueError(
                    f"expected a baseline of shape {tuple(value.shape)}, or one for all examples, got "
                    f"{tuple(baseline.shape)}"
                )
            found.append(baseline.to(value).expand_as(value))
        else:
            found.append(torch.full_like(value, 0.0 if baseline is None else baseline))
    return tuple(found)
