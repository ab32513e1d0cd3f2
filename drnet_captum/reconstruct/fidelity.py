"""What a network still answers when some of its units are replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drnet_captum.engine.tail import Tail
from drnet_captum.engine.targets import Target, select
from drnet_captum.layers.layout import Placement, to_map
from drnet_captum.reconstruct.redundancy import Representative

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerFidelity:
    """What the answers are when units of one layer are replaced and all else is left as it is.

    Attributes:
        layer: dotted name.
        replaced: how many of its units were replaced.
        units: how many it has.
        agreement: the share of images with the same top-1 class, in [0, 1].
        probability_change: the target's new probability less the old one, mean over images.
        worst_probability_change: the one furthest from zero, signed.
        logit_change: Σ |y′ − y| / Σ |y| over images, y the target's logit: one small logit does not blow it up.
    """

    layer: str
    replaced: int
    units: int
    agreement: float
    probability_change: float
    worst_probability_change: float
    logit_change: float


@dataclass(frozen=True)
class Fidelity:
    """How true the replaced network is to the whole one, layer by layer, each layer replaced alone.

    Attributes:
        images: how many answers were compared.
        layers: input to output.
    """

    images: int
    layers: tuple[LayerFidelity, ...]

    def __getitem__(self, name: str) -> LayerFidelity:
        for layer in self.layers:
            if layer.layer == name:
                return layer
        raise ValueError(f"no layer {name!r}; there are: {', '.join(layer.layer for layer in self.layers)}")

    def describe(self) -> list[str]:
        """A line for each layer."""
        return [
            f"{found.layer}: {found.replaced} of {found.units} units replaced, top-1 kept for {found.agreement:.1%} of "
            f"{self.images} images, target's probability {found.probability_change:+.3f} (worst "
            f"{found.worst_probability_change:+.3f}), logit changed by {found.logit_change:.1%}"
            for found in self.layers
        ]


@dataclass(frozen=True, eq=False)
class Replacement:
    """Which units of a layer are replaced, and by what their maps become.

    Attributes:
        units: the channels.
        edit: all maps (N, C, …) → those of the ``units``.
    """

    units: list[int]
    edit: Edit


def by_representatives(found: Sequence[Representative]) -> Replacement:
    """Every redundant unit's map becomes slope · F_representative + intercept."""
    pairs = [(each.unit, substitute) for each in found for substitute in each.stands_for]
    source = [unit for unit, _ in pairs]

    def edit(maps: Tensor) -> Tensor:
        slope, intercept = (
            torch.tensor([getattr(s, name) for _, s in pairs], dtype=maps.dtype, device=maps.device)
            for name in ("slope", "intercept")
        )
        shape = (-1, *[1] * (maps.dim() - 2))
        return slope.view(shape) * maps[:, source] + intercept.view(shape)

    return Replacement([substitute.unit for _, substitute in pairs], edit)


def by_mean(units: list[int], mean: Tensor) -> Replacement:
    """The units' maps become their mean over images, the same at every position."""

    def edit(maps: Tensor) -> Tensor:
        values = mean[units].to(maps.device, maps.dtype)
        return values.view(1, -1, *[1] * (maps.dim() - 2)).expand(len(maps), -1, *maps.shape[2:])

    return Replacement(units, edit)


def replaced(activation: Tensor, placement: Placement, replacement: Replacement) -> Tensor:
    """A layer's output with the maps of some units replaced; tokens before the grid stay as they are."""
    result = activation.clone()
    maps = to_map(result, placement)  # a view of it
    maps[:, replacement.units] = replacement.edit(to_map(activation, placement))
    return result


def compare(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional: Sequence[Any],
    target: Target,
    layers: Mapping[str, tuple[nn.Module, Tensor, Placement]],
    replacements: Mapping[str, Replacement],
) -> Fidelity:
    """Run what lies above each layer twice, with and without the replacement.

    Args:
        forward_func: the model.
        inputs: N examples.
        additional: further arguments of the model.
        target: as in Captum; None: the class that the whole network answers.
        layers: name → module, its output for the examples, and how that is laid out.
        replacements: name → what is replaced.

    Raises:
        ValueError: an output that is not (N, classes), a target outside it.
    """
    found = []
    for name, (module, activation, placement) in layers.items():
        replacement = replacements[name]
        tail = Tail(forward_func, module, inputs, additional)
        with torch.no_grad():
            # Not the model's own output: what runs in another memory format rounds differently.
            whole = tail(activation)
            if whole.dim() != 2 or whole.shape[1] < 2:
                raise ValueError(f"expected scores of several classes, (N, classes), got {tuple(whole.shape)}")
            other = tail(replaced(activation, placement, replacement)) if replacement.units else whole
        found.append(_layer(name, len(replacement.units), placement.channels, whole, other, target))
    return Fidelity(len(inputs[0]), tuple(found))


def _layer(name: str, count: int, units: int, whole: Tensor, other: Tensor, target: Target) -> LayerFidelity:
    target = whole.argmax(1) if target is None else target
    y, y_other = (select(output, target).double() for output in (whole, other))
    p, p_other = (select(output.double().softmax(1), target) for output in (whole, other))
    change = p_other - p
    total = float(y.abs().sum())
    moved = float((y_other - y).abs().sum())
    return LayerFidelity(
        layer=name,
        replaced=count,
        units=units,
        agreement=float((whole.argmax(1) == other.argmax(1)).double().mean()),
        probability_change=float(change.mean()),
        worst_probability_change=float(change[change.abs().argmax()]),
        logit_change=moved / total if total else float(moved > 0),
    )
