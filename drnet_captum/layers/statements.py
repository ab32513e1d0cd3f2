"""What a model states of itself: its input's size, its tokens, its layout. Read, never relied on alone."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import nn


def stated(model: nn.Module, read: Callable[[nn.Module], Any]) -> Any:
    """The first answer of the model or of the modules right inside it, as wrappers state nothing; None without one."""
    for module in (model, *model.children()):
        value = read(module)
        if value is not None:
            return value
    return None


def prefix_tokens(model: nn.Module) -> int | None:
    """The number of class, distillation and register tokens before the grid (timm's ``num_prefix_tokens``)."""
    value = stated(model, lambda m: getattr(m, "num_prefix_tokens", None))
    return value if isinstance(value, int) else None


def output_format(model: nn.Module) -> str | None:
    """The layout of the model's features: "NCHW", "NHWC" or "NLC" (timm's ``output_fmt``)."""
    value = stated(model, lambda m: getattr(m, "output_fmt", None))
    return None if value is None else str(getattr(value, "value", value))


def patch_grid(model: nn.Module) -> tuple[int, ...] | None:
    """The grid of patches that the model was built for (timm's ``patch_embed.grid_size``)."""
    value = stated(model, lambda m: getattr(getattr(m, "patch_embed", None), "grid_size", None))
    return tuple(value) if isinstance(value, (tuple, list)) else None


def raster_grid(model: nn.Module) -> tuple[int, ...] | None:
    """The grid whose tokens come in rows, where a model orders those of finer grids otherwise (Hiera's ``unroll``)."""
    unroll = stated(model, lambda m: getattr(m, "unroll", None))
    size, schedule = getattr(unroll, "size", None), getattr(unroll, "schedule", None)
    if size is None or schedule is None:
        return None
    return tuple(side // prod(strides) for side, strides in zip(size, zip(*schedule, strict=True), strict=True))


def is_headless(model: nn.Module) -> bool:
    """Whether the model says that it has no classes, so that its output is an embedding."""
    return bool(stated(model, lambda m: getattr(m, "num_classes", None)) == 0)


def input_sizes(model: nn.Module) -> list[tuple[int, ...]]:
    """(C, H, W) as timm, torchvision and Hugging Face models state it, 224×224 by default; then other channels.

    The channels that the first convolution takes come second: a stem may rearrange the image before it.
    """
    height, width = stated(model, _image_size) or (224, 224)
    config = stated(model, lambda m: getattr(m, "pretrained_cfg", None)) or {}
    channels = stated(model, lambda m: getattr(getattr(m, "config", None), "num_channels", None))
    channels = channels or config.get("input_size", (3,))[0]
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    first = next((m.in_channels for m in model.modules() if isinstance(m, kinds)), channels)
    return [(c, height, width) for c in dict.fromkeys((channels, first))]


def _image_size(module: nn.Module) -> tuple[int, int] | None:
    """(H, W): of the patch embedding that was built, then of the configuration."""
    embedding = getattr(module, "patch_embed", None)
    for value in (
        getattr(embedding, "img_size", None) if getattr(embedding, "strict_img_size", False) else None,
        (getattr(module, "pretrained_cfg", None) or {}).get("input_size", (None,))[1:],
        getattr(getattr(module, "config", None), "image_size", None),
        getattr(module, "image_size", None),
    ):
        if isinstance(value, int):
            return value, value
        if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, int) for v in value):
            return value[0], value[1]
    return None
