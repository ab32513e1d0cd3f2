"""The score y that an explanation is of: a class's logit, or its log-probability."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from drnet_captum.engine.state import differentiable
from drnet_captum.engine.targets import Target, select

Score = Literal["logit", "log_prob"]


def check_score(score: str) -> None:
    if score not in ("logit", "log_prob"):
        raise ValueError(f"expected score to be 'logit' or 'log_prob', got {score!r}")


def scores(output: Tensor, target: Target, score: Score = "logit", copies: int = 1) -> Tensor:
    """y of every example: the target's logit, or its log-probability over dimension 1.

    Targets are those of the examples; the output may be of so many ``copies`` of them, one set after the other.
    """
    check_score(score)
    if score == "log_prob" and output.dim() < 2:
        raise ValueError(f"expected scores of several classes, (N, C), for score='log_prob', got {tuple(output.shape)}")
    with differentiable():
        whole = torch.log_softmax(output, dim=1) if score == "log_prob" else output
        if copies == 1:
            return select(whole, target)
        return torch.cat([select(part, target) for part in whole.split(len(whole) // copies)])


def score_for(output: Tensor, score: Score | None) -> Score:
    """The score that was asked for; the log-probability where the output is one score for each of several classes."""
    return score or ("log_prob" if output.dim() == 2 and output.shape[1] > 1 else "logit")
