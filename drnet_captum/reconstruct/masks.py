"""The same network with removed channels that are exactly zero: what a sliced one computes, without slicing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from drnet_captum.engine.inputs import as_tuple
from drnet_captum.engine.recording import canonical
from drnet_captum.engine.state import kept
from drnet_captum.engine.unwrap import uncompiled
from drnet_captum.engine.watch import CONVOLUTIONS, NORMS, Watch
from drnet_captum.layers.units import Site, find_units
from drnet_captum.reconstruct.groups import KeepSet, is_layer, out_channels

_MIXING = CONVOLUTIONS | {"linear"}
_ACROSS = NORMS - {"batch_norm", "instance_norm"}  # norms over channels
_READING = _MIXING | NORMS

_OTHER_STEPS = "the model does not run the same steps at every call, so its channels cannot be masked"


class MaskedModel(nn.Module):
    """A model whose removed channels are exactly zero; its weights are shared, not copied.

    Masks act after a convolution's own norm and activation, where it has them, and on what a linear layer puts out.
    What removed channels turn into on their way (a norm of concatenated features has a bias, a sigmoid of 0 is not 0)
    is masked where the next layer reads it. Layer and group norms go over the channels that stay. So the answer is
    that of the network without these channels. Gradients flow, and are zero at removed channels.

    Nothing stays in the model between calls. It can be run in any size that it takes.

    Args:
        model: the model, in eval mode.
        keep: by layer (a convolution or linear), the channels that stay. Other layers stay whole.
        inputs: what the model takes, to follow the channels through it.

    Raises:
        TypeError: the keep-set or the inputs are not as described.
        ValueError: an unknown layer or channel, a layer without any, a model in train mode.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1)).eval()
        >>> masked = MaskedModel(net, {"0": (1, 3)}, torch.zeros(1, 3, 8, 8))
        >>> seen = []
        >>> handle = net[2].register_forward_hook(lambda module, args, out: seen.append(out))
        >>> answer = masked(torch.ones(1, 3, 8, 8))
        >>> seen[0].flatten() != 0
        tensor([False,  True, False,  True])
    """

    def __init__(self, model: nn.Module, keep: KeepSet, inputs: Tensor | tuple[Tensor, ...]) -> None:
        super().__init__()
        values = as_tuple(inputs)
        self.keep = checked_keep(model, keep)
        if model.training:
            raise ValueError("expected a model in eval mode, got one in train mode: call model.eval() first")
        self.model, self.training = model, False
        gone = _removed(model, self.keep)
        self._layers = {name: model.get_submodule(name) for name in gone}
        sites = {name: site for name in gone for site in _site(model, name, values)}
        dead = _dead_inputs(model, self._layers, gone, tuple(v[:1] for v in values)) if gone else {}
        device = values[0].device
        self._reads = {number: ~channels.to(device) for number, channels in dead.items()}
        stay = {name: ~channels.to(device) for name, channels in gone.items()}
        self._sites = {sites[name].call: (sites[name], stay[name]) for name in gone if name in sites}
        self._outputs = {name: stay[name] for name in gone if name not in sites}

    def forward(self, *args: Any) -> Any:
        inside = [""]
        masking = _Masking(inside, self._sites, self._outputs, self._reads)
        with uncompiled(), _followed(self._layers, inside), masking:
            output = self.model(*args)
        if masking.waiting:
            raise RuntimeError(f"layer {min(masking.waiting)!r} was not met: {_OTHER_STEPS}")
        return output


def _site(model: nn.Module, name: str, values: tuple[Tensor, ...]) -> list[Site]:
    """Where a convolution's units are after its own norm and activation, if there is one such place."""
    try:
        sites = find_units(model, values, layers=[name])
    except ValueError:  # it runs twice, has no grid, or the answer does not depend on it
        return []
    return [site for site in sites if site.call is not None]


def checked_keep(model: nn.Module, keep: KeepSet) -> dict[str, tuple[int, ...]]:
    """The keep-set, with sorted channels.

    Raises:
        TypeError: it is no mapping.
        ValueError: an unknown layer or channel, a channel twice, a layer without any.
    """
    if not isinstance(keep, Mapping):
        raise TypeError(f"expected a mapping from layers to the channels that stay, got {type(keep).__name__}")
    layers = {name: module for name, module in model.named_modules() if is_layer(module)}
    found = {}
    for name, given in keep.items():
        if name not in layers:
            raise ValueError(f"expected names of convolutions and linear layers, got {name!r}; there are {[*layers]}")
        count, channels = out_channels(layers[name]), tuple(sorted(int(c) for c in given))
        if not channels:
            raise ValueError(f"expected at least one channel of {name!r} to stay, got none")
        if len(set(channels)) != len(channels) or channels[0] < 0 or channels[-1] >= count:
            raise ValueError(f"expected different channels of {name!r} from 0 to {count - 1}, got {channels}")
        found[name] = channels
    return found


