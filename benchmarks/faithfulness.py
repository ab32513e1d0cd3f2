"""How faithful the maps of every method are, on the embedded classifier, beside maps that know nothing of it.

    python -m benchmarks faithfulness [--photos DIR] [--device cpu] [--quick]

Photos: the embedded ones, and the files ``*_LABEL.jpg`` or ``.png`` of a folder (LABEL: the class's index of
ImageNet-1k), of both those that the model names right. What is explained is the right class.

- insertion, deletion: the area under the probability's curve, upon the blurred image and to each channel's mean.
- ROAD: LeRF − MoRF of the probability.
- grid pointing: of 2×2 mosaics of the photos, the share of a map's positive values in its class's cell (chance: .25);
  where fewer than four photos are known, others fill the mosaic and are not scored.
- max-sensitivity, infidelity: Captum's, the second with gaussian noise, and normalised, so that units do not matter.
- top layer random, all layers random: the rank correlation of the map's absolute values with those after randomising
  the classifier's layer, and all layers, at best 0. The mean over some random networks; those in which the class's last
  ReLU is dead, so that the map is constant and has no order, are left out.

Each is the mean over photos with its 95 % bootstrap interval. SmoothGrad and RISE make fewer passes than is their
default. RISE and Score-CAM, whose maps take hundreds of passes, are shown fewer mosaics, and their sensitivity and
randomisation are of the first photo alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import drnet_captum as dc
from benchmarks import records
from benchmarks.map_subjects import SLOW, Subject, baselines, fillers, methods
from benchmarks.mosaics import Mosaic, Photo, bootstrap, by_name, known_photos
from benchmarks.options import DTYPES, Options
from benchmarks.pairs import environment
from drnet_captum import metrics

#: Measure -> which is better.
MEASURES = {
    "insertion": "higher",
    "deletion": "lower",
    "ROAD": "higher",
    "grid pointing": "higher",
    "max-sensitivity": "lower",
    "infidelity": "lower",
    "top layer random": "zero",
    "all layers random": "zero",
}
LAYERS = ("classifier", "features")  # of the embedded model: its one layer above the features, and all others
QUICK_METHODS, QUICK_SIDE = ("saliency", "grad_cam"), 64
AT_ONCE = 64  # images in a pass of Captum's metrics


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        steps: of insertion and deletion.
        shares: of the pixels that ROAD removes.
        mosaics, slow_mosaics: 2×2, each of four photos drawn; the second for slow methods.
        sensitivity: perturbed images of a photo.
        infidelity: perturbed images of a photo.
        random_networks: for randomisation; one for slow methods.
        noise: standard deviation of infidelity's noise, in units of the normalised input.
    """

    steps: int = 20
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    mosaics: int = 6
    slow_mosaics: int = 2
    sensitivity: int = 5
    infidelity: int = 50
    random_networks: int = 3
    noise: float = 0.1


QUICK = Scale(steps=2, shares=(0.5,), mosaics=1, sensitivity=1, infidelity=3, random_networks=1)


@dataclass(frozen=True)
class Setting:
    """The model, the photos (N, 3, H, W) with their classes, and the mosaics with the names of the known photos."""

    model: nn.Module
    x: Tensor
    target: list[int]
    names: list[str]
    mosaics: list[Mosaic]
    scale: Scale
    seed: int

    def few(self) -> Setting:
        """The first photo, some mosaics and one random network, for slow methods."""
        scale = replace(self.scale, random_networks=1)
        mosaics = self.mosaics[: scale.slow_mosaics]
        return replace(self, x=self.x[:1], target=self.target[:1], mosaics=mosaics, scale=scale)


def run(
    options: Options, *, photos: Path | None = None, chosen: Sequence[str] = ()
) -> tuple[dict[str, Any], Iterator[records.Row]]:
    """The environment, and the rows as they are found: one for each method and measure.

    Args:
        options: device, dtype, seed and quick; the others are not used.
        photos: a folder with more photos.
        chosen: names of methods; none: all.
    """
    setting = prepared(options, photos)
    where = environment(options.device, options.dtype, options.seed) | {
        "model": "embedded (SqueezeNet 1.1)",
        "photos": setting.names,
        "scale": asdict(setting.scale),
    }
    subjects = methods(chosen or (QUICK_METHODS if options.quick else ()), options.quick)
    return where, rows(setting, [*subjects, *baselines(options.seed)])


