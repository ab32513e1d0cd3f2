"""The part of a network that some classes need: chosen by a dissection, masked, sliced, reported on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import Tensor, nn

from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.exemplars import read_jpeg
from drnet_captum.dissect.fingerprint import fingerprint
from drnet_captum.dissect.run import batches, known_card
from drnet_captum.layers.discovery import example_inputs
from drnet_captum.reconstruct.gates import gate_importance
from drnet_captum.reconstruct.groups import Group, KeepSet, find_groups, is_layer
from drnet_captum.reconstruct.keep import BudgetOf, Choice, Chooser
from drnet_captum.reconstruct.masks import MaskedModel
from drnet_captum.reconstruct.sizes import LayerSize, find_sizes
from drnet_captum.reconstruct.slicing import sliced

if TYPE_CHECKING:
    from drnet_captum.reconstruct.subnetwork_report import SubNetworkReport

Method = Literal["taylor", "gates"]
_GATED = 32  # images of a folder at a time
_NAMED = 6  # classes in a title


@dataclass(frozen=True)
class Anatomy:
    """Which channels of a network can be removed.

    Attributes:
        example: what the network takes.
        groups: channels that go together; where Torch-Pruning cannot trace the network, each channel on its own.
        sizes: what each layer costs; () where that is not known.
        untraced: why Torch-Pruning cannot trace the network; None where it can.
        chooser: of what is counted.
    """

    example: Tensor
    groups: Sequence[Group]
    sizes: Sequence[LayerSize]
    untraced: Exception | None
    chooser: Chooser


class SubNetwork:
    """Some channels of a network, which answer for some classes.

    Attributes:
        model: the whole network; it is not changed.
        dissection: by which the channels were chosen; for gates, with them in place of its importances.
        classes: for which; the outputs of ``sliced()``, in this order.
        choice: what stays, what it costs, where the budget had to give way.
        anatomy: what may be removed, and what it costs.

    `subnetwork` makes one.
    """

    def __init__(
        self, model: nn.Module, dissection: Dissection, classes: Sequence[int], budget: float, anatomy: Anatomy
    ) -> None:
        self.model, self.dissection, self.classes, self.anatomy = model, dissection, _checked(classes), anatomy
        chooser = anatomy.chooser
        self.choice: Choice = chooser.within(chooser.importance(dissection, self.classes), budget)

    @property
    def title(self) -> str:
        """The model and the classes."""
        names = [self.dissection.class_label(c) for c in self.classes[:_NAMED]]
        more = len(self.classes) - len(names)
        return f"{self.dissection.model} for {', '.join(names)}{f' and {more} more' if more else ''}"

    @property
    def keep(self) -> KeepSet:
        """By layer, the channels that stay; layers that are not in it stay whole."""
        return self.choice.keep

    def of(self, classes: Sequence[int], budget: float) -> SubNetwork:
        """The sub-network of other classes, or of another budget, by the same importances: a matter of milliseconds.

        Raises:
            ValueError: as of :func:`subnetwork`.
        """
        return SubNetwork(self.model, self.dissection, classes, budget, self.anatomy)

    def masked(self) -> MaskedModel:
        """The same network, with the same weights, whose removed channels are exactly zero; all outputs."""
        return MaskedModel(self.model, self.keep, self.anatomy.example)

    def sliced(self, *, all_outputs: bool = False) -> nn.Module:
        """A smaller network of its own: an ordinary module to train, save and export.

        Args:
            all_outputs: keep the outputs of all classes; otherwise those of ``classes``, in their order.

        Raises:
            ImportError: without Torch-Pruning.
            ValueError: Torch-Pruning cannot trace the network, or not slice it; says why.
        """
        if self.anatomy.untraced is not None:
            raise _again(self.anatomy.untraced)
        return sliced(self.model, self.keep, self.anatomy.example, None if all_outputs else self.classes)

    def report(self, data: Iterable[Any] | str | Path | None = None, *, seeds: int = 5) -> SubNetworkReport:
        """What it costs, beside the whole network; with images, what both answer, and what other channels would.

        Others are as many in each layer: at random, of the largest weights, important to all classes together.

        Args:
            data: batches of (images, labels), or a folder of photos, one subfolder a class; other classes are left out.
            seeds: of random channels, which are averaged over.

        Raises:
            ValueError: no image of the classes, images without labels, ``seeds`` below 1.
        """
        from drnet_captum.reconstruct.subnetwork_report import report

        return report(self, data, seeds=seeds)

    def __repr__(self) -> str:
        channels = sum(map(len, self.keep.values()))
        share = f"{self.choice.share:.1%} of the {self.choice.budget_of}"
        return f"SubNetwork({self.title}: {share}, {channels:,} channels in {len(self.keep)} layers)"


def subnetwork(
    model: nn.Module,
    dissection: Dissection,
    classes: Sequence[int],
    budget: float = 0.11,
    *,
    budget_of: BudgetOf = "parameters",
    method: Method = "taylor",
    data: Iterable[Any] | str | Path | None = None,
    inputs: Tensor | None = None,
) -> SubNetwork:
    r"""The channels of a network that a set of classes needs most, within a budget.

    Any classes from one dissection: a channel's importance for a set of classes is the sum of its importances for each
    (see :func:`drnet_captum.reconstruct.keep.choose`), and nothing is searched for. After a dissection with
    ``contrasts`` it is what tells the classes from each other. What was not dissected, such as hidden linear layers,
    stays whole, and counts.

    Args:
        model: the model that was dissected, in eval mode; nothing of it changes.
        dissection: with images of each of the classes, and with the model's convolutions among its layers.
        classes: their numbers, each once.
        budget: the share of the whole model that may stay, above 0 and at most 1.
        budget_of: what is counted: "parameters", "macs", or "channels" (those that may be removed).
        method: "taylor": the dissection's importances, mean :math:`|F_k \, \partial y_c / \partial F_k|`. "gates":
            critical data routing, gates learned on ``data`` (see :func:`drnet_captum.reconstruct.gates.learn_gates`)
            in the convolutions that were dissected.
        data: for "gates" only: batches of (images, labels), or a folder of photos, one subfolder a class.
        inputs: an image that the model takes. ``None``: noise of the size that was dissected.

    Raises:
        ImportError: without Torch-Pruning, unless the budget is of channels.
        TypeError: classes that are no numbers.
        ValueError: a dissection of another model, a model in train mode; no class, a class twice, or one that was not
            dissected (for "gates": of which ``data`` has no image); a budget that one channel a layer exceeds; a model
            that Torch-Pruning cannot trace, unless the budget is of channels (it can then be masked).

    Source: after the claim of Hu et al. 2019, arXiv 1911.08691, that classes need a small part of a network.

    Example:
        >>> import timm, torch
        >>> from drnet_captum.dissect.run import dissect
        >>> model = timm.create_model("test_resnet", num_classes=3).eval()
        >>> images = [(torch.rand(3, 3, 64, 64), torch.tensor([0, 1, 2]))]
        >>> part = subnetwork(model, dissect(model, images, stimuli=False), classes=[2, 0], budget=0.5)
        >>> part.sliced()(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 2])
    """
    for name, given, known in (("method", method, get_args(Method)), ("budget_of", budget_of, get_args(BudgetOf))):
        if given not in known:
            raise ValueError(f"expected {name} to be one of {', '.join(known)}, got {given!r}")
    if (method == "gates") != (data is not None):
        raise ValueError(
            "method='gates' learns gates on images: pass data="
            if data is None
            else f"data= is what gates are learned on, and method={method!r} reads the dissection alone: leave it out"
        )
    wanted = _checked(classes)
    if model.training:
        raise ValueError("expected a model in eval mode, got one in train mode: call model.eval() first")
    dissection.check(fingerprint(model))
    example = example_of(model, dissection) if inputs is None else inputs
    anatomy = _anatomy(model, dissection, example, budget_of)
    if data is not None:
        anatomy.chooser.within(np.ones(len(anatomy.groups)), budget)  # a budget is refused before gates are learned
        dissection = _gated(model, dissection, data)
    return SubNetwork(model, dissection, wanted, budget, anatomy)


def example_of(model: nn.Module, dissection: Dissection) -> Tensor:
    """Noise of the size that was dissected, like the model's parameters."""
    picture = next(iter(dissection.images.values()), None)
    return example_inputs(model, None if picture is None else read_jpeg(picture).shape[:2])[0]


