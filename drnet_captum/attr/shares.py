"""λ: how much each layer adds to a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence


def default_shares(count: int) -> list[float]:
    r"""λ of so many layers, input to output: :math:`\lambda_i \propto (3/4)^{n - i}`, at most ½ on the last of several.

    What finds the right object best, by a little: see ``benchmarks/grounding.py``.

    Example:
        >>> [round(share, 3) for share in default_shares(4)], default_shares(2), default_shares(1)
        ([0.154, 0.206, 0.274, 0.366], [0.5, 0.5], [1.0])
    """
    parts = [0.75 ** (count - i) for i in range(1, count + 1)]
    last = 1.0 if count == 1 else min(0.5, parts[-1] / sum(parts))
    return [*((1 - last) * part / sum(parts[:-1]) for part in parts[:-1]), last]


def checked_shares(shares: Sequence[float], names: Sequence[str]) -> list[float]:
    """λ as they were given, one for each layer, of sum 1."""
    listed = ", ".join(names)
    if len(shares) != len(names):
        raise ValueError(f"expected layer_weights for the {len(names)} layers {listed}, got {len(shares)}")
    if not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(f"expected layer_weights of sum 1 for the layers {listed}, got a sum of {sum(shares):g}")
    return [float(share) for share in shares]
