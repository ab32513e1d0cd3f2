"""Plain gradients: Captum's Saliency as it is, the gradient times the image, and its mean over noisy copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack

import torch
from captum.attr import Saliency
from torch import Tensor

from drnet_captum._captum import expand_additional_forward_args, log_usage, progress
from drnet_captum.attr.base import TapeAttribution, additional_args, first_of
from drnet_captum.attr.reading import Needs, Reading, Tensors
from drnet_captum.engine.inputs import as_tuple, check_differentiable, is_tokens
from drnet_captum.engine.naming import INPUT, Layer
from drnet_captum.engine.running import RunOptions
from drnet_captum.engine.targets import Target

__all__ = ["GradXImage", "Saliency", "SmoothGrad"]


class InputGradient(TapeAttribution):
    """The base of input-size maps that are read from ∂y/∂x: one call, one forward pass, one backward pass.

    With ``layer=`` the map is about that layer's output in place of the input. For a model on integer tokens this is
    its embedding, and the map is summed over the embedding's dimensions: (N, t), as the tokens.
    """

    def read_gradient(self, inputs: Tensors, gradients: Tensors) -> Tensors:
        """From the inputs (N, …) and the gradients (K, N, …) to the maps (K, N, …)."""
        return gradients

    def rule(self) -> Literal["plain", "guided", "deconv"]:
        return "plain"

    def needs(self) -> Needs:
        return Needs(input_rules=(self.rule(),))

    def read(self, reading: Reading) -> Tensors:
        maps = self.read_gradient(reading.inputs, reading.input_gradient(self.rule()))
        return sum_tokens(maps, reading)

    def _attribute(self, inputs: Any, target: Target, additional_forward_args: Any) -> Any:
        source: Layer = INPUT if self.layer is None else self.layer
        with self._reading(inputs, [target], additional_forward_args, source=source) as reading:
            maps = self.read(reading)
        return first_of(maps, isinstance(inputs, tuple) if source == INPUT else len(maps) > 1)


def sum_tokens(maps: Tensors, reading: Reading) -> Tensors:
    """At the embedding of integer tokens (N, t): the sum over the embedding's dimensions."""
    if reading.source == INPUT or not is_tokens(reading.given):
        return tuple(m.contiguous() for m in maps)
    tokens = reading.given[0]
    return tuple(m.sum(-1) if m.shape[1:-1] == tokens.shape else m for m in maps)


class GradXImage(InputGradient):
    r"""Gradient × image: how much each input value contributes to the score, to first order.

    .. math:: R = x \odot \partial y_c / \partial x

    or, with ``gradient="guided"``, :math:`x` times the gradient of guided backpropagation. The plain one equals
    Captum's ``InputXGradient``.

    Args:
        forward_func: the model, or any function of tensors.
        layer: attribute to this layer's output in place of the input: the embedding of a model on tokens.
        gradient: "plain" or "guided".
        memory_format, precision, compile: as for :func:`explain`.

    Returns (of ``attribute``): the inputs' shape and units of y. A tuple for a tuple.

    Raises:
        ValueError: a target outside the output, NaN inputs, ``gradient="guided"`` on a model without activations.
        TypeError: inputs that are no floating-point tensors.

    Source: Shrikumar et al. 2016, "Not just a black box", arXiv 1605.01713.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2, bias=False).requires_grad_(False).eval()
        >>> _ = model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]))
        >>> GradXImage(model).attribute(torch.tensor([[1.0, 1.0, 2.0]]), target=0)
        tensor([[1., 2., 6.]])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Layer | None = None,
        *,
        gradient: Literal["plain", "guided"] = "plain",
        **running: Unpack[RunOptions],
    ) -> None:
        super().__init__(forward_func, layer, **running)
        if gradient not in ("plain", "guided"):
            raise ValueError(f"expected gradient to be 'plain' or 'guided', got {gradient!r}")
        self.gradient = gradient

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether maps are contributions (and not sensitivities): true."""
        return True

    _name = "Gradient × Image"

    def rule(self) -> Literal["plain", "guided", "deconv"]:
        return self.gradient

    def read_gradient(self, inputs: Tensors, gradients: Tensors) -> Tensors:
        return tuple(x * g for x, g in zip(inputs, gradients, strict=True))

    @log_usage
    def attribute(self, inputs: Any, target: Target = None, additional_forward_args: Any = None) -> Any:
        """Attribute the target's score to the inputs; see the class."""
        return self._attribute(inputs, target, additional_forward_args)


