"""Keeping the memory of one forward pass for the next, on a CPU."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

_LARGEST_ON_HEAP = 31 << 20  # bytes; glibc maps what is larger by itself, each time anew
_PIECE, _PIECES = 30 << 20, 68  # two gigabytes; of each piece only the head is touched: 4 kB, or a huge page


def spare_memory(device: torch.device) -> Tensor | None:
    """Have the C library keep up to 2 GB of freed memory, for as long as what is returned is held.

    A forward pass frees its activations, glibc gives free memory at the end of its heap back to the system, and the
    next pass gets it again page by page, each filled with zeros by the system: for many small passes that takes as
    long as the arithmetic. Here the heap is made longer, and its end is held. Memory that a pass has used then stays in
    the process until the end is let go; it is not more than one pass takes anyway. Other systems and allocators are as
    they were.

    Example:
        >>> held = spare_memory(torch.device("cpu"))
        >>> del held  # when the passes are over
    """
    if device.type != "cpu" or sys.platform != "linux":
        return None
    try:
        mapped = torch.empty(_LARGEST_ON_HEAP, dtype=torch.uint8)
        del mapped  # from now on glibc takes all up to this size from the heap
        pieces = [torch.empty(_PIECE, dtype=torch.uint8) for _ in range(_PIECES)]
    except RuntimeError:  # a limit on address space
        return None
    return pieces[-1]
