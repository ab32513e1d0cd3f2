"""A dissection in the making: batch after batch, one forward pass and one backward pass or a few."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from drnet_captum.attr.drnet_dissection import read_importance
from drnet_captum.attr.score import Score, scores
from drnet_captum.data.card import ModelCard
from drnet_captum.dissect.contrasts import checked_contrasts, read_contrasts, rivals_of
from drnet_captum.dissect.dissection import Dissection, LayerUnits
from drnet_captum.dissect.exemplars import Exemplars, Pixels, content_key, keep_images
from drnet_captum.dissect.fingerprint import fingerprint
from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.dissect.moments import ChannelMoments
from drnet_captum.engine.inputs import as_tuple
from drnet_captum.engine.naming import Layer
from drnet_captum.engine.unit_tape import UnitTape
from drnet_captum.layers.discovery import LayerDiscoveryError, cut_layers_for
from drnet_captum.layers.layout import to_map
from drnet_captum.layers.units import NO_UNITS, Missing, Site, find_units, look_for_units

SAMPLED = 14  # positions a side, of which correlations are taken
FEW_CONVOLUTIONS = 2  # a model with fewer has its units elsewhere


class Dissector:
    """Sums up what the units of a model do, over batches of labelled images.

    Its size does not depend on the number of images. ``result()`` may be asked for at any time: what was summed up so
    far is never lost.

    Args:
        model: the model.
        layers: modules or dotted names. None: every convolution that has a grid, and the layers that DRNet reconstructs
            from (the last cut layer at each resolution); all cut layers where there are hardly any convolutions.
        score: whose importance: the class's "logit", or its "log_prob".
        exemplars: how many images are kept for each unit.
        card: the model's name, how it sees a photo, and the names of its classes.
        contrasts: classes to set against each other: at least two, or none.

    Raises:
        ValueError: no layers or exemplars; contrasts of one class, of a class twice, or of another score than logits.

    Example:
        >>> import timm, torch
        >>> dissector = Dissector(timm.create_model("test_resnet", num_classes=4).eval())
        >>> scores = dissector.update(torch.rand(2, 3, 96, 96), torch.tensor([0, 3]))
        >>> dissector.result().counts
        {0: 1, 3: 1}
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Sequence[Layer] | None = None,
        score: Score = "logit",
        exemplars: int = 4,
        card: ModelCard | None = None,
        contrasts: Sequence[int] = (),
    ) -> None:
        if layers is not None and (isinstance(layers, (str, nn.Module)) or not layers):
            raise ValueError(f"expected layers to be a list of at least one module or name, got {layers!r}")
        if exemplars < 1:
            raise ValueError(f"expected exemplars to be at least 1, got {exemplars}")
        self.model, self.layers, self.score, self.count, self.card = model, layers, score, exemplars, card
        self.contrasts = checked_contrasts(contrasts, score)
        self.sites: list[Site] = []
        self._importance: dict[str, ClassImportance] = {}
        self._contrasts: dict[str, dict[int, ClassImportance]] = {}
        self._exemplars: dict[str, Exemplars] = {}
        self._moments: dict[str, ChannelMoments] = {}
        self._images: dict[str, bytes] = {}
        self._counts: dict[int, int] = {}
        self._fingerprint: str | None = None

    @property
    def images_seen(self) -> int:
        """How many images were added."""
        return sum(self._counts.values())

    def begin(self, images: Tensor) -> list[Site]:
        """Find the layers on images of the size that is to come; ``update`` does it by itself."""
        if not self.sites:
            if images.dim() != 4:
                raise ValueError(f"expected a batch of images, (N, C, H, W), got {tuple(images.shape)}")
            as_tuple(images)  # what is found on no image, or on NaN, would be remembered
            found = find_units(self.model, (images,), (), self.layers or default_layers(self.model, images))
            if not found:
                raise ValueError(NO_UNITS)
            self._start(sorted(found, key=lambda site: site.order), tuple(images.shape[1:]))
        return self.sites

    def _start(self, sites: list[Site], size: tuple[int, ...]) -> None:
        self.sites, self._size = sites, size
        for site in sites:
            name, channels = site.layer.name, site.layer.channels
            self._importance[name] = ClassImportance(channels)
            self._contrasts[name] = {u: ClassImportance(channels) for u in self.contrasts}
            self._exemplars[name] = Exemplars(channels, self.count)
            if site.layer.kind == "layer":
                self._moments[name] = ChannelMoments(channels)

    def emptied(self) -> Dissector:
        """One that has seen no image, of the same layers: they need not be found again."""
        other = Dissector(
            self.model,
            layers=self.layers,
            score=self.score,
            exemplars=self.count,
            card=self.card,
            contrasts=self.contrasts,
        )
        other._fingerprint = self._fingerprint or fingerprint(self.model)
        if self.sites:
            other._start(self.sites, self._size)
        return other

    def update(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Add a batch, in full or, after an error, not at all.

        Args:
            images: (N, 3, H, W), as the model takes them.
            labels: (N,) classes. None: those that the model answers.

        Returns:
            The model's scores, (N, K).

        Raises:
            ValueError: labels or contrasts that are not the model's classes, images of another size than before.
        """
        sites = self.begin(images)
        if tuple(images.shape[1:]) != self._size:
            raise ValueError(f"expected images of {self._size} as in the first batch, got {tuple(images.shape)}")
        tape = UnitTape(self.model, {site.layer.name: site for site in sites})
        output = tape.forward(images)
        classes = checked_labels(labels, output)
        rivals = rivals_of(classes, self.contrasts, output.shape[1])
        peaks: dict[str, tuple[Tensor, Tensor]] = {}
        sampled: dict[str, Tensor] = {}

        def look(site: Site, activation: Tensor) -> None:
            maps = to_map(activation, site.placement)
            peaks[site.layer.name] = maps.flatten(2).max(2)
            if site.layer.name in self._moments:
                sampled[site.layer.name] = some_positions(maps)

        y = scores(output, classes.tolist(), self.score)
        found = read_importance(tape, sites, y, look, keep=len(rivals) > 0)
        against = read_contrasts(tape, sites, output, classes, rivals)
        if not all(bool(values.isfinite().all()) for values in (*found.values(), *against.values())):
            raise ValueError("the importances have NaN or infinite values: run the model in float32 or bfloat16")
        pictures = [self.picture(image) for image in images]
        keys = [content_key(picture) for picture in pictures]
        for site in sites:
            name = site.layer.name
            self._importance[name].update(found[name].cpu(), classes)
            for u, sums in self._contrasts[name].items() if name in against else ():
                at = rivals == u
                sums.update(against[name][at], classes.expand_as(rivals)[at])
            if name in peaks:
                values, places = peaks[name]
                self._exemplars[name].update(values.cpu(), places.cpu(), grid_of(site), keys)
            if name in sampled:
                self._moments[name].update(sampled[name].cpu())
        referenced = set().union(*(e.referenced() for e in self._exemplars.values()))
        self._images = keep_images(self._images, dict(zip(keys, pictures, strict=True)), referenced)
        for c in classes.tolist():
            self._counts[c] = self._counts.get(c, 0) + 1
        return output.detach()

    def picture(self, image: Tensor) -> Pixels:
        """What the model saw, (H, W, 3) uint8: by its card, or scaled to its range where it has none."""
        if self.card is not None and len(image) == 3:
            values = self.card.photo(image)
        else:
            channels = image.detach().float().cpu()
            channels = channels if len(channels) == 3 else channels.mean(0, keepdim=True).expand(3, -1, -1)
            low, high = channels.amin(), channels.amax()
            values = ((channels - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
        pixels: Pixels = np.rint(values * 255).astype(np.uint8)
        return pixels

    def result(self) -> Dissection:
        """The dissection of everything so far."""
        if not self.sites:
            raise ValueError("expected at least one batch of images to dissect the model on, got none")
        layers = tuple(
            LayerUnits(
                layer=site.layer,
                importance=self._importance[site.layer.name],
                exemplars=self._exemplars[site.layer.name],
                similarity=self._moments.get(site.layer.name),
                contrasts=self._contrasts[site.layer.name],
            )
            for site in self.sites
        )
        names = self.card.categories if self.card is not None else None
        title = self.card.name if self.card is not None else type(self.model).__name__
        counts = dict(sorted(self._counts.items()))
        # A copy: the sums go on.
        known = self._fingerprint or fingerprint(self.model)
        return deepcopy(Dissection(title, known, names, layers, counts, self._images))


def default_layers(model: nn.Module, images: Tensor) -> list[Layer]:
    """Every convolution with a grid, and the layers that DRNet reconstructs from; those without units are left out."""
    convolutions = [site.layer.name for site in find_units(model, (images,))]
    try:
        found = cut_layers_for(model, (images,), ())
    except LayerDiscoveryError:
        return list(convolutions)
    there = look_for_units(model, (images,))
    cuts = [cut for cut in found if not isinstance(there.get(cut.name), Missing)]
    chosen = cuts if len(convolutions) < FEW_CONVOLUTIONS else list({cut.grid: cut for cut in cuts}.values())
    return [*convolutions, *(cut.name for cut in chosen if cut.name not in convolutions)]


def checked_labels(labels: Tensor | None, output: Tensor) -> Tensor:
    """The classes of a batch as integers on the CPU; the likeliest ones where there are none."""
    if output.dim() != 2 or output.shape[1] < 2:
        raise ValueError(
            f"expected a model that scores several classes, (N, K), got an output of {tuple(output.shape)}"
        )
    if labels is None:
        return output.detach().argmax(1).cpu()
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.dtype == torch.bool
        or labels.shape != output.shape[:1]
    ):
        shape = f"{tuple(labels.shape)} {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"expected a label for each of {len(output)} images, integers of shape (N,), got {shape}")
    low, high, classes = int(labels.min()), int(labels.max()), output.shape[1]
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise ValueError(
            f"label {wrong} is not one of the model's {classes} classes, 0 to {classes - 1}: map the data's labels to "
            "the model's classes"
        )
    return labels.detach().cpu().long()


def some_positions(maps: Tensor) -> Tensor:
    """(N, C, h, w) → (N · positions, C): a regular grid of at most 14 × 14 of them, as neighbours are alike."""
    height, width = (-(-side // SAMPLED) for side in maps.shape[2:])
    return maps[:, :, ::height, ::width].movedim(1, -1).flatten(0, -2)


def grid_of(site: Site) -> tuple[int, int]:
    """(h, w); (1, t) of signals."""
    *_, height, width = (1, *site.layer.grid)
    return height, width
