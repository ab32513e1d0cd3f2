"""What is summed over the masks, for all targets at once, and the maps that are made of the sums."""

from __future__ import annotations

from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

Normalize = Literal["mean", "coverage", "expectation", "none"]


class MaskSums:
    r"""The running sums of N masks M with weights w, one row of weights for each of T targets.

    ``none``: :math:`\sum_i w_i M_i` (D-RISE's paper); ``expectation``: that over N·p (RISE's paper); ``coverage``:
    :math:`\sum_i w_i M_i / \sum_i M_i` per pixel, the mean weight of the masks that show it; ``mean``:
    :math:`\sum_i (w_i - \bar w) M_i`, in which the mean weight, that says nothing of where, is a control variate.

    Products run in the masks' dtype, sums in float64 (where the device has it).

    Args:
        targets: T.
        size: (H, W).
        keep_probability: p.
        device: of the masks.
        errors: also keep what standard errors need: two more sums of T maps.

    Example:
        >>> sums = MaskSums(1, (1, 2), 0.5, torch.device("cpu"))
        >>> sums.add(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([[0.8, 0.2]]))
        >>> sums.maps("mean")
        tensor([[[ 0.3000, -0.3000]]], dtype=torch.float64)
    """

    def __init__(
        self, targets: int, size: tuple[int, ...], keep_probability: float, device: torch.device, errors: bool = False
    ) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.n, self.size, self.keep_probability = 0, size, keep_probability
        pixels = prod(size)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=wide, device=device)

        # Weights are taken relative to the first ones' mean: their differences are what counts, and may be far smaller.
        self._reference: Tensor | None = None
        self._v, self._vv = zeros(targets, 1), zeros(targets, 1)
        self._m, self._vm = zeros(pixels), zeros(targets, pixels)
        self._squares = (zeros(pixels), *(zeros(targets, pixels) for _ in range(3))) if errors else None

    def add(self, masks: Tensor, weights: Tensor) -> None:
        """Add n masks with their weights.

        Args:
            masks: (n, H, W); squared in place where standard errors are kept.
            weights: (T, n).
        """
        if self._reference is None:
            self._reference = weights.to(self._v).mean(1, keepdim=True)
        wide = weights.to(self._v) - self._reference  # (T, n)
        v, flat = wide.to(masks.dtype), masks.flatten(1)
        self.n += masks.shape[0]
        self._v += wide.sum(1, keepdim=True)
        self._vv += wide.square().sum(1, keepdim=True)
        self._m += flat.sum(0)
        self._vm += v @ flat
        if self._squares is not None:
            mm, vmm, vvm, vvmm = self._squares
            vvm += v.square() @ flat
            flat.square_()
            mm += flat.sum(0)
            vmm += v @ flat
            vvmm += v.square() @ flat

    def maps(self, normalize: Normalize) -> Tensor:
        """(T, H, W) of the masks so far, in the dtype of the sums."""
        reference, mean = self._known(), self._v / self.n
        if normalize == "mean":
            found = torch.addcmul(self._vm, mean, self._m, value=-1)
        elif normalize == "coverage":  # a pixel that no mask has shown: the mean weight
            found = torch.where(self._m > 0, self._vm / self._m.clamp_min(1e-30), mean) + reference
        else:
            found = self._vm + reference * self._m
            if normalize == "expectation":
                found /= self.n * self.keep_probability
        return found.view(-1, *self.size)

    def standard_errors(self, normalize: Normalize) -> Tensor:
        """(T, H, W), of ``maps`` as estimates: by the delta method, masks being independent."""
        reference, n, m, vm = self._known(), self.n, self._m, self._vm
        if self._squares is None:
            raise RuntimeError("these sums were made without errors=True")
        if n < 2:
            return torch.full((len(vm), *self.size), torch.inf, dtype=vm.dtype, device=vm.device)
        mm, vmm, vvm, vvmm = self._squares
        if normalize == "mean":  # z = (v − v̄)(M − M̄)
            a, b = self._v / n, m / n
            z = vm - a * m
            zz = (vvmm - 2 * b * vvm + b**2 * self._vv) - 2 * a * (vmm - 2 * b * vm + b**2 * self._v)
            zz += a**2 * (mm - n * b**2)
            scale: Tensor | float = 1.0
        elif normalize == "coverage":  # z = (v − R) M, of the ratio R
            ratio = vm / m.clamp_min(1e-30)
            z = torch.zeros_like(vm)
            zz = vvmm - 2 * ratio * vmm + ratio**2 * mm
            scale = m.clamp_min(1e-30)
        else:  # z = w M
            z = vm + reference * m
            zz = vvmm + 2 * reference * vmm + reference**2 * mm
            scale = n * self.keep_probability if normalize == "expectation" else 1.0
        variance = (zz - z**2 / n).clamp_min(0) * (n / (n - 1))
        errors: Tensor = variance.sqrt_() / scale
        return errors.view(-1, *self.size)

    def _known(self) -> Tensor:
        if self._reference is None:
            raise RuntimeError("no masks have been added")
        return self._reference


def check_normalize(normalize: str) -> None:
    if normalize not in get_args(Normalize):
        raise ValueError(f"expected normalize to be one of {', '.join(get_args(Normalize))}, got {normalize!r}")