def _checked(classes: Sequence[int]) -> tuple[int, ...]:
    try:
        numbers = tuple(map(index, classes))
    except TypeError as error:
        raise TypeError(f"expected classes to be a list of class numbers, got {classes!r:.80}") from error
    if not numbers or len(set(numbers)) != len(numbers):
        raise ValueError(f"expected at least one class, and each once, got {list(numbers)}")
    return numbers


def _anatomy(model: nn.Module, dissection: Dissection, example: Tensor, budget_of: BudgetOf) -> Anatomy:
    try:
        groups = find_groups(model, example)
    except (ImportError, ValueError) as error:
        if budget_of != "channels":
            why = f"{error}; with budget_of='channels' it can be masked, each channel on its own"
            raise _again(error, why) from error
        groups = _lone(model, dissection)
        return Anatomy(example, groups, (), _again(error), Chooser(groups, budget_of=budget_of))
    sizes: Sequence[LayerSize] = ()
    try:
        sizes = find_sizes(model, example, groups)
    except ValueError:
        if budget_of != "channels":
            raise
    return Anatomy(example, groups, sizes, None, Chooser(groups, budget_of=budget_of, sizes=sizes))


def _again(error: Exception, message: str = "") -> Exception:
    """The same error, without a traceback that keeps a copy of the model alive."""
    kind = ImportError if isinstance(error, ImportError) else ValueError
    return kind(message or str(error))


def _lone(model: nn.Module, dissection: Dissection) -> list[Group]:
    """Each channel on its own, of the dissected convolutions; one that puts out the classes is none of them."""
    layers = [units.layer for units in dissection.layers if units.layer.kind == "convolution"]
    maskable = [layer for layer in layers if is_layer(model.get_submodule(layer.name))]
    return [Group({layer.name: (k,)}, 0) for layer in maskable for k in range(layer.channels)]


def _gated(model: nn.Module, dissection: Dissection, data: Iterable[Any] | str | Path) -> Dissection:
    """The same dissection, with gates in place of the importances of its convolutions."""
    layers = [units.layer.name for units in dissection.layers if units.layer.kind == "convolution"]
    if not layers:
        raise ValueError("expected a dissection of convolutions, which can have gates, got one of other layers")
    found = gate_importance(model, batches(data, model, known_card(model), _GATED), layers)
    seen = found[layers[0]]
    gated: dict[str, dict[str, Any]] = {
        name: {"importance": importance, "contrasts": {}} for name, importance in found.items()
    }
    return replace(
        dissection,
        layers=tuple(replace(units, **gated.get(units.layer.name, {})) for units in dissection.layers),
        counts=dict(zip(seen.classes.tolist(), seen.counts.tolist(), strict=True)),
    )
