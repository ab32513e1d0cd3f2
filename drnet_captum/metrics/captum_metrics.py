"""Captum's infidelity and sensitivity of a method, by its name; they are called, not written again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captum.metrics
import torch
from torch import Tensor

from drnet_captum.engine.naming import Layer
from drnet_captum.engine.state import kept
from drnet_captum.engine.targets import Target
from drnet_captum.engine.unwrap import eager

from .maps import check_images
from .named import named_maps

Explain = Callable[[Tensor, Any], Tensor]


def infidelity(
    model: Callable[..., Any],
    inputs: Tensor,
    target: Target,
    method: str | Explain = "grad_cam",
    *,
    perturb_func: Callable[..., Any] | None = None,
    noise: float = 0.1,
    n_perturb_samples: int = 10,
    max_examples_per_batch: int | None = None,
    normalize: bool = False,
    generator: torch.Generator | None = None,
    layer: Layer | None = None,
    **options: Any,
) -> Tensor:
    r"""Captum's ``infidelity``: how far the map is from telling what a perturbation I does to the score.

    .. math:: E_I\left[\left(I^\top R - (y(x) - y(x - I))\right)^2\right]

    The map is brought to the input's size and expanded to its channels.

    Args:
        model: images -> scores (N, C).
        inputs: images (N, C, H, W).
        target: a class, or one for each image.
        method: a name of ``drnet_captum.methods()``, or a function of images and target that gives maps (N, H, W),
            (N, 1, H, W) or (N, C, H, W).
        perturb_func: as in Captum; ``noise`` and ``generator`` are then its own affair. None: I is gaussian noise of
            standard deviation ``noise``, in the inputs' units.
        n_perturb_samples, max_examples_per_batch, normalize: Captum's, the second brought within the bounds that Captum
            warns of (one of each image, all of them); ``normalize=True`` scales each map by the best
            factor, so that methods of different units can be compared.
        generator: of the noise, on the CPU. None: seed 0. Which copy gets which numbers depends on
            ``max_examples_per_batch``.
        layer, options: of the method, as for `named_maps`.

    Returns:
        (N,), in squared units of y, the smaller the better.

    Source: Yeh et al. 2019, arXiv 1901.09392.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
        >>> infidelity(model, torch.rand(1, 3, 2, 2), 1, "saliency").shape
        torch.Size([1])
    """
    x = check_images(inputs)
    explain = _explainer(model, method, layer, options)
    maps = explain(x, target).detach()
    maps = maps[:, None] if maps.dim() == 3 else maps
    if maps.dim() != 4 or maps.shape[1] not in (1, x.shape[1]) or maps.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"expected maps of the input's size, (N, 1 or {x.shape[1]}, {x.shape[2]}, {x.shape[3]}), got "
            f"{tuple(maps.shape)}"
        )
    drawn = generator if generator is not None else torch.Generator().manual_seed(0)

    def perturb(values: Tensor) -> tuple[Tensor, Tensor]:
        change = noise * torch.randn(values.shape, generator=drawn, device=drawn.device).to(values)
        return change, values - change

    with kept(eager(model), {x.device}):
        found: Tensor = captum.metrics.infidelity(
            model,
            perturb_func or perturb,
            x,
            maps.expand_as(x),
            target=target,
            n_perturb_samples=n_perturb_samples,
            max_examples_per_batch=_at_once(max_examples_per_batch, len(x), n_perturb_samples),
            normalize=normalize,
        )
    return found.detach()


def sensitivity_max(
    model: Callable[..., Any],
    inputs: Tensor,
    target: Target,
    method: str | Explain = "grad_cam",
    *,
    perturb_func: Callable[..., Any] | None = None,
    perturb_radius: float = 0.02,
    n_perturb_samples: int = 10,
    norm_ord: Any = "fro",
    max_examples_per_batch: int | None = None,
    generator: torch.Generator | None = None,
    layer: Layer | None = None,
    **options: Any,
) -> Tensor:
    r"""Captum's ``sensitivity_max``: how much the map changes, at most, when the image hardly does.

    .. math:: \max_{\|\delta\|_\infty \le r} \|R(x + \delta) - R(x)\| \,/\, \|R(x)\|

    over random δ, the norm over the map at the input's size.

    Args:
        perturb_func: as in Captum, of one tensor. None: δ is uniform within ``perturb_radius``, in the inputs' units.
        perturb_radius, n_perturb_samples, norm_ord, max_examples_per_batch: as for `infidelity`, and Captum's.
        generator: of δ, on the CPU. None: seed 0. Which copy gets which numbers depends on
            ``max_examples_per_batch``.
        model, inputs, target, method, layer, options: as for `infidelity`.

    Returns:
        (N,), relative to the map, the smaller the better.

    Source: Yeh et al. 2019, arXiv 1901.09392.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
        >>> sensitivity_max(model, torch.rand(1, 3, 2, 2), 1, "saliency")  # of a linear model, the same everywhere
        tensor([0.])
    """
    x = check_images(inputs)
    explain = _explainer(model, method, layer, options)
    drawn = generator if generator is not None else torch.Generator().manual_seed(0)

    def maps(values: Tensor | tuple[Tensor, ...], target: Target) -> tuple[Tensor, ...]:
        """Captum hands on a tuple, and of several examples it takes nothing but a tuple back."""
        return (explain(values[0] if isinstance(values, tuple) else values, target).detach().contiguous(),)

    def perturb(values: Tensor, radius: float) -> Tensor:
        change = torch.rand(values.shape, generator=drawn, device=drawn.device).to(values) * 2 - 1
        return values + radius * change

    with kept(eager(model), {x.device}):
        found: Tensor = captum.metrics.sensitivity_max(
            maps,
            x,
            perturb_func or perturb,
            perturb_radius=perturb_radius,
            n_perturb_samples=n_perturb_samples,
            norm_ord=norm_ord,
            max_examples_per_batch=_at_once(max_examples_per_batch, len(x), n_perturb_samples),
            target=target,
        )
    return found.detach()


def _explainer(
    model: Callable[..., Any], method: str | Explain, layer: Layer | None, options: dict[str, Any]
) -> Explain:
    """A function of images and target that gives maps."""
    if isinstance(method, str):
        return lambda values, target: named_maps(model, values, target, method, layer=layer, **options)
    if layer is not None or options:
        raise ValueError(f"expected no layer and no options with a function as method, got {[layer, *options]}")
    return method


def _at_once(limit: int | None, images: int, samples: int) -> int | None:
    """Captum wants at least one copy of every image at a time, and no more than there are."""
    return None if limit is None else min(max(limit, images), images * samples)
