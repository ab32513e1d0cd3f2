"""What a sub-network costs and answers, beside the whole network and other channels at the same widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from drnet_captum.dissect.run import batches, known_card
from drnet_captum.reconstruct.baselines import at_the_widths_of, random_importance, weight_norms
from drnet_captum.reconstruct.groups import KeepSet, kept_groups, out_channels
from drnet_captum.reconstruct.keep import group_importance
from drnet_captum.reconstruct.masks import MaskedModel
from drnet_captum.reconstruct.sizes import BudgetOf, Costs
from drnet_captum.reconstruct.slicing import sliced

if TYPE_CHECKING:
    from drnet_captum.reconstruct.subnetwork import Anatomy, SubNetwork

WHOLE, OURS = "whole network", "sub-network"
_BATCH = 32
_SECONDS = 0.5  # of timing, each
_COUNTED: tuple[BudgetOf, BudgetOf] = ("parameters", "macs")


@dataclass(frozen=True)
class Variant:
    """A network beside others.

    Attributes:
        name: which.
        parameters: with the outputs of all classes; None where the layers' sizes are not known.
        macs: multiply-accumulates of one input, likewise.
        milliseconds: of one input, median; None where it was not timed.
        among: share of right answers, of the chosen classes' outputs alone; None without images.
        over_all: the same over all outputs.
    """

    name: str
    parameters: int | None = None
    macs: int | None = None
    milliseconds: float | None = None
    among: float | None = None
    over_all: float | None = None


@dataclass(frozen=True)
class SubNetworkReport:
    """What a sub-network is, and what it costs.

    Attributes:
        title: the model and the classes.
        widths: (layer, channels that stay, channels) of each layer that was cut.
        notes: layers of which one channel stays as it has to, layers that stay whole as they were not dissected,
            why there are no slices.
        variants: the whole network, the sub-network; with images, other choices of channels at the same widths.
        images: how many answers are of; 0 without images.
    """

    title: str
    widths: tuple[tuple[str, int, int], ...]
    notes: tuple[str, ...]
    variants: tuple[Variant, ...]
    images: int

    def __getitem__(self, name: str) -> Variant:
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ValueError(f"no variant {name!r}; there are: {', '.join(v.name for v in self.variants)}")

    def to_records(self) -> list[dict[str, Any]]:
        """One row a variant, for ``pandas.DataFrame``."""
        return [asdict(variant) for variant in self.variants]

    def __str__(self) -> str:
        whole = self.variants[0]
        lines = [self.title]
        for v in self.variants:
            parts = [
                _count(v.parameters, whole.parameters, "parameters"),
                _count(v.macs, whole.macs, "MACs"),
                "" if v.milliseconds is None else f"{v.milliseconds:.2f} ms",
                "" if v.among is None else f"{v.among:.1%} right among the classes",
                "" if v.over_all is None else f"{v.over_all:.1%} over all",
            ]
            lines.append(f"  {v.name}: {', '.join(part for part in parts if part)}")
        if self.images:
            lines.append(
                f"  of {self.images} image{'s' * (self.images != 1)}; other channels are as many in each layer"
            )
        lines.append("  channels: " + ", ".join(f"{name} {kept}/{count}" for name, kept, count in self.widths))
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def report(part: SubNetwork, data: Iterable[Any] | str | Path | None = None, *, seeds: int = 5) -> SubNetworkReport:
    """What `SubNetwork.report` hands out."""
    if seeds < 1:
        raise ValueError(f"expected seeds to be at least 1, got {seeds}")
    variants = [_costs(Variant(WHOLE), part.anatomy, {}), _costs(Variant(OURS), part.anatomy, part.keep)]
    notes = [
        *(f"one channel of {name} stays, as a layer needs one" for name in part.choice.held),
        *_whole(part.choice.unscored),
    ]
    small: nn.Module | None = None
    try:
        small = part.sliced()
    except (ImportError, ValueError) as error:
        notes.append(f"there are no slices: {error}")
    if small is not None:
        timed = zip(variants, (part.model, small), strict=True)
        variants = [
            replace(variant, milliseconds=_milliseconds(model, part.anatomy.example)) for variant, model in timed
        ]
    images = 0
    if data is not None:
        shown = [(x, y) for x, y in _of_classes(part, data)]
        images = sum(len(y) for _, y in shown)
        if not images:
            names = ", ".join(part.dissection.class_label(c) for c in part.classes)
            raise ValueError(f"expected images of {names}, got none: are labels the model's class numbers?")
        variants[0] = _scored(variants[0], part, part.model, shown)
        variants[1] = _scored(variants[1], part, _network(part, part.keep), shown)
        variants += _others(part, shown, seeds)
    names = ", ".join(part.dissection.class_label(c) for c in part.classes)
    return SubNetworkReport(
        title=f"{part.dissection.model} for {names}, {part.choice.share:.1%} of its {part.choice.budget_of}",
        widths=tuple((name, len(of), out_channels(part.model.get_submodule(name))) for name, of in part.keep.items()),
        notes=tuple(notes),
        variants=tuple(variants),
        images=images,
    )


def _others(part: SubNetwork, shown: Sequence[tuple[Tensor, Tensor]], seeds: int) -> list[Variant]:
    """Other channels, at the same widths."""
    everyone = sorted(part.dissection.counts)
    choices: dict[str, list[Callable[[], Any]]] = {
        "channels important to all classes": [lambda: group_importance(part.dissection, part.anatomy.groups, everyone)],
        "channels of the largest weights": [lambda: weight_norms(part.model, part.anatomy.groups)],
        f"random channels, mean of {seeds}": [
            lambda seed=seed: random_importance(part.anatomy.groups, seed)  # type: ignore[misc]
            for seed in range(seeds)
        ],
    }
    found = []
    for name, importances in choices.items():
        rows = []
        for importance in importances:
            keep = at_the_widths_of(part.keep, part.anatomy.groups, importance())
            rows.append(_scored(_costs(Variant(name), part.anatomy, keep), part, _network(part, keep), shown))
        means = {key: sum(getattr(row, key) for row in rows) / len(rows) for key in ("among", "over_all")}
        found.append(replace(rows[0], **means))
    return found


def _network(part: SubNetwork, keep: KeepSet) -> nn.Module:
    """With these channels and all outputs: the fastest that there is."""
    try:
        return sliced(part.model, keep, part.anatomy.example)
    except (ImportError, ValueError):
        return MaskedModel(part.model, keep, part.anatomy.example)


def _of_classes(part: SubNetwork, data: Iterable[Any] | str | Path) -> Iterable[tuple[Tensor, Tensor]]:
    wanted = torch.tensor(part.classes)
    for images, labels in batches(data, part.model, known_card(part.model), _BATCH):
        if labels is None:
            raise ValueError("expected labelled images: batches of (images, labels), or a subfolder a class")
        chosen = torch.isin(labels.cpu(), wanted)
        if chosen.any():
            yield images[chosen.to(images.device)].to(part.anatomy.example), labels.cpu()[chosen]


def _scored(variant: Variant, part: SubNetwork, model: nn.Module, shown: Sequence[tuple[Tensor, Tensor]]) -> Variant:
    with torch.no_grad():
        logits = torch.cat([model(images).cpu() for images, _ in shown])
    labels = torch.cat([labels for _, labels in shown])
    among, over_all = accuracies(logits, labels, part.classes)
    return replace(variant, among=among, over_all=over_all)


def accuracies(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> tuple[float, float]:
    """The share of right answers: among the outputs of some classes, and over all outputs.

    Among a few classes more answers are right, whatever the network: always look at both.

    Args:
        logits: (N, K), of images of these classes.
        labels: (N,).
        classes: the numbers of the classes.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0, 9.0], [0.0, 1.0, 0.0]])
        >>> accuracies(logits, torch.tensor([1, 1]), [0, 1])
        (1.0, 0.5)
    """
    among = torch.tensor(classes)[logits[:, list(classes)].argmax(1)]
    return float((among == labels).double().mean()), float((logits.argmax(1) == labels).double().mean())


def _costs(variant: Variant, anatomy: Anatomy, keep: KeepSet) -> Variant:
    if not anatomy.sizes:
        return variant
    kept = kept_groups(anatomy.groups, keep)
    parameters, macs = (round(Costs(anatomy.groups, anatomy.sizes, kind).of(kept)) for kind in _COUNTED)
    return replace(variant, parameters=parameters, macs=macs)


def _milliseconds(model: nn.Module, example: Tensor) -> float:
    with torch.no_grad():
        timer = Timer(
            "model(example)", globals={"model": model, "example": example}, num_threads=torch.get_num_threads()
        )
        return 1000 * timer.blocked_autorange(min_run_time=_SECONDS).median


def _whole(layers: Sequence[str]) -> list[str]:
    if not layers:
        return []
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return [f"whole, as they were not dissected: {', '.join(layers[:3])}{more}"]


def _count(count: int | None, of: int | None, what: str) -> str:
    return "" if count is None or not of else f"{count:,} {what} ({count / of:.1%})"
