"""The masks of RISE, kept as small grids and shifts, and made when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class RandomMasks:
    r"""N masks of an image: smooth random patterns with mean p at every pixel.

    .. math:: M_i = R^y_i \, G_i \, {R^x_i}^\top

    with a Bernoulli grid G (1 = keep) and the rows R of the matrix that enlarges it bilinearly to (h + 1)·cell, from a
    random offset in {0 … cell − 1} on, where cell = ⌈H/h⌉: enlarging and cropping in two small products. The first n
    masks of a longer draw from an equal generator are those of a shorter one.

    Attributes:
        size: (H, W) in pixels.
        grids: (N, h, w), 0 or 1.
        offsets: (N, 2) integers, down and right.
        rows: ((h + 1)·cell, h), the enlarging along the height.
        columns: ((w + 1)·cell, w), along the width.

    Source: Petsiuk et al. 2018, arXiv 1806.07421, section 3.2; the cell is rounded up, as with the paper's floor the
    masks fall short of some images.

    Example:
        >>> masks = RandomMasks.draw(100, (30, 40), (5, 5), 0.5, torch.Generator().manual_seed(0))
        >>> masks.build(0, 10).shape
        torch.Size([10, 30, 40])
    """

    size: tuple[int, int]
    grids: Tensor
    offsets: Tensor
    rows: Tensor
    columns: Tensor

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
        if len(grid) != 2 or any(cells < 1 for cells in grid):
            raise ValueError(f"expected a grid of (rows, columns) of at least one cell, got {tuple(grid)}")
        if not 0 < keep_probability < 1:
            raise ValueError(
                f"expected keep_probability in (0, 1), the share of cells that are shown, got {keep_probability}"
            )
        (height, width), (h, w) = size, grid
        cells = ceil(height / h), ceil(width / w)
        drawn = torch.rand(n, h * w + 2, generator=generator)  # mask by mask, which makes shorter draws prefixes
        offsets = (drawn[:, -2:] * torch.tensor(cells)).long()
        return cls(
            size=(height, width),
            grids=(drawn[:, :-2] < keep_probability).double().view(n, h, w),
            offsets=offsets.minimum(torch.tensor(cells) - 1),
            rows=enlarging_matrix(h, (h + 1) * cells[0]),
            columns=enlarging_matrix(w, (w + 1) * cells[1]),
        )

    def __len__(self) -> int:
        return len(self.grids)

    def to(self, device: torch.device, dtype: torch.dtype) -> RandomMasks:
        """The same masks, to be made on a device in a dtype."""
        return replace(
            self,
            grids=self.grids.to(device, dtype),
            offsets=self.offsets.to(device),
            rows=self.rows.to(device, dtype),
            columns=self.columns.to(device, dtype),
        )

    def build(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Masks ``start`` to ``stop`` (exclusive), (n, H, W) in [0, 1]; into ``out`` where it is given."""
        height, width = self.size
        offsets = self.offsets[start:stop]
        device = offsets.device
        rows = self.rows[offsets[:, :1] + torch.arange(height, device=device)]  # (n, H, h)
        columns = self.columns[offsets[:, 1:] + torch.arange(width, device=device)]  # (n, W, w)
        return torch.bmm(rows @ self.grids[start:stop], columns.mT, out=out)


def enlarging_matrix(short: int, long: int) -> Tensor:
    """(long, short), the weights of bilinear enlarging along one axis (``align_corners=False``); rows sum to 1.

    Example:
        >>> enlarging_matrix(2, 4)
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    return F.interpolate(torch.eye(short, dtype=torch.float64)[None], size=long, mode="linear", align_corners=False)[0].T.contiguous()
