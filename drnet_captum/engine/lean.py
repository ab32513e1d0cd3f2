"""Autograd nodes of frozen layers that save only what the gradient of their *input* needs.

PyTorch saves a convolution's and a batch norm's input for the gradients of their parameters. Explanations never ask for
those, so these nodes save the weight (which exists anyway), a scale, or the switches of a max-pool, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from drnet_captum.engine.state import is_autocast
from drnet_captum.engine.waiting import Waiting, is_worth_it, may_be_worth_it

aten = torch.ops.aten
SMALL = 1 << 17  # numbers; the nodes of smaller tensors save less than they cost
WIDE = (torch.float32, torch.float64)  # in which a norm may join a convolution: others would round the scaled weight
HEAVY = 8  # times as many numbers in the weight as in the image: laying the weight out costs more than the image


@dataclass(frozen=True)
class Terms:
    """When a lean form is taken.

    Attributes:
        small: how many numbers a tensor has, at least, for a lean node to pay.
        waits: a batch norm is expected next.
    """

    small: int
    waits: bool = False

    def pays(self, x: Tensor) -> bool:
        """Whether a tensor is large enough for a lean node to pay."""
        return x.numel() >= self.small


def placeholder(shape: torch.Size, memory_format: torch.memory_format, like: Tensor) -> Tensor:
    """A tensor whose shape and strides a backward kernel reads, and whose values it does not: left uninitialised."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def memory_format_of(x: Tensor) -> torch.memory_format:
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        return torch.channels_last_3d
    return torch.contiguous_format


class Convolution(torch.autograd.Function):
    """Convolution by a weight that needs no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
        waits: bool = False,
    ) -> Tensor:
        geometry = stride, padding, dilation, groups
        output = (convolve_later if waits else convolve)(x, weight, bias, *geometry)
        ctx.save_for_backward(weight)
        ctx.shape, ctx.format, ctx.geometry = x.shape, memory_format_of(x), geometry
        ctx.scale = None  # of a batch norm folded in
        ctx.saves_by_folding = output.numel() > weight.numel()  # or scaling the weight costs more than it saves
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        if ctx.scale is not None:
            weight = (weight * ctx.scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
        stride, padding, dilation, groups = ctx.geometry
        if is_stem(g, weight, stride, dilation, groups):
            return by_phases(g, weight, stride[0], padding, ctx.shape), *[None] * 7
        is_plain = ctx.format == torch.contiguous_format or is_heavy(weight, ctx.shape, g)
        x = placeholder(ctx.shape, torch.contiguous_format if is_plain else ctx.format, g)
        g = g.contiguous() if is_plain else g
        zeros = [0] * len(stride)
        grad = aten.convolution_backward(
            g, x, weight, None, stride, padding, dilation, False, zeros, groups, [True, False, False]
        )[0]
        return grad, *[None] * 7


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """A convolution. Two kinds that CPU kernels are slow at, channels last, are brought into a form that they like."""
    layout = memory_format_of(x)
    if layout == torch.channels_last and x.device.type == "cpu":
        if is_heavy(weight, x.shape, x):
            x = x.contiguous()
        elif stride != (1, 1) and padding == (0, 0) and weight.shape[2:] == (1, 1):
            x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)  # what a stride passes over is not read at all
    zeros = (0,) * len(stride)
    result: Tensor = torch.convolution(x, weight, bias, stride, padding, dilation, False, zeros, groups)
    return result.contiguous(memory_format=layout) if layout == torch.channels_last else result


def convolve_later(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """The same, when it is read; if the output is large enough for a norm to be worth joining."""
    sides = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, k, s, p, d in zip(x.shape[2:], weight.shape[2:], *geometry[:3], strict=True)
    ]
    shape = torch.Size((len(x), len(weight), *sides))
    if min(sides) < 1 or not is_worth_it(shape, weight):
        return convolve(x, weight, bias, *geometry)
    like = torch.empty(shape, dtype=x.dtype, device="meta", memory_format=memory_format_of(x))
    return Waiting(lambda w, b: convolve(x, w, b, *geometry), weight, bias, like, x.device)


def is_whole(
    weight: Tensor, shape: torch.Size, padding: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> bool:
    """Whether the kernel lies on the whole image at once: a linear layer, written as a convolution (VGG in timm)."""
    fits = weight.shape[1:] == shape[1:] and groups == 1 and not any(padding)
    return fits and weight[0, 0].numel() > 1 and set(dilation) == {1}


def is_heavy(weight: Tensor, shape: torch.Size, like: Tensor) -> bool:
    """Whether a kernel would be brought to the image's layout at a higher price than the image to the kernel's."""
    one = all(side == 1 for side in weight.shape[2:])
    return like.device.type == "cpu" and not one and weight.numel() > HEAVY * shape.numel()


def is_stem(g: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> bool:
    """Strided convolutions of an image's few channels, whose gradient by the input CPU kernels are slow at."""
    strided = len(stride) == 2 and stride[0] == stride[1] > 1
    return g.device.type == "cpu" and strided and groups == 1 and set(dilation) == {1} and weight.shape[1] <= 4


