"""Getting at the eager model behind wrappers whose forward pass a function mode cannot see."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

ForwardFunc = Callable[..., Any]


def eager(forward_func: ForwardFunc) -> ForwardFunc:
    """The model inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``; it has their parameters.

    Function modes are per thread, and ``DataParallel`` runs its replicas in threads: it is explained on its first
    device.
    """
    while True:
        if isinstance(forward_func, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            forward_func = forward_func.module
        elif isinstance(getattr(forward_func, "_orig_mod", None), nn.Module):
            forward_func = forward_func._orig_mod  # type: ignore[attr-defined]
        else:
            return forward_func


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run what is compiled eagerly. Nothing is, as long as nobody has imported the compiler."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    _eagerly.enter()
    try:
        yield
    finally:
        _eagerly.leave()


class _Eagerly:
    """The compiler's stance is one for all threads: the first tape in sets it, the last one out puts it back."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._stance = contextlib.ExitStack()

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stance.close()


_eagerly = _Eagerly()
