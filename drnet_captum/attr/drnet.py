"""DRNet attribution: the answer reconstructed from what the network's layers hold, R(x) = Σ αF."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, get_args, overload

import torch
from torch import Tensor, nn

from drnet_captum._captum import log_usage
from drnet_captum.attr.base import additional_args
from drnet_captum.attr.layer_part import LayerPart, reconstruction
from drnet_captum.attr.layer_reading import LayerReading, Pair, Weights
from drnet_captum.attr.score import Score, score_for, scores
from drnet_captum.attr.shares import checked_shares, default_shares
from drnet_captum.engine.inputs import Baselines, as_tuple, baseline_of
from drnet_captum.engine.naming import Layer, find_module
from drnet_captum.engine.running import RunOptions
from drnet_captum.engine.targets import Target
from drnet_captum.engine.unwrap import eager

if TYPE_CHECKING:
    from drnet_captum.data.card import ModelCard
    from drnet_captum.dissect.dissection import Dissection
    from drnet_captum.reconstruct.reconstruction import Reconstruction
    from drnet_captum.reconstruct.subnetwork import SubNetwork


class DRNet(LayerReading):
    r"""DRNet: the answer reconstructed from the feature maps of several layers, at the input's size.

    .. math:: R(x) = \sum_i \lambda_i \sum_k \alpha_{i,k} F_{i,k}(x), \qquad \sum_i \lambda_i = 1

    F_i is the output of cut layer i (every path from input to output passes through it, so it leaves nothing out),
    brought to the input's size by an interpolation that preserves its sum. α is, by ``weights``:

    - "gradient": the spatial mean of ∂y/∂F, as in Grad-CAM; λ all on the last layer *is* Grad-CAM;
    - "local": ∂y/∂F itself, position by position;
    - "integrated": its mean along the straight line from F(baseline) to F(x). F then stands for F(x) − F(baseline), and
      the map is complete: Σ_pixels R(x) = y(x) − y(baseline), up to the quadrature. (In token models, up to what the
      class token of a layer holds as well, which has no place in the image.)

    Args:
        forward_func: the model, or any function of tensors.
        layers: modules or dotted names. None: the last cut layer at each resolution, found automatically.
        device_ids: accepted as in Captum. Data-parallel models are explained on their first device, whatever it says.
        memory_format, precision: as for :func:`explain`.

    Returns (of ``attribute``): (N, 1, H, W), signed, in units of y.

    Raises:
        ValueError: unknown layers, λ that do not sum to 1, a target outside the output, NaN inputs.
        LayerDiscoveryError: ``layers=None`` and no layer qualifies.

    Source: the layer equation R(x) = Σ αF of deep reconstruction; Hu et al. 2019, arXiv 1911.08691, for channels as
    units; Sundararajan et al. 2017, arXiv 1703.01365, for the path.

    Example:
        >>> import torch, timm
        >>> model = timm.create_model("resnet18", num_classes=5).eval()
        >>> DRNet(model).attribute(torch.rand(2, 3, 96, 96), target=3).shape
        torch.Size([2, 1, 96, 96])
    """

    _name = "DRNet"

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layers: Sequence[Layer] | None = None,
        device_ids: list[int] | None = None,
        **running: Unpack[RunOptions],
    ) -> None:
        super().__init__(forward_func, **running)
        if isinstance(layers, (str, nn.Module)):
            raise TypeError(f"expected layers to be a list of modules or names, got one: pass layers=[{layers!r}]")
        self.layers = None if layers is None else [find_module(eager(forward_func), layer) for layer in layers]
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise ValueError(f"expected at least one layer, and no module twice, got {list(layers or ())!r}")
        self.device_ids = device_ids

    @log_usage
    def attribute(
        self,
        inputs: Any,
        target: Target = None,
        baselines: Baselines = None,
        additional_forward_args: Any = None,
        weights: Weights = "gradient",
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        layer_weights: Sequence[float] | None = None,
        top_channels: int | None = None,
        return_convergence_delta: bool = False,
        *,
        score: Score | None = None,
    ) -> Any:
        """Attribute the target's score to the pixels.

        Args:
            inputs: as in Captum, a tensor or a tuple of them, examples first. The map is about the first.
            target: as in Captum.
            baselines: for integrated weights: what stands for "nothing": a number, a tensor, or a tuple. None: zero.
            additional_forward_args: as in Captum.
            weights: how α is found: "gradient", "local" or "integrated".
            n_steps: steps of the quadrature of integrated weights; each runs what lies above a layer.
            method: that quadrature, as in Captum.
            internal_batch_size: rows of a run of what lies above a layer. None: 16.
            layer_weights: λ, one for each layer, in their order, of sum 1. None: see :func:`default_shares`.
            top_channels: keep so many channels of each layer, those of most evidence for each example.
            return_convergence_delta: for integrated weights: return Σ R(x) − (y(x) − y(baseline)), (N,), too.
            score: y is the target's "logit", or its "log_prob", which sets the class against the others. None: the
                log-probability where the output is one score for each of several classes.

        Returns:
            (N, 1, H, W); with ``return_convergence_delta`` (map, delta).
        """
        if return_convergence_delta and weights != "integrated":
            raise ValueError(f"only weights='integrated' are complete and have a delta, got weights={weights!r}")
        parts = self.attribute_layers(
            inputs,
            target,
            baselines,
            additional_forward_args,
            weights,
            n_steps,
            method,
            internal_batch_size,
            layer_weights,
            top_channels,
            score=score,
        )
        values = as_tuple(inputs)
        result = reconstruction(parts, values[0].shape[2:])
        if not return_convergence_delta:
            return result
        y, y_baseline = (
            self._answers(x, target, additional_forward_args, score) for x in (values, baseline_of(values, baselines))
        )
        return result, result.flatten(1).sum(1) - (y - y_baseline)

    def attribute_layers(
        self,
        inputs: Any,
        target: Target = None,
        baselines: Baselines = None,
        additional_forward_args: Any = None,
        weights: Weights = "gradient",
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        layer_weights: Sequence[float] | None = None,
        top_channels: int | None = None,
        *,
        score: Score | None = None,
    ) -> list[LayerPart]:
        """What ``attribute`` is made of: of every layer F, α, λ and the map R_i at the layer's size.

        Args: as of :meth:`attribute`.

        Example:
            >>> import torch, timm
            >>> model = timm.create_model("test_resnet", num_classes=5).eval()
            >>> for part in DRNet(model).attribute_layers(torch.rand(1, 3, 96, 96), target=3):
            ...     print(part.name, tuple(part.activation.shape), round(part.share, 3))
            act1 (1, 32, 48, 48) 0.104
            layer1 (1, 32, 24, 24) 0.138
            layer2 (1, 48, 12, 12) 0.184
            layer3 (1, 192, 6, 6) 0.246
            layer4 (1, 96, 3, 3) 0.328
        """
        if top_channels is not None and top_channels < 1:
            raise ValueError(f"expected top_channels to be at least 1, got {top_channels}")
        if weights not in get_args(Weights):
            raise ValueError(f"expected weights to be one of {', '.join(get_args(Weights))}, got {weights!r}")
        values, extra = as_tuple(inputs), additional_args(additional_forward_args)
        layers = self.layers_for(values, extra)
        shares = shares_of(layers, layer_weights)  # checked before anything is run
        if weights == "integrated":
            step = (n_steps, method, internal_batch_size)
            pairs = self.integrated(values, baseline_of(values, baselines), extra, target, layers, score, *step)
        elif baselines is not None:
            raise ValueError(f"baselines are for weights='integrated', got weights={weights!r}")
        else:
            (pairs,) = self.differentiated(values, extra, [target], layers, score, weights)
        parts = parts_of(layers, pairs, shares)
        return parts if top_channels is None else [part.strongest(top_channels) for part in parts]

    def attribute_classes(
        self, inputs: Any, targets: Sequence[Target], additional_forward_args: Any = None
    ) -> tuple[Tensor, ...]:
        """Maps of K targets from one forward pass, ((K, N, 1, H, W),), with the default weights."""
        values, extra = as_tuple(inputs), additional_args(additional_forward_args)
        layers = self.layers_for(values, extra)
        rows = self.differentiated(values, extra, targets, layers, None, "gradient")
        shares = shares_of(layers)
        maps = [reconstruction(parts_of(layers, pairs, shares), values[0].shape[2:]) for pairs in rows]
        return (torch.stack(maps),)

    def dissect(self, data: Iterable[Any] | str | Path | None = None, **options: Any) -> Dissection:
        """What every unit of the model detects, whom it serves, and where it fires most.

        Args:
            data: a ``DataLoader`` of (images, labels), a folder of photos, or None: rendered stimuli only.
            options: of :func:`drnet_captum.dissect.run.dissect`.
        """
        from drnet_captum.dissect.run import dissect

        return dissect(self.module(), data, **options)

    def project(
        self, dissection: Dissection, units: Sequence[tuple[str, int]], card: ModelCard | None = None
    ) -> dict[tuple[str, int], Any]:
        """What excited units in their strongest image, led back to the pixels by DeconvNet: unit → (h, w, 3) uint8.

        Args:
            dissection: of this model, with exemplars.
            units: (layer, channel) pairs. Those that never fired have no projection.
            card: how the model sees a photo. None: the model's own.
        """
        from drnet_captum.data.card import model_card
        from drnet_captum.dissect.projections import project

        model = self.module()
        return project(model, dissection, units, card if card is not None else model_card(model))

    @overload
    def reconstruct(
        self, dissection: Dissection, n_modules: int | None = None, *, classes: None = None, **options: Any
    ) -> Reconstruction: ...
    @overload
    def reconstruct(self, dissection: Dissection, *, classes: Sequence[int], **options: Any) -> SubNetwork: ...

    def reconstruct(
        self,
        dissection: Dissection,
        n_modules: int | None = None,
        *,
        classes: Sequence[int] | None = None,
        **options: Any,
    ) -> Reconstruction | SubNetwork:
        """The network put together again, of the channels that were dissected.

        Without ``classes``: the channels of this DRNet's layers, in named modules whose parts add up to R(x). With
        ``classes``: the channels that those classes need, as a sub-network to be masked or sliced.

        Args:
            dissection: of this model; for modules, with this DRNet's layers among its own.
            n_modules: how many modules. None: as many as the units fall into.
            classes: whose sub-network is wanted.
            options: of :func:`drnet_captum.reconstruct.reconstruction.reconstruct`, or, with ``classes``, of
                :func:`drnet_captum.reconstruct.subnetwork.subnetwork`: ``budget``, ``budget_of``, ``method``.
        """
        from drnet_captum.dissect.fingerprint import fingerprint
        from drnet_captum.reconstruct.reconstruction import reconstruct
        from drnet_captum.reconstruct.subnetwork import subnetwork

        if classes is not None:
            if n_modules is not None:
                raise ValueError("expected n_modules or classes, got both: modules are of the whole network")
            return subnetwork(self.module(), dissection, classes, **options)
        dissection.check(fingerprint(self.module()))
        return reconstruct(self, dissection, n_modules, **options)

    def _answers(self, values: tuple[Tensor, ...], target: Target, extra: Any, score: Score | None) -> Tensor:
        with self._recorded(values, extra, [], False) as (_, output):
            return scores(output, target, score_for(output, score)).detach()


def shares_of(layers: Sequence[tuple[str, nn.Module]], given: Sequence[float] | None = None) -> list[float]:
    """λ of the layers: those that were given, checked, or the default ones."""
    return default_shares(len(layers)) if given is None else checked_shares(given, [name for name, _ in layers])


def parts_of(
    layers: Sequence[tuple[str, nn.Module]], pairs: Sequence[Pair], shares: Sequence[float]
) -> list[LayerPart]:
    """(F, α) of the layers, with their names and λ."""
    return [LayerPart(name, f, a, share) for (name, _), (f, a), share in zip(layers, pairs, shares, strict=True)]
