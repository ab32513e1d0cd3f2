"""DRNet's second reconstruction: a network as a few named modules of units, which add up to R(x)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drnet_captum.attr.base import additional_args
from drnet_captum.attr.drnet import DRNet
from drnet_captum.attr.layer_part import LayerPart
from drnet_captum.dissect.dissection import Dissection, LayerUnits
from drnet_captum.dissect.exemplars import read_jpeg
from drnet_captum.engine.inputs import as_tuple
from drnet_captum.engine.targets import Target
from drnet_captum.engine.unwrap import eager
from drnet_captum.layers.discovery import example_inputs
from drnet_captum.layers.interpolation import spread
from drnet_captum.reconstruct.fidelity import Fidelity, Replacement, by_mean, by_representatives, compare
from drnet_captum.reconstruct.modules import IntArray, Member, Module, UnitTable, group_units, unit_table
from drnet_captum.reconstruct.naming import INACTIVE, ModuleName, name_modules
from drnet_captum.reconstruct.redundancy import Representative, representatives, unknown

_LISTED = 6  # units of a layer in a line of `describe`


class Reconstruction:
    r"""A network as named modules of units.

    .. math:: R(x) = \sum_m R_m(x), \qquad R_m(x) = \sum_i \lambda_i \sum_{k \in m} \alpha_{i,k} F_{i,k}(x)

    Every channel of the layers that DRNet reconstructs from is in exactly one module, so the modules' maps add up to
    DRNet's, up to rounding.

    Attributes:
        drnet: whose layers' units are grouped.
        modules: the most important one first; inactive units last.
        layers: the dissected layers, input to output.

    `reconstruct` makes one.
    """

    def __init__(self, drnet: DRNet, modules: Sequence[Module], layers: Sequence[LayerUnits], model: str) -> None:
        self.drnet, self.modules, self.layers, self.model = drnet, tuple(modules), tuple(layers), model
        self._one_hot = {}
        for units in self.layers:
            one_hot = torch.zeros(len(self.modules), units.layer.channels)  # (M, C)
            for m, module in enumerate(self.modules):
                one_hot[m, module.units(units.layer.name)] = 1
            self._one_hot[units.layer.name] = one_hot

    def modules_map(self, inputs: Any, target: Target = None, **options: Any) -> Tensor:
        """R_m(x) of every module, at the input's size.

        Args:
            inputs: as of :meth:`DRNet.attribute`.
            target: likewise.
            options: of :meth:`DRNet.attribute_layers`.

        Returns:
            (N, M, H, W), signed; the sum over M is ``drnet.attribute(inputs, target, …)``.

        Raises:
            ValueError: as of ``attribute_layers``; inputs at whose size DRNet reads other layers.
        """
        size = as_tuple(inputs)[0].shape[2:]
        parts = self._parts(inputs, target, options)
        return torch.stack([part.share * spread(self._by_module(part), size) for part in parts if part.share]).sum(0)

    def shares(self, inputs: Any, target: Target = None, **options: Any) -> Tensor:
        r"""The share of the evidence that every module carries, signed.

        .. math:: \sum_{positions} R_m \Big/ \sum_j \Big| \sum_{positions} R_j \Big|

        Their absolute values sum to 1. Divided by the sum of R, which may be near zero, they would have no bound.

        Args: as of :meth:`modules_map`.

        Returns:
            (N, M); zeros where no module has evidence.
        """
        parts = self._parts(inputs, target, options)
        sums = torch.stack([part.share * self._by_module(part).flatten(2).sum(2) for part in parts]).sum(0)
        total = sums.abs().sum(1, keepdim=True)
        return sums / torch.where(total > 0, total, 1)

    def fidelity(
        self, inputs: Any, target: Target = None, *, keep: int | None = None, additional_forward_args: Any = None
    ) -> Fidelity:
        """What the answers are with redundant units replaced, in one layer at a time.

        Replaced is what R(x) is made of, the maps: tokens before the grid (class tokens, registers) stay as they are.

        Args:
            inputs: as of :meth:`DRNet.attribute`.
            target: as in Captum; None: the class that the whole network answers.
            keep: instead, keep this many modules, the most important ones, and set the units of all others to their
                mean over the images dissected. (Zero is a value that many units never take, and a network far from what
                it was trained on tells little of the units.)
            additional_forward_args: as in Captum.

        Raises:
            ValueError: ``keep`` outside 1 … M, or without means of a layer; an output that is not (N, classes).
        """
        values, extra = as_tuple(inputs), additional_args(additional_forward_args)
        found = self.drnet.layers_for(values, extra)
        self._check([name for name, _ in found])
        with self.drnet._recorded(values, extra, [module for _, module in found], False) as (tape, _):
            layers = {}
            for name, module in found:
                activation = self.drnet.single_tensor(tape, name, module)
                layers[name] = (module, activation, self.drnet.placement(name, activation, values))
        replacements = {units.layer.name: self._replacement(units, keep) for units in self.layers}
        return compare(eager(self.drnet.forward_func), values, extra, target, layers, replacements)

    def to_records(self) -> list[dict[str, Any]]:
        """One row a unit, for ``pandas.DataFrame``: its module, and the representative and line of a redundant one.

        Columns: module (from 1), name, layer, unit, label, family, score, importance; represented_by, slope, intercept
        and correlation, None where a unit stands for itself.
        """
        rows = []
        for number, module in enumerate(self.modules, start=1):
            lines = {(r.layer, s.unit): (r.unit, s) for r in module.representatives for s in r.stands_for}
            for member in module.members:
                row: dict[str, Any] = {"module": number, "name": module.name, **vars(member)}
                unit, line = lines.get((member.layer, member.unit), (None, None))
                row["represented_by"] = unit
                row |= {key: getattr(line, key, None) for key in ("slope", "intercept", "correlation")}
                rows.append(row)
        return rows

    def describe(self) -> list[str]:
        """A line for each module: "Module 1: Edge detection: features.1 units 3, 7, 12 (2 units stand for 3)"."""
        lines = []
        for number, module in enumerate(self.modules, start=1):
            places = []
            for layer, members in groupby(module.members, key=lambda member: member.layer):
                units = [str(member.unit) for member in members]
                listed = ", ".join(units[:_LISTED]) + (", …" if len(units) > _LISTED else "")
                places.append(f"{layer} {'units' if len(units) > 1 else 'unit'} {listed}")
            all_units, standing = len(module.members), len(module.representatives)
            verb = "stands" if standing == 1 else "stand"
            end = _units(all_units) if module.note else f"{_units(standing)} {verb} for {all_units}"
            lines.append(f"Module {number}: {module.name}: {', '.join(places)} ({end})")
        return lines

    def __repr__(self) -> str:
        units = sum(len(module.members) for module in self.modules)
        standing = sum(len(module.representatives) for module in self.modules)
        count = len(self.modules)
        return (
            f"Reconstruction({self.model}: {count} module{'s' * (count != 1)}, {_units(standing)} of {units} in "
            f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)})"
        )

    def _parts(self, inputs: Any, target: Target, options: dict[str, Any]) -> list[LayerPart]:
        parts = self.drnet.attribute_layers(inputs, target, **options)
        self._check([part.name for part in parts])
        return parts

    def _by_module(self, part: LayerPart) -> Tensor:
        """(N, C, …) evidence summed over each module's channels: (N, M, …)."""
        evidence = part.evidence
        return torch.einsum("mc,nc...->nm...", self._one_hot[part.name].to(evidence), evidence)

    def _check(self, names: Sequence[str]) -> None:
        mine = [units.layer.name for units in self.layers]
        if list(names) != mine:
            raise ValueError(
                f"the modules are of the units of {', '.join(mine)}, and for inputs of this size DRNet reads "
                f"{', '.join(names)}: pass inputs of the size that was dissected, or DRNet(model, layers=…)"
            )

    def _replacement(self, units: LayerUnits, keep: int | None) -> Replacement:
        name = units.layer.name
        if keep is None:
            return by_representatives([r for m in self.modules for r in m.representatives if r.layer == name])
        if not 1 <= keep <= len(self.modules):
            raise ValueError(f"expected keep from 1 to {len(self.modules)} modules, got {keep}")
        if units.layer.kind != "layer" or units.similarity is None or not units.similarity.count:
            raise ValueError(
                f"the mean of the units that DRNet reads in {name} is not known: dissect with images, and with "
                f"layers of which {name} is one that puts out what DRNet reads"
            )
        gone = [unit for module in self.modules[keep:] for unit in module.units(name)]
        return by_mean(gone, units.similarity.mean())


