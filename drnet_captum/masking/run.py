"""One set of masks on one batch of images: the masked copies that a network sees, and the weights it gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from drnet_captum._captum import progress
from drnet_captum.engine.state import kept

from .fill import fill
from .random_masks import RandomMasks
from .sums import MaskSums, Normalize, check_normalize

_BLOCK_BYTES = 48 << 20  # masks that are summed in one product; what they take is all that there is of them at once
_BLOCK = 64
_CACHED_BYTES = 4 << 20  # on a CPU: masked copies of one forward pass; more only makes it wait for memory
_FIRST_ON_DEVICE, _MOST_ON_DEVICE = 8, 128


@dataclass(frozen=True)
class MaskingOptions:
    """How images are masked and what is made of it; the keywords of ``RISE.attribute`` and ``DRISE.attribute``."""

    n_masks: int = 5000
    grid: tuple[int, ...] = (16, 16)
    keep_probability: float = 0.5
    baselines: Any = None
    perturbations_per_eval: int | None = None
    normalize: Normalize = "mean"
    generator: torch.Generator | None = None
    show_progress: bool = False
    stop_at: float | None = None

    def __post_init__(self) -> None:
        check_normalize(self.normalize)
        if self.perturbations_per_eval is not None and self.perturbations_per_eval < 1:
            raise ValueError(f"expected perturbations_per_eval of at least 1, got {self.perturbations_per_eval}")
        if self.stop_at is not None and not self.stop_at > 0:
            raise ValueError(f"expected stop_at, a relative standard error, above 0, got {self.stop_at}")
        if self.generator is not None and self.generator.device.type != "cpu":
            raise ValueError(
                f"expected a generator on the CPU, got one on {self.generator.device}: the masks are then the same on "
                "every device"
            )

    def grid_of(self, dimensions: int) -> tuple[int, ...]:
        """The grid for so many dimensions: a square one is taken along each, of signals and volumes too."""
        square = len(self.grid) == 2 and self.grid[0] == self.grid[1]
        return (self.grid[0],) * dimensions if square else tuple(self.grid)


class MaskedRun:
    """The masks drawn, the images ready to be masked, the sums so far.

    Args:
        images: (N, C, H, W).
        weigh: masked copies (m·N, C, H, W), mask by mask, and m -> (T, m), the weight that each of T targets gives to
            each mask. It is called without gradient.
        targets: T.
        options: all of them.
        model: the network that ``weigh`` asks; its state is kept.
        image_range: as for `fill`.
        errors: standard errors are wanted.
        memory_format: of the masked copies.
    """

    def __init__(
        self,
        images: Tensor,
        weigh: Callable[[Tensor, int], Tensor],
        targets: int,
        options: MaskingOptions,
        model: Any,
        image_range: tuple[float, float] | None = None,
        errors: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        x = images.detach()
        generator = options.generator if options.generator is not None else torch.Generator().manual_seed(0)
        size = tuple(x.shape[2:])
        drawn = RandomMasks.draw(options.n_masks, size, options.grid_of(len(size)), options.keep_probability, generator)
        self.masks = drawn.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)
        self.base = fill(x, options.baselines, image_range).contiguous(memory_format=memory_format)
        self.difference = (x - self.base).contiguous(memory_format=memory_format)
        self.sums = MaskSums(targets, size, options.keep_probability, x.device, errors)
        self.options, self._weigh, self._model, self._memory_format = options, weigh, model, memory_format
        copy = x.numel() * x.element_size()
        self._grows = options.perturbations_per_eval is None and x.device.type != "cpu"
        self._chunk = options.perturbations_per_eval or (
            _FIRST_ON_DEVICE if self._grows else max(1, _CACHED_BYTES // copy)
        )
        mask = prod(size) * self.masks.grids.element_size()
        block = max(self._chunk, min(_BLOCK, max(1, _BLOCK_BYTES // mask)))
        self._block = min(block, options.n_masks)
        self._held = torch.empty(self._block, *size, dtype=self.masks.grids.dtype, device=x.device)
        self._copies: Tensor | None = None

    @property
    def done(self) -> int:
        """Masks summed so far."""
        return self.sums.n

    def advance(self, to: int, step: Callable[[int], Any] = lambda n: None) -> None:
        """Go on to the mask ``to`` (exclusive); ``step`` is called with the number of masks of every forward pass."""
        while self.done < to:
            start, stop = self.done, min(self.done + self._block, to)
            with torch.no_grad(), kept(self._model, {self.base.device}):
                masks = self.masks.build(start, stop, out=self._held[: stop - start])
                weights = torch.cat(list(self._weights(masks, step)), dim=1)
                self.sums.add(masks, weights)

    def steps(self, every: int) -> Iterator[int]:
        """Advance by ``every`` masks at a time, to the last one."""
        while self.done < self.options.n_masks:
            self.advance(min(self.done + every, self.options.n_masks))
            yield self.done

    def _weights(self, masks: Tensor, step: Callable[[int], Any]) -> Iterator[Tensor]:
        """The weights (T, m) of some masks, as many in a forward pass as are found to fit."""
        at = 0
        while at < len(masks):
            part = masks[at : at + self._chunk]
            try:
                yield self._weigh(self._shown(part), len(part))
            except torch.OutOfMemoryError as error:
                self._shrink(len(part), error)
                continue
            at += len(part)
            step(len(part))
            if self._grows:
                self._chunk = min(2 * self._chunk, _MOST_ON_DEVICE)

    def _shown(self, masks: Tensor) -> Tensor:
        """b + M ⊙ (x − b) of all images under each mask, (m·N, C, H, W), in memory that is used again."""
        m, image = len(masks), self.base
        if self._copies is None or len(self._copies) < m:
            self._copies = None
            wanted = (m * len(image), *image.shape[1:])
            flat = torch.empty(wanted, dtype=image.dtype, device=image.device, memory_format=self._memory_format)
            self._copies = flat.unflatten(0, (m, len(image)))
        copies = self._copies[:m]
        torch.addcmul(image[None], masks[:, None, None].to(image.dtype), self.difference[None], out=copies)
        return copies.flatten(0, 1)

    def _shrink(self, tried: int, error: torch.OutOfMemoryError) -> None:
        """From now on half as many masks in a forward pass as were too many."""
        if tried == 1 or self.options.perturbations_per_eval is not None:
            raise torch.OutOfMemoryError(
                f"{error}\nwith {tried} masks in a forward pass on {len(self.base)} images: leave "
                "perturbations_per_eval open to have it found, or explain fewer images at once"
            ) from error
        self._chunk, self._grows, self._copies = tried // 2, False, None
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()


def run_through(run: MaskedRun, name: str) -> None:
    """All masks, or until the standard error that was asked for is reached."""
    options, total = run.options, run.options.n_masks
    bar = progress(total=total, desc=name) if options.show_progress else None
    step = (lambda n: bar.update(n)) if bar is not None else (lambda n: None)
    try:
        while run.done < total:
            run.advance(total if options.stop_at is None else min(run.done + EVERY, total), step)
            if options.stop_at is not None and relative_error(run.sums, options.normalize) < options.stop_at:
                break
    finally:
        if bar is not None:
            bar.close()


EVERY = 250  # masks between two looks at the standard error


def relative_error(sums: MaskSums, normalize: Normalize) -> float:
    """The largest over the targets: the median over pixels of the standard error, over the map's range."""
    maps, errors = sums.maps(normalize).flatten(1), sums.standard_errors(normalize).flatten(1)
    spread = maps.amax(1) - maps.amin(1)
    typical = errors.median(1).values
    relative = torch.where(typical > 0, typical / spread.clamp_min(1e-30), 0.0)  # a map of no detection at all is exact
    return float(relative.max())
