"""Units that say what another unit says already: who represents them, and by which line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atanh, ceil, log

from drnet_captum.dissect.dissection import LayerUnits

LEAST_IMAGES = 20
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Substitute:
    """A redundant unit and the line that predicts it: a ≈ slope · a_representative + intercept.

    Attributes:
        unit: the redundant unit.
        slope, intercept: of the least-squares line between the activations.
        correlation: r, of these.
    """

    unit: int
    slope: float
    intercept: float
    correlation: float


@dataclass(frozen=True)
class Representative:
    """A unit that stands for itself and for the redundant units beside it.

    Attributes:
        layer: dotted name.
        unit: the most important one of them.
        stands_for: the redundant ones; () where the unit has no like.
    """

    layer: str
    unit: int
    stands_for: tuple[Substitute, ...] = ()


def representatives(units: LayerUnits, members: Sequence[int], redundant_at: float = 0.9) -> list[Representative]:
    r"""The units of a layer that stand for all of the ``members``.

    The most important unit that nobody represents yet takes every such unit with
    :math:`|r| \ge` ``redundant_at`` under it, and so on. So each redundant unit is close to its representative itself,
    not by way of others. r is the correlation of the activations over positions and images: units that fire on the
    same images at different places are not alike. What it costs all the same, :meth:`Reconstruction.fidelity` measures.

    Args:
        units: the layer, with ``similarity`` of enough images: `unknown` says why there is none.
        members: channels, in any order.
        redundant_at: in (0, 1].

    Returns:
        In the order of their numbers. Equally important units come by number too.

    Raises:
        ValueError: as `unknown` says.

    Example:
        >>> import torch
        >>> from drnet_captum.dissect.exemplars import Exemplars
        >>> from drnet_captum.dissect.importance import ClassImportance
        >>> from drnet_captum.dissect.moments import ChannelMoments
        >>> from drnet_captum.layers.fields import Field
        >>> from drnet_captum.layers.units import UnitLayer
        >>> layer = UnitLayer("layer4", "layer", 2, (7, 7), Field((9, 9), (32.0, 32.0), (0.0, 0.0)))
        >>> importance, moments = ClassImportance(2), ChannelMoments(2)
        >>> importance.update(torch.tensor([[1.0, 3.0]]).expand(20, -1), torch.zeros(20, dtype=torch.long))
        >>> a = torch.arange(20.0)
        >>> moments.update(torch.stack([2 * a + 1, a], 1))
        >>> (found,) = representatives(LayerUnits(layer, importance, Exemplars(2), similarity=moments), [0, 1])
        >>> found.unit, [(line.unit, round(line.slope, 6), round(line.intercept, 6)) for line in found.stands_for]
        (1, [(0, 2.0, 1.0)])
    """
    why = unknown(units, redundant_at)
    if why or units.similarity is None:
        raise ValueError(f"what is redundant in {units.layer.name} is not known: {why}")
    correlation, covariance = units.similarity.correlation(), units.similarity.covariance()
    mean = units.similarity.mean().tolist()
    weight = units.importance.absolute.mean(0).tolist()
    left = sorted(members, key=lambda unit: (-weight[unit], unit))
    found = []
    while left:
        leader = left[0]
        near = set((correlation[leader].abs() >= redundant_at - _ROUNDING).nonzero()[:, 0].tolist())
        own = sorted(unit for unit in left[1:] if unit in near)
        stands_for = []
        for unit in own:
            slope = float(covariance[leader, unit] / covariance[leader, leader])
            line = (slope, mean[unit] - slope * mean[leader])
            stands_for.append(Substitute(unit, *line, float(correlation[leader, unit])))
        found.append(Representative(units.layer.name, leader, tuple(stands_for)))
        left = [unit for unit in left[1:] if unit not in near]
    return sorted(found, key=lambda representative: representative.unit)


def unknown(units: LayerUnits, redundant_at: float = 0.9) -> str:
    """Why it is not known which of the layer's units are redundant; "" where it is."""
    if units.layer.kind != "layer":
        return f"{units.layer.name} was dissected after its activation, and DRNet reads it before"
    images = int(units.importance.counts.sum())
    if units.similarity is None or not images:
        return "nothing was dissected on images"
    needed = images_needed(units.layer.channels, redundant_at)
    if images < needed:
        return f"{images} image{'s were' if images > 1 else ' was'} dissected, and it takes {needed}"
    return ""


def images_needed(channels: int, redundant_at: float) -> int:
    r"""How many images it takes until no two unrelated units of a layer are expected to correlate so much by chance.

    The Fisher transform artanh(r) of n images' correlation has a standard deviation of :math:`1 / \sqrt{n - 3}` for
    unrelated units, and the largest of P = C(C − 1)/2 normal deviates is below :math:`\sqrt{2 \ln P}`, nearly always:

    .. math:: n \ge 3 + 2 \ln P / \operatorname{artanh}(r)^2

    And never below 20: activations are no normal deviates. That an image has many positions counts for nothing, as
    neighbours are alike.

    Example:
        >>> [images_needed(512, r) for r in (0.5, 0.7, 0.9)]
        [82, 35, 20]
    """
    pairs = channels * (channels - 1) // 2
    if redundant_at >= 1 or pairs < 2:
        return LEAST_IMAGES
    return max(LEAST_IMAGES, ceil(3 + 2 * log(pairs) / atanh(redundant_at) ** 2))
