"""The images at which each unit fires most, and the pictures of them that are kept."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

Pixels = npt.NDArray[np.uint8]

_KEY_LENGTH = 16  # 64 bits: the chance that any two of a million images share one is below 1 in 10 million
_QUALITY = 85
_ROW = 1 << 32  # a place is y · _ROW + x, so that places compare as (y, x)


@dataclass(frozen=True)
class Exemplar:
    """One strong image of a unit: its content key, the unit's maximum over positions, and where that lies."""

    key: str
    value: float
    y: int
    x: int


class Exemplars:
    """For each unit the images with its highest maxima, each image once.

    Equal values are ordered by key, so ``a + b`` is exactly what one pass over the images of both gives, in any
    order. An image at which a unit does not fire (maximum ≤ 0) is no exemplar of it.

    Args:
        channels: C, the number of units.
        count: the most images kept for a unit.

    Raises:
        ValueError: ``channels`` or ``count`` below 1.

    Example:
        >>> import torch
        >>> exemplars = Exemplars(channels=2, count=1)
        >>> values, places = torch.tensor([[0.5, 0.0], [2.0, -1.0]]), torch.tensor([[0, 0], [5, 0]])
        >>> exemplars.update(values, places, (2, 3), ["cat", "cup"])
        >>> exemplars.of(0), exemplars.of(1)
        ([Exemplar(key='cup', value=2.0, y=1, x=2)], [])
    """

    def __init__(self, channels: int, count: int = 4) -> None:
        if channels < 1 or count < 1:
            raise ValueError(f"expected at least one channel and one image, got channels={channels}, count={count}")
        self.channels, self.count = channels, count
        self._keys: list[str] = []  # sorted: comparing positions in it is comparing keys
        self._ids = np.full((channels, count), -1, dtype=np.int64)  # positions in _keys, -1 where there is none
        self._values = np.zeros((channels, count))
        self._places = np.zeros((channels, count), dtype=np.int64)

    def update(self, values: Tensor, places: Tensor, grid: tuple[int, int], keys: Sequence[str]) -> None:
        """Add a batch.

        Args:
            values: (N, C) each unit's maximum over positions.
            places: (N, C) integers, where it lies: y · w + x.
            grid: (h, w) of the layer's output.
            keys: N content keys (see `content_key`).

        Raises:
            ValueError: shapes that do not belong together, places outside the grid, NaN or infinite values; nothing
                is then added.
        """
        if values.shape != (len(keys), self.channels) or places.shape != values.shape:
            raise ValueError(
                f"expected values and places of shape ({len(keys)}, {self.channels}), a row a key, "
                f"got {tuple(values.shape)} and {tuple(places.shape)}"
            )
        found = values.detach().cpu().to(torch.float64).numpy()
        if not np.isfinite(found).all():
            raise ValueError("the activations have NaN or infinite values: run the model in float32 or bfloat16")
        flat = places.detach().cpu().numpy().astype(np.int64)
        height, width = grid
        if flat.size and not 0 <= flat.min() <= flat.max() < height * width:
            raise ValueError(f"expected places in a grid of {height}×{width}, got {flat.min()} to {flat.max()}")
        y, x = np.divmod(flat, width)
        remaining = np.arange(len(keys))
        while len(remaining):
            # Each image once; those that come twice in the batch go on to the next round.
            seen: dict[str, int] = {}
            first = np.array([seen.setdefault(keys[i], i) == i for i in remaining.tolist()])
            names = sorted(seen)
            rows = [seen[name] for name in names]
            self._take(found[rows], y[rows] * _ROW + x[rows], names)
            remaining = remaining[~first]

    def of(self, unit: int) -> list[Exemplar]:
        """The unit's exemplars, strongest first; none where it never fired.

        Raises:
            ValueError: no such unit.
        """
        if not 0 <= unit < self.channels:
            raise ValueError(f"expected a unit in 0 … {self.channels - 1}, got {unit}")
        rows = zip(self._ids[unit].tolist(), self._values[unit].tolist(), self._places[unit].tolist(), strict=True)
        return [Exemplar(self._keys[i], value, *divmod(place, _ROW)) for i, value, place in rows if i >= 0]

    def referenced(self) -> set[str]:
        """The keys of all exemplars of all units."""
        return set(self._keys)

    def __add__(self, other: Exemplars) -> Exemplars:
        if not isinstance(other, Exemplars):
            return NotImplemented
        if (other.channels, other.count) != (self.channels, self.count):
            raise ValueError(
                f"expected exemplars of the same layer and number, got {self.count} for each of {self.channels} units "
                f"and {other.count} for each of {other.channels}"
            )
        total = Exemplars(self.channels, self.count)
        for part in (self, other):
            total._merge(np.arange(self.channels), part._values, part._places, part._ids, part._keys)
        return total

    def __repr__(self) -> str:
        return f"Exemplars({self.channels} units, at most {self.count} each, {len(self._keys)} images)"

    def state(self) -> tuple[dict[str, Tensor], list[str]]:
        """Everything as tensors (C, count), and the sorted keys that ``ids`` counts in; −1 is none."""
        y, x = np.divmod(self._places, _ROW)
        arrays = {"ids": self._ids.astype(np.int32), "values": self._values.copy()}
        arrays |= {"y": y.astype(np.int32), "x": x.astype(np.int32)}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}, list(self._keys)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], keys: Sequence[str]) -> Exemplars:
        """The same from `state`'s tensors and keys.

        Raises:
            ValueError: tensors and keys that do not belong together.
        """
        ids, values, y, x = (state[name].numpy() for name in ("ids", "values", "y", "x"))
        if ids.ndim != 2 or any(part.shape != ids.shape for part in (values, y, x)):
            raise ValueError(f"expected exemplars of shape (C, count), got {ids.shape} and {values.shape}")
        if not np.array_equal(np.unique(ids[ids >= 0]), np.arange(len(keys))) or list(keys) != sorted(set(keys)):
            raise ValueError(f"expected exemplars that refer to {len(keys)} sorted keys")
        if not (values[ids >= 0] > 0).all() or min(y.min(), x.min()) < 0:
            raise ValueError("expected exemplars with values above 0 at places from 0")
        loaded = cls(*ids.shape)
        places = y.astype(np.int64) * _ROW + x
        loaded._merge(np.arange(len(ids)), values, places, ids.astype(np.int64), keys)
        return loaded

    def _take(self, values: npt.NDArray[Any], places: npt.NDArray[Any], keys: Sequence[str]) -> None:
        """Merge a batch (n, C) of different images, sorted by key."""
        best = values.max(axis=0)
        # After some batches few units meet a stronger image: the others cost one comparison.
        units = np.flatnonzero((best > 0) & (best >= self._values[:, -1]))
        if len(units):
            found = values[:, units].T
            ids = np.argsort(-found, axis=1, kind="stable")[:, : self.count]
            found = np.take_along_axis(found, ids, axis=1)
            there = np.take_along_axis(places[:, units].T, ids, axis=1)
            self._merge(units, found, there, np.where(found > 0, ids, -1), keys)

    def _merge(
        self,
        units: npt.NDArray[Any],
        values: npt.NDArray[Any],
        places: npt.NDArray[Any],
        ids: npt.NDArray[Any],
        keys: Sequence[str],
    ) -> None:
        """Merge candidates (R, m) of R units; ``ids`` counts in ``keys``, -1 is none."""
        union = sorted({*self._keys, *keys})
        position = {key: i for i, key in enumerate(union)}
        # The last entry is what -1 becomes.
        own, new = (np.array([*map(position.__getitem__, names), -1]) for names in (self._keys, keys))
        self._ids = own[self._ids]
        ids = np.concatenate([self._ids[units], new[ids]], axis=1)
        values = np.concatenate([self._values[units], values], axis=1)
        places = np.concatenate([self._places[units], places], axis=1)

        order = np.lexsort((places, -values, ids), axis=1)
        ids, values, places = (np.take_along_axis(part, order, axis=1) for part in (ids, values, places))
        again = np.zeros(ids.shape, dtype=bool)
        again[:, 1:] = ids[:, 1:] == ids[:, :-1]
        none = again | (ids < 0)
        ids, values, places = np.where(none, -1, ids), np.where(none, 0, values), np.where(none, 0, places)

        order = np.argsort(-values, axis=1, kind="stable")[:, : self.count]
        self._ids[units], self._values[units], self._places[units] = (
            np.take_along_axis(part, order, axis=1) for part in (ids, values, places)
        )
        used = np.zeros(len(union) + 1, dtype=bool)
        used[self._ids] = True  # -1 marks the last entry, which is none
        used[-1] = False
        self._keys = [union[i] for i in np.flatnonzero(used).tolist()]
        self._ids = np.where(used, np.cumsum(used) - 1, -1)[self._ids]


