"""A trained network, dissected; sub-networks of it chosen, run and scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.small_images import Data
from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.reconstruct.baselines import at_the_widths_of, evenly, random_importance, weight_norms
from drnet_captum.reconstruct.groups import KeepSet, find_groups, kept_groups
from drnet_captum.reconstruct.keep import choose, group_importance
from drnet_captum.reconstruct.masks import MaskedModel
from drnet_captum.reconstruct.recalibration import match, recalibrate
from drnet_captum.reconstruct.sizes import Costs, Values, find_sizes
from drnet_captum.reconstruct.subnetwork_report import accuracies

Criterion = Literal["classes", "other classes", "all classes", "weight norm", "random"]
Correction = Literal["none", "recalibrated", "matched"]
PER_CLASS = 200  # images dissected
CORRECTING = 256  # images
CLASSES = 10


def spread_over_classes(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """The numbers of as many images of each class, in random order."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(labels == c).nonzero()[:, 0] for c in labels.unique().tolist()]
    chosen = torch.cat([of[torch.randperm(len(of), generator=generator)[:per_class]] for of in rows])
    return chosen[torch.randperm(len(chosen), generator=generator)]


def dissected(model: nn.Module, data: Data, seed: int) -> Dissection:
    """2,000 training images, once."""
    images, labels = data.train
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    dissector = Dissector(model, layers=convolutions, exemplars=1)
    for rows in spread_over_classes(labels, PER_CLASS, seed).split(100):
        dissector.update(images[rows].contiguous(), labels[rows])
    return dissector.result()


class Bench:
    """Chooses, runs and scores sub-networks of one network.

    Args:
        model: in eval mode.
        data: of ten classes.
        tested: which test images are looked at; None: all.
        seed: of the images that are dissected, and of those for corrections.
    """

    def __init__(self, model: nn.Module, data: Data, tested: Tensor | None = None, seed: int = 0) -> None:
        self.model, self.data, self.seed = model, data, seed
        images, labels = data.test
        self.images, self.labels = (images, labels) if tested is None else (images[tested], labels[tested])
        self.example = self.images[:1].contiguous()
        self.dissection = dissected(model, data, seed)
        self.groups = find_groups(model, self.example)
        self.sizes = find_sizes(model, self.example, self.groups)
        self.costs = Costs(self.groups, self.sizes, "parameters")
        self.total = sum(p.numel() for p in model.parameters())
        self.answers = self._logits(model, torch.arange(len(self.labels)))
        self.norms = weight_norms(model, self.groups)
        self.is_chain = is_chain(model)

    def choose(self, classes: Sequence[int], budget: float) -> KeepSet:
        """Our channels."""
        return choose(self.dissection, self.groups, classes, budget, sizes=self.sizes).keep

    def importance(self, classes: Sequence[int], criterion: Criterion, seed: int) -> Values:
        """(G,): by another criterion."""
        if criterion == "random":
            return random_importance(self.groups, [seed, *classes])
        if criterion == "weight norm":
            return self.norms
        chosen: Sequence[int] = range(CLASSES)
        if criterion == "other classes":
            left = [c for c in range(CLASSES) if c not in classes]
            chosen = np.random.default_rng([self.seed, *classes]).choice(left, len(classes), replace=False).tolist()
        return group_importance(self.dissection, self.groups, chosen)

    def as_wide(self, keep: KeepSet, classes: Sequence[int], criterion: Criterion, seed: int) -> KeepSet:
        """Other channels, as many in every layer."""
        return at_the_widths_of(keep, self.groups, self.importance(classes, criterion, seed))

    def evenly(self, classes: Sequence[int], budget: float, criterion: Criterion, seed: int) -> KeepSet:
        """Other channels, the same share of every layer."""
        importance = self.importance(classes, criterion, seed)
        return evenly(self.groups, importance, self.costs, budget)

    def whole(self, classes: Sequence[int]) -> dict[str, Any]:
        """A row of the whole network."""
        rows = self._of(classes)
        among, over_all = accuracies(self.answers[rows], self.labels[rows], classes)
        return record(classes, 1.0, "whole network", 0, "ours", "none") | {
            "parameters": self.total,
            "among": among,
            "over_all": over_all,
        }

    def scored(
        self,
        classes: Sequence[int],
        budget: float,
        criterion: str,
        seed: int,
        widths: str,
        keep: KeepSet,
        corrections: Sequence[Correction] = ("none",),
    ) -> Iterator[dict[str, Any]]:
        """Rows of one keep-set: as it is, and corrected."""
        rows = self._of(classes)
        small = self.smaller(keep)
        for correction in corrections:
            logits = self._logits(self._corrected(small, keep, classes, correction), rows)
            among, over_all = accuracies(logits, self.labels[rows], classes)
            yield record(classes, budget, criterion, seed, widths, correction) | {
                "parameters": round(self.costs.of(kept_groups(self.groups, keep))),
                "among": among,
                "over_all": over_all,
            }

    def smaller(self, keep: KeepSet) -> nn.Module:
        """With these channels and all outputs. A chain is sliced by indexing, which takes milliseconds."""
        return sliced_chain(self.model, keep) if self.is_chain else MaskedModel(self.model, keep, self.example)

    def _corrected(self, small: nn.Module, keep: KeepSet, classes: Sequence[int], correction: Correction) -> nn.Module:
        if correction == "none":
            return small
        images, labels = self.data.train
        of = torch.isin(labels, torch.tensor(classes)).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(self.seed + 1)
        some = images[of[torch.randperm(len(of), generator=generator)[:CORRECTING]]].contiguous()
        return recalibrate(small, some) if correction == "recalibrated" else match(small, self.model, keep, some)

    def _of(self, classes: Sequence[int]) -> Tensor:
        return torch.isin(self.labels, torch.tensor(classes)).nonzero()[:, 0]

    def _logits(self, model: nn.Module, rows: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(self.images[part].contiguous()) for part in rows.split(250)])


def record(
    classes: Sequence[int], budget: float, criterion: str, seed: int, widths: str, correction: str
) -> dict[str, Any]:
    """The columns that say which sub-network it is."""
    return {
        "classes": " ".join(map(str, classes)),
        "budget": budget,
        "criterion": criterion,
        "seed": seed,
        "widths": widths,
        "correction": correction,
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
