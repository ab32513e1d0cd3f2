"""The score of a class for many altered copies of some images, a few of them at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from drnet_captum.engine.inputs import arranged
from drnet_captum.engine.state import kept
from drnet_captum.engine.targets import Target, check_output, indices, select
from drnet_captum.engine.unwrap import eager

Score = Literal["probability", "log_prob", "logit"]


def score_of(output: Tensor, target: Target, score: Score) -> Tensor:
    """The score of every row.

    Args:
        output: (N, C), C classes; or for "logit" whatever Captum has a target for.
        target: as in Captum.
        score: "probability" or "log_prob" by a softmax over dimension 1, or "logit", which is the output itself.

    Returns:
        (N,)

    Example:
        >>> score_of(torch.tensor([[0.0, 0.0]]), 1, "probability"), score_of(torch.tensor([[0.0, 3.0]]), 1, "logit")
        (tensor([0.5000]), tensor([3.]))
    """
    if score != "logit":
        if output.dim() < 2 or output.shape[1] < 2:
            raise ValueError(
                f"expected scores of several classes, (N, C), for score={score!r}, got {tuple(output.shape)}: "
                "pass score='logit' to take the model's output as it is"
            )
        output = output.softmax(1) if score == "probability" else output.log_softmax(1)
    return select(output, target)


def scored(
    model: Callable[[Tensor], Any],
    copies: Callable[[Tensor], Tensor],
    owners: Tensor,
    images: Tensor,
    target: Target,
    score: Score,
    perturbations_per_eval: int,
) -> Tensor:
    """The scores of altered images; the model's state and the generators of random numbers are kept.

    Args:
        model: images (m, C, H, W) -> scores.
        copies: numbers (m,) of the rows that are wanted -> altered images (m, C, H, W).
        owners: (R,), the image that each row comes from.
        images: (N, C, H, W).
        target: of the N images.
        score: as for `score_of`.
        perturbations_per_eval: rows in one forward pass.

    Returns:
        (R,), in the order of ``owners``.
    """
    if perturbations_per_eval < 1:
        raise ValueError(f"expected perturbations_per_eval of at least 1, got {perturbations_per_eval}")
    if score not in get_args(Score):
        raise ValueError(f"expected score to be one of {', '.join(get_args(Score))}, got {score!r}")
    inner: Any = eager(model)
    if isinstance(inner, nn.Module) and any(layer.training for layer in inner.children()):
        warnings.warn("the model is in train mode: call model.eval() to judge what it answers in use", stacklevel=4)
    wanted = None if target is None else indices(target, len(images))
    found = []
    with torch.no_grad(), kept(inner, {images.device}):
        for rows in torch.arange(len(owners)).split(perturbations_per_eval):
            output = check_output(model(arranged(copies(rows), "auto")))
            part: Target = None
            if wanted is not None:
                part = wanted[0] if len(wanted) == 1 else [wanted[i] for i in owners[rows].tolist()]
            found.append(score_of(output, part, score))
    return torch.cat(found)
