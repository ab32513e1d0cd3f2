"""Every rule of DRNet on mosaics, from one forward pass of each, and Grad-CAM on the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import captum.attr as captum_attr
import torch
from torch import Tensor, nn

import drnet_captum as dc
from benchmarks.curves import curve_areas
from benchmarks.mosaics import Mosaic, Photo, cell_shares
from drnet_captum.attr.drnet import DRNet, Weights
from drnet_captum.attr.layer_part import LayerPart
from drnet_captum.attr.score import Score, scores
from drnet_captum.engine.tape import Tape
from drnet_captum.layers.interpolation import spread

SCORES: tuple[Score, ...] = ("logit", "log_prob")
GRAD_CAM, GRAD_CAM_LOG_PROB = "Grad-CAM (Captum)", "Grad-CAM, log_prob"
DEFAULT, CHOSEN = "DRNet as it comes", "DRNet chosen on the other fold"
MOST_ON_LAST = 0.5
INTEGRATED_STEPS = 8
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
    if len(layers) > len(default):
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
        for name, share in reference_shares(model, x, labels).items():
            rows.setdefault(name, []).append(share)
        for (weights, score), maps in layer_maps(model, x, labels, layers).items():
            found = right_cells(mixed(maps, list(rules.values()), x.shape[1:]))
            for name, share in zip(rules, found, strict=True):
                rows.setdefault((weights, score, name), []).append(share)
    return {rule: torch.stack(found) for rule, found in rows.items()}


def reference_shares(model: nn.Module, x: Tensor, labels: Sequence[int]) -> dict[str, Tensor]:
    """Grad-CAM, and DRNet by the class itself: of each (4,), what lies in the right cell."""
    return {
        GRAD_CAM: right_cells(grad_cam(model, x, labels)),
        GRAD_CAM_LOG_PROB: right_cells(grad_cam(model, x, labels, "log_prob")),
        DEFAULT: right_cells(drnet(model, x, labels)),
    }


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """A copy whose every weight has changed places with another of its tensor: of the same scale, and ignorant."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return model


def play_random(model: nn.Module, mosaics: Sequence[Mosaic], seed: int) -> Shares:
    """The model with its weights shuffled: what a map shows of the photos without having learnt anything."""
    ignorant = shuffled(model, seed)
    found = [reference_shares(ignorant, mosaic.x, mosaic.labels) for mosaic in mosaics]
    return {name: torch.stack([shares[name] for shares in found]) for name in found[0]}


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


def curves(model: nn.Module, crops: Sequence[Photo]) -> dict[str, Shares]:
    """Areas by measure and rule, (crops, 1). Maps keep their signs: cut off at zero they would not rank the rest."""
    found: dict[str, dict[Any, list[float]]] = {}
    for crop in crops:
        x, labels = crop.x, [crop.label]
        maps = {
            GRAD_CAM: grad_cam(model, x, labels, relu=False),
            GRAD_CAM_LOG_PROB: grad_cam(model, x, labels, "log_prob", relu=False),
            DEFAULT: drnet(model, x, labels),
            f"{DEFAULT}, but score='logit'": drnet(model, x, labels, score="logit"),
            f"{DEFAULT}, but weights='local'": drnet(model, x, labels, weights="local"),
        }
        for rule, importance in maps.items():
            for measure, value in curve_areas(model, x, importance[0], crop.label).items():
                found.setdefault(measure, {}).setdefault(rule, []).append(value)
    return {m: {rule: torch.tensor(v)[:, None] for rule, v in rules.items()} for m, rules in found.items()}
