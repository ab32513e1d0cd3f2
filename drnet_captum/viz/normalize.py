"""From an attribution of any shape to one number per pixel, and from that to a displayable range."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float32]
ArrayLike = Tensor | npt.NDArray[Any]


def to_heat(map: ArrayLike) -> FloatArray:
    """One value per position: the sum of a map over its channels, sign kept.

    Args:
        map: (H, W), or (C, H, W) with any C; a tensor on any device and of any real dtype, or an array.

    Returns:
        (H, W), in the map's units.

    Raises:
        ValueError: another number of dimensions (a batch, a signal, a volume), an empty map, NaN or infinity.
        TypeError: complex values.

    Example:
        >>> import torch
        >>> from drnet_captum.viz import to_heat
        >>> to_heat(torch.tensor([[[1.0, -2.0]], [[3.0, 1.0]]]))
        array([[ 4., -1.]], dtype=float32)
    """
    values = as_array(map)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"expected one map of shape (H, W) or (C, H, W), got {values.shape}: take one map out of a batch "
            "(map[0]), plot a signal's map as a curve, and take a slice of a volume's"
        )
    if values.size == 0:
        raise ValueError(f"expected a map with at least one value, got the shape {values.shape}")
    heat = values.sum(0) if values.ndim == 3 else values
    if not np.isfinite(heat).all():
        raise ValueError("the map has NaN or infinite values: look for them in the model or its input")
    return heat.astype(np.float32)


def normalize(map: ArrayLike, *, signed: bool | None = None, percentile: float = 99.0) -> FloatArray:
    """A map scaled for display: to [0, 1] if positive, to [-1, 1] if signed, zero staying zero.

    The value at ``percentile`` of all positions becomes 1 and what is above it is clipped, so that a few
    extreme pixels do not darken the rest. If more than that share of the map is zero, the maximum becomes 1.

    Args:
        map: as for `to_heat`.
        signed: False shows the positive part alone; True scales by magnitude; None is True if any value is
            negative.
        percentile: in (0, 100]; 100 clips nothing.

    Raises:
        ValueError: nothing to show (all zero, or no positive value with ``signed=False``), and as `to_heat`.

    Example:
        >>> import torch
        >>> from drnet_captum.viz import normalize
        >>> normalize(torch.tensor([[-1.0, 0.0], [2.0, 4.0]]), percentile=100)
        array([[-0.25,  0.  ],
               [ 0.5 ,  1.  ]], dtype=float32)
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"expected a percentile in (0, 100], got {percentile}")
    heat = to_heat(map).astype(np.float64)
    if signed is None:
        signed = is_signed(heat)
    if not signed:
        heat = heat.clip(0)
    magnitude = np.abs(heat)
    if not magnitude.any():
        what = "all zero" if signed else "nowhere positive"
        raise ValueError(f"the map is {what}: there is nothing to scale")
    scale = float(np.percentile(magnitude, percentile)) or float(magnitude.max())
    return (heat / scale).clip(-1, 1).astype(np.float32)


def is_signed(heat: npt.NDArray[Any]) -> bool:
    """Whether a map has negative values."""
    return bool((heat < 0).any())


def as_array(values: ArrayLike) -> npt.NDArray[np.float64]:
    """Any real tensor or array as float64 on the CPU (bfloat16 has no numpy dtype)."""
    if isinstance(values, Tensor):
        if values.is_complex():
            raise TypeError(f"expected real values, got {values.dtype}")
        converted: npt.NDArray[np.float64] = values.detach().to("cpu", torch.float64).numpy()
        return converted
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected a tensor or an array of real numbers, got {array.dtype}")
    return array.astype(np.float64)
