"""Ranks with ties averaged, and Spearman's correlation, for many maps at once and on their device."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Ranks along the last dimension, from 0; equal values share the mean of theirs.

    Example:
        >>> ranks(torch.tensor([[3.0, 1.0, 3.0, 9.0]]))
        tensor([[1.5000, 0.0000, 1.5000, 3.0000]])
    """
    found, order = values.sort(dim=-1)
    place = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    new = torch.ones_like(order, dtype=torch.bool)
    new[..., 1:] = found[..., 1:] != found[..., :-1]
    last = torch.ones_like(new)
    last[..., :-1] = new[..., 1:]
    first_of = torch.where(new, place, 0).cummax(-1).values
    last_of = torch.where(last, place, values.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    mean = (first_of + last_of).to(torch.promote_types(values.dtype, torch.float32)) / 2
    return torch.empty_like(mean).scatter_(-1, order, mean)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's ρ of each pair of rows: Pearson's correlation of their ranks, ties averaged.

    Args:
        a, b: (N, …) of the same shape; everything after the first dimension is one row.

    Returns:
        (N,) in [-1, 1]; NaN where a row is constant, which has no order.

    Raises:
        ValueError: shapes that differ, no values, NaN.

    Example:
        >>> rank_correlation(torch.tensor([[1.0, 2.0, 30.0]]), torch.tensor([[1.0, 3.0, 2.0]]))
        tensor([0.5000])
    """
    if a.shape != b.shape or a.dim() < 2 or a.numel() == 0:
        raise ValueError(f"expected two tensors of one shape (N, …), got {tuple(a.shape)} and {tuple(b.shape)}")
    if bool(a.isnan().any() or b.isnan().any()):
        raise ValueError("expected numbers, got NaN, which has no rank")
    centred = [r - (r.shape[1] - 1) / 2 for r in (ranks(a.flatten(1)), ranks(b.flatten(1)))]
    units = [c / torch.linalg.vector_norm(c, dim=1, keepdim=True) for c in centred]  # NaN where all ranks are equal
    found: Tensor = (units[0] * units[1]).sum(1).clamp(-1, 1)
    return found
