"""An analysis as the data of an HTML report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import nn

from drnet_captum.analysis import Analysis
from drnet_captum.dissect.dissection import LayerUnits
from drnet_captum.dissect.exemplars import Pixels, crop, read_jpeg
from drnet_captum.dissect.projections import Unit, around_grey, project
from drnet_captum.viz import overlay
from drnet_captum.viz.report import (
    Report,
    ReportExemplar,
    ReportLayer,
    ReportModule,
    ReportPhoto,
    ReportUnit,
)

UNITS = 24  # of a layer
PROJECTED = 8  # of those
EXEMPLARS = 3
STIMULI = 6
SERVED = 4
FILTER = 48  # pixels
AROUND = 7  # a patch has at least a seventh of the photo's sides

Box = tuple[int, int, int, int]  # top, left, bottom, right


def report_of(analysis: Analysis, model: nn.Module, notes: list[str]) -> Report:
    """What the page shows: of every layer the units that matter most.

    Args:
        analysis: what was found.
        model: for the first layer's filters, and to project units back to pixels.
        notes: what a reader should know.
    """
    shown = {units.layer.name: strongest(units, UNITS) for units in analysis.dissection.layers}
    projections = project(
        model,
        analysis.dissection,
        [(layer, unit) for layer, units in shown.items() for unit in units[:PROJECTED]],
        analysis.card,
    )
    photos = {name: read_jpeg(jpeg) for name, jpeg in analysis.dissection.images.items()}
    layers = [
        ReportLayer(
            name=units.layer.name,
            kind=units.layer.kind,
            grid=(units.layer.grid[0], units.layer.grid[-1]),
            units=[
                _unit(analysis, units, unit, photos, projections, filters_of(model, units.layer.name))
                for unit in shown[units.layer.name]
            ],
            families=Counter(label.family for label in units.labels),
        )
        for units in analysis.dissection.layers
    ]
    return Report(
        title=f"What {analysis.card.name} sees",
        model=analysis.card.name,
        photos=_photos(analysis),
        layers=layers,
        modules=_modules(analysis),
        notes=[*notes, *analysis.kept_lines()],
        facts=_facts(analysis),
    )


def strongest(units: LayerUnits, count: int) -> list[int]:
    """The units of most importance over all classes; of best label where there is no data."""
    absolute = units.importance.absolute
    if len(absolute):
        order = absolute.sum(0).argsort(descending=True, stable=True).tolist()
    else:
        order = sorted(range(units.layer.channels), key=lambda unit: -units.labels[unit].score)
    return [int(unit) for unit in order[:count]]


def filters_of(model: nn.Module, layer: str) -> Pixels | None:
    """The filters (C, h, w, 3) of a convolution of colours, enlarged; None of any other layer."""
    weight = getattr(model.get_submodule(layer), "weight", None)
    if weight is None or weight.dim() != 4 or weight.shape[1] != 3:
        return None
    values = weight.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    factor = max(1, FILTER // values.shape[1])
    return np.stack([np.kron(around_grey(v), np.ones((factor, factor, 1), dtype=np.uint8)) for v in values])


def _unit(
    analysis: Analysis,
    units: LayerUnits,
    unit: int,
    photos: dict[str, Pixels],
    projections: dict[Unit, Pixels],
    filters: Pixels | None,
) -> ReportUnit:
    layer, label = units.layer, units.labels[unit]
    responses = dict(
        zip(analysis.stimuli.concepts, analysis.stimuli.responses[layer.name][:, unit].tolist(), strict=True)
    )
    # The label's own first: it is the simplest that excites the unit nearly as much as anything does.
    best = sorted(responses, key=lambda concept: (concept != label.name, -responses[concept]))[:STIMULI]
    served = analysis.dissection.served(layer.name, unit, SERVED)
    exemplars = []
    for found in units.exemplars.of(unit)[:EXEMPLARS]:
        photo = photos[found.key]
        patch = crop(photo, surroundings(layer.field.box(found.y, found.x, photo.shape[:2]), photo.shape[:2]))
        exemplars.append(ReportExemplar(patch, found.value, ""))
    return ReportUnit(
        index=unit,
        label=label.name,
        family=label.family,
        score=label.score,
        concepts={source: labels[unit].name for source, labels in units.concepts.items()},
        served=[(analysis.dissection.class_label(c), value) for c, value in served],
        exemplars=exemplars,
        stimuli=[(concept, responses[concept]) for concept in best],
        projection=projections.get((layer.name, unit)),
        filter=None if filters is None else filters[unit],
    )


def surroundings(box: Box, image: Sequence[int]) -> Box:
    """A window with at least a certain share of the image's sides around a receptive field, to see what it is part of.

    Example:
        >>> surroundings((0, 100, 3, 103), (224, 224)), surroundings((10, 10, 90, 90), (224, 224))
        ((0, 85, 32, 117), (10, 10, 90, 90))
    """
    edges = []
    for low, high, side in zip(box[:2], box[2:], image, strict=True):
        width = max(high - low, side // AROUND)
        start = min(max((low + high - width) // 2, 0), side - width)
        edges.append((start, start + width))
    (top, bottom), (left, right) = edges
    return top, left, bottom, right


def _photos(analysis: Analysis) -> list[ReportPhoto]:
    label = analysis.card.label
    return [
        ReportPhoto(
            name=subject.name,
            image=to_bytes(analysis.card.photo(subject.inputs[0])),
            answers=[(label(c), p) for c, p in subject.answers],
            explained=label(subject.target),
            map=_laid_over(analysis, p, analysis.maps[p, 0].cpu().numpy()),
        )
        for p, subject in enumerate(analysis.subjects)
    ]


def _modules(analysis: Analysis) -> list[ReportModule]:
    found = []
    for m, module in enumerate(analysis.reconstruction.modules):
        members = sorted(module.members, key=lambda member: -(member.importance or 0.0))
        standing = len(module.representatives)
        found.append(
            ReportModule(
                name=module.name,
                members=[(member.layer, member.unit) for member in members],
                summary=f"{standing} unit{'s' * (standing != 1)} of {len(members)} stand for all",
                shares=analysis.shares[:, m].tolist(),
                maps=[
                    _laid_over(analysis, p, analysis.module_maps[p, m].cpu().numpy())
                    for p in range(len(analysis.subjects))
                ],
            )
        )
    return found


def _laid_over(analysis: Analysis, p: int, heat: np.ndarray) -> Pixels:
    photo = analysis.card.photo(analysis.subjects[p].inputs[0])
    return to_bytes(photo if not np.abs(heat).max() > 0 else overlay(photo, heat, signed=True))


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    dissection = analysis.dissection
    labels = [label for units in dissection.layers for label in units.labels]
    named = sum(label.family != "unlabelled" for label in labels)
    held = [found for found in analysis.stimuli.accuracy.values() if found.labelled]
    confirmed, given = sum(f.confirmed for f in held), sum(f.labelled for f in held)
    return [
        ("layers", f"{len(dissection.layers)}"),
        ("units", f"{len(labels):,}"),
        ("labelled", f"{named / max(1, len(labels)):.0%}"),
        ("labels that held on other stimuli", f"{confirmed / max(1, given):.0%}"),
        ("images", f"{sum(dissection.counts.values()):,}"),
        ("classes", f"{len(dissection.counts):,}"),
    ]


def to_bytes(values: np.ndarray) -> Pixels:
    """[0, 1] floats as uint8."""
    pixels: Pixels = np.rint(values * 255).astype(np.uint8)
    return pixels