def reconstruct(
    drnet: DRNet,
    dissection: Dissection,
    n_modules: int | None = None,
    *,
    redundant_at: float = 0.9,
    seed: int = 0,
) -> Reconstruction:
    """Group the units of DRNet's layers into named modules, and find those that others represent.

    Grouped by Ward's clustering of what units detect, whom they serve and how deep they are (see
    :func:`drnet_captum.reconstruct.modules.group_units`), named by what holds for most units of a module
    (:func:`drnet_captum.reconstruct.naming.name_modules`). Within a module and a layer, the most important unit stands
    for those whose pooled activations correlate with its own
    (:func:`drnet_captum.reconstruct.redundancy.representatives`).

    Args:
        drnet: of the model that was dissected.
        dissection: with the layers that ``drnet`` reads among its own.
        n_modules: how many modules, the one of inactive units included. None: as many as the units fall into, 4 to 12
            and the inactive ones.
        redundant_at: the least |r| at which a unit is redundant, in (0, 1].
        seed: of what is drawn where there are many units or classes.

    Raises:
        ValueError: a layer that DRNet reads and that was not dissected, ``n_modules`` outside what there is to be
            grouped, ``redundant_at`` outside (0, 1].

    Example:
        >>> import timm, torch
        >>> from drnet_captum.dissect.run import dissect
        >>> model = timm.create_model("test_resnet", num_classes=3).eval()
        >>> drnet = DRNet(model)
        >>> batches = [(torch.rand(2, 3, 96, 96), torch.tensor([0, 2]))]
        >>> reconstruction = reconstruct(drnet, dissect(model, batches, stimuli=False), n_modules=3)
        >>> reconstruction.modules_map(torch.rand(1, 3, 96, 96), target=2).shape
        torch.Size([1, 3, 96, 96])
    """
    if not 0 < redundant_at <= 1:
        raise ValueError(f"expected redundant_at in (0, 1], got {redundant_at}")
    layers = dissected(drnet, dissection)
    table = unit_table(layers)
    groups = group_units(table, n_modules, seed)
    names = name_modules(groups, table, dissection.class_label)
    modules = [_module(name, rows, table, layers, redundant_at) for name, rows in zip(names, groups, strict=True)]
    modules.sort(key=lambda module: (module.name == INACTIVE, -(module.importance or 0.0)))
    return Reconstruction(drnet, modules, layers, dissection.model)


