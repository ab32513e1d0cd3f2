"""Correcting a sliced network without training: its batch norms' statistics, or a scale and a shift a channel."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from drnet_captum.engine.state import attributes_kept, kept
from drnet_captum.engine.unwrap import uncompiled
from drnet_captum.reconstruct.groups import KeepSet, is_layer, out_channels
from drnet_captum.reconstruct.masks import checked_keep

#: How far the folded network's answer may be from the corrected run's, as a share of the largest: rounding.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_CONSTANT = 16  # units in the last place: what differs by less is rounding


def recalibrate(small: nn.Module, images: Tensor | Iterable[Tensor]) -> nn.Module:
    """A copy of a network whose batch norms have the statistics of these images.

    A batch norm still holds the mean and variance that its input had in the whole network. Here each one takes those
    over images and positions (the variance unbiased, as PyTorch keeps it) and norms with them at once, so that later
    norms see what it puts out from now on. With one tensor of images that is exact: run on them again, every norm
    finds the statistics that it has. Several batches each go through with their own, as in training, and a norm ends
    with the means over batches, weighted by size. Nothing else changes. Labels are not needed.

    Norms that do not run, or that keep no running statistics, stay as they are, and so do frozen ones that are no
    :class:`torch.nn.BatchNorm2d` or the like.

    Args:
        small: any network with batch norms; :func:`sliced` makes one.
        images: (N, ...), a few hundred, or batches of them; where they lie, the network lies too.

    Returns:
        The copy, in eval mode.

    Raises:
        TypeError: images that are no tensors.
        ValueError: a network without batch norms, no images, fewer than two values a channel, values not finite.

    Li et al. 2020 (EagleEye, arXiv 2007.02491) judge pruned networks after such a step, "adaptive batch normalization".

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
        >>> nn.init.ones_(net[0].weight), nn.init.zeros_(net[0].bias)
        (...)
        >>> right = recalibrate(net, torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
        >>> right[1].running_mean, right[1].running_var
        (tensor([3.]), tensor([4.6667]))
    """
    twin = _copied(small)
    norms: dict[str, Any] = {
        name: module
        for name, module in twin.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    }
    if not norms:
        raise ValueError(
            f"expected a network with batch norms that keep running statistics, got {type(small).__name__}, which has "
            "none: match(small, full, keep, images) corrects networks of any kind"
        )
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def enter(name: str, norm: Any, x: Tensor) -> None:
        # Statistics in the precision in which the norm keeps them, whatever that of its input.
        values = x.to(norm.running_mean.dtype).movedim(1, 0).flatten(1)  # (C, n)
        count = values.shape[1]
        if count < 2:
            raise ValueError(f"expected two or more values a channel at {name!r}, got {count}: give more images")
        var, mean = torch.var_mean(values, 1)
        if not (mean.isfinite() & var.isfinite()).all():
            raise ValueError(f"expected finite values, got others at {name!r}: look for NaN and overflow in the images")
        norm.running_mean, norm.running_var = mean, var
        n, means, variances = sums.get(name, (0, 0.0, 0.0))
        sums[name] = (n + count, means + count * mean.double(), variances + count * var.double())

    hooks = [
        norm.register_forward_pre_hook(
            # A norm may be called as norm(input=x).
            lambda norm, args, kwargs, name=name: enter(name, norm, (*args, *kwargs.values())[0]),
            with_kwargs=True,
        )
        for name, norm in norms.items()
    ]
    batches = 0
    with _removed(hooks):
        for batch in [images] if isinstance(images, Tensor) else images:
            _run(twin, batch)
            batches += 1
    if not batches:
        raise ValueError("expected images, got no batch of them")
    with torch.inference_mode(False):  # buffers made in inference mode cannot take part in gradients
        for name, (n, *totals) in sums.items():
            norm = norms[name]
            norm.running_mean, norm.running_var = ((t / n).to(norm.running_mean.dtype) for t in totals)
    return twin


def match(small: nn.Module, full: nn.Module, keep: KeepSet, images: Tensor) -> nn.Module:
    r"""A copy of a sliced network whose channels are as near to the full network's as a scale and a shift bring them.

    For every channel c of every convolution and hidden linear layer, from the input on, before any norm, over images
    and positions:

    .. math:: a_c, b_c = \arg\min_{a, b} \sum (z^{full}_c - a z^{small}_c - b)^2

    and then :math:`a_c z^{small}_c + b_c` is what the layer puts out: a goes into its weights, b and a into its bias.
    Layers further on are matched on what the corrected ones give them. A channel that is constant here only gets a
    shift. A layer without bias gets one, so that its ``state_dict`` has one entry more.

    The last layer that runs, the classifier, is left as it is, whether or not it was cut to some classes. Weights that
    layers share are no longer shared. Layers that are not called as modules (the projections inside
    :class:`torch.nn.MultiheadAttention`) are left too. Batch norms keep the full network's statistics, which
    fit matched channels. So it is this or :func:`recalibrate`: after this, it gives what it gives without (where a is
    positive), and before this, it takes away what the channels are matched to.

    Memory: all layers' outputs of the full network for all images, at the channels that stay.

    Args:
        small: ``sliced(full, keep, ...)``, or a network with the same layers and channels.
        full: the network that it was cut from, in eval mode; nothing of it changes.
        keep: the keep-set that it was cut by; layers that are not in it are whole.
        images: (N, ...), a few hundred, without labels.

    Returns:
        The copy, in eval mode.

    Raises:
        TypeError: images that are no tensor, a keep-set that is no mapping.
        ValueError: a full network in train mode; a small one that was not cut from it by this keep-set; layers that
            run twice in one pass, or whose weights are computed (parametrisations, standardised weights); a network
            without layers before the classifier; no images; values that are not finite.

    Example:
        >>> full = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 1))
        >>> small = copy.deepcopy(full.eval())
        >>> small[0].weight.data /= 2
        >>> images = torch.tensor([[1.0, 2.0], [3.0, 0.0], [1.0, 1.0]]).view(3, 2, 1, 1)
        >>> torch.allclose(match(small, full, {}, images)(images), full(images), atol=1e-6)
        True
    """
    stay = checked_keep(full, keep)
    if full.training:
        raise ValueError("expected a full network in eval mode, got one in train mode: call full.eval() first")
    targets = _outputs(full, stay, images)
    *hidden, classifier = targets
    if not hidden:
        raise ValueError(f"expected layers before the classifier, got {type(full).__name__} with {classifier!r} alone")
    twin = _copied(small)
    layers = {name: module for name, module in twin.named_modules() if is_layer(module)}
    _check_channels(layers, full, stay, classifier)
    head, scores = layers.pop(classifier), []
    del targets[classifier]

    def correct(name: str, layer: Any, z: Tensor) -> Tensor:
        target = targets.pop(name, None)
        if target is None:
            raise ValueError(f"expected the layers that run in the full network, each once, got {name!r} beside them")
        if target.shape != z.shape:
            raise ValueError(f"expected {name!r} to put out {tuple(target.shape)}, got {tuple(z.shape)}")
        channel = z.dim() + _channel(layer)
        rows, goal = (t.double().movedim(channel, 0).flatten(1) for t in (z, target))
        a, b = scale_and_shift(rows, goal, torch.finfo(z.dtype).eps)
        if not (a.isfinite() & b.isfinite()).all():
            raise ValueError(f"expected finite values, got others at {name!r}: look for NaN and overflow in the images")
        _fold(name, layer, a, b)
        shape = [-1 if i == channel else 1 for i in range(z.dim())]
        return z * a.to(z).view(shape) + b.to(z).view(shape)

    # In place may follow what the classifier puts out.
    with _removed([head.register_forward_hook(lambda layer, args, z: scores.append(z.clone()))]):
        with _removed(_on_outputs(layers, correct)):
            _run(twin, images)
        if targets or not scores:
            name = next(iter(targets), classifier)
            raise ValueError(f"expected the layers that run in the full network, but {name!r} does not run here")
        _run(twin, images)
    _compare(scores[-1], scores[0])
    return twin


def scale_and_shift(x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The least-squares a, b (C,) of y ≈ a x + b by row; a = 1 where x (C, n) is constant, up to ``eps`` of it."""
    mean_x, mean_y = x.mean(1), y.mean(1)
    dx, dy = x - mean_x[:, None], y - mean_y[:, None]
    constant = dx.abs().amax(1) <= _CONSTANT * eps * x.abs().amax(1)
    a = torch.where(constant, 1.0, (dx * dy).sum(1) / (dx * dx).sum(1))
    return a, mean_y - a * mean_x


