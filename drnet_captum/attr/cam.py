"""Class activation maps from a layer's activation and gradient: Grad-CAM and its family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drnet_captum._captum import log_usage
from drnet_captum.attr.base import first_of
from drnet_captum.attr.layer_map import LayerMap
from drnet_captum.attr.score import Score
from drnet_captum.engine.targets import Target


class ActivationMap(LayerMap):
    """The base of layer maps that weight channels by the gradient. A subclass gives the weights."""

    @log_usage
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        score: Score = "logit",
    ) -> Any:
        """Attribute the target's score to the positions of the layer.

        Args:
            inputs: as in Captum, a tensor or a tuple of them, examples first.
            target: as in Captum.
            additional_forward_args: as in Captum.
            attribute_to_layer_input: explain what goes into the layer, not what comes out.
            relu_attributions: keep positive evidence only, as the paper's figures do. Default: raw signed maps.
            attr_dim_summation: sum over channels; False returns every channel's share, (N, C, h, w).
            grad_kwargs: further keywords for ``torch.autograd.grad``.
            score: y is the target's "logit", or its "log_prob", which sets the class against the others.

        Returns:
            (N, 1, h, w), the layer's grid, of channels-last and token layers too (class tokens are left out); (N, 1, t)
            for signals, (N, 1, d, h, w) for volumes, (N, t) at the embedding of text; a tuple where the layer has
            several tensors with a grid.
        """
        layer = self.layer_for(inputs, additional_forward_args)
        with self._reading(
            inputs,
            [target],
            additional_forward_args,
            layer,
            at_layer_inputs=attribute_to_layer_input,
            score=score,
            grad_kwargs=grad_kwargs,
        ) as reading:
            maps = self.read(reading, relu_attributions, attr_dim_summation)
        return first_of(maps, len(maps) > 1)


class GradCAM(ActivationMap):
    r"""Grad-CAM: channels weighted by their mean gradient.

    .. math:: R = \sum_k w_k A_k, \qquad w_k = \operatorname{mean}_{ij} \partial y_c / \partial A_{k,ij}

    Equals Captum's ``LayerGradCam`` at the same layer. The map is signed; the paper's ReLU is
    ``relu_attributions=True``.

    Args: as :class:`LayerMap`.

    Returns (of ``attribute``): (N, 1, h, w), the layer's grid, in units of y.

    Raises:
        ValueError: unknown layer, target outside the output or cut off from the layer, NaN inputs.
        LayerDiscoveryError: ``layer=None`` and no layer qualifies.

    Source: Selvaraju et al. 2017, arXiv 1610.02391, eq. 1 and 2.

    Example:
        >>> import torch, timm
        >>> model = timm.create_model("resnet18", num_classes=5).eval()
        >>> GradCAM(model).attribute(torch.rand(2, 3, 96, 96), target=3).shape
        torch.Size([2, 1, 3, 3])
    """

    _name = "Grad-CAM"

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return grad_cam_weights(gradient)


class GradCAMPlusPlus(ActivationMap):
    r"""Grad-CAM++: positive gradients, weighted position by position so that every instance of a class counts.

    .. math:: R = \sum_k w_k A_k, \quad w_k = \sum_{ij} \alpha_{k,ij} \max(g_{k,ij}, 0), \quad
              \alpha_{ij} = \frac{g_{ij}^2}{2 g_{ij}^2 + g_{ij}^3 \sum_{ab} A_{ab}}

    with g = ∂y/∂A. α is 0 where g is 0 or the denominator is not positive. (For the paper's Y = exp(y) the factor
    exp(y) scales the whole map and drops out.)

    Args: as :class:`LayerMap`.

    Returns (of ``attribute``): (N, 1, h, w), the layer's grid.

    Source: Chattopadhay et al. 2018, arXiv 1710.11063, eq. 13 and 19.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> GradCAMPlusPlus(model, layer="1").attribute(torch.rand(1, 3, 8, 8), target=0).shape
        torch.Size([1, 1, 6, 6])
    """

    _name = "Grad-CAM++"

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return grad_cam_plus_plus_weights(activation, gradient)


class LayerCAM(ActivationMap):
    r"""LayerCAM: every position weighted by its own positive gradient, which is meaningful at shallow layers too.

    .. math:: R_{ij} = \sum_k \max(\partial y_c / \partial A_{k,ij}, 0)\, A_{k,ij}

    Args: as :class:`LayerMap`.

    Returns (of ``attribute``): (N, 1, h, w), the layer's grid, in units of y.

    Source: Jiang et al. 2021, "LayerCAM: Exploring hierarchical class activation maps", IEEE TIP 30.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> LayerCAM(model, layer="1").attribute(torch.rand(1, 3, 8, 8), target=0).shape
        torch.Size([1, 1, 6, 6])
    """

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return gradient.clamp(min=0)


class HiResCAM(ActivationMap):
    r"""HiResCAM: gradient × activation summed over channels, faithful at the layer's full resolution.

    .. math:: R_{ij} = \sum_k \partial y_c / \partial A_{k,ij} \; A_{k,ij}

    Equals Captum's ``LayerGradientXActivation`` summed over channels. For heads pool → linear it is CAM up to the
    factor h·w.

    Args: as :class:`LayerMap`.

    Returns (of ``attribute``): (N, 1, h, w), the layer's grid, in units of y.

    Source: Draelos & Carin 2020, arXiv 2011.08891.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> HiResCAM(model, layer="1").attribute(torch.rand(1, 3, 8, 8), target=0).shape
        torch.Size([1, 1, 6, 6])
    """

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return gradient


class XGradCAM(ActivationMap):
    r"""XGrad-CAM: channels weighted by their gradient averaged over where they are active.

    .. math:: R = \sum_k w_k A_k, \qquad w_k = \sum_{ij} \frac{A_{k,ij}}{\sum_{ab} A_{k,ab}}
              \frac{\partial y_c}{\partial A_{k,ij}}

    A channel whose activations sum to 0 has weight 0. Σ_ij R = Σ_k Σ_ij g·A: its sum is HiResCAM's.

    Args: as :class:`LayerMap`.

    Returns (of ``attribute``): (N, 1, h, w), the layer's grid, in units of y.

    Source: Fu et al. 2020, arXiv 2008.02312, eq. 9.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> XGradCAM(model, layer="1").attribute(torch.rand(1, 3, 8, 8), target=0).shape
        torch.Size([1, 1, 6, 6])
    """

    _name = "XGrad-CAM"

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return xgrad_cam_weights(activation, gradient)


def grad_cam_weights(gradient: Tensor) -> Tensor:
    """Mean over positions: (N, C, h, w) → (N, C, 1, 1); (N, C) stays."""
    return gradient.mean(positions(gradient), keepdim=True) if gradient.dim() > 2 else gradient


def grad_cam_plus_plus_weights(activation: Tensor, gradient: Tensor) -> Tensor:
    """w_k = Σ_ij α_ij max(g_ij, 0): (N, C, h, w) → (N, C, 1, 1)."""
    total = activation.sum(positions(activation), keepdim=True) if activation.dim() > 2 else activation  # Σ_ab A_ab
    denominator = 2 + gradient * total  # the paper's, divided by g²
    alpha = torch.where((gradient != 0) & (denominator > 0), 1 / denominator, 0.0)
    weighted = alpha * gradient.clamp(min=0)
    return weighted.sum(positions(weighted), keepdim=True) if weighted.dim() > 2 else weighted


def xgrad_cam_weights(activation: Tensor, gradient: Tensor) -> Tensor:
    """w_k = Σ g·A / Σ A, 0 where ΣA is 0: (N, C, h, w) → (N, C, 1, 1)."""
    if gradient.dim() <= 2:
        return gradient
    total = activation.sum(positions(activation), keepdim=True)
    weighted = (gradient * activation).sum(positions(gradient), keepdim=True)
    return torch.where(total == 0, 0.0, weighted / torch.where(total == 0, 1.0, total))


def positions(value: Tensor) -> tuple[int, ...]:
    """The dimensions after examples and channels."""
    return tuple(range(2, value.dim()))
