"""Other libraries' classes: pytorch-grad-cam, torchcam and zennit, imported when they are asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import drnet_captum as dc
from benchmarks.agreement import Reach
from benchmarks.sides import Call, Side
from benchmarks.subjects import Subject


def layer_map(subject: Subject) -> Any:
    """How these libraries are told where the channels and the grid are; None where they know."""
    if subject.target_layer.layout == "NCHW":
        return None
    return lambda activation: dc.to_map(activation, subject.target_layer)


def rectified(maps: Tensor, subject: Subject) -> Tensor:
    """(N, 1, h, w) -> (N, h, w), the positive part."""
    return maps[:, 0].clamp(min=0)


def scaled(maps: Tensor, subject: Subject) -> Tensor:
    """(N, 1, h, w) -> (N, H, W): the positive part from 0 to 1, at the images' size, and from 0 to 1 again."""

    def unit(m: Tensor) -> Tensor:
        m = m - m.amin((2, 3), keepdim=True)
        return m / (m.amax((2, 3), keepdim=True) + 1e-7)

    small = unit(maps.clamp(min=0))
    return unit(F.interpolate(small, subject.x.shape[-2:], mode="bilinear"))[:, 0]


def grad_cam_by_pytorch_grad_cam(subject: Subject) -> Call:
    """(N, H, W) from 0 to 1, of numpy, as it comes."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    made = GradCAM(subject.model, [subject.layer], reshape_transform=layer_map(subject))
    targets = [ClassifierOutputTarget(c) for c in subject.targets]
    return lambda: torch.from_numpy(np.asarray(made(subject.x, targets)))


def guided_backprop_by_pytorch_grad_cam(subject: Subject) -> Call:
    """One image after another: it takes no batches."""
    from pytorch_grad_cam import GuidedBackpropReLUModel

    made = GuidedBackpropReLUModel(subject.model)

    def run() -> Tensor:
        maps = [made(subject.x[i : i + 1].clone(), target_category=c) for i, c in enumerate(subject.targets)]
        return torch.from_numpy(np.stack(maps)).movedim(-1, 1)

    return run


def grad_cam_by_torchcam(subject: Subject) -> Call:
    """(N, h, w), the positive part."""
    from torchcam.methods import GradCAM

    made = GradCAM(subject.model, subject.layer, reshape_transform=layer_map(subject))

    def run() -> Tensor:
        maps: list[Tensor] = made(subject.targets, subject.model(subject.x), normalized=False)
        return maps[0]

    return run


def guided_backprop_by_zennit(subject: Subject) -> Call:
    """The gradient under its composite."""
    from zennit.attribution import Gradient
    from zennit.composites import GuidedBackprop

    made = Gradient(subject.model, GuidedBackprop())
    return lambda: made(subject.x, chosen(subject))[1]


def grad_x_image_by_zennit(subject: Subject) -> Call:
    """The gradient as it comes, times the input."""
    from zennit.attribution import Gradient

    made = Gradient(subject.model)
    return lambda: made(subject.x, chosen(subject))[1] * subject.x


def chosen(subject: Subject) -> Any:
    """Ones at the classes, in the output's shape."""

    def ones(output: Tensor) -> Tensor:
        return F.one_hot(torch.tensor(subject.targets, device=output.device), output.shape[1]).to(output)

    return ones


RELU_MODULES, ANY = Reach(relu_modules=True), Reach()
PEERS: dict[str, tuple[Side, ...]] = {
    "grad_cam": (
        Side("pytorch-grad-cam", grad_cam_by_pytorch_grad_cam, ANY, scaled, "grad-cam"),
        Side("torchcam", grad_cam_by_torchcam, ANY, rectified, "torchcam"),
    ),
    "guided_backprop": (
        Side("pytorch-grad-cam", guided_backprop_by_pytorch_grad_cam, RELU_MODULES, package="grad-cam"),
        Side("zennit", guided_backprop_by_zennit, RELU_MODULES, package="zennit"),
    ),
    "grad_x_image": (Side("zennit", grad_x_image_by_zennit, ANY, package="zennit"),),
}
MODULES = {"pytorch-grad-cam": "pytorch_grad_cam", "torchcam": "torchcam", "zennit": "zennit"}
