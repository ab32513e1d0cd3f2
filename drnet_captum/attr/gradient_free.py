"""Maps that need no gradient: the principal component of the activation, and scores under its channels as masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from drnet_captum._captum import expand_additional_forward_args, log_usage, progress
from drnet_captum.attr.base import additional_args, first_of
from drnet_captum.attr.layer_map import LayerMap, arranged
from drnet_captum.attr.reading import Needs, Reading, Tensors
from drnet_captum.attr.score import Score, scores
from drnet_captum.engine.inputs import as_tuple, check_differentiable
from drnet_captum.engine.state import kept
from drnet_captum.engine.targets import Target, check_output
from drnet_captum.engine.unwrap import eager, uncompiled


class EigenCAM(LayerMap):
    r"""Eigen-CAM: the activation projected on its first principal direction. The same for every class.

    .. math:: R = \sum_k v_k A_k, \qquad A = U \Sigma V^\top \text{ of the (h·w, C) matrix},\; v = V_{:,1}

    uncentred, as in the paper. The sign, which the decomposition leaves open, is chosen so that the map's sum is
    positive. ``target`` is checked, and does not change the map.

    Args: as :class:`LayerMap`.

    Returns (of ``attribute``): (N, 1, h, w), the layer's grid, in units of A.

    Source: Muhammad & Yeasin 2020, arXiv 2008.00299.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> EigenCAM(model, layer="1").attribute(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 1, 6, 6])
    """

    _is_captured = False
    _name = "Eigen-CAM"

    def needs(self) -> Needs:
        return Needs(layer=True)

    def gradients(self, reading: Reading) -> Tensors:
        """Nothing to weight by: one empty row for each target."""
        return tuple(a.new_zeros((1, *a.shape)).expand(len(reading.ys), *a.shape) for a in reading.activation)

    def weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return principal_direction(activation)

    @log_usage
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
    ) -> Any:
        """Project the layer's activation; arguments as for ``GradCAM``."""
        layer = self.layer_for(inputs, additional_forward_args)
        recorded = self._recorded(inputs, additional_forward_args, [layer], False, attribute_to_layer_input)
        with recorded as (tape, output):
            if target is not None:
                scores(output, target)
            maps = self.read(Reading(tape, [output], self.needs(), layer), relu_attributions, attr_dim_summation)
        return first_of(maps, len(maps) > 1)


