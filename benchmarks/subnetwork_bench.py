"""A trained network, dissected; sub-networks of it chosen, run and scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.small_images import Data
from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.layers.units import find_units
from drnet_captum.reconstruct.baselines import random_importance, weight_norms
from drnet_captum.reconstruct.groups import KeepSet, find_groups, kept_groups
from drnet_captum.reconstruct.keep import Chooser
from drnet_captum.reconstruct.masks import MaskedModel
from drnet_captum.reconstruct.recalibration import recalibrate
from drnet_captum.reconstruct.sizes import Costs, Values, find_sizes
from drnet_captum.reconstruct.slicing import sliced
from drnet_captum.reconstruct.subnetwork_report import accuracies

Criterion = Literal["classes", "other classes", "all classes", "weight norm", "random"]
Widths = Literal["own", "even", "all classes'"]
PER_CLASS = 200  # images dissected
RECALIBRATING = 256  # images
BATCH = 250
CLASSES = 10


def spread_over_classes(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """The numbers of as many images of each class, in random order."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(labels == c).nonzero()[:, 0] for c in labels.unique().tolist()]
    chosen = torch.cat([of[torch.randperm(len(of), generator=generator)[:per_class]] for of in rows])
    return chosen[torch.randperm(len(chosen), generator=generator)]


def dissected(model: nn.Module, data: Data, seed: int) -> Dissection:
    """2,000 training images, once; every class is set against every other."""
    images, labels = data.train
    convolutions = [site.layer.name for site in find_units(model, (images[:1].contiguous(),))]
    dissector = Dissector(model, layers=convolutions, exemplars=1, contrasts=range(CLASSES))
    for rows in spread_over_classes(labels, PER_CLASS, seed).split(100):
        dissector.update(images[rows].contiguous(), labels[rows])
    return dissector.result()


class Bench:
    """Chooses, runs and scores sub-networks of one network.

    Args:
        model: in eval mode.
        data: of ten classes.
        tested: the numbers of the test images that are looked at.
        seed: of the images that are dissected, and of those that norms are recalibrated on.
    """

    def __init__(self, model: nn.Module, data: Data, tested: Tensor, seed: int = 0) -> None:
        self.model, self.data, self.seed = model, data, seed
        images, labels = data.test
        self.images, self.labels = images[tested], labels[tested]
        self.example = self.images[:1].contiguous()
        self.dissection = dissected(model, data, seed)
        self.groups = find_groups(model, self.example)
        sizes = find_sizes(model, self.example, self.groups)
        self.costs = Costs(self.groups, sizes, "parameters")
        self.chooser = Chooser(self.groups, sizes=sizes)
        self.is_chain = is_chain(model)
        self.answers = self._logits(model, torch.arange(len(self.labels)))
        self._fixed: dict[tuple[tuple[str, tuple[int, ...]], ...], Tensor] = {}

    def choose(self, classes: Iterable[int], budget: float) -> KeepSet:
        """Our channels."""
        return self.chooser.within(self.chooser.importance(self.dissection, classes), budget).keep

    def others(self, classes: Sequence[int]) -> list[int]:
        """As many other classes, drawn."""
        left = [c for c in range(CLASSES) if c not in classes]
        found: list[int] = (
            np.random.default_rng([self.seed, *classes]).choice(left, len(classes), replace=False).tolist()
        )
        return found

    def importance(self, criterion: Criterion, seed: int) -> Values:
        """(G,): of other criteria, the same for all classes."""
        if criterion == "random":
            return random_importance(self.groups, seed)
        return weight_norms(self.model, self.groups)

    def whole(self, classes: Sequence[int]) -> dict[str, Any]:
        """A row of the whole network."""
        rows = self._of(classes)
        name = record(classes, 1.0, "whole network", 0, "own") | {"correction": "none"}
        return name | self._score(self.answers[rows], rows, classes, self.costs.total)

    def scored(self, classes: Sequence[int], keep: KeepSet, *, fixed: bool = False) -> dict[str, Any]:
        """What is measured of a keep-set; of a ``fixed`` one all test images' answers are kept for further classes."""
        rows = self._of(classes)
        if fixed:
            key = tuple(sorted(keep.items()))
            if key not in self._fixed:
                self._fixed[key] = self._logits(self._smaller(keep), torch.arange(len(self.labels)))
            logits = self._fixed[key][rows]
        else:
            logits = self._logits(self._smaller(keep), rows)
        return self._score(logits, rows, classes, self._cost(keep))

    def recalibrated(self, classes: Sequence[int], keep: KeepSet) -> dict[str, Any]:
        """The same after the batch norms were recalibrated on training images of the classes."""
        images, labels = self.data.train
        of = torch.isin(labels, torch.tensor(classes)).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(self.seed + 1)
        some = images[of[torch.randperm(len(of), generator=generator)[:RECALIBRATING]]].contiguous()
        small = sliced_chain(self.model, keep) if self.is_chain else sliced(self.model, keep, self.example)
        rows = self._of(classes)
        return self._score(self._logits(recalibrate(small, some), rows), rows, classes, self._cost(keep))

    def _smaller(self, keep: KeepSet) -> nn.Module:
        """With these channels and all outputs. A chain is sliced by indexing, which takes milliseconds."""
        return folded(sliced_chain(self.model, keep)) if self.is_chain else MaskedModel(self.model, keep, self.example)

    def _score(self, logits: Tensor, rows: Tensor, classes: Sequence[int], cost: float) -> dict[str, Any]:
        among, over_all = accuracies(logits, self.labels[rows], classes)
        return {"parameters": round(cost), "among": among, "over_all": over_all}

    def _cost(self, keep: KeepSet) -> float:
        return self.costs.of(kept_groups(self.groups, keep))

    def _of(self, classes: Sequence[int]) -> Tensor:
        return torch.isin(self.labels, torch.tensor(classes)).nonzero()[:, 0]

    def _logits(self, model: nn.Module, rows: Tensor) -> Tensor:
        with torch.inference_mode():
            parts = [self.images[part].contiguous(memory_format=torch.channels_last) for part in rows.split(BATCH)]
            return torch.cat([model(part) for part in parts])


