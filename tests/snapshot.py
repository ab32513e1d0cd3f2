"""What a call could leave behind it: everything that is written down before, and compared after."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HOOKS = [name for name in vars(nn.Module()) if "hook" in name and isinstance(vars(nn.Module())[name], dict)]
GLOBAL_HOOKS = [name for name in vars(nn.modules.module) if name.startswith("_global") and name.endswith("hooks")]


def of_tensor(t: Tensor, version: bool = True) -> dict[str, Any]:
    return {
        "value": t.detach().clone(),
        "version": t._version if version and not t.is_inference() else None,
        "requires_grad": t.requires_grad,
        "grad": None if not t.is_leaf or t.grad is None else t.grad.clone(),
        "hooks": dict(t._backward_hooks or {}),
    }


def of_everything(model: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """All that a call could leave behind it."""
    kind, keys, *rest = np.random.get_state()
    return {
        "parameters": {name: of_tensor(t) for name, t in model.named_parameters()},
        "buffers": {name: of_tensor(t, version=False) for name, t in model.named_buffers()},  # written back, if need be
        "inputs": [of_tensor(x) for x in inputs],
        "hooks": [{hook: dict(getattr(m, hook)) for hook in HOOKS} for m in model.modules()],
        "global hooks": {hook: dict(getattr(nn.modules.module, hook)) for hook in GLOBAL_HOOKS},
        "training": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "torch generator": torch.get_rng_state(),
        "numpy generator": (kind, torch.from_numpy(keys.astype("int64")), *rest),
        "python generator": random.getstate(),
    }


def same(before: Any, after: Any, where: str = "") -> None:
    if isinstance(before, Tensor):
        assert torch.equal(before, after), where
    elif isinstance(before, dict):
        assert before.keys() == after.keys(), where
        for key in before:
            same(before[key], after[key], f"{where}/{key}")
    elif isinstance(before, (list, tuple)):
        assert len(before) == len(after), where
        for i, (b, a) in enumerate(zip(before, after, strict=True)):
            same(b, a, f"{where}/{i}")
    else:
        assert before == after, where
