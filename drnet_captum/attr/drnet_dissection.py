"""DRNet dissection of one answer: what every channel of every layer adds to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from captum.attr import LayerAttribution
from torch import Tensor, nn

from drnet_captum._captum import log_usage
from drnet_captum.attr.base import additional_args
from drnet_captum.attr.score import Score, scores
from drnet_captum.engine.inputs import MemoryFormat, as_tuple, check_memory_format
from drnet_captum.engine.naming import Layer, find_module
from drnet_captum.engine.targets import Target
from drnet_captum.engine.unit_tape import UnitTape
from drnet_captum.engine.unwrap import eager
from drnet_captum.layers.units import NO_UNITS, Site, UnitLayer, find_units, importance


class DRNetDissection(LayerAttribution):
    r"""Importance of every channel of every layer for one answer, in one forward and one backward pass.

    .. math:: s_k(x) = \sum_{positions} F_k(x) \, \frac{\partial y}{\partial F_k}

    is how much y would fall, to first order, if unit k were zero. A convolution's unit is taken after the convolution's
    own norm and activation, where a mask acts; other layers' units are their own output. Equals Captum's
    ``LayerGradientXActivation`` at the module that puts the units out, summed over positions.

    Args:
        forward_func: the model.
        layers: modules or dotted names. None: every convolution that has a grid.
        device_ids: accepted as in Captum. Data-parallel models are explained on their first device, whatever it says.
        memory_format: "auto" runs images channels last on a CPU; "preserve" leaves them as they are.

    Returns (of ``attribute``): a tuple of (N, C_i), one for each of :meth:`unit_layers`, in units of y.

    Raises:
        ValueError: layers that are unknown, share a module or have no grid; none that has units; a target outside the
            output; NaN inputs.

    Source: Hu et al. 2019, arXiv 1911.08691 (the channels of every single class); Molchanov et al. 2017,
    arXiv 1611.06440, for the first-order criterion.

    Example:
        >>> import torch, timm
        >>> model = timm.create_model("resnet18", num_classes=5).eval()
        >>> dissection = DRNetDissection(model)
        >>> x = torch.rand(2, 3, 64, 64)
        >>> found = dissection.attribute(x, target=[3, 1])
        >>> len(found), found[0].shape, dissection.unit_layers(x)[0].name
        (20, torch.Size([2, 64]), 'conv1')
    """

    def __init__(
        self,
        forward_func: nn.Module,
        layers: Sequence[Layer] | None = None,
        device_ids: list[int] | None = None,
        *,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        model = eager(forward_func)
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected an nn.Module to look for units in, got {type(forward_func).__name__}")
        check_memory_format(memory_format)
        if isinstance(layers, (str, nn.Module)):
            layers = [layers]
        if layers is not None and not layers:
            raise ValueError("expected at least one layer, got an empty list: layers=None is every convolution")
        self.layers = None if layers is None else [find_module(model, layer) for layer in layers]
        LayerAttribution.__init__(self, forward_func, self.layers[0] if self.layers else model)
        self.model, self.device_ids = model, device_ids
        self.memory_format: MemoryFormat = memory_format

    @classmethod
    def get_name(cls) -> str:
        """The class's name as papers write it."""
        return "DRNet dissection"

    def unit_layers(self, inputs: Any, additional_forward_args: Any = None) -> list[UnitLayer]:
        """The layers of the importances, in their order: name, number of units, grid, receptive field."""
        return [site.layer for site in self._sites(as_tuple(inputs), additional_args(additional_forward_args))]

    @log_usage
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        score: Score = "logit",
    ) -> tuple[Tensor, ...]:
        """Importance of the units of every layer for the target's score.

        Args:
            inputs: as in Captum, a tensor or a tuple of them, examples first.
            target: as in Captum.
            additional_forward_args: as in Captum.
            score: y is the target's "logit", or its "log_prob".
        """
        values, extra = as_tuple(inputs), additional_args(additional_forward_args)
        sites = self._sites(values, extra)
        tape = UnitTape(self.model, {s.layer.name: s for s in sites}, memory_format=self.memory_format)
        output = tape.forward(inputs, *extra)
        found = read_importance(tape, sites, scores(output, target, score))
        return tuple(found[site.layer.name] for site in sites)

    def _sites(self, values: tuple[Tensor, ...], extra: tuple[Any, ...]) -> list[Site]:
        found = find_units(self.model, values, extra, self.layers)
        if not found:
            raise ValueError(NO_UNITS)
        return found


def read_importance(
    tape: UnitTape,
    sites: Sequence[Site],
    y: Tensor,
    also: Callable[[Site, Tensor], None] | None = None,
    *,
    keep: bool = False,
) -> dict[str, Tensor]:
    """s_k of all units of the sites: layer → (N, C). ``also`` gets every site's activation on the way.

    ``keep`` keeps the graph for further passes.
    """
    places = {site.layer.name: site for site in sites}
    found = {}

    def read(name: str, activation: Tensor, gradient: Tensor) -> None:
        found[name] = importance(activation, gradient, places[name].placement.layout)
        if also is not None:
            also(places[name], activation)

    tape.backward(y, read, keep=keep)
    for site in sites:
        found.setdefault(site.layer.name, y.new_zeros(len(y), site.layer.channels))
    return found
