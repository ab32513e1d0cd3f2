"""Whose faithfulness is measured: the methods, and maps that know nothing of the model; photos to fill mosaics with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import drnet_captum as dc
from benchmarks.mosaics import Photo, answer
from drnet_captum.data import embedded_photo, embedded_photos
from drnet_captum.metrics.named import named_maps

SEED = 0
GAUSSIAN = 0.25  # standard deviation, as a share of the side
#: Fewer passes than the methods' own defaults.
REDUCED: dict[str, dict[str, int]] = {"rise": {"n_masks": 200}, "smooth_grad": {"n_samples": 10}}
#: Their maps take hundreds of passes each: where many maps are asked for, they are of fewer photos.
SLOW = ("rise", "score_cam")

Explain = Callable[[nn.Module, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Subject:
    """A method.

    Attributes:
        name: the registry's, or the baseline's.
        title: for tables.
        explain: model, images (N, 3, H, W), a target each -> maps of the images' size.
        baseline: it is no method.
        options: that were given, and are not the method's own defaults.
    """

    name: str
    title: str
    explain: Explain
    baseline: bool = False
    options: dict[str, int] = field(default_factory=dict)


def methods(names: Sequence[str], quick: bool = False) -> list[Subject]:
    """Methods of the registry; none named: all."""
    chosen = [dc.methods()[name] for name in names or dc.methods()]
    found = []
    for method in chosen:
        options = {key: 4 if quick else value for key, value in REDUCED.get(method.name, {}).items()}

        def explain(
            model: nn.Module, x: Tensor, target: Any, name: str = method.name, options: Any = options
        ) -> Tensor:
            return named_maps(model, x, target, name, **options)

        found.append(Subject(method.name, method.title, explain, options=options))
    return found


def baselines(seed: int = SEED) -> list[Subject]:
    """Maps without a model: chance (new at every call), the image's edges, and a blob in the middle."""
    generator = torch.Generator().manual_seed(seed)

    def chance(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        return torch.rand(len(x), 1, *x.shape[2:], generator=generator).to(x)

    found: list[tuple[str, str, Explain]] = [
        ("random", "random numbers", chance),
        ("edges", "edges (Sobel)", lambda model, x, target: edges(x)),
        ("gaussian", "centred gaussian", lambda model, x, target: centred(x)),
    ]
    return [Subject(name, title, explain, baseline=True) for name, title, explain in found]


def edges(x: Tensor) -> Tensor:
    """The size of Sobel's gradient of the mean over channels: (N, C, H, W) -> (N, 1, H, W).

    Example:
        >>> edges(torch.arange(4.0).expand(1, 3, 3, 4))[0, 0, 1]
        tensor([4., 8., 8., 4.])
    """
    grey = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(x)
    both = F.conv2d(grey, torch.stack([across, across.T])[:, None])  # (N, 2, H, W)
    return both.norm(dim=1, keepdim=True)


def centred(x: Tensor) -> Tensor:
    """A gaussian around the middle of the image: (N, C, H, W) -> (N, 1, H, W)."""
    down, along = (torch.linspace(-0.5, 0.5, size).to(x) / GAUSSIAN for size in x.shape[2:])
    blob = torch.exp(-(down[:, None].square() + along[None].square()) / 2)
    return blob.expand(len(x), 1, *x.shape[2:]).contiguous()


def fillers(model: nn.Module, photos: Sequence[Photo]) -> list[Photo]:
    """Embedded photos beside those that are known, as many as a mosaic of four needs; their cells are not scored."""
    transform = dc.model_card(model).transform
    known = {photo.name for photo in photos}
    left = [name for name in embedded_photos() if name not in known]
    return [answer(model, name, transform(embedded_photo(name))) for name in left][: max(4 - len(photos), 0)]
