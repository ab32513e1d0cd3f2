"""The channels of groups, layer by layer, and how much they matter to classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from drnet_captum.dissect.dissection import Dissection, LayerUnits
from drnet_captum.reconstruct.groups import Group
from drnet_captum.reconstruct.sizes import Flags, Values


class Members:
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
