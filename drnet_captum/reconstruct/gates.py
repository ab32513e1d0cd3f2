"""Which channels an answer goes through: one gate a channel and image, learned until only critical ones stay open."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.dissect.labelling import Step
from drnet_captum.dissect.photos import check_batch
from drnet_captum.dissect.run import example_parameter
from drnet_captum.engine.inputs import arranged, as_tuple
from drnet_captum.engine.naming import Layer
from drnet_captum.engine.recording import Recording, canonical
from drnet_captum.engine.rules import Switch
from drnet_captum.engine.state import check_parameters, differentiable, kept, without_autocast
from drnet_captum.engine.targets import check_output
from drnet_captum.engine.unit_tape import only_tensor
from drnet_captum.engine.unwrap import uncompiled
from drnet_captum.engine.watch import Watch
from drnet_captum.layers.units import Site, find_units

Gates = Mapping[str, Tensor]


def learn_gates(
    model: nn.Module,
    images: Tensor | tuple[Tensor, ...],
    layers: Sequence[Layer] | None = None,
    *,
    cost: float = 0.05,
    steps: int = 30,
    rate: float = 0.1,
    momentum: float = 0.9,
) -> dict[str, Tensor]:
    r"""The critical data routing path of each image: gates :math:`\lambda_k \ge 0` on channels, 0 where not needed.

    .. math:: \min_{\lambda \ge 0}\; -\sum_c p_c(x) \log p_c(x; \lambda) + \gamma \sum_k \lambda_k

    p are the model's probabilities, with channel k of every layer multiplied by :math:`\lambda_k`: after a
    convolution's own norm and activation, where it has them. The model itself is frozen. Gates start at 1 and go down
    by gradient descent with momentum, clipped at 0 after each step. Of the gates under which the model's top class is
    its own, those that cost least are returned; gates of 1 all over are among them, so what is returned never changes
    the top class. An image's gates do not depend on the others in the batch.

    We differ from the paper in that the penalty's slope is γ at :math:`\lambda_k = 0` too, and not sign(0) = 0: a
    closed gate opens only if the answer gains more than γ by it. And linear layers have no gates.

    A gate that the answer does not need takes 29 steps to close with the numbers of the paper: with fewer, or a smaller
    cost, hardly any is 0. Open gates are weights: the open channels at their own strength need not give the same
    answer. And a layer may close as a whole, where biases behind it carry the answer.

    Args:
        model: scores (N, classes), in eval mode.
        images: what the model takes.
        layers: modules or dotted names. None: every convolution that has a grid.
        cost: γ, of a gate that is open at 1, in nats.
        steps: of gradient descent; each is a forward and a backward pass.
        rate: the learning rate.
        momentum: of the gradient descent, in [0, 1).

    Returns:
        (N, C) by layer, input to output; in float64 for float64 images, else in float32.

    Raises:
        ValueError: options out of range, a model in train mode, without convolutions, or with other outputs than
            finite scores of at least two classes; layers as for :func:`drnet_captum.layers.units.find_units`.
        RuntimeError: the model takes other steps at every call.

    Source: Wang, Su, Zhang, Hu 2018, Interpret Neural Networks by Identifying Critical Data Routing Paths.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        >>> gates = learn_gates(net.eval(), torch.rand(2, 3, 16, 16), cost=0.2)
        >>> gates["0"].shape, bool((gates["0"] >= 0).all())
        (torch.Size([2, 8]), True)
    """
    _check_options(cost, steps, rate, momentum)
    values = as_tuple(images)
    if any(module.training for module in model.modules()):
        raise ValueError("expected a model in eval mode, got one in train mode: call model.eval() first")
    if layers is not None and (isinstance(layers, (str, nn.Module)) or not layers):
        raise ValueError(f"expected layers to be a list of at least one module or name, got {layers!r}")
    sites = find_units(model, values, layers=layers)
    if not sites:
        raise ValueError("the model has no convolution with a grid of positions: pass layers=")
    check_parameters(model)
    dtype = torch.float64 if values[0].dtype == torch.float64 else torch.float32
    like = values[0].new_ones(len(values[0]), dtype=dtype)
    with differentiable(), kept(model, {v.device for v in values}), uncompiled():
        now = {site.layer.name: like[:, None].repeat(1, site.layer.channels) for site in sites}
        pace = {name: torch.zeros_like(gates) for name, gates in now.items()}
        best, least = dict(now), like * torch.inf
        p, own = like, like
        for step in range(steps + 1):
            leaves = {name: gates.detach().requires_grad_(step < steps) for name, gates in now.items()}
            with torch.set_grad_enabled(step < steps):
                scores = _gated(model, values, sites, leaves)
                log_p = scores.to(dtype).log_softmax(1)
            if step == 0:
                p, own = log_p.detach().exp(), scores.argmax(1)
            distance = -(p * log_p).sum(1)
            costs = distance.detach() + cost * torch.cat([*now.values()], 1).sum(1)
            better = (scores.argmax(1) == own) & (costs < least)
            least = torch.where(better, costs, least)
            best = {name: torch.where(better[:, None], gates, best[name]) for name, gates in now.items()}
            if step < steps:
                with without_autocast(distance.device):
                    slopes = torch.autograd.grad(distance.sum(), list(leaves.values()))
                for name, slope in zip(now, slopes, strict=True):
                    pace[name] = momentum * pace[name] + slope + cost
                    now[name] = (now[name] - rate * pace[name]).clamp(min=0)
    return best


def gate_importance(
    model: nn.Module,
    data: Iterable[Any],
    layers: Sequence[Layer] | None = None,
    *,
    cost: float = 0.05,
    steps: int = 30,
    rate: float = 0.1,
    momentum: float = 0.9,
    progress: Step | None = None,
) -> dict[str, ClassImportance]:
    """The mean gate of each channel over the images of each class: how critical channels are to classes.

    Gates keep what the model answers, right or wrong; it is the label that says to which class they are counted.
    Results of several calls add up, layer by layer.

    Args:
        model: scores (N, classes), in eval mode.
        data: batches of (images, labels); they are brought to the model's device and dtype.
        layers: modules or dotted names. None: every convolution that has a grid.
        cost: as for :func:`learn_gates`.
        steps: as for :func:`learn_gates`.
        rate: as for :func:`learn_gates`.
        momentum: as for :func:`learn_gates`.
        progress: told what is done, how much of it, and of how much (0: not known).

    Returns:
        By layer, input to output; ``signed`` and ``absolute`` are the same, as gates are not negative.

    Raises:
        TypeError: batches that are no tensors, labels that are no integers.
        ValueError: no batch, no labels, labels of another shape or negative, and as :func:`learn_gates`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        >>> found = gate_importance(net.eval(), [(torch.rand(2, 3, 16, 16), torch.tensor([0, 3]))], steps=2)
        >>> found["0"].signed.shape
        torch.Size([2, 8])
    """
    found: dict[str, ClassImportance] = {}
    like = example_parameter(model)
    done = 0
    for batch in data:
        images, labels = check_batch(batch)
        if labels is None:
            raise ValueError("expected batches of (images, labels), got no labels: gates are counted to classes")
        ClassImportance(1).update(torch.zeros(len(images), 1), labels)  # or the error comes after all the steps
        images = images.to(like) if images.is_floating_point() else images.to(like.device)
        gates = learn_gates(model, images, layers, cost=cost, steps=steps, rate=rate, momentum=momentum)
        for name, values in gates.items():
            found.setdefault(name, ClassImportance(values.shape[1])).update(values, labels)
        done += len(images)
        if progress is not None:
            progress("learning gates", done, 0)
    if not done:
        raise ValueError("expected at least one batch of images, got none: is the loader empty, or used up?")
    return found


def _check_options(cost: float, steps: int, rate: float, momentum: float) -> None:
    if not cost >= 0 or not isfinite(cost):
        raise ValueError(f"expected a cost of at least 0, got {cost}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"expected steps to be an integer of at least 1, got {steps!r}")
    if not rate > 0 or not isfinite(rate):
        raise ValueError(f"expected a rate above 0, got {rate}")
    if not 0 <= momentum < 1:
        raise ValueError(f"expected a momentum from 0 to below 1, got {momentum}")


def _gated(model: nn.Module, values: Sequence[Tensor], sites: Sequence[Site], gates: Gates) -> Tensor:
    """The scores (N, classes) of the model with the channels of every site multiplied by their gates."""
    copies = [arranged(v.detach().clone(), "auto") for v in values]
    waiting = {site.layer.name for site in sites}
    recording = Recording(Switch())
    try:
        with _hooked(model, sites, gates, waiting), recording, _Gating(sites, gates, waiting):
            scores = check_output(model(*copies))
    finally:
        recording.forget()
    if waiting:
        raise RuntimeError(
            f"layer {min(waiting)!r} was not met: the model does not run the same steps at every call, so its "
            "channels cannot have gates"
        )
    if scores.dim() != 2 or len(scores) != len(values[0]) or scores.shape[1] < 2:
        raise ValueError(
            f"expected scores of shape ({len(values[0])}, classes) with at least two classes, got "
            f"{tuple(scores.shape)}: gates keep the answer to which class an image belongs"
        )
    if not scores.isfinite().all():
        raise ValueError("expected finite scores, got NaN or infinite ones: run the model in float32 or bfloat16")
    return scores


def _times(tensor: Tensor, gates: Tensor, site: Site) -> Tensor:
    """A site's tensor, times (N, C) gates. Function modes do not see it: they would take gates for parameters."""
    with torch._C.DisableTorchFunction():
        shape = [len(gates)] + [1] * (tensor.dim() - 1)
        shape[1 if site.placement.layout == "NCHW" else -1] = gates.shape[1]
        return tensor * gates.to(tensor.dtype).view(shape)


