"""The dissection of a network: its layers' units, what they detect, whom they serve, where they fire most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drnet_captum.dissect.exemplars import Pixels, crop, keep_images, read_jpeg
from drnet_captum.dissect.layer_units import LayerUnits as LayerUnits

if TYPE_CHECKING:
    from PIL import Image

_RECORDED_CLASSES = 3


@dataclass(frozen=True, eq=False, repr=False)
class Dissection:
    """What each unit of a model detects, whom it serves, and where it fires most.

    Dissections of the same model over different images add up: ``a + b`` or ``sum(shards)`` is the dissection over all
    of them, up to rounding. Its size does not depend on the number of images.

    Attributes:
        model: the model's name.
        fingerprint: of its architecture and weights.
        class_names: in the order of the scores; None where they are not known.
        layers: input to output.
        counts: class -> images seen.
        images: content key -> JPEG of what the model saw, of the images that exemplars refer to.

    Raises:
        ValueError: no layers, or two of one name.

    Source: Hu 2019 (DRNet); Bau et al. 2017, arXiv 1704.05796 (what units detect).

    Example:
        >>> import torch
        >>> from drnet_captum.dissect.exemplars import Exemplars
        >>> from drnet_captum.dissect.importance import ClassImportance
        >>> from drnet_captum.layers.fields import Field
        >>> from drnet_captum.layers.units import UnitLayer
        >>> layer = UnitLayer("conv1", "convolution", 2, (4, 4), Field((3, 3), (1.0, 1.0), (-1.0, -1.0)))
        >>> importance = ClassImportance(2)
        >>> importance.update(torch.tensor([[3.0, -1.0]]), torch.tensor([1]))
        >>> units = LayerUnits(layer, importance, Exemplars(2))
        >>> dissection = Dissection("mine", "f00d", ("cat", "cup"), (units,), {1: 1}, {})
        >>> dissection
        Dissection(mine: 1 layer, 2 units, 1 class, 1 image, 0 kept)
        >>> dissection.served("conv1", 0), (dissection + dissection).counts
        ([(1, 3.0)], {1: 2})
    """

    model: str
    fingerprint: str
    class_names: tuple[str, ...] | None
    layers: tuple[LayerUnits, ...]
    counts: Mapping[int, int]
    images: Mapping[str, bytes]

    def __post_init__(self) -> None:
        names = [units.layer.name for units in self.layers]
        if not names:
            raise ValueError("expected at least one layer, got none")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected each layer once, got {', '.join(twice)} several times")

    def __getitem__(self, name: str) -> LayerUnits:
        for units in self.layers:
            if units.layer.name == name:
                return units
        raise ValueError(f"no layer {name!r} was dissected; there are: {', '.join(u.layer.name for u in self.layers)}")

    def __add__(self, other: Dissection) -> Dissection:
        if not isinstance(other, Dissection):
            return NotImplemented
        if self.fingerprint != other.fingerprint:
            raise ValueError(
                f"expected dissections of one model, got {self.model} ({self.fingerprint}) and {other.model} "
                f"({other.fingerprint}): the architectures or the weights are different"
            )
        mine, theirs = ([units.layer.name for units in side.layers] for side in (self, other))
        if mine != theirs:
            only = sorted(set(mine) ^ set(theirs)) or ["the same ones in another order"]
            raise ValueError(f"expected the same layers on both sides, one side only has: {', '.join(only)}")
        if self.class_names and other.class_names and self.class_names != other.class_names:
            raise ValueError("expected the same class names on both sides: replace() the wrong ones first")
        layers = tuple(a + b for a, b in zip(self.layers, other.layers, strict=True))
        classes = sorted({*self.counts, *other.counts})
        return Dissection(
            model=self.model,
            fingerprint=self.fingerprint,
            class_names=self.class_names or other.class_names,
            layers=layers,
            counts={c: self.counts.get(c, 0) + other.counts.get(c, 0) for c in classes},
            images=keep_images({**self.images, **other.images}, {}, _referenced(layers)),
        )

    def __radd__(self, other: object) -> Dissection:
        # sum() starts from 0.
        return self if other == 0 else NotImplemented

    def without_labels(self) -> Dissection:
        """The same statistics without any labels or concepts."""
        return replace(self, layers=tuple(replace(units, labels=(), concepts={}) for units in self.layers))

    def check(self, fingerprint: str) -> None:
        """Raise ValueError where this is the dissection of a model with another fingerprint."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"this is the dissection of {self.model} ({self.fingerprint}), and the model at hand is another one or "
                f"has other weights ({fingerprint}): load the weights that were dissected, or dissect this model"
            )

    def class_label(self, c: int) -> str:
        """The name of class ``c``, or "class 12" where there is none."""
        if self.class_names is not None and 0 <= c < len(self.class_names):
            return self.class_names[c]
        return f"class {c}"

    def served(self, layer: str, unit: int, n: int = 3) -> list[tuple[int, float]]:
        """The classes to whose scores a unit adds most: (class, signed mean importance), strongest first.

        A unit serves no class to which it adds nothing on average.

        Raises:
            ValueError: no such layer or unit.
        """
        units = self[layer]
        if not 0 <= unit < units.layer.channels:
            raise ValueError(f"layer {layer} has the units 0 … {units.layer.channels - 1}, got {unit}")
        return units.importance.served(n)[unit]

    def to_records(self) -> list[dict[str, Any]]:
        """One row a unit, for ``pandas.DataFrame``; what is not known is None.

        Columns: layer, kind, unit, label, family, score; class_1 … class_3 with importance_1 … importance_3 (`served`);
        exemplar (the strongest one's key); for every source of concepts its name and name_score.
        """
        sources = sorted({source for units in self.layers for source in units.concepts})
        return [row for units in self.layers for row in self._rows(units, sources)]

    def find(self, text: str) -> list[dict[str, Any]]:
        """The rows of `to_records` of which a label, family, concept or served class contains ``text``, in any case.

        Raises:
            ValueError: an empty text.
        """
        wanted = text.strip().lower()
        if not wanted:
            raise ValueError("expected a text to look for, got none")
        sources = {source for units in self.layers for source in units.concepts}
        named = {"label", "family", *sources, *(f"class_{i + 1}" for i in range(_RECORDED_CLASSES))}
        return [row for row in self.to_records() if any(wanted in str(row[key] or "").lower() for key in named)]

    def plot(self, layer: str | None = None) -> Image.Image:
        """A picture: what each layer's units detect, and which units of one layer serve which class.

        Args:
            layer: whose units; None: the last layer.

        Raises:
            ValueError: no such layer.
        """
        from drnet_captum.viz.dissection import dissection_picture

        units = self[layer] if layer is not None else self.layers[-1]
        field, exemplars = units.layer.field, units.exemplars

        def strongest(unit: int) -> Pixels | None:
            for found in exemplars.of(unit):
                if found.key in self.images:
                    pixels = read_jpeg(self.images[found.key])
                    return crop(pixels, field.box(found.y, found.x, pixels.shape[:2]))
            return None

        return dissection_picture(
            families={each.layer.name: [label.family for label in each.labels] for each in self.layers},
            layer=units.layer.name,
            importance=units.importance.signed,
            class_names=[self.class_label(c) for c in units.importance.classes.tolist()],
            unit_names=[label.name for label in units.labels],
            patch=strongest,
            title=f"{self.model}: what its units detect and whom they serve",
        )

    def save(self, folder: str | Path) -> None:
        """Write everything to a folder: JSON, safetensors and JPEG files (see `storage.save`)."""
        from drnet_captum.dissect import storage

        storage.save(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Dissection:
        """The dissection in a folder that `save` wrote (see `storage.load`)."""
        from drnet_captum.dissect import storage

        return storage.load(folder)

    def __repr__(self) -> str:
        units = sum(layer.layer.channels for layer in self.layers)
        parts = [_many(len(self.layers), "layer"), _many(units, "unit"), _many(len(self.counts), "class", "classes")]
        parts += [_many(sum(self.counts.values()), "image"), f"{len(self.images):,} kept"]
        return f"Dissection({self.model}: {', '.join(parts)})"

    def _rows(self, units: LayerUnits, sources: list[str]) -> list[dict[str, Any]]:
        served = units.importance.served(_RECORDED_CLASSES)
        rows = []
        for unit in range(units.layer.channels):
            row: dict[str, Any] = {"layer": units.layer.name, "kind": units.layer.kind, "unit": unit}
            label = units.labels[unit] if units.labels else None
            row["label"] = getattr(label, "name", None)
            row |= {key: getattr(label, key, None) for key in ("family", "score")}
            for i in range(_RECORDED_CLASSES):
                c, value = served[unit][i] if i < len(served[unit]) else (None, None)
                row |= {f"class_{i + 1}": None if c is None else self.class_label(c), f"importance_{i + 1}": value}
            exemplars = units.exemplars.of(unit)
            row["exemplar"] = exemplars[0].key if exemplars else None
            for source in sources:
                concept = units.concepts[source][unit] if source in units.concepts else None
                row |= {source: getattr(concept, "name", None), f"{source}_score": getattr(concept, "score", None)}
            rows.append(row)
        return rows


def _referenced(layers: tuple[LayerUnits, ...]) -> set[str]:
    return set().union(*(units.exemplars.referenced() for units in layers))


def _many(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
