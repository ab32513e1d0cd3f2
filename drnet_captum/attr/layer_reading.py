"""The base of what reads several layers of a model: which layers, their activations, and the weights of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from drnet_captum.attr.base import TapeAttribution
from drnet_captum.attr.path_weights import path_weights
from drnet_captum.attr.reading import Needs
from drnet_captum.attr.score import Score, score_for, scores
from drnet_captum.engine.inputs import check_differentiable, is_tokens
from drnet_captum.engine.tail import Tail, has_rows
from drnet_captum.engine.tape import Tape
from drnet_captum.engine.targets import Target
from drnet_captum.engine.unwrap import eager
from drnet_captum.layers.discovery import LayerDiscoveryError, cut_layers_for
from drnet_captum.layers.layout import Placement, placement_of, to_map

Weights = Literal["gradient", "local", "integrated"]
Pair = tuple[Tensor, Tensor]  # (F, α), (N, C, h, w) each, or α of one number a channel


class LayerReading(TapeAttribution):
    """Activations and weights of several layers, brought to (N, C, h, w).

    Attributes:
        layers: the modules; None: the last cut layer at each resolution of the inputs.
    """

    _is_captured = False
    layers: list[nn.Module] | None

    def needs(self) -> Needs:
        return Needs(layer=True, layer_gradient=True)

    def module(self) -> nn.Module:
        """The model, where it can be taken apart."""
        model = eager(self.forward_func)
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected an nn.Module to take apart, got {type(model).__name__}: pass the model itself")
        return model

    def layers_for(self, values: tuple[Tensor, ...], extra: tuple[Any, ...]) -> list[tuple[str, nn.Module]]:
        """The layers by name: as they were given, or found, input to output."""
        if is_tokens(values) or values[0].dim() < 3:
            raise ValueError(f"expected images, signals or volumes, (N, C, …), got {tuple(values[0].shape)}")
        check_differentiable(values)
        if self.layers is not None:
            model = eager(self.forward_func)
            names = {m: n for n, m in model.named_modules()} if isinstance(model, nn.Module) else {}
            return [(names.get(layer, type(layer).__name__), layer) for layer in self.layers]
        try:
            found = cut_layers_for(self.forward_func, values, extra)
        except LayerDiscoveryError as error:
            raise LayerDiscoveryError(str(error).replace("layer=", "layers=")) from error
        last_of_grid = {layer.grid: layer for layer in found}
        return [(layer.name, layer.module) for layer in last_of_grid.values()]

    def differentiated(
        self,
        values: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        targets: Sequence[Target],
        layers: Sequence[tuple[str, nn.Module]],
        score: Score | None,
        weights: Weights,
    ) -> list[list[Pair]]:
        """For every target (F, α) of every layer, from one forward pass and a backward pass each."""
        modules = [module for _, module in layers]
        rows = []
        with self._recorded(values, extra, modules, False) as (tape, output):
            for target in targets:
                y = scores(output, target, score_for(output, score))
                gradients = tape.gradients([y], modules)
                pairs = []
                for name, module in layers:
                    activation = self.single_tensor(tape, name, module)
                    placement = self.placement(name, activation, values)
                    gradient = to_map(gradients[module][0][0], placement)
                    if weights == "gradient":
                        gradient = gradient.mean(tuple(range(2, gradient.dim())), keepdim=True)
                    pairs.append((to_map(activation, placement), gradient))
                rows.append(pairs)
        return rows

    def integrated(
        self,
        values: tuple[Tensor, ...],
        baselines: tuple[Tensor, ...],
        extra: tuple[Any, ...],
        target: Target,
        layers: Sequence[tuple[str, nn.Module]],
        score: Score | None,
        n_steps: int,
        method: str,
        internal_batch_size: int | None,
    ) -> list[Pair]:
        """(F(x) − F(baseline), α) of every layer."""
        modules = [module for _, module in layers]
        activations = []
        for x in (values, baselines):
            with self._recorded(x, extra, modules, False) as (tape, output):
                activations.append([self.single_tensor(tape, name, module) for name, module in layers])
                asked = score_for(output, score)
        count = len(values[0])
        pairs = []
        for (name, module), activation, baseline in zip(layers, *activations, strict=True):

            def tail(part: slice, module: nn.Module = module) -> Tail:
                rest = [a[part] if has_rows(a, count) else a for a in extra]
                return Tail(eager(self.forward_func), module, [v[part] for v in values], rest)

            alpha = path_weights(tail, activation, baseline, target, asked, n_steps, method, internal_batch_size)
            placement = self.placement(name, activation, values)
            pairs.append((to_map(activation - baseline, placement), to_map(alpha, placement)))
        return pairs

    def single_tensor(self, tape: Tape, name: str, module: nn.Module) -> Tensor:
        """What a layer put out, detached."""
        tensors = tape.activation(module)
        if len(tensors) > 1:
            raise ValueError(f"layer {name!r} puts out {len(tensors)} tensors: choose a layer of one")
        return tensors[0]

    def placement(self, name: str, activation: Tensor, values: tuple[Tensor, ...]) -> Placement:
        """Where the channels and the grid of a layer's output are."""
        model = eager(self.forward_func)
        found = placement_of(activation.shape, values[0].shape, model if isinstance(model, nn.Module) else None)
        if found is None:
            raise ValueError(
                f"layer {name!r} puts out {tuple(activation.shape)}, which is no grid of positions of an input of "
                f"{tuple(values[0].shape)}: choose a layer before the pooling"
            )
        return found
