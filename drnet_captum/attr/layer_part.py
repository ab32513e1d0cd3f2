"""What one layer holds of an answer: its activation, its weights, and their product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drnet_captum.layers.interpolation import spread


@dataclass(frozen=True)
class LayerPart:
    """What one layer adds to a reconstruction.

    Attributes:
        name: dotted name of the layer; of one that is no part of the model, its class.
        activation: F, (N, C, h, w); F(x) − F(baseline) for integrated weights.
        weights: α, (N, C, 1, 1) or (N, C, h, w).
        share: λ.
    """

    name: str
    activation: Tensor
    weights: Tensor
    share: float

    @property
    def evidence(self) -> Tensor:
        """α·F, channel by channel: (N, C, h, w)."""
        return self.weights * self.activation

    @property
    def map(self) -> Tensor:
        """R_i = Σ_k α_k·F_k at the layer's size: (N, 1, h, w)."""
        return self.evidence.sum(1, keepdim=True)

    def strongest(self, count: int) -> LayerPart:
        """Only the channels of most evidence, |Σ_positions α·F|, of each example; the weights of others are zero."""
        strength = self.evidence.flatten(2).sum(2).abs()  # (N, C)
        best = strength.topk(min(count, strength.shape[1]), 1).indices
        keep = torch.zeros_like(strength).scatter_(1, best, 1.0)
        return replace(self, weights=self.weights * keep.view(*keep.shape, *[1] * (self.activation.dim() - 2)))


def reconstruction(parts: Sequence[LayerPart], size: Sequence[int]) -> Tensor:
    """R(x) = Σ_i λ_i·R_i(x) at a size: (N, 1, H, W). Its sum is Σ_i λ_i·Σ_positions R_i."""
    maps = [part.share * spread(part.map, size) for part in parts if part.share != 0]
    return torch.stack(maps).sum(0)
