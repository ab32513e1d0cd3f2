"""What is known of one layer's units: what they detect, whom they serve, where they fire most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from drnet_captum.dissect.exemplars import Exemplars
from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.dissect.moments import ChannelMoments

if TYPE_CHECKING:
    from drnet_captum.dissect.labels import UnitLabel
    from drnet_captum.layers.units import UnitLayer

_MAKE_AGAIN = "add a.without_labels() and b.without_labels(), and make the labels again from the sum's statistics"


@dataclass(frozen=True, eq=False, repr=False)
class LayerUnits:
    """One layer's units.

    Attributes:
        layer: where they are: name, kind, number, grid, receptive field.
        importance: what they add to the classes' scores.
        exemplars: the images at which they fire most.
        labels: what they detect, one label a unit; () where that was not asked.
        concepts: further labels by where they come from ("masks", "text"), one a unit each.
        similarity: how their activations vary together, where that was asked.
        contrasts: class u -> what they add to the score of an image's own class c more than to that of u, by c; of the
            classes that were set against each other.

    Raises:
        ValueError: statistics or labels of another number of units.
    """

    layer: UnitLayer
    importance: ClassImportance
    exemplars: Exemplars
    labels: tuple[UnitLabel, ...] = ()
    concepts: Mapping[str, tuple[UnitLabel, ...]] = field(default_factory=dict)
    similarity: ChannelMoments | None = None
    contrasts: Mapping[int, ClassImportance] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {"importance": self.importance.channels, "exemplars": self.exemplars.channels}
        counts |= {"similarity": self.similarity.channels} if self.similarity else {}
        counts |= {f"contrasts with class {u}": sums.channels for u, sums in self.contrasts.items()}
        counts |= {"labels": len(self.labels)} if self.labels else {}
        counts |= {name: len(labels) for name, labels in self.concepts.items()}
        for what, count in counts.items():
            if count != self.layer.channels:
                raise ValueError(f"layer {self.layer.name} has {self.layer.channels} units, got {what} of {count}")

    def __add__(self, other: LayerUnits) -> LayerUnits:
        if not isinstance(other, LayerUnits):
            return NotImplemented
        name = self.layer.name
        if self.layer != other.layer:
            raise ValueError(f"expected the same layer, got {self.layer} and {other.layer}")
        if (self.similarity is None) != (other.similarity is None):
            raise ValueError(f"layer {name}: one side only has similarities: dissect both with the same settings")
        if self.contrasts.keys() != other.contrasts.keys():
            mine, theirs = sorted(self.contrasts), sorted(other.contrasts)
            raise ValueError(
                f"layer {name}: one side sets the classes {mine} against each other and the other side {theirs}: "
                "dissect both with the same contrasts"
            )
        if self.labels and other.labels and self.labels != other.labels:
            raise ValueError(f"layer {name}: the two sides have different labels: {_MAKE_AGAIN}")
        for source in self.concepts.keys() & other.concepts.keys():
            if self.concepts[source] != other.concepts[source]:
                raise ValueError(f"layer {name}: the two sides have different {source!r} labels: {_MAKE_AGAIN}")
        both = None if self.similarity is None or other.similarity is None else self.similarity + other.similarity
        return LayerUnits(
            layer=self.layer,
            importance=self.importance + other.importance,
            exemplars=self.exemplars + other.exemplars,
            labels=self.labels or other.labels,
            concepts={**self.concepts, **other.concepts},
            similarity=both,
            contrasts={u: self.contrasts[u] + other.contrasts[u] for u in sorted(self.contrasts)},
        )

    def __repr__(self) -> str:
        known = [name for name in ("labels", "similarity") if getattr(self, name)] + list(self.concepts)
        known += [f"contrasts of {len(self.contrasts)} classes"] if self.contrasts else []
        return f"LayerUnits({self.layer.name}: {self.layer.channels} units{''.join(f', {name}' for name in known)})"