class SmoothGrad(TapeAttribution):
    r"""SmoothGrad: the mean signed gradient over noisy copies of the image, which cancels what fluctuates.

    .. math:: R = \frac1n \sum_{i=1}^n \frac{\partial y_c}{\partial x}\left(x + \varepsilon_i\right),
              \quad \varepsilon_i \sim \mathcal N(0, \sigma^2),\; \sigma = \text{noise\_level}\,(\max x - \min x)

    with σ of each image by itself, as in the paper. Differs from the paper's pictures, which take the absolute value:
    pass ``abs=True`` for those.

    Args:
        forward_func: the model, or any function of tensors.
        memory_format, precision, compile: as for :func:`explain`.

    Args of ``attribute``, beside Captum's:
        n_samples: noisy copies of each image.
        noise_level: σ as a share of the image's range; the paper finds 0.1 to 0.2 good.
        perturbations_per_eval: noisy copies in one forward pass. Memory grows with it, not with ``n_samples``; the
            result does not depend on it (up to rounding).
        generator: where the noise comes from, on the CPU. Default: a new one, seeded with 0. The global one is not
            used.
        abs: take absolute values of each gradient before the mean.
        show_progress: show a progress bar.

    Returns (of ``attribute``): the inputs' shape, units of y over units of x.

    Source: Smilkov et al. 2017, arXiv 1706.03825.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2).eval()
        >>> maps = SmoothGrad(model).attribute(torch.randn(1, 3), target=1, n_samples=4)
        >>> torch.allclose(maps, model.weight[1])  # a linear model's gradient is the same everywhere
        True
    """

    def __init__(self, forward_func: Callable[..., Any], **running: Unpack[RunOptions]) -> None:
        super().__init__(forward_func, **running)

    def needs(self) -> Needs:
        return Needs(input_rules=("plain",))

    @log_usage
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        n_samples: int = 50,
        noise_level: float = 0.15,
        perturbations_per_eval: int = 8,
        generator: torch.Generator | None = None,
        abs: bool = False,
        show_progress: bool = False,
    ) -> Any:
        """Attribute the target's score to the inputs; see the class."""
        maps = self.attribute_classes(
            inputs,
            [target],
            additional_forward_args,
            n_samples,
            noise_level,
            perturbations_per_eval,
            generator,
            abs,
            show_progress,
        )
        return first_of(maps, isinstance(inputs, tuple))

    def attribute_classes(
        self,
        inputs: Any,
        targets: list[Target],
        additional_forward_args: Any = None,
        n_samples: int = 50,
        noise_level: float = 0.15,
        perturbations_per_eval: int = 8,
        generator: torch.Generator | None = None,
        abs: bool = False,
        show_progress: bool = False,
    ) -> Tensors:
        """K targets on the same noisy copies, K backward passes on each forward pass: (K, N, …) for each input."""
        if n_samples < 1 or perturbations_per_eval < 1:
            raise ValueError(
                "expected n_samples and perturbations_per_eval of at least 1, "
                f"got {n_samples} and {perturbations_per_eval}"
            )
        if noise_level < 0:
            raise ValueError(f"expected a noise_level of at least 0, got {noise_level}")
        values = as_tuple(inputs)
        check_differentiable(values)
        n = len(values[0])
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        totals = [torch.zeros((len(targets), *v.shape), dtype=v.dtype, device=v.device) for v in values]
        chunks = range(0, n_samples, perturbations_per_eval)
        if show_progress:
            chunks = progress(chunks, desc=self.get_name())
        for start in chunks:
            m = min(perturbations_per_eval, n_samples - start)
            noisy = noisy_copies(values, m, noise_level, generator)
            extra = expand_additional_forward_args(additional_args(additional_forward_args), m)
            with self._reading(noisy, targets, extra, copies=m) as reading:
                grads = reading.input_gradient()
            for total, grad in zip(totals, grads, strict=True):
                grad = grad.abs() if abs else grad
                total += grad.unflatten(1, (m, n)).sum(1)
        return tuple(total / n_samples for total in totals)


def noisy_copies(values: Tensors, m: int, noise_level: float, generator: torch.Generator) -> Tensors:
    """m copies of each input, (m·N, …), with Gaussian noise of σ = noise_level·(max − min) of each example.

    The noise is drawn copy by copy on the CPU, so that it depends on the generator alone, and not on m or the device.
    """
    copies: list[list[Tensor]] = [[] for _ in values]
    for _ in range(m):
        for value, made in zip(values, copies, strict=True):
            flat = value.detach().flatten(1) if value.dim() > 1 else value.detach()[:, None]
            sigma = noise_level * (flat.amax(1) - flat.amin(1))  # (N,)
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value)
            made.append(value.detach() + sigma.view(-1, *[1] * (value.dim() - 1)) * noise)
    return tuple(torch.cat(made) for made in copies)
