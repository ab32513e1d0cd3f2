"""RISE: what a classifier needs to see, by masking the image at random."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, Unpack

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor, nn

from drnet_captum._captum import expand_additional_forward_args, log_usage
from drnet_captum.attr.base import additional_args, first_of, uncaptured
from drnet_captum.attr.reading import Tensors
from drnet_captum.attr.score import scores
from drnet_captum.engine.inputs import as_tuple, check_differentiable, layout_of
from drnet_captum.engine.running import RunOptions
from drnet_captum.engine.targets import Target, check_output
from drnet_captum.engine.unwrap import eager
from drnet_captum.masking.estimate import EVERY, Estimate
from drnet_captum.masking.options import MaskingOptions
from drnet_captum.masking.run import MaskedRun
from drnet_captum.masking.sums import Normalize

RiseScore = Literal["logit", "log_prob", "probability"]


class RISE(PerturbationAttribution):
    r"""RISE: the mean of random masks, weighted by the score that the image gets under each.

    .. math:: S = \sum_i (w_i - \bar w)\, M_i, \qquad w_i = y_c\left(b + M_i \odot (x - b)\right)

    over N smooth random masks (:class:`drnet_captum.masking.random_masks.RandomMasks`). The paper's form, without
    :math:`\bar w` and divided by N·p, is ``normalize="expectation"`` with ``score="probability"``.

    Args:
        forward_func: the model, or any function of tensors, (N, C, H, W) -> scores.
        memory_format, precision: as for :func:`explain`.

    Args of ``attribute``, beside Captum's:
        inputs: images (N, C, H, W), or signals or volumes, for which ``grid`` has one number or three, or a square one.
        n_masks, grid, keep_probability, perturbations_per_eval, normalize, generator, show_progress, stop_at: as for
            :class:`DRISE`.
        baselines: what hidden parts show: a number or tensor, or "blur". None: 0, the mean colour of normalised images.
        score: w is the target's "logit" (or whatever the model returns), "log_prob" or "probability".

    Returns (of ``attribute``): the inputs' shape, alike in all channels, in units of w (times masks).

    Source: Petsiuk et al. 2018, arXiv 1806.07421.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> RISE(model).attribute(torch.rand(2, 3, 8, 8), target=1, n_masks=50, grid=(4, 4)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, forward_func: Callable[..., Any], **running: Unpack[RunOptions]) -> None:
        super().__init__(forward_func)
        self.running = uncaptured(self, running)

    @classmethod
    def get_name(cls) -> str:
        """As the paper writes it."""
        return "RISE"

    @log_usage
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        n_masks: int = 5000,
        grid: tuple[int, ...] = (16, 16),
        keep_probability: float = 0.5,
        baselines: Any = None,
        perturbations_per_eval: int | None = None,
        normalize: Normalize = "mean",
        generator: torch.Generator | None = None,
        show_progress: bool = False,
        stop_at: float | None = None,
        additional_forward_args: Any = None,
        score: RiseScore = "logit",
    ) -> Any:
        """Attribute the target's score to the pixels; see the class."""
        maps = self.attribute_classes(
            inputs,
            [target],
            additional_forward_args,
            score=score,
            n_masks=n_masks,
            grid=grid,
            keep_probability=keep_probability,
            baselines=baselines,
            perturbations_per_eval=perturbations_per_eval,
            normalize=normalize,
            generator=generator,
            show_progress=show_progress,
            stop_at=stop_at,
        )
        return first_of(maps, isinstance(inputs, tuple))

    def attribute_classes(
        self,
        inputs: Any,
        targets: list[Target],
        additional_forward_args: Any = None,
        *,
        score: RiseScore = "logit",
        **options: Any,
    ) -> Tensors:
        """K targets on the same masked copies: one tensor (K, N, C, H, W); ``options`` as for ``attribute``."""
        x = image_of(inputs)
        run = self._run(x, targets, additional_forward_args, score, MaskingOptions(**options))
        run.finish(self.get_name())
        maps = sound(run.sums.maps(run.options.normalize)).to(x.dtype)
        return (maps.unflatten(0, (len(targets), len(x))).unsqueeze(2).expand(-1, *x.shape).contiguous(),)

    def attribute_iter(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        every: int = EVERY,
        score: RiseScore = "logit",
        **options: Any,
    ) -> Iterator[Estimate]:
        """The maps as they come, each image's as (1, H, W), with their standard errors; ``options`` as ``attribute``.

        An estimate after every ``every`` masks, and after the last. Nothing is held while the caller looks at it.
        """
        if every < 1:
            raise ValueError(f"expected every, the masks between two estimates, of at least 1, got {every}")
        x, chosen = image_of(inputs), MaskingOptions(**options)
        run = self._run(x, [target], additional_forward_args, score, chosen, errors=True)
        for _ in run.steps(every):
            yield Estimate.of(run.sums, chosen.normalize, [1] * len(x), x.dtype)

    def _run(
        self,
        x: Tensor,
        targets: list[Target],
        additional_forward_args: Any,
        score: RiseScore,
        options: MaskingOptions,
        errors: bool = False,
    ) -> MaskedRun:
        """The masks drawn, and how the model weighs them."""
        model, n, extra = self.forward_func, len(x), additional_args(additional_forward_args)
        inner: Any = eager(model)
        if isinstance(inner, nn.Module) and inner.training:
            message = "the model is in train mode: call model.eval() to explain what it answers in use"
            warnings.warn(message, stacklevel=4)

        def weigh(copies: Tensor, m: int) -> Tensor:
            with self.running.casting(copies.device):
                output = check_output(model(copies, *expand_additional_forward_args(extra, m)))
            if score == "probability":
                if output.dim() < 2:
                    raise ValueError(
                        "expected scores of several classes, (N, C), for score='probability', got "
                        f"{tuple(output.shape)}: leave score out"
                    )
                output = torch.softmax(output, dim=1)
            of = "logit" if score == "probability" else score
            parts = output.split(n)
            return torch.cat([torch.stack([scores(p, t, of).detach() for p in parts], 1) for t in targets])

        layout = layout_of(x, self.running.memory_format)
        return MaskedRun(
            x,
            weigh,
            len(targets) * n,
            options,
            inner,
            errors=errors or options.stop_at is not None,
            memory_format=torch.contiguous_format if layout == torch.preserve_format else layout,
        )


def image_of(inputs: Any) -> Tensor:
    """The one input, a batch of images, signals or volumes."""
    values = as_tuple(inputs)
    check_differentiable(values)
    if len(values) != 1 or values[0].dim() < 3:
        raise ValueError(
            "RISE masks one input with spatial dimensions, (N, C, H, W): it has no meaning for several inputs or for "
            "vectors"
        )
    return values[0]


def sound(maps: Tensor) -> Tensor:
    """The maps, if they are finite.

    Raises:
        ValueError: the model's scores were not.
    """
    if not bool(torch.isfinite(maps).all()):
        raise ValueError("the model's scores under masks are not finite: try a wider dtype")
    return maps