@contextlib.contextmanager
def _hooked(model: nn.Module, sites: Sequence[Site], gates: Gates, waiting: set[str]) -> Iterator[None]:
    """Gates on what modules put out, where a site is no call."""
    handles = []
    try:
        for site in sites:
            if site.call is None:
                module = model.get_submodule(site.layer.name)
                handles.append(module.register_forward_hook(_hook(site, gates[site.layer.name], waiting)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(site: Site, gates: Tensor, waiting: set[str]) -> Callable[[nn.Module, Any, Any], Any]:
    def gate(module: nn.Module, args: Any, out: Any) -> Any:
        waiting.discard(site.layer.name)
        if isinstance(out, Tensor):
            return _times(out, gates, site)
        chosen = only_tensor(out)
        return type(out)(_times(part, gates, site) if part is chosen else part for part in out)

    return gate


class _Gating(Watch):
    """Multiplies what the calls at sites put out by their gates."""

    def __init__(self, sites: Sequence[Site], gates: Gates, waiting: set[str]) -> None:
        super().__init__(self._meet)
        self._sites = {site.call: site for site in sites if site.call is not None}
        self._gates, self._waiting = gates, waiting
        self._met: Site | None = None

    def _meet(self, number: int, function: str, tensor: Tensor) -> None:
        site = self._sites.get(number)
        if site is not None and (site.function, site.shape) == (function, tuple(tensor.shape[1:])):
            self._met = site

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, in_place = canonical(func)
        kwargs = kwargs or {}
        written = None
        site = self._sites.get(self._count)
        if site is not None and site.function == name and (in_place or kwargs.get("inplace")) and args:
            # An activation may have saved what it wrote for its backward pass: it writes into a copy, and only what
            # is behind the gate goes to where the model, and whoever else holds the tensor, reads it.
            written, args = args[0], (args[0].clone(), *args[1:])
        self._met = None
        result = super().__torch_function__(func, types, args, kwargs)
        is_copy = written is not None and result is args[0]
        if self._met is not None:
            self._waiting.discard(self._met.layer.name)
            result = _times(result, self._gates[self._met.layer.name], self._met)
        return written.copy_(result) if written is not None and is_copy else result
