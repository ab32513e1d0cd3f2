"""Which DRNet finds the right object: the grid pointing game, insertion and deletion, against Captum's Grad-CAM.

    python -m benchmarks.grounding --photos DIR [--mosaics 120] [--seed 0]

Photos: the files ``*_LABEL.jpg`` or ``.png`` of a folder (LABEL: the class's index of ImageNet-1k) and the embedded ones;
those that the embedded model names right at a probability of at least .15 are used. They are parted into two folds by
chance, and mosaics are made of the photos of one fold. What is scored is the share of a map's positive values in the
cell of the class that is explained (chance: .25).

Every rule (weights α, score y, shares λ of the layers) is measured on all mosaics. "chosen on the other fold" is, for
the mosaics of one fold, the best rule on the mosaics of the other. Its score is the one without hindsight; those of
single rules are not, where a rule is picked for its score. Intervals are paired bootstraps over mosaics, and over photos,
which are far fewer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import captum.attr as captum_attr
import torch
import torchvision
from torch import Tensor, nn

import drnet_captum as dc
from benchmarks.curves import curve_areas
from benchmarks.mosaics import (
    Interval,
    Mosaic,
    Photo,
    bootstrap,
    by_name,
    cell_shares,
    first_crops,
    known_photos,
    make_mosaics,
    two_folds,
)
from benchmarks.pairs import environment, write
from drnet_captum.attr.base import Score, scores
from drnet_captum.attr.drnet import DRNet, Weights
from drnet_captum.attr.layer_part import LayerPart
from drnet_captum.engine.tape import Tape
from drnet_captum.layers.interpolation import spread

SCORES: tuple[Score, ...] = ("logit", "log_prob")
GRAD_CAM, GRAD_CAM_LOG_PROB = "Grad-CAM (Captum)", "Grad-CAM, log_prob"
DEFAULT, CHOSEN = "DRNet as it comes", "DRNet chosen on the other fold"
MOST_ON_LAST = 0.5
INTEGRATED_STEPS = 8
CROPS = 3  # of a photo, for insertion and deletion
Rule = tuple[Weights, Score, str]
Shares = dict[Any, Tensor]  # of a rule: (mosaics, 4), what lies in the right cell


def capped(sizes: Sequence[float]) -> list[float]:
    """Shares in the proportions of ``sizes``, the last at most one half.

    Example:
        >>> capped([1, 1, 6])
        [0.25, 0.25, 0.5]
    """
    if len(sizes) == 1:
        return [1.0]
    before, last = sum(sizes[:-1]), sizes[-1] / sum(sizes)
    last = min(last, MOST_ON_LAST)
    return [*((1 - last) * size / before for size in sizes[:-1]), last]


def geometric(ratio: float) -> Callable[[int], list[float]]:
    """Every layer has ``ratio`` times the share of the next one."""
    return lambda n: capped([ratio ** (n - i) for i in range(1, n + 1)])


#: λ of n layers, input to output; at most one half on the last.
FAMILIES: dict[str, Callable[[int], list[float]]] = {
    "uniform": geometric(1.0),
    "geometric 1.5": geometric(1.5),
    "geometric .75": geometric(0.75),
    "geometric .5": geometric(0.5),
    "linear": lambda n: capped(list(range(1, n + 1))),
    "half on the last": lambda n: capped([1.0] * (n - 1) + [n]),
    "last two": lambda n: capped([float(i > n - 2) for i in range(1, n + 1)]) if n > 1 else [1.0],
    "first and last": lambda n: capped([float(i in (1, n)) for i in range(1, n + 1)]),
}
CANDIDATES: list[Rule] = [(w, s, f) for w in ("gradient", "local") for s in SCORES for f in FAMILIES]


def mixtures(layers: Sequence[str], default: Sequence[str]) -> dict[str, list[float]]:
    """Shares over all ``layers`` of every family over the ``default`` ones, of all uniformly, and of each alone."""
    found = {
        name: [dict(zip(default, family(len(default)), strict=True)).get(layer, 0.0) for layer in layers]
        for name, family in FAMILIES.items()
    }
    found["uniform over all cut layers"] = [1 / len(layers)] * len(layers)
    return found | {f"{layer} alone": [float(layer == other) for other in layers] for layer in layers}


def layer_maps(
    model: nn.Module, x: Tensor, labels: Sequence[int], layers: Sequence[str]
) -> dict[tuple[Weights, Score], list[Tensor]]:
    """R_i of every layer, (labels, 1, h, w), by gradient and local weights of both scores, from one forward pass."""
    rows: dict[tuple[Weights, Score], list[list[Tensor]]] = {}
    with Tape(model, layers, wrt_input=False) as tape:
        output = tape.forward(x[None])
        for score in SCORES:
            for label in labels:
                gradients = tape.gradients([scores(output, label, score)], layers)
                local = [gradients[layer][0][0] for layer in layers]
                kinds: dict[Weights, list[Tensor]] = {
                    "gradient": [g.mean((2, 3), keepdim=True) for g in local],
                    "local": local,
                }
                for kind, alphas in kinds.items():
                    pairs = zip(layers, alphas, strict=True)
                    maps = [LayerPart(name, tape.activation(name)[0], a, 1.0).map for name, a in pairs]
                    rows.setdefault((kind, score), []).append(maps)
    return {key: [torch.cat(maps) for maps in zip(*found, strict=True)] for key, found in rows.items()}


def right_cells(maps: Tensor) -> Tensor:
    """(…, 4, H, W), a map for each cell's class -> (…, 4), its share in its own cell."""
    found = cell_shares(maps.reshape(-1, 1, *maps.shape[-2:])).unflatten(0, maps.shape[:-2])
    return found.diagonal(dim1=-2, dim2=-1)


