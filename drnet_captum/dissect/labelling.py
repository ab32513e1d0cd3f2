"""Names for units, from what they respond to: rendered stimuli, labelled masks, texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drnet_captum.dissect.concepts import MaskConcepts
from drnet_captum.dissect.labels import LabelAccuracy, UnitLabel, by_concept, label_accuracy, label_units, pooled
from drnet_captum.dissect.quantiles import QuantileSketch
from drnet_captum.dissect.stimuli import Split, stimulus_bank
from drnet_captum.engine.unit_tape import UnitTape
from drnet_captum.layers.layout import to_map
from drnet_captum.layers.units import Site

Labels = dict[str, tuple[UnitLabel, ...]]
Step = Callable[[str, int, int], None]  # what is done, how much of it, of how much
TOP = 0.005  # of all positions: where Network Dissection calls a unit active
LEAST_IOU = 0.04


@dataclass(frozen=True)
class StimulusLabels:
    """What rendered stimuli say of the units.

    Attributes:
        labels: by layer, one label a unit.
        accuracy: by layer, how many labels held on instances that they were not taken from.
        concepts: names of the stimuli.
        responses: by layer, (concepts, C): the mean response to each concept, as a share of the unit's strongest.
    """

    labels: Labels
    accuracy: dict[str, LabelAccuracy]
    concepts: tuple[str, ...]
    responses: dict[str, Tensor]


def label_with_stimuli(
    model: nn.Module,
    sites: Sequence[Site],
    size: tuple[int, int],
    normalize: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 32,
    seed: int = 0,
    step: Step | None = None,
) -> StimulusLabels:
    """Label units by the rendered stimuli that excite them, and check the labels on others.

    Args:
        model: the model.
        sites: the layers.
        size: (H, W) of the stimuli.
        normalize: RGB in [0, 1], (N, 3, H, W) → what the model takes.
        batch_size: stimuli in a forward pass.
        seed: of the drawings.
        step: told how far it is.
    """
    splits: tuple[Split, ...] = ("labelling", "held-out")
    responses: dict[str, dict[str, Tensor]] = {}
    banks = {split: stimulus_bank(size, split=split, seed=seed) for split in splits}
    total, done = sum(len(bank.images) for bank in banks.values()), 0
    for split, bank in banks.items():
        rows: dict[str, list[Tensor]] = {site.layer.name: [] for site in sites}
        for images in bank.images.split(batch_size):
            for name, maps in unit_maps(model, sites, normalize(images), pooled).items():
                rows[name].append(maps)
            done += len(images)
            if step is not None:
                step("showing stimuli", done, total)
        responses[split] = {name: torch.cat(parts) for name, parts in rows.items()}
    labels, accuracy, means = {}, {}, {}
    concepts: tuple[str, ...] = ()
    for site in sites:
        name = site.layer.name
        found = label_units(responses["labelling"][name], banks["labelling"])
        labels[name] = tuple(found)
        accuracy[name] = label_accuracy(found, responses["held-out"][name], banks["held-out"])
        names, _, table = by_concept(responses["labelling"][name], banks["labelling"])
        concepts, mean = tuple(names), table.mean(1)
        means[name] = (mean / mean.abs().amax(0).clamp(min=1e-12)).float()
    return StimulusLabels(labels, accuracy, concepts, means)


def label_with_masks(
    model: nn.Module,
    sites: Sequence[Site],
    masked: Iterable[tuple[Tensor, Tensor]],
    names: Sequence[str],
    *,
    minimum: float = LEAST_IOU,
    step: Step | None = None,
) -> Labels:
    """Label units by the labelled regions that their maps cover (Network Dissection), in two passes over the data.

    Args:
        model: the model.
        sites: the layers.
        masked: batches of (images (N, C, H, W), masks), masks as :class:`MaskConcepts` takes them. Gone through twice.
        names: of the concepts that the masks number.
        minimum: the least IoU of a label.
        step: told how far it is.

    Raises:
        ValueError: no batches, an iterator that is used up after one pass, masks of another size than the images.
    """
    sketches = {site.layer.name: QuantileSketch(site.layer.channels) for site in sites}
    counts = [0, 0]
    for images, _ in masked:
        for name, maps in unit_maps(model, sites, images).items():
            sketches[name].update(maps)
        counts[0] += len(images)
        if step is not None:
            step("finding thresholds", counts[0], 0)
    if not counts[0]:
        raise ValueError("expected batches of images and masks, got none")
    found = {name: MaskConcepts(sketch.quantile(1 - TOP), len(names)) for name, sketch in sketches.items()}
    fields = {site.layer.name: site.layer.field for site in sites}
    for images, masks in masked:
        for name, maps in unit_maps(model, sites, images).items():
            found[name].update(maps, masks, images.shape[2:], fields[name])
        counts[1] += len(images)
        if step is not None:
            step("comparing with masks", counts[1], counts[0])
    if counts[1] != counts[0]:
        raise ValueError(
            f"the masks are gone through twice, and gave {counts[0]} images first and {counts[1]} then: pass a "
            "DataLoader or a list, not an iterator"
        )
    return {name: concepts.labels(names, minimum) for name, concepts in found.items()}


def unit_maps(
    model: nn.Module,
    sites: Sequence[Site],
    images: Tensor,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """What the units put out for a batch: layer → (N, C, h, w), or what ``reduce`` makes of it; on the CPU."""
    places: Mapping[str, Site] = {site.layer.name: site for site in sites}
    found: dict[str, Tensor] = {}

    def see(name: str, activation: Tensor) -> None:
        maps = to_map(activation, places[name].placement)
        found[name] = (maps.clone() if reduce is None else reduce(maps)).cpu()

    UnitTape(model, places, gradients=False).forward(images, seen=see)
    return found
