"""Modified backward passes: the deconvolutional network and guided backpropagation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack

from torch import Tensor

from drnet_captum._captum import log_usage
from drnet_captum.attr.base import first_of
from drnet_captum.attr.gradient import InputGradient
from drnet_captum.attr.reading import Needs, Reading
from drnet_captum.engine.naming import Layer
from drnet_captum.engine.running import RunOptions
from drnet_captum.engine.state import differentiable
from drnet_captum.engine.targets import Target

Selector = int | tuple[int | slice, ...] | Callable[..., Tensor]


class RuleGradient(InputGradient):
    """A gradient under another backward rule of activations, of a class score or of one unit of a layer."""

    _rule: Literal["guided", "deconv"]

    def __init__(
        self,
        model: Callable[..., Any],
        layer: Layer | None = None,
        device_ids: list[int] | None = None,
        **running: Unpack[RunOptions],
    ) -> None:
        super().__init__(model, layer, **running)
        self.model = model
        self.device_ids = device_ids

    def rule(self) -> Literal["plain", "guided", "deconv"]:
        return self._rule

    @log_usage
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        neuron_selector: Selector | None = None,
        attribute_to_neuron_input: bool = False,
    ) -> Any:
        """Attribute the target's score, or the selected unit of the layer, to the inputs.

        Args:
            inputs: as in Captum, a tensor or a tuple of them, examples first.
            target: as in Captum; not with ``neuron_selector``.
            additional_forward_args: as in Captum.
            neuron_selector: which unit of the constructor's ``layer`` is projected back to the input: a channel k (its
                strongest position in each image; for a layer (N, C) the value), indices (k, i, j) for one position,
                with slices for a region or a whole map (their sum), or a function from the layer's output to (N,) or
                (N, …).
            attribute_to_neuron_input: take the unit from what goes into the layer.
        """
        if neuron_selector is None:
            if attribute_to_neuron_input:
                raise ValueError("attribute_to_neuron_input is for one unit of a layer: pass neuron_selector= too")
            return self._attribute(inputs, target, additional_forward_args)
        if self.layer is None:
            raise ValueError(f"neuron_selector chooses a unit of a layer: pass layer= to {type(self).__name__}(…)")
        if target is not None:
            raise ValueError("expected a target or a neuron_selector, got both: a unit of a layer has no target")
        if self.running.compile:
            raise ValueError("compile=True captures scores of classes, and not units of a layer: leave it out")
        recorded = self._recorded(inputs, additional_forward_args, [self.layer], True, attribute_to_neuron_input)
        with recorded as (tape, _):
            with differentiable():
                y = select_unit(tape.kept_tensors(self.layer), neuron_selector)
            maps = Reading(tape, [y], Needs(input_rules=(self._rule,))).input_gradient(self._rule)
        return first_of(maps, isinstance(inputs, tuple))


class DeconvNet(RuleGradient):
    r"""Deconvolutional network: projects a score or a unit back to the pixels through the transposed network.

    At every activation the incoming gradient is rectified, and the forward activation plays no part:
    :math:`g \mapsto \max(g, 0)`. Convolutions are transposed, max-pools are undone by their switches. Overrides every
    activation function wherever it is called (``nn.ReLU``, ``F.relu``, in place, reused, SiLU, GELU …), where Captum's
    ``Deconvolution`` overrides ``nn.ReLU`` modules.

    Args:
        model: the model, or any function of tensors.
        layer: a module or dotted name, for one of its units (``neuron_selector`` of ``attribute``); without a selector
            the map is about that layer's output in place of the input (the embedding of tokens).
        device_ids: accepted as in Captum; data-parallel models are explained on their first device.
        memory_format, precision, compile: as for :func:`explain`.

    Returns (of ``attribute``): the inputs' shape. A tuple for a tuple.

    Raises:
        ValueError: a target or unit outside the output, NaN inputs, a model without activations, or one that hides them
            (scripted, compiled).

    Source: Zeiler & Fergus 2013, arXiv 1311.2901.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> DeconvNet(model).attribute(torch.randn(1, 3, 8, 8), target=1).shape
        torch.Size([1, 3, 8, 8])
        >>> DeconvNet(model, layer="1").attribute(torch.randn(1, 3, 8, 8), neuron_selector=2).shape
        torch.Size([1, 3, 8, 8])
    """

    _rule = "deconv"


class GuidedBackprop(RuleGradient):
    r"""Guided backpropagation: the gradient along paths that are active and that raise the score.

    At every activation f with input z: :math:`g \mapsto \max(g, 0)\,\max(f'(z), 0)`, which for ReLU is the paper's
    rule. Overrides every activation function wherever it is called (``nn.ReLU``, ``F.relu``, in place, reused, SiLU,
    GELU …), where Captum's ``GuidedBackprop`` overrides ``nn.ReLU`` modules; equal to it where those are all there are.

    Args:
        model: the model, or any function of tensors.
        layer: a module or dotted name, for one of its units (``neuron_selector`` of ``attribute``); without a selector
            the map is about that layer's output in place of the input (the embedding of tokens).
        device_ids: accepted as in Captum; data-parallel models are explained on their first device.
        memory_format, precision, compile: as for :func:`explain`.

    Returns (of ``attribute``): the inputs' shape. A tuple for a tuple.

    Raises:
        ValueError: a target or unit outside the output, NaN inputs, a model without activations, or one that hides them
            (scripted, compiled).

    Source: Springenberg et al. 2014, arXiv 1412.6806.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU(), torch.nn.Linear(3, 2)).eval()
        >>> GuidedBackprop(model).attribute(torch.randn(5, 4), target=[0, 1, 0, 1, 1]).shape
        torch.Size([5, 4])
    """

    _rule = "guided"


def select_unit(tensors: tuple[Tensor, ...], selector: Selector) -> Tensor:
    """The unit that a selector names, one number for each example: (N,).

    Example:
        >>> import torch
        >>> layer = torch.arange(8.0).view(1, 2, 2, 2)
        >>> select_unit((layer,), 1), select_unit((layer,), (1, 0, 0)), select_unit((layer,), (0, slice(None), 0))
        (tensor([7.]), tensor([4.]), tensor([2.]))
    """
    if callable(selector):
        chosen = selector(tensors if len(tensors) > 1 else tensors[0])
        if not isinstance(chosen, Tensor):
            raise TypeError(f"expected neuron_selector to return a tensor, got {type(chosen).__name__}")
        return chosen.reshape(chosen.shape[0], -1).sum(1) if chosen.dim() else chosen[None]
    if len(tensors) > 1:
        raise ValueError(
            f"the layer puts out {len(tensors)} tensors: pass a function as neuron_selector to choose from them"
        )
    (layer,) = tensors
    place = selector if isinstance(selector, tuple) else (selector,)
    if len(place) > layer.dim() - 1:
        raise ValueError(
            f"expected at most {layer.dim() - 1} indices for a layer of shape (N, "
            f"{', '.join(map(str, layer.shape[1:]))}), got {selector}"
        )
    for i, size in zip(place, layer.shape[1:], strict=False):
        if not isinstance(i, slice) and not -size <= i < size:
            raise ValueError(
                f"unit {selector} is out of range for a layer of shape (N, {', '.join(map(str, layer.shape[1:]))})"
            )
    chosen = layer[(slice(None), *place)]
    if not isinstance(selector, tuple) and chosen.dim() > 1:
        return chosen.flatten(1).amax(1)
    return chosen.reshape(len(layer), -1).sum(1)