def _removed(model: nn.Module, keep: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """(C,) by layer, true at removed channels; only the layers that have some."""
    found = {}
    for name, channels in keep.items():
        gone = torch.ones(out_channels(model.get_submodule(name)), dtype=torch.bool)
        gone[list(channels)] = False
        if gone.any():
            found[name] = gone
    return found


@contextlib.contextmanager
def _followed(layers: Mapping[str, nn.Module], inside: list[str]) -> Iterator[None]:
    """``inside`` ends with the name of the innermost of these layers that is running."""
    handles = []
    try:
        for name, module in layers.items():
            enter = lambda module, args, name=name: inside.append(name)  # noqa: E731
            leave = lambda module, args, out: _leave(inside)  # noqa: E731
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leave(inside: list[str]) -> None:
    inside.pop()


def _channel(name: str, args: Sequence[Any]) -> int:
    """The dimension of the channels in what a layer or norm reads and puts out."""
    if name == "linear":
        return -1
    return -len(args[1]) if name in ("layer_norm", "rms_norm") else 1


def _gone(stay: Tensor, tensor: Tensor, channel: int) -> Tensor:
    """True at the channels that do not stay, in a shape that fits the tensor's."""
    shape = [1] * tensor.dim()
    shape[channel] = -1
    return ~stay.to(tensor.device).view(shape)


class _Masking(Watch):
    """Masks what is met at sites, what other layers put out, and what layers and norms read, by the number of reads."""

    def __init__(
        self,
        inside: list[str],
        sites: Mapping[int | None, tuple[Site, Tensor]],
        outputs: Mapping[str, Tensor],
        reads: Mapping[int, Tensor],
    ) -> None:
        super().__init__(self._meet)
        self._inside, self._sites, self._outputs, self._reads = inside, sites, outputs, reads
        self._met: tuple[Site, Tensor] | None = None
        self._read = 0
        self.waiting = {site.layer.name for site, _ in sites.values()}

    def _meet(self, number: int, function: str, tensor: Tensor) -> None:
        self._met = self._sites.get(number)
        if self._met is not None and self._met[0].function != function:
            self._met = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, inplace = canonical(func)
        kwargs = kwargs or {}
        given = args
        stay: Tensor | None = None
        if name in _READING:
            stay, self._read = self._reads.get(self._read), self._read + 1
        if stay is not None:
            channel = _channel(name, args)
            if args[0].shape[channel] != len(stay):
                raise RuntimeError(f"{len(stay)} channels were expected, got {args[0].shape[channel]}: {_OTHER_STEPS}")
            if name in _ACROSS:
                args, kwargs = _only(stay, name, args, kwargs)
            elif name in _MIXING:
                args = (args[0].masked_fill(_gone(stay, args[0], channel), 0), *args[1:])
        self._met = None
        result = super().__torch_function__(func, types, args, kwargs)
        if stay is not None and name in _ACROSS:
            where = stay.to(result.device).nonzero().flatten()
            result = result.new_zeros(given[0].shape).index_copy(channel, where, result)
        if self._met is not None:
            site, stay = self._met
            channel = 1 if site.placement.layout == "NCHW" else result.dim() - 1
            self.waiting.discard(site.layer.name)
        elif name in _MIXING:
            stay, channel = self._outputs.get(self._inside[-1]), _channel(name, args)
        if stay is None or (name in _ACROSS and self._met is None):
            return result
        gone = _gone(stay, result, channel)
        if inplace or result is given[0]:
            # Whoever holds the tensor reads the mask too. An activation that saved its output for the backward pass
            # finds zeros there, which is right; what others would send back is stopped where the next layer reads.
            result.data.masked_fill_(gone, 0)
            return result
        return result.masked_fill(gone, 0)


def _only(
    stay: Tensor, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer or group norm, without removed channels."""
    where = stay.to(args[0].device).nonzero().flatten()
    shape = args[1]
    if name == "group_norm":
        counts = stay.view(shape, -1).sum(1)
        if (counts != counts[0]).any():
            raise ValueError(f"expected equally many channels to stay in each group of a norm, got {counts.tolist()}")
    else:
        shape = (len(where), *shape[1:])

    def cut(value: Any) -> Any:
        return value.index_select(0, where) if isinstance(value, Tensor) else value

    x = args[0].index_select(_channel(name, args), where)
    return (x, shape, *(cut(value) for value in args[2:])), {key: cut(value) for key, value in kwargs.items()}


def _dead_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], gone: Mapping[str, Tensor], values: tuple[Tensor, ...]
) -> dict[int, Tensor]:
    """By the number of the layer or norm in the run, which channels that it reads come from removed ones alone.

    NaN goes through everything that does not mix channels. Two runs: a channel is dead if it is NaN all over where
    removed channels are NaN, and nowhere where all others are. A sum with a channel that stays is not dead, and
    neither are constants.
    """
    blank = tuple(torch.full_like(v, torch.nan) if v.dtype.is_floating_point else v for v in values)
    runs: list[list[Tensor]] = []
    for of_removed, given in ((True, values), (False, blank)):
        inside = [""]
        probe = _Probe(inside, gone, of_removed)
        with torch.no_grad(), kept(model, {v.device for v in values}), uncompiled(), _followed(layers, inside), probe:
            model(*given)
        runs.append(probe.marked)
    dead = (whole & ~touched for whole, touched in zip(*runs, strict=True))
    return {number: channels for number, channels in enumerate(dead) if channels.any()}


class _Probe(Watch):
    """Puts NaN in removed channels, or in all others, and notes which channels of what is read are NaN."""

    def __init__(self, inside: list[str], gone: Mapping[str, Tensor], of_removed: bool) -> None:
        super().__init__(lambda number, function, tensor: None)
        self._inside, self._gone, self._of_removed = inside, gone, of_removed
        self.marked: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, _ = canonical(func)
        if name not in _READING:
            return super().__torch_function__(func, types, args, kwargs)
        x, channel = args[0], _channel(name, args)
        nan = x.isnan()
        rows = nan.movedim(channel, 0).flatten(1)
        self.marked.append(rows.all(1) if self._of_removed else rows.any(1))
        if name in NORMS - _ACROSS:
            return super().__torch_function__(func, types, args, kwargs)
        result = super().__torch_function__(func, types, (x.nan_to_num(), *args[1:]), kwargs)
        if name in _ACROSS:
            return result.masked_fill(nan, torch.nan)
        gone = self._gone.get(self._inside[-1], torch.zeros(result.shape[channel], dtype=torch.bool))
        return result.masked_fill(_gone(~gone if self._of_removed else gone, result, channel), torch.nan)