class ScoreCAM(LayerMap):
    r"""Score-CAM: channels weighted by the score that the image gets when only what they light is shown.

    .. math:: R = \sum_k \alpha_k A_k, \quad \alpha = \operatorname{softmax}_k\left(y_c(x \odot H_k) - y_c(b)\right),
              \quad H_k = \operatorname{norm}(\operatorname{up}(A_k))

    with up bilinear to the input's size, norm the map's range to [0, 1] (0 for a constant map) and b a baseline. One
    forward pass for every channel, in chunks of ``perturbations_per_eval``.

    Args: as :class:`LayerMap`.

    Returns (of ``attribute``): (N, 1, h, w), the layer's grid, in units of A.

    Source: Wang et al. 2020, arXiv 1910.01279, algorithm 1.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        >>> ScoreCAM(model, layer="1").attribute(torch.rand(1, 3, 8, 8), target=0).shape
        torch.Size([1, 1, 6, 6])
    """

    _is_captured = False
    _name = "Score-CAM"

    def needs(self) -> Needs:
        return Needs(layer=True)

    @log_usage
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        *,
        baselines: float | Tensor = 0.0,
        perturbations_per_eval: int = 16,
        show_progress: bool = False,
        score: Score = "logit",
    ) -> Any:
        """Weight the layer's channels by the scores they bring.

        Args:
            inputs: one tensor (N, C, H, W), or one of signals or volumes.
            target, additional_forward_args, attribute_to_layer_input, relu_attributions, attr_dim_summation, score: as
                for ``GradCAM``.
            baselines: b, a number or a tensor that broadcasts to the inputs.
            perturbations_per_eval: masked copies of the batch in one forward pass; the result does not depend on it.
            show_progress: show a progress bar.
        """
        maps = self.attribute_classes(
            inputs,
            [target],
            additional_forward_args,
            attribute_to_layer_input,
            relu_attributions,
            attr_dim_summation,
            baselines=baselines,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
            score=score,
        )
        return first_of(maps, False)

    def attribute_classes(
        self,
        inputs: Any,
        targets: list[Target],
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        *,
        baselines: float | Tensor = 0.0,
        perturbations_per_eval: int = 16,
        show_progress: bool = False,
        score: Score = "logit",
    ) -> Tensors:
        """K targets on the same masked copies: one tensor (K, N, 1, h, w)."""
        values = as_tuple(inputs)
        check_differentiable(values)
        if len(values) != 1 or values[0].dim() < 3:
            raise ValueError(
                "Score-CAM masks one input with spatial dimensions, (N, C, H, W): it has no meaning for several "
                "inputs or for vectors"
            )
        if perturbations_per_eval < 1:
            raise ValueError(f"expected perturbations_per_eval of at least 1, got {perturbations_per_eval}")
        layer = self.layer_for(inputs, additional_forward_args)
        (x,) = values
        recorded = self._recorded(inputs, additional_forward_args, [layer], False, attribute_to_layer_input)
        with recorded as (tape, output), torch.no_grad():
            for target in targets:
                scores(output, target, score)
            reading = Reading(tape, [output], self.needs(), layer)
            mapped = self.mapped(reading)
            if len(mapped) != 1:
                raise ValueError(f"expected a layer with one output, got {len(mapped)}: choose another layer")
            activation = reading.activation[mapped[0]]
            activation = arranged(activation, self.placement(activation, reading))
        if activation.dim() != x.dim():
            raise ValueError(
                f"expected a layer with a grid like the input's, {x.dim()} dimensions, got {tuple(activation.shape)}"
            )
        weights = self._channel_weights(
            x, activation, targets, additional_forward_args, baselines, perturbations_per_eval, show_progress, score
        )
        weights = weights.view(*weights.shape, *[1] * (activation.dim() - 2))  # (K, N, C, 1, 1)
        maps = weights * activation
        if attr_dim_summation:
            maps = maps.sum(2, keepdim=True)
        return ((torch.relu(maps) if relu_attributions else maps).contiguous(),)

    def _channel_weights(
        self,
        x: Tensor,
        activation: Tensor,
        targets: list[Target],
        additional_forward_args: Any,
        baselines: float | Tensor,
        perturbations_per_eval: int,
        show_progress: bool,
        score: Score,
    ) -> Tensor:
        """α of every target, example and channel: (K, N, C)."""
        model, n, channels = eager(self.forward_func), len(x), activation.shape[1]
        x = x.detach()
        base = torch.as_tensor(baselines, dtype=x.dtype, device=x.device).expand_as(x)
        extra = additional_args(additional_forward_args)
        mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()]
        chunks = range(0, channels, perturbations_per_eval)
        if show_progress:
            chunks = progress(chunks, desc=self.get_name())
        with torch.no_grad(), kept(model, {x.device}), uncompiled():
            output = check_output(model(base.clone(), *extra))
            bare = torch.stack([scores(output, target, score) for target in targets])  # (K, N)
            gained = []
            for start in chunks:
                maps = activation[:, start : start + perturbations_per_eval].contiguous()
                masks = unit_range(F.interpolate(maps, x.shape[2:], mode=mode, align_corners=False))  # (N, m, H, W)
                m = masks.shape[1]
                shown = masks.transpose(0, 1)[:, :, None] * (x - base) + base  # (m, N, C, H, W)
                output = check_output(model(shown.flatten(0, 1), *expand_additional_forward_args(extra, m)))
                parts = output.split(n)
                rows = [torch.stack([scores(part, target, score) for part in parts], 1) for target in targets]  # (N, m)
                gained.append(torch.stack(rows))
        return torch.softmax(torch.cat(gained, 2) - bare[..., None], dim=2)


def principal_direction(activation: Tensor) -> Tensor:
    """The first right singular vector of each example's (positions, C) matrix: (N, C, h, w) → (N, C, 1, 1)."""
    if activation.dim() < 3:
        raise ValueError(
            f"expected a layer with positions, (N, C, h, w), got {tuple(activation.shape)}: choose another layer"
        )
    matrix = activation.flatten(2).transpose(1, 2)  # (N, h·w, C)
    wide = matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
    v = torch.linalg.svd(wide, full_matrices=False).Vh[:, 0].to(matrix.dtype)  # (N, C)
    projected = (matrix @ v[..., None]).sum((1, 2))
    v = v * torch.where(projected < 0, -1.0, 1.0).to(v.dtype)[:, None]
    direction: Tensor = v.view(*v.shape, *[1] * (activation.dim() - 2))
    return direction


def unit_range(maps: Tensor) -> Tensor:
    """Each map (N, m, …) scaled to [0, 1]; constant maps become 0."""
    flat = maps.flatten(2)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    return torch.where(high > low, (flat - low) / torch.where(high > low, high - low, 1.0), 0.0).view_as(maps)
