"""Names of modules that hold for most of their units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drnet_captum.dissect.labels import UNLABELLED
from drnet_captum.reconstruct.modules import FloatArray, IntArray, UnitTable

INACTIVE = "Inactive units"
_TITLES = {
    "edges": "Edge",
    "gratings": "Grating",
    "colours": "Colour",
    "textures": "Texture",
    "corners": "Corner",
    "curves": "Curve",
    "shapes": "Shape",
}
_MAJORITY = 0.5
_TOGETHER = 2 / 3  # of the members, for two families or for two concepts of a family
_EACH = 0.25  # of the members, for each of two families
_NEARLY = 0.5  # of the strongest class's contrast
_MOST_CLASSES = 2
_LEAST_CONTRAST = 0.5  # of the root mean square of a layer's units for a class


@dataclass(frozen=True)
class ModuleName:
    """A name, and the share of the units that it holds for."""

    text: str
    purity: float


def name_modules(groups: Sequence[IntArray], table: UnitTable, class_label: Callable[[int], str]) -> list[ModuleName]:
    """A name for each group of rows, no two the same.

    The first that holds for more than half of the units:

    - what they detect: "Edge detection", with the concepts where two of them make up two thirds, "Colour detection: red
      and orange"; two families that make up two thirds, "Curve and shape detection";
    - whom they serve: "Evidence for tabby and Egyptian cat", the one or two classes to which they add by far more than
      units do on average (by half of what is usual in their layers); "Evidence for most classes" where that is so of
      half of the classes; likewise "Evidence against";
    - otherwise where they are: "Mixed features of layer4", "Unlabelled features" where nothing is known of any.

    The purity of a name that says only where units are is 1. Names that come out equal get the layers' names, and then
    numbers.

    Args:
        groups: rows of the table.
        table: the units.
        class_label: the name of a class.
    """
    inactive = table.is_inactive
    active = ~inactive
    usual = table.evidence[active].mean(0) if active.any() else np.zeros(len(table.classes))
    names = []
    for rows in groups:
        if inactive[rows].all():
            names.append(ModuleName(INACTIVE, 1.0))
            continue
        found = by_label(rows, table)
        found = found or by_class(table.evidence[rows], usual, [class_label(c) for c in table.classes])
        names.append(found or ModuleName(elsewise(rows, table), 1.0))
    texts = different([name.text for name in names], [where(rows, table) for rows in groups])
    return [ModuleName(text, name.purity) for text, name in zip(texts, names, strict=True)]


def by_label(rows: IntArray, table: UnitTable) -> ModuleName | None:
    """By what most of the units detect."""
    labels = [table.labels[row] for row in rows if table.labels[row].family != UNLABELLED.family]
    families = ranked(Counter(label.family for label in labels))
    shares = [count / len(rows) for _, count in families]
    if shares and shares[0] > _MAJORITY:
        family = families[0][0]
        concepts = ranked(Counter(label.name for label in labels if label.family == family))
        few = concepts[: 1 if concepts[0][1] / len(rows) > _TOGETHER else 2]
        held = sum(count for _, count in few) / len(rows)
        # "Curve detection: curves" says nothing more.
        if held <= _TOGETHER or few[0][0] == family:
            return ModuleName(f"{title(family)} detection", shares[0])
        return ModuleName(f"{title(family)} detection: {' and '.join(name for name, _ in few)}", held)
    if len(shares) > 1 and shares[1] >= _EACH and sum(shares[:2]) > _TOGETHER:
        first, second = (title(family) for family, _ in families[:2])
        return ModuleName(f"{first} and {second.lower()} detection", sum(shares[:2]))
    return None


def by_class(evidence: FloatArray, usual: FloatArray, class_names: Sequence[str]) -> ModuleName | None:
    """By the classes that most of the units add to more than usual, or take from more than usual.

    Args:
        evidence: (units, K).
        usual: (K,) the mean over all units.
        class_names: K.
    """
    options: list[tuple[float, ModuleName]] = []
    for sign, word in ((1, "for"), (-1, "against")):
        does = sign * evidence > 0  # (units, K)
        contrast = sign * (evidence.mean(0) - usual)
        fits = np.flatnonzero(
            (does.mean(0) > _MAJORITY) & (sign * evidence.mean(0) > 0) & (contrast >= _LEAST_CONTRAST)
        )
        if not len(fits):
            continue
        best = fits[np.argsort(-contrast[fits], kind="stable")]
        best = best[contrast[best] >= _NEARLY * contrast[best[0]]]
        if len(best) > _MOST_CLASSES and len(best) >= len(class_names) / 2:
            share, named = float((does.mean(1) > _MAJORITY).mean()), "most classes"
        else:
            chosen = best[:_MOST_CLASSES]
            chosen = chosen if does[:, chosen].all(1).mean() > _MAJORITY else chosen[:1]
            share = float(does[:, chosen].all(1).mean())
            named = " and ".join(dict.fromkeys(class_names[c].split(",")[0] for c in chosen))
        if share > _MAJORITY:
            options.append((float(contrast[best[0]]), ModuleName(f"Evidence {word} {named}", share)))
    return max(options, key=lambda option: option[0])[1] if options else None


def elsewise(rows: IntArray, table: UnitTable) -> str:
    """By where the units are."""
    known = any(table.labels[row].family != UNLABELLED.family for row in rows) or len(table.classes) > 0
    return f"{'Mixed' if known else 'Unlabelled'} features of {where(rows, table)}"


def where(rows: IntArray, table: UnitTable) -> str:
    """The layers of the units: one, two, or from the first to the last."""
    names = [table.layers[position] for position in sorted(set(table.layer[rows].tolist()))]
    return " and ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}"


def title(family: str) -> str:
    """The family as an adjective at the beginning of a name.

    Example:
        >>> title("edges"), title("part")
        ('Edge', 'Part')
    """
    return _TITLES.get(family, family[:1].upper() + family[1:])


def different(texts: Sequence[str], places: Sequence[str]) -> list[str]:
    """The texts, the places added where texts are the same, and then numbers.

    Example:
        >>> different(["Edges", "Edges", "Edges", "Discs"], ["conv1", "conv2", "conv2", "conv2"])
        ['Edges (conv1)', 'Edges (conv2)', 'Edges (conv2), 2', 'Discs']
    """
    often = Counter(texts)
    placed = [
        text if often[text] == 1 or place in text else f"{text} ({place})"
        for text, place in zip(texts, places, strict=True)
    ]
    found: list[str] = []
    for text in placed:
        number, name = 2, text
        while name in found:
            number, name = number + 1, f"{text}, {number}"
        found.append(name)
    return found


def ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first, equally frequent ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
