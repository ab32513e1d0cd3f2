"""A network analysed: what its units detect, the modules they form, what each adds to an answer, what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from drnet_captum.attr.drnet import DRNet
from drnet_captum.data.card import ModelCard
from drnet_captum.dissect.dissection import Dissection, LayerUnits
from drnet_captum.dissect.labelling import StimulusLabels
from drnet_captum.reconstruct.fidelity import Fidelity
from drnet_captum.reconstruct.reconstruction import Reconstruction

ANSWERS = 3
LISTED = 8  # features of a layer
KEPT_SHARE = 0.9  # of the importance, that the modules have which are kept


@dataclass(frozen=True, eq=False)
class Subject:
    """A photo, and the answer to it that is explained.

    Attributes:
        name: for titles.
        inputs: (1, 3, H, W), as the model takes it.
        answers: the likeliest classes with their probabilities.
        target: the class that is explained.
    """

    name: str
    inputs: Tensor
    answers: tuple[tuple[int, float], ...]
    target: int


@dataclass(frozen=True, eq=False)
class Analysis:
    """Everything found about a model, and about the answers to some photos.

    Attributes:
        card: the model's.
        dissection: its units: importance, exemplars, labels.
        stimuli: what rendered stimuli said of them.
        reconstruction: the modules they form.
        subjects: P photos.
        maps: (P, 1, H, W), R(x) of each photo.
        module_maps: (P, M, H, W); their sum over M is ``maps``.
        shares: (P, M), of the evidence.
        kept: how many modules have nine tenths of the importance.
        fidelity: what the answers are without redundant units, and with those modules alone.
    """

    card: ModelCard
    dissection: Dissection
    stimuli: StimulusLabels
    reconstruction: Reconstruction
    subjects: tuple[Subject, ...]
    maps: Tensor
    module_maps: Tensor
    shares: Tensor
    kept: int
    fidelity: tuple[Fidelity, Fidelity]

    def kept_lines(self) -> list[str]:
        """What was kept, and what it costs."""
        modules = self.reconstruction.modules
        all_units = sum(len(m.members) for m in modules)
        standing = sum(len(m.representatives) for m in modules)
        merged, alone = self.fidelity
        notes = sorted({m.note for m in modules if m.note})
        lines = notes[:1] or [f"{standing} of {all_units} units stand for all, a layer at a time: {cost(merged)}"]
        kept = f"{self.kept} of {len(modules)} modules have {KEPT_SHARE:.0%} of the importance"
        return [*lines, f"{kept}; with the units of the others at their mean, a layer at a time: {cost(alone)}"]


def cost(fidelity: Fidelity) -> str:
    """What a replacement costs, in the layer where it costs most."""
    layers = [layer for layer in fidelity.layers if layer.replaced]
    if not layers:
        return "nothing was replaced"
    worst = min(layers, key=lambda layer: (layer.agreement, -abs(layer.probability_change)))
    count = f"{fidelity.images} photo" + "s" * (fidelity.images != 1)
    return (
        f"at worst ({worst.layer}) the answer stays for {worst.agreement:.0%} of {count}, "
        f"and its probability changes by {worst.probability_change:+.1%}"
    )


def subjects(
    model: nn.Module, card: ModelCard, photos: Mapping[str, Image.Image], classes: Sequence[int] = ()
) -> list[Subject]:
    """Photos with the model's answers; explained is the likeliest class, of ``classes`` where there are some."""
    parameter = next(model.parameters())
    found = []
    for name, photo in photos.items():
        inputs = card.transform(photo)[None].to(parameter.device, parameter.dtype)
        with torch.no_grad():
            probabilities = model(inputs)[0].float().softmax(0)
        best = probabilities.topk(min(ANSWERS, len(probabilities)))
        answers = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        target = max(classes, key=lambda c: float(probabilities[c])) if classes else answers[0][0]
        found.append(Subject(name, inputs, answers, target))
    return found


def analyze(
    model: nn.Module,
    card: ModelCard,
    dissection: Dissection,
    stimuli: StimulusLabels,
    chosen: Sequence[Subject],
    n_modules: int | None = None,
) -> Analysis:
    """Group a model's units into modules, and explain the answers to photos by them.

    Args:
        model: the model that was dissected.
        card: its card.
        dissection: with labels.
        stimuli: where the labels come from.
        chosen: at least one photo.
        n_modules: how many modules. None: as many as the units fall into.
    """
    drnet = DRNet(model)
    reconstruction = drnet.reconstruct(dissection, n_modules)
    inputs = torch.cat([subject.inputs for subject in chosen])
    targets = [subject.target for subject in chosen]
    module_maps = reconstruction.modules_map(inputs, targets)
    kept = modules_kept([module.importance or 0.0 for module in reconstruction.modules])
    return Analysis(
        card=card,
        dissection=dissection,
        stimuli=stimuli,
        reconstruction=reconstruction,
        subjects=tuple(chosen),
        maps=module_maps.sum(1, keepdim=True),
        module_maps=module_maps,
        shares=reconstruction.shares(inputs, targets),
        kept=kept,
        fidelity=(reconstruction.fidelity(inputs, targets), reconstruction.fidelity(inputs, targets, keep=kept)),
    )


def modules_kept(importances: Sequence[float]) -> int:
    """How many of the most important modules have nine tenths of the importance.

    Example:
        >>> modules_kept([0.5, 0.3, 0.15, 0.05])
        3
    """
    total, so_far = sum(importances), 0.0
    for count, importance in enumerate(importances, start=1):
        so_far += importance
        if so_far >= KEPT_SHARE * total:
            return count
    return len(importances)


def layer_line(units: LayerUnits) -> str:
    """A layer in a line: "features.0 (64 units): vertical edges 7, red 3, 6 other features 12, unlabelled 9"."""
    counts = Counter(label.name for label in units.labels)
    unlabelled = counts.pop("unlabelled", 0)
    order = sorted(counts, key=lambda name: (-counts[name], name))
    parts = [f"{name} {counts[name]}" for name in order[:LISTED]]
    if others := order[LISTED:]:
        parts.append(f"{len(others)} other features {sum(counts[name] for name in others)}")
    parts += [f"unlabelled {unlabelled}"] if unlabelled else []
    return f"{units.layer.name} ({units.layer.channels} units): {', '.join(parts)}"


def detected_lines(dissection: Dissection) -> Iterator[str]:
    """The families of features over all layers, with the layers that have most of each."""
    rows = [(label.family, units.layer.name) for units in dissection.layers for label in units.labels]
    for family, count in Counter(family for family, _ in rows).most_common():
        layers = Counter(layer for of, layer in rows if of == family).most_common(3)
        yield f"{family}: {count} units, most in {', '.join(f'{layer} ({number})' for layer, number in layers)}"
