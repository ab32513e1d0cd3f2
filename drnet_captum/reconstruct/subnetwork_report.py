"""What a sub-network costs and answers, beside the whole network and other channels at the same widths."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from drnet_captum.dissect.run import batches, known_card
from drnet_captum.engine.targets import check_output
from drnet_captum.reconstruct.baselines import at_the_widths_of, random_importance, weight_norms
from drnet_captum.reconstruct.groups import KeepSet, kept_groups, out_channels
from drnet_captum.reconstruct.keep import group_importance
from drnet_captum.reconstruct.masks import MaskedModel
from drnet_captum.reconstruct.sizes import BudgetOf, Costs
from drnet_captum.reconstruct.slicing import sliced

if TYPE_CHECKING:
    from drnet_captum.reconstruct.subnetwork import Anatomy, SubNetwork

Keeps = Mapping[str, Sequence[KeepSet]]
WHOLE, OURS = "whole network", "sub-network"
_BATCH = 32
_SECONDS = 0.5  # of timing, each
_COUNTED: tuple[BudgetOf, BudgetOf] = ("parameters", "macs")
_HEADINGS = ("", "parameters", "MACs", "ms", "right among the classes", "right over all")
_LISTED = 3  # layers in a note
_WIDTH = 110  # of lines of text


@dataclass(frozen=True)
class Variant:
    """A network beside others.

    Attributes:
        name: which.
        parameters: with the outputs of all classes; None where the layers' sizes are not known.
        macs: multiply-accumulates of one input, likewise.
        milliseconds: of one input, median; of the sub-network with the outputs of its classes alone. None where it
            was not timed.
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
        title: the model and the classes, and what share of what stays.
        widths: (layer, channels that stay, channels) of each layer that could lose some, input to output.
        notes: the size of the slices, or why there are none; layers that the budget would have emptied; layers that
            stay whole as they were not dissected.
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
        rows = [
            (
                v.name,
                _count(v.parameters, whole.parameters),
                _count(v.macs, whole.macs),
                "" if v.milliseconds is None else f"{v.milliseconds:.2f}",
                "" if v.among is None else f"{v.among:.1%}",
                "" if v.over_all is None else f"{v.over_all:.1%}",
            )
            for v in self.variants
        ]
        lines = list(self.notes)
        if self.images:
            shown = f"{self.images:,} image{'s' * (self.images > 1)} of these classes"
            lines.insert(0, f"Right: of {shown}. Other channels are as many in each layer.")
        cut = [f"{name}\N{NO-BREAK SPACE}{stay}/{count}" for name, stay, count in self.widths if stay < count]
        lines.append(f"Channels that stay: {', '.join(cut) or 'all'}{'; all of the other layers' * bool(cut)}.")
        wrapped = [textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
        return "\n".join([self.title, "", *_table(rows), "", *wrapped]).replace("\N{NO-BREAK SPACE}", " ")


def report(part: SubNetwork, data: Iterable[Any] | str | Path | None = None, *, seeds: int = 5) -> SubNetworkReport:
    """What `SubNetwork.report` hands out."""
    if seeds < 1:
        raise ValueError(f"expected seeds to be at least 1, got {seeds}")
    keeps: dict[str, list[KeepSet]] = {WHOLE: [{}], OURS: [part.keep]}
    if data is not None:
        keeps |= _others(part, seeds)
    rows = {name: _costs(Variant(name), part.anatomy, found[0]) for name, found in keeps.items()}
    images = 0
    if data is not None:
        images, answers = _answers(part, keeps, data)
        rows = {name: replace(row, among=answers[name][0], over_all=answers[name][1]) for name, row in rows.items()}
    try:
        small = part.sliced()
    except (ImportError, ValueError) as error:
        notes = [f"There are no slices for these classes: {error}."]
    else:
        size = sum(p.numel() for p in small.parameters())
        outputs = f"{len(part.classes)} output{'s' * (len(part.classes) > 1)}"
        notes = [f"Sliced, with {outputs} of its own, it has {size:,} parameters; that is what was timed."]
        for name, model in ((WHOLE, part.model), (OURS, small)):
            rows[name] = replace(rows[name], milliseconds=_milliseconds(model, part.anatomy.example))
    if part.choice.held:
        notes.append(f"Nearly emptied by the budget, their most important channel stays: {_some(part.choice.held)}.")
    if part.choice.unscored:
        notes.append(f"Whole, as they were not dissected: {_some(part.choice.unscored)}.")
    layers = [(name, module) for name, module in part.model.named_modules() if name in part.keep]
    return SubNetworkReport(
        title=f"{part.title}: {part.choice.share:.1%} of the {part.choice.budget_of}",
        widths=tuple((name, len(part.keep[name]), out_channels(module)) for name, module in layers),
        notes=tuple(notes),
        variants=tuple(rows.values()),
        images=images,
    )


def _others(part: SubNetwork, seeds: int) -> dict[str, list[KeepSet]]:
    """Other channels, at the same widths."""
    groups, everyone = part.anatomy.groups, sorted(part.dissection.counts)
    all_classes = "channels important to all classes"
    importances = (
        {} if everyone == sorted(part.classes) else {all_classes: [group_importance(part.dissection, groups, everyone)]}
    )
    importances |= {
        "channels of the largest weights": [weight_norms(part.model, groups)],
        f"random channels, mean of {seeds}": [random_importance(groups, seed) for seed in range(seeds)],
    }
    return {name: [at_the_widths_of(part.keep, groups, v) for v in values] for name, values in importances.items()}


def _answers(
    part: SubNetwork, keeps: Keeps, data: Iterable[Any] | str | Path
) -> tuple[int, dict[str, tuple[float, float]]]:
    """How many images there are of the classes, and the shares of right answers, means over what has one name."""
    networks = [(name, _network(part, keep)) for name, found in keeps.items() for keep in found]
    right: list[list[Tensor]] = [[] for _ in networks]
    with torch.no_grad():
        for images, labels in _of_classes(part, data):
            for found, (_, network) in zip(right, networks, strict=True):
                found.append(_right(check_output(network(images)).cpu(), labels, part.classes))
    if not right[0]:
        names = part.title.removeprefix(f"{part.dissection.model} for ")
        raise ValueError(f"expected images of {names}, got none: are the labels the model's class numbers?")
    shares: dict[str, list[Tensor]] = {}
    for found, (name, _) in zip(right, networks, strict=True):
        shares.setdefault(name, []).append(torch.cat(found, 1).double().mean(1))
    means = {name: torch.stack(rows).mean(0).tolist() for name, rows in shares.items()}
    return sum(of.shape[1] for of in right[0]), {name: (among, over) for name, (among, over) in means.items()}


def _network(part: SubNetwork, keep: KeepSet) -> nn.Module:
    """With these channels and all outputs: the fastest that there is."""
    if not keep:
        return part.model
    try:
        return sliced(part.model, keep, part.anatomy.example)
    except (ImportError, ValueError):
        return MaskedModel(part.model, keep, part.anatomy.example)


def _of_classes(part: SubNetwork, data: Iterable[Any] | str | Path) -> Iterator[tuple[Tensor, Tensor]]:
    wanted, like = torch.tensor(part.classes), part.anatomy.example
    for images, labels in batches(data, part.model, known_card(part.model), _BATCH):
        if labels is None:
            raise ValueError("expected labelled images: batches of (images, labels), or a subfolder a class")
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise ValueError(
                f"expected an integer label for each of {len(images)} images, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        labels = labels.cpu()
        chosen = torch.isin(labels, wanted)
        if chosen.any():
            shown = images[chosen.to(images.device)]
            yield shown.to(like) if shown.is_floating_point() else shown.to(like.device), labels[chosen]


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
    among, over_all = _right(logits, labels, classes).double().mean(1).tolist()
    return among, over_all


def _right(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """(2, N): which answers are right, among the outputs of some classes, and over all outputs."""
    among = torch.tensor(classes)[logits[:, list(classes)].argmax(1)]
    return torch.stack([among == labels, logits.argmax(1) == labels])


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


def _some(layers: Sequence[str]) -> str:
    more = len(layers) - _LISTED
    return ", ".join(layers[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _count(count: int | None, of: int | None) -> str:
    return "" if count is None or not of else f"{count:,} ({count / of:.1%})"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text, names to the left and numbers to the right; without columns in which there is nothing."""
    columns = [column for column in zip(_HEADINGS, *rows, strict=True) if any(column[1:])]
    wide = [
        [cell.rjust(max(map(len, column))) if i else cell.ljust(max(map(len, column))) for cell in column]
        for i, column in enumerate(columns)
    ]
    return ["  ".join(cells).rstrip() for cells in zip(*wide, strict=True)]
