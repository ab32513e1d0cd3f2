"""Telling one model from another: by its architecture and its weights."""

from __future__ import annotations

import hashlib
import re

import torch
from torch import nn

_LENGTH = 16  # hexadecimal digits
_COUNTERS = "num_batches_tracked"  # of batch norms: they have no part in an answer


def fingerprint(model: nn.Module) -> str:
    """A key of a model's architecture and weights: equal on every device, after saving and loading.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = fingerprint(model)
        >>> _ = model.weight.data.add_(1)
        >>> fingerprint(model) == before
        False
    """
    # How a function prints has its address in memory.
    digest = hashlib.blake2b(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model)).encode(), usedforsecurity=False)
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and not name.endswith(_COUNTERS):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            values = tensor.detach().cpu().contiguous()
            digest.update(values.view(torch.uint8).numpy().tobytes() if values.dim() else repr(values.item()).encode())
    return digest.hexdigest()[:_LENGTH]
