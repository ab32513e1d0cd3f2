"""One set of masks on one batch of images: the masked copies that a network sees, and the weights it gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from drnet_captum._captum import progress
from drnet_captum.engine.memory import spare_memory
from drnet_captum.engine.state import kept

from .estimate import EVERY, relative_error
from .fill import fill
from .options import MaskingOptions
from .random_masks import RandomMasks
from .sums import MaskSums

# Masks that are summed in one product: what they take is all that there is of masks at once.
_BLOCK, _BLOCK_BYTES = 64, 48 << 20
_BLOCK_ON_DEVICE, _BYTES_ON_DEVICE = 128, 256 << 20
# Masked copies of one forward pass: on a CPU more only make it wait for memory; elsewhere doubled as long as they fit.
_COPIES_BYTES = 4 << 20
_FIRST_ON_DEVICE = 8


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
        on_cpu = x.device.type == "cpu"
        fitting = max(1, _COPIES_BYTES // (x.numel() * x.element_size())) if on_cpu else _FIRST_ON_DEVICE
        self._chunk = options.perturbations_per_eval or fitting
        self._grows = options.perturbations_per_eval is None and not on_cpu
        most, most_bytes = (_BLOCK, _BLOCK_BYTES) if on_cpu else (_BLOCK_ON_DEVICE, _BYTES_ON_DEVICE)
        mask = prod(size) * self.masks.grids.element_size()
        self._block = min(options.n_masks, max(self._chunk, min(most, most_bytes // mask)))
        self._held = torch.empty(self._block, *size, dtype=self.masks.grids.dtype, device=x.device)
        self._copies: Tensor | None = None
        self._spare = spare_memory(x.device)

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

    def steps(self, every: int, step: Callable[[int], Any] = lambda n: None) -> Iterator[int]:
        """Advance by ``every`` masks at a time, to the last one or to ``stop_at``, which is looked at every 250."""
        total, stop_at = self.options.n_masks, self.options.stop_at
        settled = False
        while self.done < total and not settled:
            to = min(_next(self.done, every), total)
            while self.done < to and not settled:
                self.advance(to if stop_at is None else min(_next(self.done, EVERY), to), step)
                if stop_at is not None and self.done % EVERY == 0:
                    settled = relative_error(self.sums, self.options.normalize) < stop_at
            yield self.done

    def finish(self, name: str) -> None:
        """All steps, with a progress bar if one was asked for."""
        total = self.options.n_masks
        bar = progress(total=total, desc=name) if self.options.show_progress else None
        try:
            for _ in self.steps(total, bar.update if bar is not None else lambda n: None):
                pass
        finally:
            if bar is not None:
                bar.close()

    def _weights(self, masks: Tensor, step: Callable[[int], Any]) -> Iterator[Tensor]:
        """The weights (T, m) of some masks, as many in a forward pass as are found to fit."""
        at = 0
        while at < len(masks):
            part = masks[at : at + self._chunk]
            weights = self._tried(part)
            if weights is None:
                self._release()
                continue
            yield weights
            at += len(part)
            step(len(part))
            if self._grows:
                self._chunk = min(2 * self._chunk, self._block)

    def _tried(self, masks: Tensor) -> Tensor | None:
        """The weights of some masks; None where there was no memory for so many, and half of them are next."""
        try:
            return self._weigh(self._shown(masks), len(masks))
        except torch.OutOfMemoryError as error:
            if len(masks) == 1 or self.options.perturbations_per_eval is not None:
                raise torch.OutOfMemoryError(
                    f"{error}\nwith {len(masks)} masks in a forward pass on {len(self.base)} images: leave "
                    "perturbations_per_eval open to have it found, or explain fewer images at once"
                ) from error
            self._chunk, self._grows = len(masks) // 2, False
            return None

    def _release(self) -> None:
        """Give back what a pass that failed has left; while its exception was handled, it held on to all of it."""
        self._copies = None
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()

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


def _next(done: int, every: int) -> int:
    """The next multiple of ``every``."""
    return (done // every + 1) * every
