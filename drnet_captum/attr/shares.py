"""λ: how much each layer adds to a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence


def default_shares(count: int) -> list[float]:
    """λ of so many layers, input to output."""
    return [1 / count] * count


def checked_shares(shares: Sequence[float], names: Sequence[str]) -> list[float]:
    """λ as they were given, one for each layer, of sum 1."""
    listed = ", ".join(names)
    if len(shares) != len(names):
        raise ValueError(f"expected layer_weights for the {len(names)} layers {listed}, got {len(shares)}")
    if not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(f"expected layer_weights of sum 1 for the layers {listed}, got a sum of {sum(shares):g}")
    return [float(share) for share in shares]
