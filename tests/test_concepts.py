"""Network Dissection against a slow transcription, in chunks, merged, and on a unit that is a mask itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from drnet_captum.dissect import concepts as module
from drnet_captum.dissect.concepts import MaskConcepts, interpolation
from drnet_captum.dissect.labels import UNLABELLED, UnitLabel
from drnet_captum.dissect.quantiles import QuantileSketch
from drnet_captum.layers.fields import Field

Array = npt.NDArray[np.float64]
SIZE = (20, 24)


def scenes(count: int, seed: int = 0) -> Tensor:
    """Label maps (N, 20, 24): discs are 0, squares are 1, a concept 2 never comes, every fourth scene is empty."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    labels = np.full((count, *SIZE), -1)
    for scene in range(count):
        if scene % 4 == 3:
            continue
        cy, cx, r = rng.integers(4, 16), rng.integers(4, 20), rng.integers(3, 6)
        labels[scene][(y - cy) ** 2 + (x - cx) ** 2 <= r * r] = 0
        cy, cx, r = rng.integers(4, 16), rng.integers(4, 20), rng.integers(2, 5)
        labels[scene][(abs(y - cy) <= r) & (abs(x - cx) <= r)] = 1
    return torch.from_numpy(labels)


def maps_of(masks: Tensor, seed: int = 0) -> Tensor:
    """(N, 4, 5, 6): a disc unit, a square unit, noise, a dead unit."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(masks), 5, 6, generator=generator)
    regions = [interpolate((masks == c).float()[:, None], (5, 6), mode="area")[:, 0] for c in (0, 1)]
    return torch.stack([regions[0] + 0.1 * noise, 3 * regions[1], noise, torch.zeros_like(noise)], 1)


def slow_iou(maps: Tensor, masks: Array, thresholds: Tensor, field: Field | None = None) -> Array:
    """Eq. 1 of Bau et al. 2017 pixel by pixel; ``masks`` is (N, T, H, W)."""
    (count, concepts, height, width), units = masks.shape, maps.shape[1]
    values = maps.double().numpy()

    def place(pixel: int, pixels: int, cells: int, axis: int) -> float:
        stride = pixels / cells if field is None else field.stride[axis]
        first = stride / 2 if field is None else field.start[axis] + field.size[axis] / 2
        return min(max((pixel + 0.5 - first) / stride, 0.0), cells - 1.0)

    both, either = np.zeros((units, concepts)), np.zeros((units, concepts))
    for n in range(count):
        if not masks[n].any():
            continue
        active = np.zeros((units, height, width), dtype=bool)
        for i in range(height):
            for j in range(width):
                v, u = place(i, height, maps.shape[2], 0), place(j, width, maps.shape[3], 1)
                y, x = int(v), int(u)
                y1, x1 = min(y + 1, maps.shape[2] - 1), min(x + 1, maps.shape[3] - 1)
                top = values[n, :, y, x] * (1 - (u - x)) + values[n, :, y, x1] * (u - x)
                bottom = values[n, :, y1, x] * (1 - (u - x)) + values[n, :, y1, x1] * (u - x)
                active[:, i, j] = top * (1 - (v - y)) + bottom * (v - y) > thresholds.double().numpy()
        for k in range(units):
            for c in range(concepts):
                both[k, c] += (active[k] & masks[n, c]).sum()
                either[k, c] += (active[k] | masks[n, c]).sum()
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def one_hot(masks: Tensor, concepts: int) -> Tensor:
    return torch.stack([masks == c for c in range(concepts)], 1)


def counted(thresholds: Tensor, maps: Tensor, masks: Tensor, field: Field | None = None) -> MaskConcepts:
    found = MaskConcepts(thresholds, 3)
    found.update(maps, masks, SIZE, field)
    return found


MASKS = scenes(8)
MAPS = maps_of(MASKS)
THRESHOLDS = torch.tensor([0.5, 1.5, 0.7, 0.0])


@pytest.mark.parametrize(
    "field", [None, Field((7, 7), (4.0, 4.0), (-3.0, -3.0)), Field((9, 3), (3.5, 4.0), (1.0, 2.0))]
)
def test_iou_is_the_papers(field: Field | None) -> None:
    slow = slow_iou(MAPS, one_hot(MASKS, 3).numpy(), THRESHOLDS, field)
    for masks in (MASKS, MASKS.to(torch.int16), one_hot(MASKS, 3)):
        torch.testing.assert_close(counted(THRESHOLDS, MAPS, masks, field).iou(), torch.from_numpy(slow).float())
    assert min(slow[0, 0], slow[1, 1]) > 0.1
    assert slow[3].max() == slow[:, 2].max() == 0


def test_overlapping_masks_count_for_each_of_their_concepts() -> None:
    masks = one_hot(MASKS, 3)
    masks[:, 2] = masks[:, 0] | masks[:, 1]
    slow = slow_iou(MAPS, masks.numpy(), THRESHOLDS)
    torch.testing.assert_close(counted(THRESHOLDS, MAPS, masks).iou(), torch.from_numpy(slow).float())


def test_iou_in_numbers() -> None:
    masks = torch.tensor([[[0, 0, 1, -1]], [[-1, -1, -1, -1]]])
    maps = torch.tensor([[[[1.0, 0, 1, 1]]], [[[1.0, 1, 1, 1]]]])  # of the second nothing is labelled
    found = MaskConcepts(torch.tensor([0.5]), 2)
    found.update(maps, masks, (1, 4))
    torch.testing.assert_close(found.iou(), torch.tensor([[1 / 4, 1 / 3]]))
    assert found.labels(["a", "b"]) == (UnitLabel("b", "objects", pytest.approx(1 / 3)),)
    assert found.labels(["a", "b"], minimum=0.34) == (UNLABELLED,)


def test_a_threshold_must_be_exceeded() -> None:
    maps = torch.full((1, 1, 3, 3), 0.1)
    masks = torch.zeros(1, 7, 7, dtype=torch.int64)
    for threshold, expected in ((0.1, 0.0), (0.0999, 1.0)):
        found = MaskConcepts(torch.tensor([threshold]), 1)
        found.update(maps, masks, (7, 7))
        assert found.iou() == expected
    assert MaskConcepts(torch.tensor([0.1]), 1).labels(["a"], minimum=0) == (UNLABELLED,)


def test_maps_are_enlarged_as_torch_does_unless_the_field_says_otherwise() -> None:
    values = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    rows, columns = interpolation((5, 6), SIZE)
    expected = interpolate(values[None, None], SIZE, mode="bilinear")[0, 0]
    torch.testing.assert_close(rows @ values @ columns.T, expected)
    # A 7×7 convolution of stride 2 that pads 3: position i is centred on pixel 2 i.
    rows, _ = interpolation((4, 4), (8, 8), Field((7, 7), (2.0, 2.0), (-3.0, -3.0)))
    torch.testing.assert_close(rows @ torch.arange(4.0), torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3]))


def test_a_unit_that_is_the_mask_is_found_by_way_of_the_sketch() -> None:
    masks = scenes(40, seed=3)
    generator = torch.Generator().manual_seed(0)
    area = (masks == 0).float().mean().item()
    maps = torch.stack([(masks == 0).float(), torch.rand(masks.shape, generator=generator)], 1)
    sketch = QuantileSketch(2)
    sketch.update(maps)
    thresholds = sketch.quantile(1 - 1.05 * area)  # a share just above the discs': the threshold is 0
    found = MaskConcepts(thresholds, 3)
    found.update(maps, masks, SIZE)
    best, other = found.labels(["disc", "square", "ghost"], minimum=0.2)
    assert (best.name, best.family) == ("disc", "objects")
    assert best.score > 0.99
    assert other == UNLABELLED


@pytest.mark.parametrize("pixels", [1, 2 * SIZE[0] * SIZE[1], 2**21])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_chunks_of_units_and_images_do_not_matter(batch: int, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = counted(THRESHOLDS, MAPS, MASKS).iou()
    monkeypatch.setattr(module, "_PIXELS", pixels)
    found, merged = MaskConcepts(THRESHOLDS, 3), MaskConcepts(THRESHOLDS, 3)
    for maps, masks in zip(MAPS.split(batch), MASKS.split(batch), strict=True):
        found.update(maps, masks, SIZE)
        merged = counted(THRESHOLDS, maps, masks) + merged
    assert torch.equal(found.iou(), whole)
    assert torch.equal(merged.iou(), whole)


def test_masks_that_do_not_fit() -> None:
    found = MaskConcepts(THRESHOLDS, 3)
    with pytest.raises(ValueError, match=r"masks of 20×24 pixels do not belong to images of 224 × 224"):
        found.update(MAPS, MASKS, (224, 224))
    for masks in (MASKS[:3], MASKS[:, None], one_hot(MASKS, 2), one_hot(MASKS, 3)[:, 0]):
        with pytest.raises(ValueError, match="expected masks of shape"):
            found.update(MAPS, masks, SIZE)
    for wrong in (3, -2, 255):
        with pytest.raises(ValueError, match=r"ids from 0 to 2, or -1"):
            found.update(MAPS, MASKS.masked_fill(MASKS < 0, wrong), SIZE)
    with pytest.raises(TypeError, match="expected masks as integers"):
        found.update(MAPS, MASKS.float(), SIZE)
    with pytest.raises(TypeError, match="floating point maps"):
        found.update(MAPS.long(), MASKS, SIZE)
    for maps in (MAPS[:, :2], MAPS[:, :, 0], MAPS[..., :0]):
        with pytest.raises(ValueError, match=r"maps of shape \(N, 4, h, w\)"):
            found.update(maps, MASKS, SIZE)
    for void in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="expected finite maps"):
            found.update(torch.where(MAPS == MAPS.max(), void, MAPS), MASKS, SIZE)
    assert found.iou().sum() == 0


def test_thresholds_and_names_that_do_not_fit() -> None:
    for thresholds in (torch.zeros(2, 2), torch.zeros(0), torch.tensor([np.nan])):
        with pytest.raises(ValueError, match="a threshold for each unit"):
            MaskConcepts(thresholds, 1)
    with pytest.raises(ValueError, match="at least one concept"):
        MaskConcepts(THRESHOLDS, 0)
    found = MaskConcepts(THRESHOLDS, 3)
    with pytest.raises(ValueError, match="a name for each of 3 concepts, got 1"):
        found.labels(["disc"])
    with pytest.raises(ValueError, match=r"minimum in \[0, 1\]"):
        found.labels(["a", "b", "c"], minimum=4)
    with pytest.raises(ValueError, match="merge the quantile sketches first"):
        found + MaskConcepts(THRESHOLDS + 1, 3)
    with pytest.raises(ValueError, match="3 concepts with counts of 2"):
        found + MaskConcepts(THRESHOLDS, 2)
    with pytest.raises(TypeError):
        found + 1  # type: ignore[operator]
