"""What an image shows where a mask hides it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

PHOTO_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, which COCO's is within 0.02 of
BLUR = 1 / 20  # sigma, as a share of the longer side
NAMES = ("mean", "black", "blur")


def fill(images: Tensor, baselines: Any, image_range: tuple[float, float] | None) -> Tensor:
    """The baseline of every image, of the images' shape.

    Args:
        images: (N, C, H, W).
        baselines: a number or a tensor that broadcasts to the images (or a tuple of one, as Captum has it); "mean": the
            mean colour of photos; "black": the least value of the range; "blur": the image itself, blurred with a sigma
            of a twentieth of its longer side. None: "mean".
        image_range: least and largest value of an image. None: images that are normalised, whose mean colour is 0.

    Raises:
        ValueError: a tensor of another shape, an unknown name, "black" without a range.

    Example:
        >>> fill(torch.rand(1, 3, 4, 4), None, (0, 255))[0, :, 0, 0]
        tensor([123.6750, 116.2800, 103.5300])
    """
    if isinstance(baselines, tuple):
        if len(baselines) != 1:
            raise ValueError(f"expected one baseline for one input, got {len(baselines)}")
        baselines = baselines[0]
    if baselines is None:
        baselines = "mean"
    if isinstance(baselines, str):
        return _named(images, baselines, image_range)
    value = torch.as_tensor(baselines, dtype=images.dtype, device=images.device)
    try:
        return value.expand_as(images)
    except RuntimeError as error:
        raise ValueError(
            f"expected baselines as a number or a tensor that broadcasts to {tuple(images.shape)}, got "
            f"{tuple(value.shape)}"
        ) from error


def _named(images: Tensor, name: str, image_range: tuple[float, float] | None) -> Tensor:
    if name == "blur":
        if images.dim() != 4:
            raise ValueError('baselines="blur" is for images, (N, C, H, W): pass a number or a tensor')
        sigma = max(images.shape[2:]) * BLUR
        blurred: Tensor = images
        for axis in (0, 1):  # one after the other: in one, the kernel is a square of thousands of pixels
            length = images.shape[3 - axis]
            size, sigmas = [1, 1], [sigma, sigma]
            size[axis] = min(2 * round(3 * sigma) + 1, 2 * length - 1)
            blurred = TF.gaussian_blur(blurred, size, sigmas)
        return blurred
    if name not in NAMES:
        raise ValueError(f"expected baselines to be a number, a tensor or one of {', '.join(NAMES)}, got {name!r}")
    if name == "black":
        if image_range is None:
            raise ValueError('baselines="black" needs image_range; for normalised images pass the value that black has')
        return torch.full_like(images, image_range[0])
    if image_range is None:
        return torch.zeros_like(images)
    low, high = image_range
    colour = PHOTO_MEAN if images.shape[1] == 3 else (sum(PHOTO_MEAN) / 3,) * images.shape[1]
    return (low + (high - low) * images.new_tensor(colour)).view(1, -1, 1, 1).expand_as(images)
