"""Pixels filled in from around them: each removed pixel the weighted mean of its neighbours, solved for all at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .maps import check_images

TOLERANCE = 1e-4
ROUNDS = 1000  # of the solver; photos take about ten
SMALLEST = 4  # pixels of the coarsest grid's side
DAMPING = 0.9  # of the smoother


def impute(images: Tensor, removed: Tensor, *, tolerance: float = TOLERANCE) -> Tensor:
    r"""Linear imputation of removed pixels.

    Each removed pixel i solves

    .. math:: \sum_{j \in \mathcal{N}(i)} w_{ij}\, (x_i - x_j) = 0

    over its eight neighbours within the image, w = 1/6 for the four beside it and 1/12 for the four diagonal ones; at
    the border the weights that are there count alone. The matrix is symmetric and positive definite, so conjugate
    gradients solve it, with multigrid as preconditioner: for all images and channels together, on the images' device,
    in their dtype (at least float32).

    Args:
        images: (N, C, H, W).
        removed: (N, H, W) of bool, at least one pixel of each image kept.
        tolerance: the solver ends when the residual is this much smaller than the right-hand side, both in the norm
            that its preconditioner gives. At 1e-4, values of photos 224 pixels wide are off by at most about a
            thousandth of their range.

    Returns:
        (N, C, H, W): kept pixels as they are.

    Raises:
        ValueError: masks of another shape, an image without a kept pixel, a tolerance that is not positive, or not
            reached.

    Source: Rong et al. 2022, arXiv 2202.00449, noisy linear imputation; the border as in the authors' code.

    Example:
        >>> image = torch.tensor([[[[0.0, 7.0, 3.0]]]])
        >>> impute(image, torch.tensor([[[False, True, False]]]))
        tensor([[[[0.0000, 1.5000, 3.0000]]]])
    """
    x = check_images(images)
    if removed.dtype != torch.bool or removed.shape != (len(x), *x.shape[2:]):
        raise ValueError(
            f"expected removed as bool of shape {(len(x), *x.shape[2:])}, got {removed.dtype} {tuple(removed.shape)}"
        )
    if bool(removed.flatten(1).all(1).any()):
        raise ValueError("expected at least one pixel of each image to be kept: there is nothing to fill it from")
    if not tolerance > 0:
        raise ValueError(f"expected a tolerance above 0, got {tolerance}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    gone = removed.to(x.device)[:, None]  # (N, 1, H, W)
    kept = ~gone
    mean = (wide * kept).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True)
    known = (wide - mean) * kept  # shifted by its mean, an image's solution is shifted alike, and starts nearer
    filled = _solve(around(known) * gone, gone, tolerance) + mean
    return torch.where(gone, filled, wide).to(x.dtype)


def around(x: Tensor) -> Tensor:
    """Σ w·x over the neighbours within the image: (N, C, H, W) -> the same.

    Example:
        >>> around(torch.tensor([[[[0.0, 0.0, 0.0], [0.0, 12.0, 0.0]]]]))
        tensor([[[[1., 2., 1.],
                  [2., 0., 2.]]]])
    """
    padded = F.pad(x, (1, 1, 1, 1))
    rows = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    both = rows[..., :-2, :] + 2 * rows[..., 1:-1, :] + rows[..., 2:, :]  # (1 2 1)ᵀ(1 2 1), with 4 in the middle
    return (both - 4 * x) / 12


@dataclass(frozen=True)
class _Grid:
    """The system (D − W) x = b at one resolution: D by position, and its inverse on the removed pixels, 0 elsewhere."""

    weights: Tensor  # (1, 1, H, W)
    inverse: Tensor  # (N, 1, H, W)

    @classmethod
    def of(cls, gone: Tensor, dtype: torch.dtype) -> _Grid:
        weights = around(torch.ones_like(gone[:1], dtype=dtype))
        return cls(weights, torch.where(gone, 1 / weights, 0.0))

    def applied(self, x: Tensor) -> Tensor:
        """(D − W) x; what it gives beside the removed pixels is of no meaning."""
        return self.weights * x - around(x)


def _grids(gone: Tensor, dtype: torch.dtype) -> list[_Grid]:
    """Finest first, each of half the size; a pixel of a coarser grid is removed where all those in it are."""
    found = [_Grid.of(gone, dtype)]
    while min(gone.shape[2:]) > SMALLEST and bool(gone.any()):
        gone = F.max_pool2d(_even((~gone).to(dtype)), 2) == 0
        found.append(_Grid.of(gone, dtype))
    return found


def _cycle(r: Tensor, grids: list[_Grid]) -> Tensor:
    """An approximate solution for the right-hand side r: one V-cycle of multigrid, symmetric, hence a preconditioner.

    The stencil on a grid of twice the spacing is P'(D − W)P to leading order, with P bilinear: no factor is needed.
    """
    fine = grids[0]
    smooth = DAMPING * fine.inverse
    z = smooth * r
    if len(grids) == 1:
        return z + smooth * (r - fine.applied(z))
    left = (r - fine.applied(z)) * (fine.inverse > 0)
    z = z + _up(_cycle(_down(left), grids[1:]), left) * (fine.inverse > 0)
    return z + smooth * (r - fine.applied(z))


def _even(x: Tensor) -> Tensor:
    """With a row and a column of zeros where they are odd."""
    return F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))


def _transfer(x: Tensor) -> Tensor:
    side = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=x.dtype, device=x.device)
    return (side[:, None] * side)[None, None]


def _down(x: Tensor) -> Tensor:
    """P', the transpose of `_up`: (N, C, H, W) -> (N, C, ⌈H/2⌉, ⌈W/2⌉)."""
    halved: Tensor = F.conv2d(_even(x).flatten(0, 1)[:, None], _transfer(x), stride=2, padding=1)
    return halved.view(*x.shape[:2], *halved.shape[2:])


def _up(x: Tensor, like: Tensor) -> Tensor:
    """P, bilinear, to the size of another tensor."""
    doubled: Tensor = F.conv_transpose2d(x.flatten(0, 1)[:, None], _transfer(x), stride=2, padding=1)
    return doubled.view(*x.shape[:2], *doubled.shape[2:])[..., : like.shape[2], : like.shape[3]]


def _solve(b: Tensor, gone: Tensor, tolerance: float) -> Tensor:
    """(D − W) x = b on the removed pixels, by conjugate gradients.

    Every image and channel stops by itself, so that none depends on what is solved beside it.
    """
    grids = _grids(gone, b.dtype)

    def dot(a: Tensor, c: Tensor) -> Tensor:
        return (a * c).sum((2, 3), keepdim=True)

    x, r = torch.zeros_like(b), b
    p = z = _cycle(r, grids)
    size = dot(r, z)
    enough = size * tolerance**2
    for _ in range(ROUNDS):
        running = size > enough
        if not bool(running.any()):
            return x
        applied = grids[0].applied(p)  # the cycle looks at the removed pixels alone
        step = torch.where(running, size / dot(p, applied), 0.0)
        x, r = x + step * p, r - step * applied
        z = _cycle(r, grids)
        new = torch.where(running, dot(r, z), size)
        p = torch.where(running, z + new / size * p, p)
        size = new
    raise ValueError(f"a tolerance of {tolerance:g} was not reached in {ROUNDS} rounds: pass a larger one")
