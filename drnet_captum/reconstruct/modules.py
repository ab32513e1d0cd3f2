"""Groups of units that detect the same or serve the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import ward_tree
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics import silhouette_score

from drnet_captum.dissect.dissection import LayerUnits
from drnet_captum.dissect.labels import UNLABELLED, UnitLabel
from drnet_captum.reconstruct.redundancy import Representative

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FEWEST, MOST = 4, 12  # modules, where no number is asked for: what a person can keep in mind
_NAME = 0.5  # what a label's name weighs beside its family
_DEPTH = 0.25
_PROFILE = 16  # dimensions that the classes are reduced to
_SAMPLE = 2000  # units that a silhouette is taken of: it compares all pairs
_NOTHING = 1e-7  # of the layer's strongest unit: float32's resolution


@dataclass(frozen=True)
class Member:
    """One unit of a module.

    Attributes:
        layer: dotted name.
        unit: the channel.
        label: what it detects, "vertical edges", or "unlabelled".
        family: of the label, "edges", or "unlabelled".
        score: of the label, in [0, 1].
        importance: the unit's share of its layer's evidence, mean |s| over the classes; None without images.
    """

    layer: str
    unit: int
    label: str
    family: str
    score: float
    importance: float | None


@dataclass(frozen=True)
class Module:
    """Units that belong together, by name.

    Attributes:
        name: what they detect, or else whom they serve.
        purity: the share of the members that the name holds for, in [0, 1].
        members: from input to output.
        representatives: the units that stand for all of them.
        importance: the mean over layers of the members' share of the layer's evidence; None without images. The
            modules' importances add up to 1.
        note: why redundancy was not looked for in some of the layers; "" where it was in all.
    """

    name: str
    purity: float
    members: tuple[Member, ...]
    representatives: tuple[Representative, ...]
    importance: float | None
    note: str = ""

    def units(self, layer: str) -> list[int]:
        """The members' channels in a layer."""
        return [member.unit for member in self.members if member.layer == layer]

    def __repr__(self) -> str:
        return f"Module({self.name}: {len(self.representatives)} units stand for {len(self.members)})"


@dataclass(frozen=True, eq=False)
class UnitTable:
    """All units of all layers as rows, input to output.

    Attributes:
        layers: names.
        layer: (U,) the row's layer, a position in ``layers``.
        unit: (U,) the row's channel.
        labels: U labels.
        classes: K classes that were seen.
        evidence: (U, K) signed mean importance, in parts of the root mean square of the layer for the class: layers
            and classes then count alike.
        importance: (U,) the share of the layer's absolute importance; NaN without images.
    """

    layers: tuple[str, ...]
    layer: IntArray
    unit: IntArray
    labels: tuple[UnitLabel, ...]
    classes: tuple[int, ...]
    evidence: FloatArray
    importance: FloatArray

    @property
    def is_inactive(self) -> npt.NDArray[np.bool_]:
        """(U,) units that add nothing to any image seen, and of which no label tells what excites them."""
        labelled = np.array([label.family != UNLABELLED.family for label in self.labels])
        nothing: npt.NDArray[np.bool_] = ~labelled & ~np.isnan(self.importance)
        for position in range(len(self.layers)):
            rows = self.layer == position
            nothing[rows] &= self.importance[rows] <= _NOTHING * self.importance[rows].max()
        return nothing


def unit_table(layers: Sequence[LayerUnits]) -> UnitTable:
    """The units of some dissected layers, input to output."""
    classes = sorted({c for units in layers for c in units.importance.classes.tolist()})
    evidence, importance = [], []
    labels: list[UnitLabel] = []
    for units in layers:
        channels = units.layer.channels
        signed = np.zeros((len(classes), channels))
        absolute = np.full(channels, np.nan)
        if seen := units.importance.classes.tolist():
            signed[[classes.index(c) for c in seen]] = units.importance.signed.numpy()
            absolute = units.importance.absolute.mean(0).numpy()
            absolute = absolute / (absolute.sum() or 1.0)
        scale = np.sqrt((signed**2).mean(1, keepdims=True))
        evidence.append((signed / np.where(scale > 0, scale, 1)).T)
        importance.append(absolute)
        labels += units.labels or [UNLABELLED] * channels
    sizes = [units.layer.channels for units in layers]
    return UnitTable(
        layers=tuple(units.layer.name for units in layers),
        layer=np.repeat(np.arange(len(sizes)), sizes),
        unit=np.concatenate([np.arange(size) for size in sizes]),
        labels=tuple(labels),
        classes=tuple(classes),
        evidence=np.concatenate(evidence),
        importance=np.concatenate(importance),
    )