def content_key(pixels: Pixels) -> str:
    """A key of an image's content: the SHA-1 of its shape and bytes, shortened to 16 hexadecimal digits.

    Args:
        pixels: (H, W, 3) uint8.

    Raises:
        ValueError: another shape or dtype.

    Example:
        >>> import numpy as np
        >>> content_key(np.zeros((2, 2, 3), dtype=np.uint8))
        '032d1c61478775df'
    """
    _check_pixels(pixels)
    content = repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()
    return sha1(content, usedforsecurity=False).hexdigest()[:_KEY_LENGTH]


def to_jpeg(pixels: Pixels) -> bytes:
    """An image (H, W, 3) uint8 as a JPEG file of quality 85. Raises ValueError for another shape or dtype."""
    _check_pixels(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def keep_images(
    images: Mapping[str, bytes], batch: Mapping[str, Pixels], referenced: Iterable[str]
) -> dict[str, bytes]:
    """The images that exemplars refer to: of those kept and of a batch; the others are dropped.

    Args:
        images: content key -> JPEG, kept so far.
        batch: content key -> (H, W, 3) uint8, what the model saw.
        referenced: the keys to keep (see `Exemplars.referenced`).

    Returns:
        content key -> JPEG, sorted by key.

    Example:
        >>> import numpy as np
        >>> grey = np.full((8, 8, 3), 128, dtype=np.uint8)
        >>> list(keep_images({"a": b"", "b": b""}, {"c": grey, "d": grey}, {"b", "c"}))
        ['b', 'c']
    """
    kept = {}
    for key in sorted(set(referenced)):
        if key in images:
            kept[key] = images[key]
        elif key in batch:
            kept[key] = to_jpeg(batch[key])
    return kept


def patch(jpeg: bytes, box: tuple[int, int, int, int]) -> Pixels:
    """What a unit saw: an image cropped to a receptive field.

    Args:
        jpeg: a JPEG file.
        box: (top, left, bottom, right) in pixels, as ``Field.box`` gives it; clipped to the image.

    Returns:
        (h, w, 3) uint8.

    Raises:
        ValueError: a box that has nothing of the image.

    Example:
        >>> import numpy as np
        >>> patch(to_jpeg(np.zeros((8, 8, 3), dtype=np.uint8)), (-2, 4, 3, 12)).shape
        (3, 4, 3)
    """
    return crop(read_jpeg(jpeg), box)


def read_jpeg(jpeg: bytes) -> Pixels:
    """The (H, W, 3) uint8 pixels of a JPEG file."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def crop(pixels: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    """A box of an image (H, W, 3); `patch` says which."""
    top, left, bottom, right = box
    inside = pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if inside.size == 0:
        raise ValueError(f"the box {box} (top, left, bottom, right) has nothing of an image of {pixels.shape[:2]}")
    return inside


def _check_pixels(pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"expected an image (H, W, 3) of uint8, got {pixels.shape} of {pixels.dtype}")
