"""Exemplars against a slow transcription, in any order; keys, pictures and patches."""

from __future__ import annotations

import io
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from drnet_captum.dissect.exemplars import Exemplar, Exemplars, content_key, keep_images, patch, to_jpeg

GRID = (3, 5)
Batch = tuple[Tensor, Tensor, list[str]]


def batch(seed: int, images: int = 12, channels: int = 7, names: int = 30) -> Batch:
    """Few different values and keys, so that both tie and come again; some units never fire."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-2, 5, (images, channels), generator=generator) / 2
    values[:, 0] = -values[:, 0].abs()
    places = torch.randint(GRID[0] * GRID[1], (images, channels), generator=generator)
    keys = [f"key{int(i)}" for i in torch.randint(names, (images,), generator=generator)]
    return values, places, keys


def exemplars_of(*batches: Batch, count: int = 3) -> Exemplars:
    exemplars = Exemplars(batches[0][0].shape[1], count)
    for values, places, keys in batches:
        exemplars.update(values, places, GRID, keys)
    return exemplars


def slow(batches: list[Batch], unit: int, count: int) -> list[Exemplar]:
    best: dict[str, tuple[float, int]] = {}
    for values, places, keys in batches:
        for value, place, key in zip(values[:, unit].tolist(), places[:, unit].tolist(), keys, strict=True):
            # Of one image the larger value counts, and of its equal places the first.
            if value > 0 and (key not in best or (-value, place) < (-best[key][0], best[key][1])):
                best[key] = (value, place)
    ranked = sorted(best, key=lambda key: (-best[key][0], key))[:count]
    return [Exemplar(key, best[key][0], best[key][1] // GRID[1], best[key][1] % GRID[1]) for key in ranked]


def everything(exemplars: Exemplars) -> list[list[Exemplar]]:
    return [exemplars.of(unit) for unit in range(exemplars.channels)]


def assert_equal(a: Exemplars, b: Exemplars) -> None:
    assert everything(a) == everything(b)
    (state_a, keys_a), (state_b, keys_b) = a.state(), b.state()
    assert keys_a == keys_b
    assert all(torch.equal(value, state_b[name]) for name, value in state_a.items())


@pytest.mark.parametrize("count", [1, 3, 20])
def test_exemplars_equal_the_slow_transcription(count: int) -> None:
    batches = [batch(seed) for seed in range(6)]
    exemplars = exemplars_of(*batches, count=count)
    for unit in range(7):
        assert exemplars.of(unit) == slow(batches, unit, count)
    assert exemplars.of(0) == []  # never fired
    assert exemplars.referenced() == {found.key for unit in everything(exemplars) for found in unit}


def test_exemplars_by_hand() -> None:
    values = torch.tensor([[1.0, 0.0], [3.0, -1.0], [1.0, 2.0]])
    places = torch.tensor([[14, 0], [7, 0], [0, 5]])
    exemplars = exemplars_of((values, places, ["b", "c", "a"]), count=2)
    assert exemplars.of(0) == [Exemplar("c", 3.0, 1, 2), Exemplar("a", 1.0, 0, 0)]  # a before b at one value
    assert exemplars.of(1) == [Exemplar("a", 2.0, 1, 0)]
    assert exemplars.referenced() == {"a", "c"}
    exemplars.update(torch.tensor([[9.0, 9.0], [8.0, 8.0]]), places[:2], GRID, ["x", "y"])
    assert exemplars.referenced() == {"x", "y"}  # what is no exemplar any more is forgotten
    assert repr(exemplars) == "Exemplars(2 units, at most 2 each, 2 images)"


def test_exemplars_of_other_grids_keep_their_places() -> None:
    exemplars = Exemplars(1, 2)
    exemplars.update(torch.tensor([[1.0]]), torch.tensor([[7]]), (2, 4), ["a"])
    exemplars.update(torch.tensor([[2.0]]), torch.tensor([[7]]), (4, 2), ["b"])
    assert exemplars.of(0) == [Exemplar("b", 2.0, 3, 1), Exemplar("a", 1.0, 1, 3)]


def test_exemplars_in_parts_in_any_order() -> None:
    batches = [batch(seed) for seed in range(3)]
    whole = exemplars_of(*batches)
    for order in permutations(batches):
        assert_equal(exemplars_of(*order), whole)
        a, b, c = (exemplars_of(part) for part in order)
        assert_equal((a + b) + c, whole)
        assert_equal(a + (b + c), whole)
        assert_equal(a, exemplars_of(order[0]))
    assert_equal(whole + Exemplars(7, 3), whole)
    assert_equal(whole + whole, whole)


def test_exemplars_do_not_depend_on_the_batches_cut() -> None:
    values, places, keys = batch(0, images=40)
    parts = [(values[i : i + 9], places[i : i + 9], keys[i : i + 9]) for i in range(0, 40, 9)]
    assert_equal(exemplars_of(*parts), exemplars_of((values, places, keys)))
    backwards = values.flip(0), places.flip(0), keys[::-1]
    assert_equal(exemplars_of(backwards), exemplars_of((values, places, keys)))


def test_exemplars_do_not_grow() -> None:
    def stored(exemplars: Exemplars) -> int:
        return sum(value.size for value in vars(exemplars).values() if isinstance(value, np.ndarray))

    few, many = (exemplars_of(*(batch(seed, names=10**6) for seed in range(n))) for n in (10, 1000))
    assert stored(few) == stored(many) == 3 * 7 * 3
    assert len(many.state()[1]) <= 7 * 3


def test_exemplars_change_nothing_of_the_callers() -> None:
    values, places, keys = batch(0)
    kept = values.clone(), places.clone(), list(keys)
    exemplars_of((values.requires_grad_(), places, keys))
    assert torch.equal(values, kept[0])
    assert torch.equal(places, kept[1])
    assert keys == kept[2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_exemplars_of_other_dtypes(dtype: torch.dtype) -> None:
    values, places, keys = batch(0)
    assert_equal(exemplars_of((values.to(dtype), places.to(torch.int32), keys)), exemplars_of((values, places, keys)))


def test_exemplars_state_there_and_back() -> None:
    exemplars = exemplars_of(batch(0), batch(1))
    assert_equal(Exemplars.from_state(*exemplars.state()), exemplars)
    assert_equal(Exemplars.from_state(*Exemplars(2).state()), Exemplars(2))
    state, keys = exemplars.state()
    for wrong in (
        {"ids": torch.zeros(7, dtype=torch.int32)},
        {"y": torch.zeros(7, 2, dtype=torch.int32)},
        {"ids": torch.full((7, 3), len(keys), dtype=torch.int32)},
        {"values": -state["values"]},
        {"values": state["values"] * float("nan")},
        {"x": state["x"] - 1},
    ):
        with pytest.raises(ValueError, match="expected exemplars"):
            Exemplars.from_state(state | wrong, keys)
    for names in (keys[:-1], keys[::-1], [*keys, "zzz"], keys[:-1] + keys[:1]):
        with pytest.raises(ValueError, match="sorted keys"):
            Exemplars.from_state(state, names)


def test_exemplars_refuse() -> None:
    exemplars = Exemplars(2)
    values, places = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.int64)
    exemplars.update(values[:0], places[:0], GRID, [])
    with pytest.raises(ValueError, match=r"shape \(2, 2\), a row a key, got \(3, 2\) and \(3, 2\)"):
        exemplars.update(values, places, GRID, ["a", "b"])
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 1\)"):
        exemplars.update(values, places[:, :1], GRID, ["a", "b", "c"])
    for wrong in (-1, 15):
        with pytest.raises(ValueError, match=f"places in a grid of 3×5, got .*{wrong}"):
            exemplars.update(values, places + wrong, GRID, ["a", "b", "c"])
    with pytest.raises(ValueError, match="NaN or infinite"):
        exemplars.update(values / 0, places, GRID, ["a", "b", "c"])
    assert not exemplars.referenced()
    for unit in (-1, 2):
        with pytest.raises(ValueError, match=rf"a unit in 0 … 1, got {unit}"):
            exemplars.of(unit)
    with pytest.raises(ValueError, match="got 4 for each of 2 units and 3 for each of 2"):
        exemplars + Exemplars(2, 3)
    with pytest.raises(ValueError, match="count=0"):
        Exemplars(2, 0)


# Pictures


def gradient(height: int = 16, width: int = 24) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 8, x * 8, np.full_like(x, 90)], axis=2).astype(np.uint8)


def test_content_key_is_of_content_and_shape() -> None:
    pixels = gradient()
    assert content_key(pixels) == content_key(np.asfortranarray(pixels)) == content_key(gradient())
    other = pixels.copy()
    other[3, 4, 1] ^= 1
    assert len({content_key(p) for p in (pixels, other, pixels.reshape(24, 16, 3))}) == 3
    assert len(content_key(pixels)) == 16
    with pytest.raises(ValueError, match=r"uint8, got \(16, 24\) of uint8"):
        content_key(pixels[..., 0])
    with pytest.raises(ValueError, match="of float64"):
        to_jpeg(pixels / 255)  # type: ignore[arg-type]


def test_keep_images_keeps_what_is_referred_to() -> None:
    old = {"a": b"A", "b": b"B"}
    kept = keep_images(old, {"c": gradient(), "d": gradient(), "b": gradient()}, {"c", "b", "gone"})
    assert list(kept) == ["b", "c"]
    assert kept["b"] == b"B"
    assert Image.open(io.BytesIO(kept["c"])).size == (24, 16)
    assert list(old) == ["a", "b"]


def test_patch_is_the_box_and_nothing_else() -> None:
    pixels = gradient()
    jpeg = to_jpeg(pixels)
    assert len(jpeg) < pixels.size
    found = patch(jpeg, (2, 5, 9, 20))
    assert found.dtype == np.uint8
    assert found.shape == (7, 15, 3)
    assert np.abs(found.astype(int) - pixels[2:9, 5:20]).mean() < 5
    assert patch(jpeg, (-4, -4, 3, 90)).shape == (3, 24, 3)
    for box in ((0, 0, 0, 5), (20, 0, 30, 5), (-9, 0, -2, 5), (5, 9, 8, 3)):
        with pytest.raises(ValueError, match="has nothing of an image"):
            patch(jpeg, box)
