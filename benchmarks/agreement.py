"""Whether two sides say the same, and what of the model explains it where they do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.subjects import Facts

LEAST = 0.999  # correlation of maps in float32
SCALED = 0.02  # by which the maps' norms may differ
CLOSE = 1e-3  # of the largest value, where maps are constant and have no correlation
POOLED = (14, 14)


class DisagreementError(RuntimeError):
    """Two sides differ, and nothing of the model says why."""


@dataclass(frozen=True)
class Reach:
    """Where a library's methods are not the papers'.

    Attributes:
        relu_modules: it overrides the backward pass of ``nn.ReLU`` modules only.
        channels_first: its Grad-CAM takes the dimensions from the second on for the grid.
    """

    relu_modules: bool = False
    channels_first: bool = False

    def reasons(self, method: str, facts: Facts) -> list[str]:
        """Why its answer may differ on a model, of the model's own facts.

        Example:
            >>> Reach(relu_modules=True).reasons("guided_backprop", Facts(False, ("gelu",), "NCHW"))
            ['the model calls gelu outside nn.ReLU modules']
        """
        found = []
        if self.relu_modules and method in ("guided_backprop", "deconvnet", "guided_grad_cam") and facts.others:
            found.append(f"the model calls {', '.join(facts.others)} outside nn.ReLU modules")
        if self.channels_first and method in ("grad_cam", "guided_grad_cam") and facts.layout != "NCHW":
            found.append(f"the layer's layout is {facts.layout}")
        return found


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, over all values; a map at its layer's grid is first brought to the size of the other."""
    if a.shape != b.shape:
        b = F.interpolate(b.flatten(0, 1), a.shape[-2:], mode="nearest").view_as(a)
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def compared(ours: Tensor, theirs: Tensor) -> dict[str, float | None]:
    """Correlation, our norm over theirs, largest difference over their largest value; None where there is none."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    if ours.shape[-2:] != theirs.shape[-2:] and ours.dim() == theirs.dim() == 5:  # classes, at their layer's grid
        theirs = F.interpolate(theirs.flatten(0, 1), ours.shape[-2:], mode="nearest").unflatten(0, theirs.shape[:2])
    if ours.shape != theirs.shape:
        return dict.fromkeys(("correlation", "scale", "largest_difference"))
    difference, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
    found = {
        "correlation": correlation(ours, theirs),
        "scale": float(ours.norm() / theirs.norm()),
        # Guided Grad-CAM of an image without positive evidence is 0 everywhere.
        "largest_difference": difference / largest if largest else (inf if difference else 0.0),
    }
    return {name: value if isfinite(value) else None for name, value in found.items()}


def agrees(found: Mapping[str, float | None]) -> bool:
    """Whether a comparison is of the same maps."""
    if found["correlation"] is not None and found["scale"] is not None:
        return found["correlation"] >= LEAST and abs(found["scale"] - 1) <= SCALED
    return found["largest_difference"] is not None and found["largest_difference"] <= CLOSE


def agreement(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], reach: Reach, facts: Facts, who: str
) -> dict[str, Any]:
    """The fields of a row: whether the maps of all methods agree, why not, and the least agreement of them.

    Raises:
        DisagreementError: maps differ for no reason that lies in the model.
    """
    found = {method: compared(ours[method], theirs[method]) for method in ours}
    apart = [method for method in found if not agrees(found[method])]
    why: dict[str, None] = {}
    for method in apart:
        reasons = reach.reasons(method, facts)
        if not reasons:
            raise DisagreementError(f"{who}: {method} differs, and nothing of the model explains it: {found[method]}")
        why |= dict.fromkeys(reasons)
    return {"agrees": not apart, "why": "; ".join(why) or None, **least(found.values())}


def least(found: Iterable[dict[str, float | None]]) -> dict[str, float | None]:
    """The comparison of the lowest correlation; one without any, where maps have no common shape, comes last."""
    return min(found, key=lambda one: inf if one["correlation"] is None else one["correlation"])


def check_plain(theirs: Tensor, plain: Tensor, who: str) -> None:
    """That the answer of a library that overrides nothing is the plain gradient.

    Raises:
        DisagreementError: it is something else.
    """
    found = compared(plain, theirs)
    if not agrees(found):
        raise DisagreementError(f"{who}: no nn.ReLU module is there, yet this is not the plain gradient: {found}")


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's of maps (N, …), mean over images; ties are in the order of their places.

    Example:
        >>> round(rank_correlation(torch.tensor([[0.0, 1, 2, 3]]), torch.tensor([[0.0, 1, 9, 4]])), 3)
        0.8
    """
    return mean_correlation(*(m.flatten(1).double().argsort(stable=True).argsort(stable=True) for m in (a, b)))


def mean_correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's of maps (N, …), mean over images."""
    a, b = (m.flatten(1).double() - m.flatten(1).double().mean(1, keepdim=True) for m in (a, b))
    return float(F.cosine_similarity(a, b, dim=1, eps=1e-300).mean())


def closeness(maps: Tensor, exact: Tensor, at_layer: bool) -> dict[str, float]:
    """How near reduced precision comes to float64: ranks of a layer's map; of others pooled to 14×14, and as it is."""
    maps, exact = maps.detach().double(), exact.detach().double()
    if at_layer:
        return {"rank_correlation": rank_correlation(maps, exact)}
    pooled = (F.adaptive_avg_pool2d(m, POOLED) for m in (maps, exact))
    return {"pooled_correlation": mean_correlation(*pooled), "raw_correlation": mean_correlation(maps, exact)}


@contextmanager
def without_tf32() -> Iterator[None]:
    """Both sides' outputs are compared at full precision; what is timed keeps the flags as they were."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
