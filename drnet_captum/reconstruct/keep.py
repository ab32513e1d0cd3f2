"""Which channels a set of classes needs, within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from drnet_captum.dissect.dissection import Dissection
from drnet_captum.reconstruct.groups import Group, KeepSet
from drnet_captum.reconstruct.members import Members
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
    return Members(groups).importance(dissection, classes)


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
        self._members = Members(groups)
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
            names = members.names(members.all_of(stays))
            why = f", with {', '.join(names[:3])}{', …' * (len(names) > 3)} whole, which were not dissected"
            raise ValueError(
                f"one group a layer already costs {least:.3%}{why * bool(names)}, got a budget of {budget:.3%}"
            )
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