def prepared(options: Options, folder: Path | None) -> Setting:
    """The model and what it is shown."""
    model = dc.load_model("embedded")
    known, _ = known_photos(model, folder)
    if options.quick:
        known = known[:1]
    shown = [*known, *fillers(model, known)]
    if options.quick:
        shown = [replace(p, x=F.interpolate(p.x[None], (QUICK_SIDE,) * 2, mode="area")[0]) for p in shown]
    shown = [replace(p, x=p.x.to(options.device, DTYPES[options.dtype])) for p in shown]
    scale = QUICK if options.quick else Scale()
    return Setting(
        model.to(options.device, DTYPES[options.dtype]),
        torch.stack([p.x for p in shown[: len(known)]]),
        [p.label for p in known],
        [p.name for p in known],
        arranged(shown, scale.mosaics, options.seed),
        scale,
        options.seed,
    )


def arranged(photos: Sequence[Photo], count: int, seed: int) -> list[Mosaic]:
    """Mosaics of four photos each, drawn and arranged at random."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(photos), generator=generator)[:4].tolist() for _ in range(count)]
    return [Mosaic(tuple(photos[i] for i in order)) for order in orders]


def rows(setting: Setting, subjects: Sequence[Subject]) -> Iterator[records.Row]:
    """Every measure of every subject; one that is not defined for the model has one row that says why."""
    for subject in subjects:
        head = {"model": "embedded", "case": subject.name, "title": subject.title, "baseline": subject.baseline}
        try:
            maps = subject.explain(setting.model, setting.x, setting.target)
        except ValueError as error:
            yield head | {"measure": "all", "side": "ours", "status": f"not defined for this model: {error}"}
            continue
        for measure, values in measured(setting, subject, maps):
            if not values:
                yield head | {"measure": measure, "side": "ours", "status": "every map was constant"}
                continue
            spread = bootstrap(values, setting.seed)
            yield head | {
                "measure": measure,
                "better": MEASURES[measure],
                **asdict(spread),
                "photos": len(values),
                "options": subject.options,
            }


def measured(setting: Setting, subject: Subject, maps: Tensor) -> Iterator[tuple[str, list[float]]]:
    """A value for each photo, of every measure."""
    model, x, target, scale = setting.model, setting.x, setting.target, setting.scale
    yield "insertion", metrics.insertion(model, x, maps, target, steps=scale.steps).area.tolist()
    yield "deletion", metrics.deletion(model, x, maps, target, steps=scale.steps).area.tolist()
    yield (
        "ROAD",
        metrics.road(model, x, maps, target, shares=scale.shares, generator=seeded(setting)).difference.tolist(),
    )
    few = setting.few() if subject.name in SLOW else setting
    yield "grid pointing", grid_shares(few, subject)
    explain = partial(subject.explain, model)
    at_once = max(AT_ONCE, len(x))
    sensitivity = metrics.sensitivity_max(
        model,
        few.x,
        few.target,
        explain,
        n_perturb_samples=scale.sensitivity,
        max_examples_per_batch=at_once,
        generator=seeded(setting),
    )
    yield "max-sensitivity", sensitivity.tolist()
    captums = metrics.infidelity(
        model,
        x,
        target,
        lambda values, of: maps,
        noise=scale.noise,
        n_perturb_samples=scale.infidelity,
        normalize=True,
        max_examples_per_batch=at_once,
        generator=seeded(setting),
    )
    yield "infidelity", captums.tolist()
    yield from randomised(few, subject)


def seeded(setting: Setting) -> torch.Generator:
    """The same numbers for every subject."""
    return torch.Generator().manual_seed(setting.seed)


def grid_shares(setting: Setting, subject: Subject) -> list[float]:
    """The mean share of each known photo's cells."""
    names: list[str] = []
    shares: list[float] = []
    for mosaic in setting.mosaics:
        image = mosaic.x[None].expand(4, -1, -1, -1).contiguous()
        found = metrics.grid_pointing_game(subject.explain(setting.model, image, mosaic.labels)).tolist()
        for cell, share in zip(mosaic.cells, found, strict=True):
            if cell.name in setting.names:
                names.append(cell.name)
                shares.append(share)
    return by_name(names, shares)


def randomised(setting: Setting, subject: Subject) -> Iterator[tuple[str, list[float]]]:
    """After the top layer, and after all."""

    def explain(model: nn.Module) -> Tensor:
        return subject.explain(model, setting.x, setting.target)

    generator = seeded(setting)
    found = [
        metrics.randomization(setting.model, explain, layers=LAYERS, generator=generator).absolute
        for _ in range(setting.scale.random_networks)
    ]
    mean = torch.stack(found).nanmean(0)
    for i, measure in enumerate(("top layer random", "all layers random"), 1):
        yield measure, mean[i][mean[i].isfinite()].tolist()


def said(row: records.Row) -> str:
    """One line of a row."""
    if "status" in row:
        return f"{row['case']:18} {row['measure']:18} {row['status']}"
    return f"{row['case']:18} {row['measure']:18} {row['mean']:8.3f} [{row['low']:.3f}, {row['high']:.3f}]"