def by_phases(g: Tensor, weight: Tensor, s: int, padding: tuple[int, ...], shape: torch.Size) -> Tensor:
    """The gradient by the input of a convolution of stride s, as an ordinary convolution to s² times its channels.

    Input positions i with one remainder of i + padding by s meet the same entries k of the kernel, every s-th one: a
    convolution of stride 1 with those gives them, and a pixel shuffle puts the remainders together.
    """
    out, channels, *kernel = weight.shape
    taps = [-(-k // s) for k in kernel]  # entries of the kernel that one position meets
    padded = F.pad(weight, (0, taps[1] * s - kernel[1], 0, taps[0] * s - kernel[0]))
    phases = padded.view(out, channels, taps[0], s, taps[1], s).permute(1, 3, 5, 0, 2, 4)
    phases = phases.reshape(channels * s * s, out, *taps).flip(2, 3)
    whole = F.pixel_shuffle(F.conv2d(g, phases, padding=(taps[0] - 1, taps[1] - 1)), s)
    top, left = padding
    part = whole[:, :, top : top + shape[2], left : left + shape[3]]
    return F.pad(part, (0, shape[3] - part.shape[3], 0, shape[2] - part.shape[2]))  # what no stride reached


class BatchNorm(torch.autograd.Function):
    """Batch norm by running statistics: a scale and a shift per channel, so the gradient is the scale alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        scale = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
        ctx.scale = scale.view(-1, *[1] * (x.dim() - 2))  # (C, 1, …)
        ctx.folded = False  # in the backward pass
        if isinstance(x, Waiting):
            return x.joined(mean, var, weight, bias, eps)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return g if ctx.folded else (g * ctx.scale).to(g.dtype), None, None, None, None, None


class MaxPool2d(torch.autograd.Function):
    """Max pooling that keeps its switches (the winners' places) and not its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *geometry: Any) -> Tensor:
        values, switches = aten.max_pool2d_with_indices(x, *geometry)
        ctx.save_for_backward(switches.to(torch.int32))
        ctx.shape, ctx.format, ctx.geometry = x.shape, memory_format_of(x), geometry
        return values  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (switches,) = ctx.saved_tensors
        x = placeholder(ctx.shape, ctx.format, g)
        grad = aten.max_pool2d_with_indices_backward(g, x, *ctx.geometry, switches.to(torch.int64))
        return grad, None, None, None, None, None


def convolution(
    terms: Terms,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor | None:
    n = weight.dim() - 2
    if isinstance(padding, str) or weight.requires_grad or input.dim() != n + 2:
        return None
    geometry = times(n, stride), times(n, padding), times(n, dilation), groups
    if is_autocast(input.device):  # which leaves what is inside a node as it is
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if is_whole(weight, input.shape, *geometry[1:]):
        return F.linear(input.flatten(1), weight.flatten(1), bias).view(len(input), -1, *[1] * n)
    waits = terms.waits and may_be_worth_it(input, weight) and input.dtype in WIDE and not is_autocast(input.device)
    if not input.requires_grad:
        return (convolve_later if waits else convolve)(input, weight, bias, *geometry)
    if not (terms.pays(input) or is_heavy(weight, input.shape, input)):
        return None
    return Convolution.apply(input, weight, bias, *geometry, waits)  # type: ignore[no-any-return]


def batch_norm(
    terms: Terms,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None:
        return None
    if any(value is not None and value.requires_grad for value in (weight, bias)):
        return None
    if isinstance(input, Waiting) and not input.requires_grad:
        return input.joined(running_mean, running_var, weight, bias, eps)
    if not (input.requires_grad and (isinstance(input, Waiting) or terms.pays(input))):
        return None
    return BatchNorm.apply(input, running_mean, running_var, weight, bias, eps)  # type: ignore[no-any-return]


def max_pool2d(
    terms: Terms,
    input: Tensor,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    if not (input.requires_grad and terms.pays(input)) or return_indices or input.dim() != 4:
        return None
    kernel = times(2, kernel_size)
    stride = kernel if not stride else times(2, stride)
    return MaxPool2d.apply(input, kernel, stride, times(2, padding), times(2, dilation), ceil_mode)  # type: ignore[no-any-return]


def times(n: int, value: int | tuple[int, ...]) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


#: The lean form of a call, by the name of the torch function; None where it has none, and the plain call serves. Its
#: first argument says where that pays.
LAYERS: dict[str, Callable[..., Tensor | None]] = {
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "batch_norm": batch_norm,
    "max_pool2d": max_pool2d,
}
