"""Classes set against each other: what a unit adds to the score of an image's own class more than to another's."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

from drnet_captum.attr.drnet_dissection import read_importance
from drnet_captum.attr.score import Score, scores
from drnet_captum.engine.state import differentiable
from drnet_captum.engine.unit_tape import UnitTape
from drnet_captum.layers.units import Site


def checked_contrasts(contrasts: Sequence[int], score: Score) -> tuple[int, ...]:
    """The classes, sorted.

    Raises:
        TypeError: classes that are no integers.
        ValueError: one class alone, one twice or below 0, another score than the logit.
    """
    try:
        classes = tuple(sorted(index(u) for u in contrasts))
    except TypeError as error:
        raise TypeError(f"expected contrasts to be a list of class numbers, got {contrasts!r}") from error
    if not classes:
        return ()
    if len(classes) == 1:
        raise ValueError(
            f"expected contrasts of at least two classes, got class {classes[0]} alone: there is nothing to set it "
            "against"
        )
    if twice := sorted({u for u in classes if classes.count(u) > 1}):
        raise ValueError(f"expected each class of contrasts once, got class {twice[0]} several times")
    if classes[0] < 0:
        raise ValueError(f"expected classes of at least 0 as contrasts, got {classes[0]}")
    if score != "logit":
        raise ValueError(f"contrasts are of two classes' logits, got score={score!r}: leave out one of the two")
    return classes


def rivals_of(labels: Tensor, contrasts: Sequence[int], outputs: int) -> Tensor:
    """Which class each image's own is set against, round after round: every other one of ``contrasts`` once.

    Args:
        labels: (N,) the images' own classes.
        contrasts: K classes.
        outputs: how many classes the model scores.

    Returns:
        (K - 1, N); an image's own class where that is none of ``contrasts``. (0, N) where this is so for all images.

    Raises:
        ValueError: contrasts that are not the model's classes.

    Example:
        >>> rivals_of(torch.tensor([5, 2, 3]), [2, 3, 4], 6)
        tensor([[5, 3, 4],
                [5, 4, 2]])
    """
    if wrong := [u for u in contrasts if u >= outputs]:
        raise ValueError(
            f"class {wrong[0]} of contrasts is not one of the model's {outputs} classes, 0 to {outputs - 1}"
        )
    classes = torch.tensor(contrasts, dtype=torch.int64)
    own = labels[:, None] == classes
    among = own.any(1)
    if not among.any():
        return labels.new_empty(0, len(labels))
    places = own.int().argmax(1) + torch.arange(1, len(classes))[:, None]
    return torch.where(among, classes[places % len(classes)], labels)


def read_contrasts(
    tape: UnitTape, sites: Sequence[Site], output: Tensor, labels: Tensor, rivals: Tensor
) -> dict[str, Tensor]:
    r"""What each unit adds to the logit of an image's own class c more than to that of a rival u.

    .. math:: s_c - s_u = \sum_{positions} F \, \frac{\partial (y_c - y_u)}{\partial F}

    One backward pass a round; the graph is let go after the last.

    Args:
        tape: with its forward pass recorded, and the graph kept.
        sites: the layers.
        output: (N, K) the model's scores.
        labels: (N,) each image's c.
        rivals: (R, N) each image's u, by round.

    Returns:
        layer → (R, N, C), on the CPU; nothing where there are no rounds.
    """
    rounds = []
    for left, others in zip(reversed(range(len(rivals))), rivals, strict=True):
        with differentiable():
            y = scores(output, labels.tolist()) - scores(output, others.tolist())
        rounds.append(read_importance(tape, sites, y, keep=left > 0))
    names = [site.layer.name for site in sites] if rounds else []
    return {name: torch.stack([found[name] for found in rounds]).cpu() for name in names}
