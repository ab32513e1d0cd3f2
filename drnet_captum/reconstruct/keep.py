"""Which channels a set of classes needs, within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from drnet_captum.dissect.dissection import Dissection, LayerUnits
from drnet_captum.reconstruct.groups import Group, KeepSet
from drnet_captum.reconstruct.sizes import BudgetOf as BudgetOf
from drnet_captum.reconstruct.sizes import Costs, Flags, LayerSize, Numbers, Values

TILT = 0.25  # how much a group's price counts: 0 not at all, 1 as much as its importance
ROUNDS = 8  # prices depend on what is kept, and that on prices


@dataclass(frozen=True)
class Choice:
    """Channels that stay, and what they cost.

    Attributes:
        keep: layer -> channels that stay, sorted; layers that are not in it stay whole.
        budget_of: what is counted.
        cost: of what stays.
        total: of the whole model.
        held: layers that the budget would have emptied; their most important group stays all the same.
        unscored: layers of whose groups nothing was dissected: they stay whole, and count.
    """

    keep: KeepSet
    budget_of: BudgetOf
    cost: float
    total: float
    held: tuple[str, ...]
    unscored: tuple[str, ...]

    @property
    def share(self) -> float:
        """What stays, of the whole model."""
        return self.cost / self.total


def choose(
    dissection: Dissection,
    groups: Sequence[Group],
    classes: Iterable[int],
    budget: float,
    *,
    budget_of: BudgetOf = "parameters",
    sizes: Sequence[LayerSize] = (),
) -> Choice:
    r"""The channels that a set of classes needs most, by the importances of one dissection.

    A group's importance is that of its channels to the classes, each against the others where that was dissected
    (`group_importance`). Groups stay in the order of importance / price\ :sup:`TILT`, the price being what the model
    costs more with the group than without, at what stays elsewhere; what does not fit the budget any more is passed
    over. Nothing is searched for: any set of classes takes milliseconds. For many, make a :class:`Chooser` once.

    Args:
        dissection: of the model; its convolutions are read, and no outputs of other layers.
        groups: a partition of the channels that may be removed.
        classes: at least one that was dissected.
        budget: the share of the whole model that may stay, above 0 and at most 1.
        budget_of: what is counted: "parameters", "macs", or "channels" (those in groups).
        sizes: the layers' sizes, by :func:`find_sizes`; not needed for channels.

    Raises:
        ValueError: no classes, one that was not seen, a budget outside (0, 1] or below what one group a layer costs,
            groups that overlap or do not fit the dissection, sizes that are missing.

    Source: Hu et al. 2019, arXiv 1911.08691 (sub-networks of classes); Molchanov et al. 2017, arXiv 1611.06440 (Taylor
    importances).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from drnet_captum.dissect.dissector import Dissector
        >>> from drnet_captum.reconstruct.groups import find_groups
        >>> from drnet_captum.reconstruct.sizes import find_sizes
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> x = torch.rand(4, 3, 8, 8)
        >>> dissector = Dissector(net.eval(), layers=["0"])
        >>> _ = dissector.update(x, torch.tensor([0, 1, 0, 1]))
        >>> groups = find_groups(net, x)
        >>> choice = choose(dissector.result(), groups, [0], 0.6, sizes=find_sizes(net, x, groups))
        >>> len(choice.keep["0"]), choice.cost, choice.total
        (2, 62.0, 122.0)
    """
    chooser = Chooser(groups, budget_of=budget_of, sizes=sizes)
    return chooser.within(chooser.importance(dissection, classes), budget)


def within_budget(
    groups: Sequence[Group],
    importance: Values,
    budget: float,
    *,
    budget_of: BudgetOf = "parameters",
    sizes: Sequence[LayerSize] = (),
) -> Choice:
    """What `choose` does, for importances from anywhere: (G,), NaN for groups that stay whatever comes.

    Raises:
        ValueError: as for `choose`; importances of another number, negative or infinite.
    """
    return Chooser(groups, budget_of=budget_of, sizes=sizes).within(importance, budget)


def group_importance(dissection: Dissection, groups: Sequence[Group], classes: Iterable[int]) -> Values:
    r"""(G,): how much each group matters to the classes together; NaN where nothing of it was dissected.

    A channel's importance for class c of a set Q is what it adds to c's score against those of the others,

    .. math:: \sum_{u \in Q, u \ne c} \operatorname{mean}_{x \in c} |s_c(x) - s_u(x)|

    where all classes of Q were set against each other in the dissection (``contrasts``), and mean |s_c| where they were
    not, or where Q is one class. A layer's importances for one class are then divided by their sum, and those of a
    group's channels for all classes added up.

    Raises:
        ValueError: no classes, one that was not seen, channels that a layer does not have or that are in two groups.
    """
    return _Members(groups).importance(dissection, classes)


class Chooser:
    """Chooses for many sets of classes: what depends on groups and sizes only is worked out once.

    Args:
        groups: a partition of the channels that may be removed.
        budget_of: what is counted.
        sizes: the layers' sizes; not needed for channels.

    Raises:
        ValueError: no groups, groups that overlap; sizes that are missing or of other groups.
    """

    def __init__(
        self, groups: Sequence[Group], *, budget_of: BudgetOf = "parameters", sizes: Sequence[LayerSize] = ()
    ) -> None:
        self._members = _Members(groups)
        self._costs = Costs(groups, sizes, budget_of)

    def importance(self, dissection: Dissection, classes: Iterable[int]) -> Values:
        """As `group_importance`."""
        return self._members.importance(dissection, classes)

    def within(self, importance: Values, budget: float) -> Choice:
        """As `within_budget`."""
        members, costs = self._members, self._costs
        if not 0 < budget <= 1:
            raise ValueError(f"expected a budget above 0 and at most 1, the share that may stay, got {budget}")
        if importance.shape != (members.count,):
            raise ValueError(f"expected one importance for each of {members.count} groups, got {importance.shape}")
        if (importance < 0).any() or np.isinf(importance).any():
            raise ValueError("expected importances that are finite and not negative, or NaN for groups that stay")
        stays = np.isnan(importance)
        start = stays | members.best(importance)
        least = costs.of(start) / costs.total
        if least > budget:
            whole = members.names(members.all_of(stays))
            why = f", with {', '.join(whole[:3])}{', …' * (len(whole) > 3)} whole, which were not dissected" * bool(
                whole
            )
            raise ValueError(f"one group a layer already costs {least:.3%}{why}, got a budget of {budget:.3%}")
        order = self._order(importance, start, budget)
        kept = self._filled(start, order, budget)
        emptied = members.without(self._filled(stays, order, budget))
        whole = members.all_of(stays)
        return Choice(
            keep=members.channels(kept, ~whole),
            budget_of=costs.budget_of,
            cost=costs.of(kept),
            total=costs.total,
            held=members.names(emptied),
            unscored=members.names(whole),
        )

    def _order(self, importance: Values, start: Flags, budget: float) -> Numbers:
        """The groups that may go, those first that are worth their price where the budget is spent in that order."""
        costs, loose = self._costs, np.flatnonzero(~np.isnan(importance))
        logs = np.log(np.maximum(costs.counts(np.ones_like(start)) * budget**0.5, 1))
        for _ in range(ROUNDS):
            price = np.maximum(costs.prices(np.exp(logs)), 1)
            worth = (importance / price**TILT)[loose]
            order = loose[np.argsort(-worth, kind="stable")]
            further = order[~start[order]]
            kept = start.copy()
            kept[further[: self._fitting(costs.along(further, start), budget)]] = True
            logs = (logs + np.log(np.maximum(costs.counts(kept), 1))) / 2
        return order

    def _filled(self, start: Flags, order: Numbers, budget: float) -> Flags:
        """Down the order, every group that still fits stays."""
        kept, costs = start.copy(), self._costs
        order = order[~kept[order]]
        while len(order):
            # Prices rise with what stays: what does not fit now does not fit later.
            alone = np.rint(costs.of(kept) + costs.prices(costs.counts(kept))[order])
            order = order[alone / costs.total <= budget]
            n = self._fitting(costs.along(order, kept), budget)
            kept[order[:n]] = True
            order = order[n + 1 :]
        return kept

    def _fitting(self, along: Values, budget: float) -> int:
        return int(np.searchsorted(along / self._costs.total, budget, side="right"))


class _Members:
    """The channels of all groups, layer by layer, in flat arrays."""

    def __init__(self, groups: Sequence[Group]) -> None:
        if not groups:
            raise ValueError("expected at least one group of channels, got none")
        self.count = len(groups)
        by_layer: dict[str, list[tuple[int, int]]] = {}
        for g, group in enumerate(groups):
            for layer, of in group.channels.items():
                by_layer.setdefault(layer, []).extend((channel, g) for channel in of)
        self.layers = tuple(by_layer)
        pairs = [sorted(by_layer[layer]) for layer in self.layers]
        for layer, of_layer in zip(self.layers, pairs, strict=True):
            for (a, _), (b, _) in pairwise(of_layer):
                if a == b:
                    raise ValueError(f"channel {a} of {layer!r} is in two groups: each may be in one")
        self._ends = np.cumsum([len(of_layer) for of_layer in pairs])
        self._starts = np.append(0, self._ends[:-1])
        self._channel, self._group = np.array([pair for of_layer in pairs for pair in of_layer], dtype=np.int64).T

    def importance(self, dissection: Dissection, classes: Iterable[int]) -> Values:
        wanted = sorted(set(classes))
        if not wanted:
            raise ValueError("expected at least one class, got none")
        total, known = np.zeros(self.count), np.zeros(self.count, dtype=np.bool_)
        dissected = {u.layer.name: u for u in dissection.layers if u.layer.kind == "convolution"}
        for layer, start, end in zip(self.layers, self._starts, self._ends, strict=True):
            if layer not in dissected:
                continue
            units, channels, numbers = dissected[layer], self._channel[start:end], self._group[start:end]
            if channels[0] < 0 or channels[-1] >= units.layer.channels:
                raise ValueError(
                    f"layer {layer!r} was dissected with the channels 0 … {units.layer.channels - 1}, and the groups "
                    f"have {channels[0]} … {channels[-1]}: they are of another model"
                )
            shares = np.stack([_share(row) for row in _importances(units, wanted)]).sum(0)
            total += np.bincount(numbers, shares[channels], self.count)
            known[numbers] = True
        if not known.any():
            raise ValueError(f"none of the groups' layers was dissected; convolutions are: {', '.join(dissected)}")
        return np.where(known, total, np.nan)

    def best(self, importance: Values) -> Flags:
        """(G,): the most important group of each layer of which none has to stay; of equal ones the first."""
        order = np.argsort(-importance, kind="stable")
        place = np.empty(self.count, dtype=np.int64)
        place[order] = np.arange(self.count)
        first = order[np.minimum.reduceat(place[self._group], self._starts)]
        found = np.zeros(self.count, dtype=np.bool_)
        found[first[self.without(np.isnan(importance))]] = True
        return found

    def without(self, kept: Flags) -> Flags:
        """(layers,): of which no group is kept."""
        none: Flags = ~np.logical_or.reduceat(kept[self._group], self._starts)
        return none

    def all_of(self, kept: Flags) -> Flags:
        """(layers,): of which all groups are kept."""
        every: Flags = np.logical_and.reduceat(kept[self._group], self._starts)
        return every

    def channels(self, kept: Flags, layers: Flags) -> dict[str, tuple[int, ...]]:
        rows = zip(self.layers, self._starts, self._ends, layers, strict=True)
        stay = kept[self._group]
        return {layer: tuple(self._channel[a:b][stay[a:b]].tolist()) for layer, a, b, asked in rows if asked}

    def names(self, layers: Flags) -> tuple[str, ...]:
        return tuple(layer for layer, asked in zip(self.layers, layers, strict=True) if asked)


def _importances(units: LayerUnits, classes: Sequence[int]) -> Values:
    """(K, C): of a layer's channels for each class, against the others where every pair of them is known."""
    importances: Values = units.importance.absolute_of(classes).numpy()
    others = {u: [c for c in classes if c != u] for u in classes}
    if len(classes) == 1 or not all(c in units.contrasts.get(u, ()) for u in classes for c in others[u]):
        return importances
    importances = np.zeros_like(importances)
    for u in classes:
        importances[np.not_equal(classes, u)] += units.contrasts[u].absolute_of(others[u]).numpy()
    return importances


def _share(values: Values) -> Values:
    """A layer's importances for one class as shares of their sum; equal shares where all are zero."""
    total = values.sum()
    return values / total if total > 0 else np.full_like(values, 1 / len(values))