def features(table: UnitTable, seed: int = 0) -> FloatArray:
    """What units are compared by, (U, D): their label, whom they serve, and a little their depth.

    - label: one-hot of the family, and half as much of the name, times the score s;
    - the direction of the class evidence, of length 1 − s: what a unit detects says more than for whom, as far as it is
      known. More than 16 classes are reduced to 16 dimensions by a singular value decomposition;
    - depth: 0 at the first layer to 0.25 at the last, so that modules may reach over layers.
    """
    scores = np.array([label.score for label in table.labels])[:, None]
    families = one_hot([label.family for label in table.labels])
    names = one_hot([label.name for label in table.labels])
    lengths = np.linalg.norm(table.evidence, axis=1, keepdims=True)
    profile = table.evidence / np.where(lengths > 0, lengths, 1)
    if profile.shape[1] > _PROFILE:
        profile = TruncatedSVD(min(_PROFILE, len(profile)), random_state=seed).fit_transform(profile)
    depth = _DEPTH * table.layer[:, None] / max(len(table.layers) - 1, 1)
    return np.concatenate([scores * families, _NAME * scores * names, (1 - scores) * profile, depth], axis=1)


def group_units(table: UnitTable, n_modules: int | None = None, seed: int = 0) -> list[IntArray]:
    """Rows of the table in groups, each row in exactly one; inactive units are the last group, where there are any.

    Ward's clustering of the `features`: unlike k-means it has no starting points to be lucky with, and one tree holds
    the groups of every number. ``seed`` is for what is drawn: the projection of many classes, and the units that
    silhouettes are taken of where there are more than 2000.

    Args:
        table: the units.
        n_modules: how many groups, the inactive one included. None: the number from 4 to 12 with the best silhouette;
            as many as there are different units, where these are at most 4.
        seed: of the random draws.

    Raises:
        ValueError: ``n_modules`` below 1 or above what there is to be grouped.
    """
    inactive = table.is_inactive
    idle, active = np.flatnonzero(inactive), np.flatnonzero(~inactive)
    apart = len(idle) > 0 and len(active) > 0 and n_modules != 1
    rows = active if apart else np.arange(len(table.labels))
    if n_modules is not None and not 1 <= n_modules <= len(rows) + apart:
        there = f"{len(rows)} units" + (f" and one module of {len(idle)} inactive ones" if apart else "")
        raise ValueError(f"expected n_modules from 1 to {len(rows) + apart}, for {there}, got {n_modules}")
    values = features(table, seed)[rows]
    merges = ward_tree(values)[0] if len(rows) > 1 else np.zeros((0, 2), dtype=np.int64)
    if n_modules is None:
        groups = best_cut(merges, values, seed)
    else:
        groups = cut(merges, len(rows), n_modules - apart)
    found = [rows[groups == group] for group in range(groups.max() + 1)]
    return [*found, idle] if apart else found


def best_cut(merges: IntArray, values: FloatArray, seed: int) -> IntArray:
    """The groups of the best silhouette; the fewer ones where several have it."""
    different = len(np.unique(values, axis=0))
    if different <= FEWEST:
        return cut(merges, len(values), different)
    best, groups = -np.inf, cut(merges, len(values), FEWEST)
    for count in range(FEWEST, min(MOST, different - 1) + 1):
        tried = cut(merges, len(values), count)
        sample = min(_SAMPLE, len(values))
        whole = sample == len(values)
        score = silhouette_score(values, tried, sample_size=None if whole else sample, random_state=seed)
        if score > best + 1e-9:
            best, groups = score, tried
    return groups


def cut(merges: IntArray, leaves: int, count: int) -> IntArray:
    """(leaves,) the group of every leaf, where a tree of merges, nearest first, is left at ``count`` groups.

    Example:
        >>> cut(np.array([[0, 1], [2, 3]]), leaves=3, count=2).tolist()
        [0, 0, 1]
    """
    top = np.arange(leaves + len(merges))
    for node, (a, b) in list(enumerate(merges, start=leaves))[: leaves - count][::-1]:
        top[a] = top[b] = top[node]
    _, first, groups = np.unique(top[:leaves], return_index=True, return_inverse=True)
    numbers: IntArray = np.argsort(np.argsort(first))[groups]
    return numbers


def one_hot(values: Sequence[str]) -> FloatArray:
    """(U, V), a column for each different value, sorted."""
    columns = np.array(sorted(set(values)))
    found: FloatArray = (np.array(values)[:, None] == columns).astype(np.float64)
    return found
