"""Convolutions that wait for the batch norm behind them, and are done with it in one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LARGE = 1 << 19  # numbers in the output; a norm of fewer costs less than joining it
WORTH = 4  # times as many numbers in the output as in the weight, or scaling the weight costs what it saves
Compute = Callable[[Tensor, Tensor | None], Tensor]  # a convolution, by its weight and bias
GETTERS: tuple[Any, ...] = (Tensor.shape, Tensor.ndim, Tensor.dtype, Tensor.device, Tensor.is_cuda)
#: What may be asked of a tensor without its values.
LOOKS = frozenset({torch._assert, Tensor.dim, Tensor.size, *(getter.__get__ for getter in GETTERS)})


class Waiting(Tensor):
    """A convolution's output that has a shape, and no values yet.

    A batch norm that is the first to read it gets :meth:`joined`: the convolution by s·W, with the shift as its bias.
    Anything else gets the values of the convolution alone, which are worked out then: inside torch by
    ``__torch_dispatch__``, so that no reader has to know of it.

    Args:
        compute: the convolution, by its weight and bias.
        weight: (O, I, …).
        bias: (O,), or None.
        like: a tensor of the output's shape, strides, dtype and device, without memory ("meta").
        device: of the values.

    Example:
        >>> x, weight = torch.ones(1, 1, 3), torch.full((1, 1, 2), 2.0)
        >>> like = torch.empty(1, 1, 2, device="meta")
        >>> out = Waiting(lambda w, b: torch.conv1d(x, w, b), weight, None, like, x.device)
        >>> out + 1
        tensor([[[5., 5.]]])
        >>> one = torch.ones(1)
        >>> Waiting(lambda w, b: torch.conv1d(x, w, b), weight, None, like, x.device).joined(one, one, None, None, 0.0)
        tensor([[[3., 3.]]])
    """

    _compute: Compute
    _weight: Tensor
    _bias: Tensor | None
    _alone: Tensor | None
    _whole: Tensor | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls,
        compute: Compute,
        weight: Tensor,
        bias: Tensor | None,
        like: Tensor,
        device: torch.device,
    ) -> Waiting:
        made: Waiting = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
        )
        made._compute, made._weight, made._bias = compute, weight, bias
        made._alone = made._whole = None
        return made

    @property
    def is_settled(self) -> bool:
        """Whether its values are worked out: it is too late for a norm to join."""
        return self._alone is not None

    def values(self) -> Tensor:
        """The convolution alone, without a graph; worked out once."""
        with torch._C.DisableTorchFunction(), torch.no_grad():  # or the mode under which it waits would see this
            if self._alone is None:
                self._alone = self._compute(self._weight, self._bias)
                self._compute = done  # and let go of the input
            return self._alone.detach()

    def settled(self) -> Tensor:
        """An ordinary tensor of those values, in the same place of the graph; always the same one."""
        if self._whole is None:
            with torch.enable_grad():
                self._whole = _Settled.apply(self)
        return self._whole

    def joined(self, *norm: Any) -> Tensor:
        """What a batch norm by its running statistics makes of it, without a graph."""
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return self._compute(*with_norm(self._weight, self._bias, *norm))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Waiting, Waiting.values, (args, kwargs or {}))
        return func(*args, **kwargs)


def done(weight: Tensor, bias: Tensor | None) -> Tensor:
    raise AssertionError("a convolution is worked out once")


class _Settled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, waiting: Waiting) -> Tensor:
        return waiting.values()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def is_worth_it(shape: torch.Size, weight: Tensor) -> bool:
    """Whether a norm of so many numbers costs more than scaling the weight."""
    return shape.numel() >= max(LARGE, WORTH * weight.numel())


def may_be_worth_it(x: Tensor, weight: Tensor) -> bool:
    """The same, at a glance: were the output of the input's sides."""
    return x.numel() * len(weight) >= LARGE * x.shape[1]


def before_norms(model: Any) -> frozenset[int]:
    """The ids of weights of convolutions behind which a module registers a batch norm, in eval mode.

    Whether the norm reads the convolution, and alone, is seen when the model runs: this says where waiting is worth it.
    Convolutions with hooks are left out: what a hook keeps is an ordinary tensor.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
        >>> before_norms(model) == {id(model[0].weight)}
        True
    """
    found: set[int] = set()
    if not isinstance(model, nn.Module) or hooks_of_all._global_forward_hooks or hooks_of_all._global_forward_pre_hooks:
        return frozenset()
    stack, seen = [model], {model}
    while stack:
        before: nn.Module | None = None
        for module in stack.pop()._modules.values():
            if isinstance(module, _BatchNorm):
                if is_before(before, module):
                    found.add(id(before.weight))
            elif module is not None and module._modules and module not in seen:
                seen.add(module)
                stack.append(module)
            before = module
    return frozenset(found)


def is_before(module: nn.Module | None, norm: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a convolution whose output a norm may well read, unseen by hooks."""
    if not isinstance(module, CONVOLUTIONS) or norm.training:
        return False
    return not (module._forward_hooks or norm._forward_pre_hooks)


def with_norm(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Weight (O, I, …) and bias (O,) of a convolution with a batch norm in it; worked out in float32 or better.

    W·s and (b − mean)·s + β, s = γ / sqrt(var + ε).

    Example:
        >>> one = torch.ones(1)
        >>> with_norm(torch.full((1, 1, 1, 1), 6.0), one, 2 * one, 4 * one, None, one, 0.0)
        (tensor([[[[3.]]]]), tensor([0.5000]))
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    scale = torch.rsqrt(var.to(wide) + eps)
    if gamma is not None:
        scale = gamma.to(wide) * scale
    shift = -mean.to(wide) if bias is None else bias.to(wide) - mean.to(wide)
    shift = shift * scale if beta is None else shift * scale + beta.to(wide)
    scaled = (weight.to(wide) * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    return scaled, shift.to(weight.dtype)
