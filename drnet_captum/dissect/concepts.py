"""Network Dissection: which labelled segment of the images a unit's activation covers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drnet_captum.dissect.labels import UNLABELLED, UnitLabel
from drnet_captum.layers.fields import Field

#: Pixels of enlarged maps held at once: with what is computed from them some 50 MB.
_PIXELS = 2**21


class MaskConcepts:
    r"""Network Dissection: how well the region where a unit is strongly active matches that of each concept.

    .. math:: \mathrm{IoU}_{k,c} = \frac{\sum_x |M_k(x) \cap L_c(x)|}{\sum_x |M_k(x) \cup L_c(x)|}, \qquad
              M_k(x) = [S_k(x) > T_k]

    S_k is the unit's map brought bilinearly to the image's size, L_c the concept's mask, T_k the threshold that the
    unit exceeds at 0.5% of all positions of all images: ``QuantileSketch.quantile(0.995)`` of a first pass. As in the
    paper the sums run over the images in which anything is labelled, so make one of these for each category of
    concepts. The paper writes S_k ≥ T_k; with > a unit that is zero nearly everywhere, and so has T_k = 0, does not
    count as active there.

    Args:
        thresholds: (C,), T_k.
        concepts: T, how many concepts there are.

    Raises:
        ValueError: thresholds of another shape or NaN, no concepts.

    Source: Bau et al. 2017, "Network Dissection", arXiv 1704.05796, section 2.3 and eq. 1.

    Example:
        >>> import torch
        >>> masks = torch.full((1, 4, 4), -1)
        >>> masks[0, :2] = 0  # the upper half is the sky, the lower has no label
        >>> found = MaskConcepts(thresholds=torch.tensor([0.5]), concepts=1)
        >>> found.update(torch.tensor([[[[1.0], [0.0]]]]), masks, image=(4, 4))
        >>> found.labels(["sky"])
        (UnitLabel(name='sky', family='objects', score=1.0),)
    """

    def __init__(self, thresholds: Tensor, concepts: int) -> None:
        if thresholds.dim() != 1 or len(thresholds) == 0 or bool(thresholds.isnan().any()):
            raise ValueError(
                f"expected a threshold for each unit, (C,) without NaN, got {tuple(thresholds.shape)}: "
                "QuantileSketch.quantile(0.995) gives them"
            )
        if concepts < 1:
            raise ValueError(f"expected at least one concept, got {concepts}")
        self.thresholds = thresholds.detach().float().cpu()
        self.concepts = concepts
        self._intersection = torch.zeros(len(thresholds), concepts, dtype=torch.int64)
        self._active = torch.zeros(len(thresholds), dtype=torch.int64)
        self._labelled = torch.zeros(concepts, dtype=torch.int64)

    @property
    def units(self) -> int:
        """C."""
        return len(self.thresholds)

    def update(self, maps: Tensor, masks: Tensor, image: Sequence[int], field: Field | None = None) -> None:
        """Count a batch.

        Args:
            maps: (N, C, h, w), the units' activations.
            masks: the concepts' regions, as integers (N, H, W) in 0 … T − 1, −1 where there is none of them, or, where
                concepts overlap, as bool (N, T, H, W).
            image: (H, W) of what the model saw.
            field: the layer's receptive field (``UnitLayer.field``): a map's values then lie at the centres of the
                fields, as in the paper. Without, they are spread evenly over the image, which is up to half a stride
                off where the layers below pad.

        Raises:
            TypeError: maps that are not floating point, masks that are neither integer nor bool.
            ValueError: shapes that do not belong together, masks of another size than the image, ids out of range,
                NaN or infinite maps.
        """
        self._check(maps, masks, image)
        maps = maps.detach().float()
        peaks = maps.amax((2, 3))
        if not bool((peaks.isfinite() & maps.amin((2, 3)).isfinite()).all()):  # NaN is every extreme of what holds it
            raise ValueError("expected finite maps, got NaN or infinite values: run the model in float32")
        thresholds = self.thresholds.to(maps.device)
        rows, columns = (matrix.to(maps.device) for matrix in interpolation(maps.shape[2:], image, field))
        for example, mask in enumerate(masks.to(maps.device)):
            present, regions = self._regions(mask)
            if len(present) == 0:
                continue
            weights = torch.cat([regions, torch.ones_like(regions[:1])])  # the last row counts M_k itself
            self._labelled[present] += regions.sum(1).long().cpu()
            live = (peaks[example] > thresholds).nonzero().flatten()  # no enlarged map exceeds its peak
            for units in live.split(max(1, _PIXELS // weights.shape[1])):
                enlarged = rows @ maps[example, units] @ columns.T  # (units, H, W)
                active = (enlarged > thresholds[units, None, None]).flatten(1).float()
                overlap = (active @ weights.T).long().cpu()  # whole numbers, exact below 2^24 pixels
                units = units.cpu()
                self._intersection[units[:, None], present] += overlap[:, :-1]
                self._active[units] += overlap[:, -1]

    def iou(self) -> Tensor:
        """(C, T) in [0, 1]; 0 for a concept that never came and a unit that was never active."""
        union = self._active[:, None] + self._labelled - self._intersection
        return self._intersection / union.clamp(min=1)

    def labels(self, names: Sequence[str], minimum: float = 0.04) -> tuple[UnitLabel, ...]:
        """The concept that each unit matches best, where its IoU is at least ``minimum`` (the paper's 0.04) and not 0.

        Raises:
            ValueError: another number of names than of concepts, ``minimum`` outside [0, 1].
        """
        if len(names) != self.concepts:
            raise ValueError(f"expected a name for each of {self.concepts} concepts, got {len(names)}")
        if not 0 <= minimum <= 1:
            raise ValueError(f"expected minimum in [0, 1], got {minimum}")
        best, concept = self.iou().max(1)
        return tuple(
            UnitLabel(names[c], "objects", score) if score >= minimum and score > 0 else UNLABELLED
            for score, c in zip(best.tolist(), concept.tolist(), strict=True)
        )

    def __add__(self, other: MaskConcepts) -> MaskConcepts:
        """The counts of both's images, exactly.

        Raises:
            ValueError: other thresholds, another number of concepts.
        """
        if not isinstance(other, MaskConcepts):
            return NotImplemented
        if self.concepts != other.concepts:
            raise ValueError(f"cannot merge counts of {self.concepts} concepts with counts of {other.concepts}")
        if not torch.equal(self.thresholds, other.thresholds):
            raise ValueError(
                "cannot merge counts made with different thresholds: merge the quantile sketches first, then count "
                "each part again with the thresholds of the merged sketch"
            )
        merged = MaskConcepts(self.thresholds, self.concepts)
        merged._intersection = self._intersection + other._intersection
        merged._active = self._active + other._active
        merged._labelled = self._labelled + other._labelled
        return merged

    def _check(self, maps: Tensor, masks: Tensor, image: Sequence[int]) -> None:
        """Raise the errors that ``update`` names, but for the maps' values."""
        if not maps.is_floating_point():
            raise TypeError(f"expected floating point maps, got {maps.dtype}")
        if maps.dim() != 4 or maps.shape[1] != self.units or 0 in maps.shape[2:]:
            raise ValueError(f"expected maps of shape (N, {self.units}, h, w), got {tuple(maps.shape)}")
        if masks.is_floating_point() or masks.is_complex():
            raise TypeError(f"expected masks as integers (N, H, W) or as bool (N, T, H, W), got {masks.dtype}")
        expected = (len(maps), self.concepts) if masks.dtype == torch.bool else (len(maps),)
        if masks.dim() != len(expected) + 2 or tuple(masks.shape[:-2]) != expected:
            raise ValueError(
                f"expected masks of shape ({', '.join(map(str, expected))}, H, W) in {masks.dtype} beside maps of "
                f"{tuple(maps.shape)} and {self.concepts} concepts, got {tuple(masks.shape)}"
            )
        if tuple(masks.shape[-2:]) != tuple(image):
            raise ValueError(
                f"masks of {masks.shape[-2]}×{masks.shape[-1]} pixels do not belong to images of "
                f"{' × '.join(map(str, image))}: crop and resize them as the images, without interpolation"
            )
        if (
            masks.dtype != torch.bool
            and masks.numel()
            and not -1 <= int(masks.min()) <= int(masks.max()) < self.concepts
        ):
            raise ValueError(
                f"expected ids from 0 to {self.concepts - 1}, or -1 for no label, got {int(masks.min())} to "
                f"{int(masks.max())}: set other values, as the 255 of a border, to -1"
            )

    def _regions(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The concepts in a mask, (P,) on the CPU, and where they are: (P, H·W), 0 or 1."""
        if mask.dtype == torch.bool:
            flat = mask.flatten(1)
            present = flat.any(1).nonzero().flatten()
            return present.cpu(), flat[present].float()
        present = mask.unique()
        present = present[present >= 0]
        return present.cpu().long(), (mask.flatten() == present[:, None]).float()


def interpolation(grid: Sequence[int], image: Sequence[int], field: Field | None = None) -> tuple[Tensor, Tensor]:
    """Matrices (H, h) and (W, w) that bring a map to the size of the image bilinearly: rows @ map @ columns.T.

    A position's value lies at the centre of its receptive field, or, without a field, of its cell where the image is
    cut into h × w equal ones. Beyond the outermost positions the map goes on as it is there.

    Example:
        >>> import torch
        >>> rows, columns = interpolation((1, 2), (1, 4))
        >>> rows @ torch.tensor([[0.0, 4.0]]) @ columns.T
        tensor([[0., 1., 3., 4.]])
        >>> field = Field((3, 3), (1.0, 2.0), (-1.0, -1.0))  # centres at 0.5 and 2.5 pixels
        >>> rows, columns = interpolation((1, 2), (1, 4), field)
        >>> rows @ torch.tensor([[0.0, 4.0]]) @ columns.T
        tensor([[0., 2., 4., 4.]])
    """
    matrices = []
    for axis in (0, 1):
        stride = image[axis] / grid[axis] if field is None else field.stride[axis]
        first = stride / 2 if field is None else field.start[axis] + field.size[axis] / 2
        positions = torch.arange(grid[axis], dtype=torch.float64)
        pixels = torch.arange(image[axis], dtype=torch.float64) + 0.5
        places = ((pixels - first) / stride).clamp(0, grid[axis] - 1)
        matrices.append((1 - (places[:, None] - positions).abs()).clamp(min=0).float())
    return matrices[0], matrices[1]
