"""The masks of RISE, kept as small grids and shifts, and made when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class RandomMasks:
    r"""N masks of an image: smooth random patterns with mean p at every pixel.

    .. math:: M_i = R^y_i \, G_i \, {R^x_i}^\top

    with a Bernoulli grid G (1 = keep) and the rows R of the matrix that enlarges it bilinearly to (h + 1)·cell, from a
    random offset in {0 … cell − 1} on, where cell = ⌈H/h⌉: enlarging and cropping in two small products. The first n
    masks of a longer draw from an equal generator are those of a shorter one. Signals have one such matrix, volumes
    three.

    Attributes:
        size: (H, W) in pixels.
        grids: (N, h, w), 0 or 1.
        offsets: (N, 2) integers, down and right.
        matrices: ((h + 1)·cell, h) along the height, and so along the width.

    Source: Petsiuk et al. 2018, arXiv 1806.07421, section 3.2; the cell is rounded up, as with the paper's floor the
    masks fall short of some images.

    Example:
        >>> masks = RandomMasks.draw(100, (30, 40), (5, 5), 0.5, torch.Generator().manual_seed(0))
        >>> masks.build(0, 10).shape
        torch.Size([10, 30, 40])
    """

    size: tuple[int, ...]
    grids: Tensor
    offsets: Tensor
    matrices: tuple[Tensor, ...]

    @classmethod
    def draw(
        cls, n: int, size: Sequence[int], grid: Sequence[int], keep_probability: float, generator: torch.Generator
    ) -> RandomMasks:
        """Draw on the CPU, in float64; ``to`` brings the masks to where, and in what precision, they are wanted.

        Raises:
            ValueError: no masks, no cells, a probability outside (0, 1).
        """
        if n < 1:
            raise ValueError(f"expected at least one mask, got n_masks={n}")
        if len(grid) != len(size) or any(cells < 1 for cells in grid):
            raise ValueError(
                f"expected a grid of at least one cell along each of {len(size)} dimensions, got {tuple(grid)}"
            )
        if not 0 < keep_probability < 1:
            raise ValueError(
                f"expected keep_probability in (0, 1), the share of cells that are shown, got {keep_probability}"
            )
        cells = [ceil(length / count) for length, count in zip(size, grid, strict=True)]
        drawn = torch.rand(n, prod(grid) + len(size), generator=generator)  # mask by mask: shorter draws are prefixes
        offsets = (drawn[:, prod(grid) :] * torch.tensor(cells)).long()
        return cls(
            size=tuple(size),
            grids=(drawn[:, : prod(grid)] < keep_probability).double().view(n, *grid),
            offsets=offsets.minimum(torch.tensor(cells) - 1),
            matrices=tuple(enlarging_matrix(g, (g + 1) * cell) for g, cell in zip(grid, cells, strict=True)),
        )

    def __len__(self) -> int:
        return len(self.grids)

    def to(self, device: torch.device, dtype: torch.dtype) -> RandomMasks:
        """The same masks, to be made on a device in a dtype."""
        return replace(
            self,
            grids=self.grids.to(device, dtype),
            offsets=self.offsets.to(device),
            matrices=tuple(matrix.to(device, dtype) for matrix in self.matrices),
        )

    def build(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Masks ``start`` to ``stop`` (exclusive), (n, H, W) in [0, 1]; into ``out`` where it is given."""
        built, offsets = self.grids[start:stop], self.offsets[start:stop]
        *others, last = (
            matrix[offset[:, None] + torch.arange(length, device=offset.device)]  # (n, H, h)
            for matrix, offset, length in zip(self.matrices, offsets.unbind(1), self.size, strict=True)
        )
        for axis, rows in enumerate(others, start=1):
            moved = built.movedim(axis, 1)
            built = torch.bmm(rows, moved.flatten(2)).unflatten(2, moved.shape[2:]).movedim(1, axis)
        if out is not None:
            out = out.view(len(built), -1, self.size[-1])
        return torch.bmm(built.reshape(len(built), -1, built.shape[-1]), last.mT, out=out).view(len(built), *self.size)


def enlarging_matrix(short: int, long: int) -> Tensor:
    """(long, short), the weights of bilinear enlarging along one axis (``align_corners=False``); rows sum to 1.

    Example:
        >>> enlarging_matrix(2, 4)
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    return F.interpolate(torch.eye(short, dtype=torch.float64)[None], size=long, mode="linear", align_corners=False)[
        0
    ].T.contiguous()
