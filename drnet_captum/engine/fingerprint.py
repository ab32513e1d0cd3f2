"""What a captured graph depends on in a model: its modules, their plain attributes, and the tensors they hold."""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from drnet_captum.engine.state import modules_of

SAMPLES = 8  # numbers of each tensor that are compared, to see what was written by way of .data
PLAIN = {bool, int, float, str, type(None)}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Fingerprint:
    """A model as it is now, to be compared with what it is later. It keeps the tensors, and not the model.

    Seen are modules, parameters and buffers that were replaced, attributes that are numbers, strings or tuples of them,
    and tensors that were written to. Those written to by way of ``.data``, which leaves no trace, are compared in a few
    of their numbers.

    Raises:
        ValueError: a module is in train mode or has hooks, which a replay would not call.

    Example:
        >>> model = torch.nn.Linear(2, 2).eval()
        >>> before = Fingerprint(model)
        >>> before.holds(model)
        True
        >>> _ = model.weight.data.mul_(2.0)
        >>> before.holds(model)
        False
    """

    def __init__(self, model: nn.Module) -> None:
        self._structure = structure(model)
        # Kept, so that no other tensor can come to lie where one of them was.
        self._tensors = [tensor for module in modules_of(model) for tensor in tensors_of(module)]
        kinds: dict[Any, list[Tensor]] = defaultdict(list)
        for tensor in self._tensors:
            if tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta and tensor.numel():
                kinds[tensor.device, tensor.dtype].append(sample(tensor))
        self._samples = list(kinds.values())
        self._values = self._read()

    def _read(self) -> list[Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            return [torch.cat(samples).view(torch.uint8) for samples in self._samples]  # bits, as NaN is not equal NaN

    def holds(self, model: nn.Module) -> bool:
        """Whether the model is what it was."""
        if structure(model) != self._structure:
            return False
        return all(map(torch.equal, self._read(), self._values))


def sample(tensor: Tensor) -> Tensor:
    """A few numbers of a tensor, evenly spread over its memory, as a view of it."""
    tensor = tensor.detach()
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).flatten()[:: max(1, tensor.numel() // SAMPLES)]


def structure(model: nn.Module) -> list[Any]:
    """Everything but the values of tensors, as something that can be compared."""
    found: list[Any] = []
    for module in modules_of(model):
        check(module)
        children = [(name, id(child)) for name, child in module._modules.items()]
        found.append((ref(module), children, [item for item in vars(module).items() if is_plain(item[1])]))
        found += [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype) for t in tensors_of(module)]
    return found


def check(module: nn.Module) -> None:
    kind = type(module).__name__
    if module.training:
        raise ValueError(f"compile=True needs every module in eval mode, got {kind} in train mode: call model.eval()")
    if any(getattr(module, hooks) for hooks in HOOKS):
        raise ValueError(f"compile=True would not call the hooks of {kind} again: take them off, or leave it out")


def is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in PLAIN or (kind is tuple and all(type(v) in PLAIN for v in value))


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes, of the module alone."""
    held = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
    return [value for value in held if isinstance(value, Tensor)]