def record(classes: Sequence[int], budget: float, criterion: str, seed: int, widths: str) -> dict[str, Any]:
    """The columns that say which sub-network it is."""
    return {
        "classes": " ".join(map(str, classes)),
        "budget": budget,
        "criterion": criterion,
        "seed": seed,
        "widths": widths,
    }


def is_chain(model: nn.Module) -> bool:
    """Whether it is VGG's: features one after the other, and a linear layer."""
    return isinstance(getattr(model, "features", None), nn.Sequential) and isinstance(
        getattr(model, "classifier", None), nn.Linear
    )


class Chain(nn.Module):
    """Features, and a linear layer on them: VGG, with its modules' names."""

    def __init__(self, features: nn.Sequential, classifier: nn.Linear) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


def sliced_chain(model: nn.Module, keep: Mapping[str, Sequence[int]]) -> Chain:
    """What `sliced` makes of VGG, in milliseconds."""
    features = nn.Sequential()
    before = [0, 1, 2]
    for name, module in model.features.named_children():  # type: ignore[operator, union-attr]
        step = module
        if isinstance(module, nn.Conv2d):
            stay = list(keep.get(f"features.{name}", range(module.out_channels)))
            step = nn.Conv2d(len(before), len(stay), module.kernel_size, padding=module.padding)  # type: ignore[arg-type]
            state = {"weight": module.weight[stay][:, before], "bias": module.bias[stay]}  # type: ignore[index]
            step.load_state_dict(state)
            before = stay
        elif isinstance(module, nn.BatchNorm2d):
            step = nn.BatchNorm2d(len(before), module.eps)
            step.load_state_dict({k: v[before] if v.dim() else v for k, v in module.state_dict().items()})
        features.add_module(name, step)
    whole: nn.Linear = model.classifier  # type: ignore[assignment]
    head = nn.Linear(len(before), whole.out_features)
    head.load_state_dict({"weight": whole.weight[:, before], "bias": whole.bias})
    return Chain(features, head).eval()


def folded(chain: Chain) -> Chain:
    """The same answers, with norms folded into their convolutions."""
    steps: list[nn.Module] = []
    for step in chain.features:
        if isinstance(step, nn.BatchNorm2d):
            steps[-1] = fuse_conv_bn_eval(steps[-1], step)  # type: ignore[type-var]
        else:
            steps.append(step)
    return Chain(nn.Sequential(*steps), chain.classifier).eval()