def mixed(maps: Sequence[Tensor], shares: Sequence[Sequence[float]], size: Sequence[int]) -> Tensor:
    """Σ λ_i·R_i at a size, for every row of shares: (rows, 4, H, W)."""
    big = torch.stack([spread(m, size)[:, 0] for m in maps])
    return torch.einsum("rl,lkhw->rkhw", torch.tensor(shares), big)


def grad_cam(model: nn.Module, x: Tensor, labels: Sequence[int], score: Score = "logit", relu: bool = True) -> Tensor:
    """(labels, H, W), bilinearly enlarged: by Captum's class, or for log-probabilities by ours."""
    layer = dc.find_target_layer(model).module
    inputs, target = x.expand(len(labels), -1, -1, -1), torch.tensor(labels)
    if score == "logit":
        maps = captum_attr.LayerGradCam(model, layer).attribute(inputs, target, relu_attributions=relu)
    else:
        maps = dc.GradCAM(model, layer).attribute(inputs, target, relu_attributions=relu, score=score)
    return captum_attr.LayerAttribution.interpolate(maps.detach(), tuple(x.shape[1:]), "bilinear")[:, 0]


def drnet(model: nn.Module, x: Tensor, labels: Sequence[int], **options: Any) -> Tensor:
    """(labels, H, W), by the class itself."""
    inputs = x.expand(len(labels), -1, -1, -1)
    found: Tensor = DRNet(model).attribute(inputs, torch.tensor(labels), **options)[:, 0]
    return found


def default_layers(model: nn.Module, x: Tensor) -> list[str]:
    """The layers that DRNet takes when it is given none."""
    return [part.name for part in DRNet(model).attribute_layers(x[None], 0)]


def block_layers(model: nn.Module, default: Sequence[str]) -> list[str]:
    """The cut layers that are no parts of blocks, up to the last default one."""
    names = [layer.name for layer in dc.find_cut_layers(model)]
    return [n for n in names[: names.index(default[-1]) + 1] if n.count(".") <= 1]