def dissected(drnet: DRNet, dissection: Dissection) -> list[LayerUnits]:
    """The dissected layers that a DRNet reads, input to output."""
    model = drnet.module()
    if drnet.layers is None:
        # What was dissected knows its size; DRNet's layers may depend on it.
        picture = next(iter(dissection.images.values()), None)
        size = None if picture is None else read_jpeg(picture).shape[:2]
        names = [name for name, _ in drnet.layers_for((example_inputs(model, size)[0],), ())]
    else:
        known = {module: name for name, module in model.named_modules()}
        names = [known[layer] for layer in drnet.layers]
    there = {units.layer.name: units for units in dissection.layers}
    if missing := [name for name in names if name not in there]:
        raise ValueError(
            f"DRNet reads {', '.join(names)}, and {', '.join(missing)} was not dissected: dissect with it, "
            f"layers={names!r}, or pass DRNet layers that were: {', '.join(there)}"
        )
    return [there[name] for name in names]


def _module(
    name: ModuleName, rows: IntArray, table: UnitTable, layers: Sequence[LayerUnits], redundant_at: float
) -> Module:
    members, standing, notes = [], [], []
    for position in sorted(set(table.layer[rows].tolist())):
        own = rows[table.layer[rows] == position]
        units = layers[position]
        for row in own:
            label, weight = table.labels[row], float(table.importance[row])
            importance = None if np.isnan(weight) else weight
            members.append(
                Member(units.layer.name, int(table.unit[row]), label.name, label.family, label.score, importance)
            )
        channels = table.unit[own].tolist()
        why = unknown(units, redundant_at)
        notes += [why] if why and why not in notes else []
        standing += (
            [Representative(units.layer.name, u) for u in channels]
            if why
            else representatives(units, channels, redundant_at)
        )
    weights = [member.importance for member in members if member.importance is not None]
    return Module(
        name=name.text,
        purity=name.purity,
        members=tuple(members),
        representatives=tuple(standing),
        importance=sum(weights) / len(layers) if weights else None,
        note=f"redundancy is not known: {'; '.join(notes)}" if notes else "",
    )


def _units(count: int) -> str:
    return f"{count} unit{'s' * (count != 1)}"
