"""Other ways to choose as many channels: what a choice by classes has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from drnet_captum.reconstruct.groups import Group, KeepSet, kept_groups, out_channels
from drnet_captum.reconstruct.sizes import Costs, Flags, Values


def random_importance(groups: Sequence[Group], seed: int | Sequence[int]) -> Values:
    """(G,): a number from [0, 1) for each group, so that whichever is chosen is chosen at random.

    Example:
        >>> random_importance([Group({"conv": (0,)}, 9)], seed=0).round(3).tolist()
        [0.637]
    """
    return np.random.default_rng(seed).random(len(groups))


def weight_norms(model: nn.Module, groups: Sequence[Group]) -> Values:
    r"""(G,): the ℓ1 norm of the weights that make the group's channels, each layer's norms summing to one.

    Source: Li et al. 2017, arXiv 1608.08710.

    Example:
        >>> import torch
        >>> conv = nn.Conv2d(1, 2, 1, bias=False)
        >>> conv.weight.data = torch.tensor([[[[-3.0]]], [[[1.0]]]])
        >>> weight_norms(nn.Sequential(conv), [Group({"0": (k,)}, 1) for k in range(2)]).tolist()
        [0.75, 0.25]
    """
    norms: dict[str, Values] = {}
    for layer in dict.fromkeys(layer for group in groups for layer in group.channels):
        module = model.get_submodule(layer)
        weight = getattr(module, "weight").detach().double().cpu()  # noqa: B009
        if getattr(module, "transposed", False):  # (in, out / groups, …)
            n_groups = int(getattr(module, "groups"))  # noqa: B009
            weight = weight.unflatten(0, (n_groups, -1)).transpose(1, 2).flatten(0, 1)
        norm = weight.reshape(out_channels(module), -1).abs().sum(1).numpy()
        norms[layer] = norm / norm.sum() if norm.sum() > 0 else norm
    return np.array([sum(norms[name][list(ks)].sum() for name, ks in group.channels.items()) for group in groups])


def at_the_widths_of(keep: KeepSet, groups: Sequence[Group], importance: Values) -> dict[str, tuple[int, ...]]:
    """A keep-set that is as wide everywhere as another, of the groups with the highest importance.

    So the two differ in nothing but in which channels stay.

    Args:
        keep: a union of these groups.
        groups: a partition of the channels that may be removed.
        importance: (G,).

    Raises:
        ValueError: a keep-set that parts a group.

    Example:
        >>> groups = [Group({"conv": (k,)}, 9) for k in range(4)]
        >>> at_the_widths_of({"conv": (0, 1)}, groups, np.array([0.0, 1.0, 2.0, 1.5]))
        {'conv': (2, 3)}
    """
    kept = kept_groups(groups, keep)
    whole = union(groups, np.flatnonzero(kept).tolist())
    if torn := sorted(layer for layer, channels in keep.items() if set(channels) != set(whole.get(layer, channels))):
        raise ValueError(f"expected a keep-set of whole groups, got one that parts a group of {torn[0]!r}")
    best: list[int] = []
    for members in alike(groups, importance):
        best += members[: kept[members].sum()]
    return {layer: channels for layer, channels in union(groups, best).items() if layer in keep}


def evenly(groups: Sequence[Group], importance: Values, costs: Costs, budget: float) -> dict[str, tuple[int, ...]]:
    """The keep-set of the same share of every layer, as large as a budget allows; of the highest importance.

    Args:
        groups: a partition of the channels that may be removed.
        importance: (G,); NaN for groups that stay.
        costs: of these groups.
        budget: the share of the whole model that may stay, above 0 and at most 1.

    Raises:
        ValueError: a budget outside (0, 1], or below what one group a layer costs.

    Example:
        >>> groups = [Group({"a": (k,)}, 9) for k in range(2)] + [Group({"b": (k,)}, 9) for k in range(4)]
        >>> evenly(groups, np.arange(6.0), Costs(groups, (), "channels"), budget=4 / 6)
        {'a': (1,), 'b': (1, 2, 3)}
    """
    if not 0 < budget <= 1:
        raise ValueError(f"expected a budget above 0 and at most 1, the share that may stay, got {budget}")
    ranked, stays = alike(groups, importance), np.isnan(importance)

    def of(share: float) -> Flags:
        kept = stays.copy()
        for members in ranked:
            kept[members[: max(1, round(share * len(members)))]] = True
        return kept

    if (least := costs.of(of(0)) / costs.total) > budget:
        raise ValueError(f"one group a layer already costs {least:.3%}, got a budget of {budget:.3%}")
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if costs.of(of(middle)) <= budget * costs.total else (low, middle)
    return union(groups, np.flatnonzero(of(low)).tolist())


def alike(groups: Sequence[Group], importance: Values) -> list[list[int]]:
    """The numbers of groups of the same layers, those of the highest importance first."""
    found: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for g in np.argsort(-importance, kind="stable").tolist():
        found.setdefault(tuple((name, len(ks)) for name, ks in groups[g].channels.items()), []).append(g)
    return list(found.values())


def union(groups: Sequence[Group], chosen: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The keep-set of the chosen groups."""
    stay: dict[str, list[int]] = {layer: [] for group in groups for layer in group.channels}
    for g in chosen:
        for layer, channels in groups[g].channels.items():
            stay[layer] += channels
    return {layer: tuple(sorted(channels)) for layer, channels in stay.items()}