def play(model: nn.Module, mosaics: Sequence[Mosaic], layers: Sequence[str], default: Sequence[str]) -> Shares:
    """Every rule on every mosaic."""
    rules = mixtures(layers, default)
    rows: dict[Any, list[Tensor]] = {}
    for mosaic in mosaics:
        x, labels = mosaic.x, mosaic.labels
        rows.setdefault(GRAD_CAM, []).append(right_cells(grad_cam(model, x, labels)))
        rows.setdefault(GRAD_CAM_LOG_PROB, []).append(right_cells(grad_cam(model, x, labels, "log_prob")))
        rows.setdefault(DEFAULT, []).append(right_cells(drnet(model, x, labels)))
        for (weights, score), maps in layer_maps(model, x, labels, layers).items():
            found = right_cells(mixed(maps, list(rules.values()), x.shape[1:]))
            for name, share in zip(rules, found, strict=True):
                rows.setdefault((weights, score, name), []).append(share)
    return {rule: torch.stack(found) for rule, found in rows.items()}


def play_integrated(model: nn.Module, mosaics: Sequence[Mosaic], default: Sequence[str]) -> Shares:
    """Integrated weights on every mosaic, by the class itself."""
    rules = mixtures(default, default)
    rows: dict[Any, list[Tensor]] = {}
    for mosaic in mosaics:
        inputs = mosaic.x.expand(4, -1, -1, -1)
        for score in SCORES:
            parts = DRNet(model).attribute_layers(
                inputs, mosaic.labels, weights="integrated", n_steps=INTEGRATED_STEPS, score=score
            )
            found = right_cells(mixed([p.map for p in parts], list(rules.values()), inputs.shape[2:]))
            for name, share in zip(rules, found, strict=True):
                rows.setdefault(("integrated", score, name), []).append(share)
    return {rule: torch.stack(found) for rule, found in rows.items()}


def best(shares: Shares, mosaics: slice) -> Rule:
    """The candidate of the highest mean share in some of the mosaics; of equals, the first."""
    return max(CANDIDATES, key=lambda rule: float(shares[rule][mosaics].mean()))


def row(
    measure: str, rule: str, values: Tensor, against: Tensor, names: Sequence[str], seed: int, **more: Any
) -> dict[str, Any]:
    """One line of the results: the mean, and how far it lies from what it is compared with.

    Args:
        values, against: (items, cells), paired; items are what the bootstrap draws.
        names: the photo of each value, items by cells.
    """
    difference = (values - against).double()
    over_photos = bootstrap(by_name(names, difference.flatten().tolist()), seed)
    return {
        "measure": measure,
        "rule": rule,
        "mean": float(values.mean()),
        "items": len(values),
        "difference": asdict(bootstrap(difference.mean(1).tolist(), seed)),
        "difference_over_photos": asdict(over_photos),
        "above": float((difference > 0).double().mean()),
        **more,
    }


def curves(model: nn.Module, crops: Sequence[Photo], chosen: Callable[[Photo], dict[str, Any]]) -> dict[str, Shares]:
    """Areas by measure and rule, (crops, 1). Maps rank with their signs: cut off at zero they would not rank the rest."""
    found: dict[str, dict[str, list[float]]] = {}
    for crop in crops:
        x, labels = crop.x, [crop.label]
        maps = {
            GRAD_CAM: grad_cam(model, x, labels, relu=False),
            GRAD_CAM_LOG_PROB: grad_cam(model, x, labels, "log_prob", relu=False),
            DEFAULT: drnet(model, x, labels),
            CHOSEN: drnet(model, x, labels, **chosen(crop)),
        }
        for rule, importance in maps.items():
            same = rule == CHOSEN and torch.equal(importance, maps[DEFAULT])
            areas = curve_areas(model, x, importance[0], crop.label) if not same else {}
            for measure, value in areas.items():
                found.setdefault(measure, {}).setdefault(rule, []).append(value)
    return found  # type: ignore[return-value]
