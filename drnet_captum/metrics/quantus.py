"""The library's methods for Quantus: a function with the signature of its ``explain_func``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from .named import named_maps


def explain_func(
    model: Callable[..., Any],
    inputs: Any,
    targets: Any,
    *,
    method: str = "grad_cam",
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> npt.NDArray[Any]:
    """Maps as Quantus asks for them: arrays in, an array out.

    Pass it to a metric's call as ``explain_func=drnet_captum.metrics.explain_func`` with, for example,
    ``explain_func_kwargs={"method": "guided_backprop"}``. Quantus itself is not needed here.

    Args:
        model: images -> scores (N, C).
        inputs: images (N, C, H, W), an array or a tensor; integers and float64 are taken in the model's dtype.
        targets: a class for each image, an array, a list or a tensor; or one class for all.
        method: a name of ``drnet_captum.methods()``.
        device: where to compute. None: where the model is.
        kwargs: ``layer``, ``additional_forward_args``, and options of the method's ``attribute``.

    Returns:
        (N, C, H, W), or (N, 1, H, W) of DRNet and the CAM family, float32 or the model's wider dtype.

    Raises:
        ValueError: an unknown method, targets that are not one for each image.

    Example:
        >>> import numpy as np
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> images = np.zeros((2, 3, 8, 8), dtype=np.float32)
        >>> explain_func(model=model, inputs=images, targets=np.array([0, 1]), method="saliency").shape
        (2, 3, 8, 8)
    """
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    dtype = parameter.dtype if parameter is not None else torch.float32
    if device is None:
        device = parameter.device if parameter is not None else torch.device("cpu")
    x = torch.as_tensor(inputs).detach().to(device, dtype)
    classes = torch.as_tensor(targets).detach().cpu().flatten()
    if len(classes) not in (1, len(x)):
        raise ValueError(f"expected a target for each of the {len(x)} images, got {len(classes)}")
    maps = named_maps(model, x, classes.long().tolist() if len(classes) > 1 else int(classes), method, **kwargs)
    wide = maps.detach().to("cpu", torch.promote_types(maps.dtype, torch.float32))
    array: npt.NDArray[Any] = wide.contiguous().numpy()
    return array