def _copied(model: nn.Module) -> nn.Module:
    with torch.inference_mode(False):
        return copy.deepcopy(model).eval()


def _run(model: nn.Module, images: Tensor) -> Any:
    """Without gradients, on a copy of the images; random generators stay as they are."""
    if not isinstance(images, Tensor):
        raise TypeError(f"expected images in a tensor, without labels, got {type(images).__name__}")
    if not len(images):
        raise ValueError("expected images, got an empty tensor")
    with torch.inference_mode(False), torch.no_grad(), kept(model, {images.device}):
        with uncompiled():
            return model(images.detach().clone())


@contextlib.contextmanager
def _removed(handles: Iterable[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_outputs(layers: dict[str, nn.Module], meet: Callable[[str, Any, Tensor], Tensor | None]) -> list[Any]:
    return [
        layer.register_forward_hook(lambda layer, args, out, name=name: meet(name, layer, out))
        for name, layer in layers.items()
    ]


def _outputs(full: nn.Module, stay: KeepSet, images: Tensor) -> dict[str, Tensor]:
    """What the layers put out at the channels that stay, in the order in which they run."""
    found: dict[str, Tensor] = {}

    def meet(name: str, layer: Any, z: Tensor) -> None:
        if name in found:
            raise ValueError(
                f"expected layers that run once in a pass, got {name!r}, which runs again: one scale and "
                "shift cannot fit both"
            )
        # A copy in any case: an activation in place may follow.
        channels = torch.tensor(stay.get(name, range(out_channels(layer))), device=z.device)
        found[name] = z.index_select(_channel(layer), channels)

    layers = {name: module for name, module in full.named_modules() if is_layer(module)}
    with attributes_kept(full), _removed(_on_outputs(layers, meet)):
        _run(full, images)
    if not found:
        raise ValueError(f"expected a network with convolutions or linear layers, got {type(full).__name__}")
    return found


def _check_channels(layers: dict[str, nn.Module], full: nn.Module, stay: KeepSet, classifier: str) -> None:
    of_full = {name: module for name, module in full.named_modules() if is_layer(module)}
    if layers.keys() != of_full.keys():
        raise ValueError(
            f"expected the layers of the full network, got {min(layers.keys() ^ of_full.keys())!r} in one "
            "of the two only"
        )
    for name, layer in layers.items():
        count = len(stay.get(name, range(out_channels(of_full[name]))))
        if out_channels(layer) != count and name != classifier:
            raise ValueError(
                f"expected {count} channels of {name!r}, by the keep-set, got {out_channels(layer)}: give the "
                "keep-set that the small network was sliced by"
            )


def _channel(layer: Any) -> int:
    """The dimension of the channels in what a layer puts out, from the end."""
    return int(1 - layer.weight.dim())


def _fold(name: str, layer: Any, a: Tensor, b: Tensor) -> None:
    """Weights and bias with which the layer puts out a z + b."""
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if weight is None or (bias is None and layer.bias is not None):
        raise ValueError(
            f"expected weights that are parameters, got computed ones at {name!r}: remove the parametrisation first"
        )
    if bias is not None:
        b = b + a * bias.double()
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # (in, out / groups, ...)
        scaled = weight.double().unflatten(0, (layer.groups, -1)) * a.view(
            layer.groups, 1, -1, *[1] * (weight.dim() - 2)
        )
        scaled = scaled.flatten(0, 1)
    else:
        scaled = weight.double() * a.view(-1, *[1] * (weight.dim() - 1))
    # New parameters: others may share the old ones.
    needed = weight.requires_grad
    layer.weight = nn.Parameter(scaled.to(weight.dtype), needed)
    layer.bias = nn.Parameter(b.to(weight.dtype), needed if bias is None else bias.requires_grad)


def _compare(answer: Tensor, expected: Tensor) -> None:
    apart = float((answer - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not apart <= _TOLERANCE.get(answer.dtype, 0.05):
        raise ValueError(
            f"the corrections cannot be folded into the weights: the network answers differently (by {apart:.1e} of "
            "the largest), as with layers that standardise their weights"
        )
