"""A map laid over its photo, as strong as the map and no stronger."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.colors import Colormap, LinearSegmentedColormap
from torch.nn.functional import interpolate

from .normalize import ArrayLike, FloatArray, as_array, is_signed, normalize, to_heat

SEQUENTIAL = "turbo"
# Exactly white at zero, unlike "RdBu_r", and softer than "bwr".
DIVERGING = LinearSegmentedColormap.from_list("blue_white_red", ["#1a4fc4", "#ffffff", "#d41a26"])
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def overlay(
    image: ArrayLike,
    map: ArrayLike,
    *,
    alpha: float = 0.5,
    signed: bool | None = None,
    percentile: float = 99.0,
    cmap: str | Colormap | None = None,
) -> FloatArray:
    """The photo with a map in colour over it: (1 − a) · photo′ + a · colour(m), where a = alpha · |m|.

    m is the map as `normalize` scales it, so the photo shows untouched where the map is zero. photo′ is the
    photo turning grey as |m| rises to a half: a red cup is then not mistaken for a strong map.

    Args:
        image: (H, W, 3), floats in [0, 1] or uint8 (`ModelCard.photo` gives one).
        map: as for `to_heat`; a smaller one is enlarged bilinearly.
        alpha: opacity where the map is strongest, in [0, 1].
        signed, percentile: as for `normalize`. Signed maps are drawn red for, blue against.
        cmap: a matplotlib colormap or its name, instead of "turbo" (positive) or blue-white-red (signed).

    Returns:
        (H, W, 3) in [0, 1].

    Raises:
        ValueError: an image or a map of another kind, sizes that do not belong together, an all-zero map.

    Example:
        >>> import torch
        >>> from drnet_captum.viz import overlay
        >>> overlay(torch.ones(8, 8, 3), torch.tensor([[0.0, 1.0], [0.0, 0.0]])).shape
        (8, 8, 3)
    """
    photo = as_photo(image)
    if not 0 <= alpha <= 1:
        raise ValueError(f"expected alpha in [0, 1], got {alpha}")
    heat = fit(to_heat(map), photo.shape[:2])
    signed = is_signed(heat) if signed is None else signed
    scaled = normalize(heat, signed=signed, percentile=percentile)
    magnitude = np.abs(scaled)[..., None]
    greyness = (2 * magnitude).clip(0, 1)
    base = (1 - greyness) * photo + greyness * (photo @ LUMA)[..., None]
    mixed: FloatArray = (1 - alpha * magnitude) * base + alpha * magnitude * colour(scaled, signed, cmap)
    return mixed.astype(np.float32)


def colour(scaled: FloatArray, signed: bool, cmap: str | Colormap | None = None) -> FloatArray:
    """Colours (H, W, 3) of a normalised map; of a signed one the middle of the colormap is zero."""
    position = (scaled + 1) / 2 if signed else scaled
    rgba = colormap(cmap if cmap is not None else DIVERGING if signed else SEQUENTIAL)(position)
    return np.asarray(rgba[..., :3], dtype=np.float32)


def colormap(cmap: str | Colormap) -> Colormap:
    """A colormap by name, or itself."""
    if not isinstance(cmap, str):
        return cmap
    if cmap not in matplotlib.colormaps:
        raise ValueError(f"matplotlib has no colormap {cmap!r}: see matplotlib.colormaps")
    return matplotlib.colormaps[cmap]


def as_photo(image: ArrayLike) -> FloatArray:
    """An (H, W, 3) photo as floats in [0, 1]; `overlay` names the errors."""
    byte = str(getattr(image, "dtype", "")).endswith("uint8")
    values = as_array(image)
    if values.ndim != 3 or values.shape[2] != 3 or values.size == 0:
        raise ValueError(
            f"expected a photo of shape (H, W, 3), got {values.shape}: permute a model input to channels last"
        )
    if byte:
        values = values / 255
    if not (values.min() >= -1e-6 and values.max() <= 1 + 1e-6):  # also NaN
        raise ValueError(
            f"expected a photo with values in [0, 1] (or uint8), got {values.min():.3g} to "
            f"{values.max():.3g}: undo the model's normalisation first, ModelCard.photo() does"
        )
    return values.clip(0, 1).astype(np.float32)


def fit(heat: npt.NDArray[Any], size: tuple[int, int]) -> FloatArray:
    """A map (h, w) bilinearly enlarged to ``size`` (H, W), if the two are grids of one aspect up to rounding.

    Raises:
        ValueError: a map larger than the photo, or no stride that leads both from H to h and from W to w.
    """
    (h, w), (H, W) = heat.shape, size
    # A grid of h positions came from H pixels at a stride in [H/(h+1), H/(h-1)].
    least = max(H / (h + 1), W / (w + 1))
    most = min(H / max(h - 1, 1e-9), W / max(w - 1, 1e-9))
    if h > H or w > W or least > most:
        raise ValueError(
            f"a map of {h}×{w} does not belong to a photo of {H}×{W} pixels: pass the crop that the model "
            "saw (ModelCard.photo gives it), or bring the map to its size first; plot a "
            "signal's map as a curve"
        )
    if (h, w) == (H, W):
        return heat.astype(np.float32)
    enlarged = interpolate(torch.from_numpy(heat.astype(np.float32))[None, None], size=size, mode="bilinear")
    result: FloatArray = enlarged[0, 0].numpy()
    return result
