"""What a pixel is replaced by."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from drnet_captum.engine.inputs import baseline_of

Baselines = float | Tensor | str
BLUR_SIZE, BLUR_SIGMA = 11, 5.0  # pixels, RISE's


def blurred(images: Tensor) -> Tensor:
    """(N, C, H, W) without their detail: a gaussian of sigma 5 in 11×11 pixels, as RISE's authors take."""
    height, width = images.shape[2:]
    size = [min(BLUR_SIZE, 2 * width - 1), min(BLUR_SIZE, 2 * height - 1)]  # what reflection at the edge allows
    found: Tensor = gaussian_blur(images, size, [BLUR_SIGMA, BLUR_SIGMA])
    return found


def filling(images: Tensor, baselines: Baselines) -> Tensor:
    """The baseline of every image.

    Args:
        images: (N, C, H, W).
        baselines: a number; a tensor of the images' shape, or of one image's with a first dimension of 1; "mean", of
            each image and channel; "blur", as `blurred`.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: a tensor of another shape, an unknown name.

    Example:
        >>> import torch
        >>> filling(torch.tensor([[[[1.0, 3.0]]]]), "mean")
        tensor([[[[2., 2.]]]])
    """
    if not isinstance(baselines, str):
        return baseline_of((images,), baselines)[0]
    if baselines == "blur":
        return blurred(images)
    if baselines == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    raise ValueError(f'expected baselines as a number, a tensor, "mean" or "blur", got {baselines!r}')
