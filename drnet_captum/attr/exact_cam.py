"""CAM, the original class activation map: exact for the heads it is defined for, an error for others."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from drnet_captum.attr.base import additional_args
from drnet_captum.attr.cam import ActivationMap
from drnet_captum.attr.layer_map import arranged
from drnet_captum.attr.reading import Reading, Tensors
from drnet_captum.engine import graph
from drnet_captum.engine.inputs import as_tuple
from drnet_captum.engine.lean import Convolution
from drnet_captum.engine.naming import Layer
from drnet_captum.engine.rules import is_rule_node
from drnet_captum.layers.discovery import LayerDiscoveryError, target_layer_for

#: What may stand between the layer and the score: weights, averages, and changes of shape. All of it is affine.
AFFINE = re.compile(
    r"ToCopy|Addmm|(^|\W)Mm|^T(Backward|$)|Linear|Convolution|Mean|AvgPool|AvgPool2D|View|Reshape|Squeeze|Unsqueeze|Permute|Transpose"
    r"|Expand|Select|Slice|Index|Clone|Contiguous|ToCopy|AsStrided|Alias|Add|Sub|Sum|Div|AccumulateGrad|Unbind|Split"
)


class CAM(ActivationMap):
    r"""CAM: the classifier's weights applied at every position, before they are averaged.

    For pool → linear heads, with A the last feature map:

    .. math:: R = \sum_k w_k^c A_k, \qquad \operatorname{mean}_{ij} R + b_c = y_c

    For 1×1 convolution → pool, the class's score map without its bias. For convolution → ReLU → pool (SqueezeNet), the
    class's map after the ReLU, whose mean is y_c. Any other head (a norm, an activation or a max-pool between pool and
    classifier, several linear layers with activations between) raises: what would come out is no CAM.

    Args: as :class:`LayerMap`. ``layer`` is what the head starts from; absent, it is found.

    Returns (of ``attribute``): (N, 1, h, w), the layer's grid, in units of y.

    Raises:
        ValueError: the head is not one of the above; the message names what stands between.

    Source: Zhou et al. 2016, arXiv 1512.04150, eq. 2.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        ...                             torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
        >>> x = torch.rand(1, 3, 8, 8)
        >>> mean = CAM(model).attribute(x, target=1).mean()
        >>> torch.allclose(mean + model[4].bias[1], model(x)[0, 1], atol=1e-6)
        True
    """

    _is_captured = False

    def layer_for(self, inputs: Any, additional_forward_args: Any) -> Layer:
        """The layer before the classifier; where an activation ends the classifier, the classifier's own map."""
        if self.layer is not None:
            return self.layer
        values, extra = as_tuple(inputs), additional_args(additional_forward_args)
        last = target_layer_for(self.forward_func, values, extra, head=True).module
        try:
            before = target_layer_for(self.forward_func, values, extra).module
        except LayerDiscoveryError:
            return last
        with self._recorded(inputs, additional_forward_args, [before], False) as (tape, output):
            return last if head_obstacles(output, tape.kept_tensors(before)) else before

    def gradients(self, reading: Reading) -> Tensors:
        """w_k^c of every position: ∂y/∂A times the number of positions, constant over them for these heads."""
        kept = reading.tape.kept_tensors(reading.layer)  # type: ignore[arg-type]
        for y in reading.ys:
            obstacles = head_obstacles(y, kept)
            if obstacles:
                raise ValueError(
                    "CAM is defined for heads pool → linear, 1×1 convolution → pool and convolution → ReLU → pool; "
                    f"between layer and score this model has {', '.join(obstacles)}: use GradCAM"
                )
        found = []
        for activation, gradient in zip(reading.activation, reading.layer_gradient(), strict=True):
            placement = self.placement(activation, reading)
            if placement is not None and placement.prefix_tokens and gradient[:, :, : placement.prefix_tokens].any():
                raise ValueError(
                    "CAM is defined for heads that average over all positions, and this one reads tokens beside the "
                    "grid (a class token): use GradCAM"
                )
            maps = torch.stack([arranged(row, placement) for row in gradient])  # (K, N, C, …)
            grid = tuple(range(3, maps.dim()))
            uniform = maps.mean(grid, keepdim=True) if grid else maps
            if not torch.allclose(maps, uniform.expand_as(maps), rtol=1e-3, atol=float(maps.abs().max()) * 1e-4):
                raise ValueError(
                    "CAM is defined for heads that average over all positions, and this one weights them "
                    "differently (flatten → linear?): use GradCAM"
                )
            found.append(gradient * maps.shape[3:].numel())
        return tuple(found)

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return gradient


def head_obstacles(y: Tensor, layer: Tensors) -> list[str]:
    """The steps between a layer and a score that are not affine, by name; empty for an exact CAM."""
    stop = {t.grad_fn for t in layer if t.grad_fn is not None}
    found = graph.nodes_until([y], stop)
    return sorted({readable(n) for n in found if not is_affine(n)})


def is_affine(node: Any) -> bool:
    return getattr(node, "_forward_cls", None) is Convolution or (
        not is_rule_node(node) and AFFINE.search(node.name()) is not None and "Max" not in node.name()
    )


def readable(node: Any) -> str:
    name: str = node.name()
    if is_rule_node(node) or graph.ACTIVATION_NAMES.search(name):
        return "an activation"
    return name.replace("Backward0", "").replace("Backward", "")
