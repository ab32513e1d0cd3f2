"""Peak memory: the most that a call holds at once, above what was held before it, by itself in a process of its own.

On a CPU it is the resident set's high-water mark, which Linux counts and resets; on a GPU what torch has allocated.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20
_IMPORTED = ["torch.utils.benchmark", "drnet_captum"]  # once, for all processes
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(run: Callable[[], Any], device: str = "cpu") -> float:
    """MiB above what the process holds now, at the highest while ``run`` runs.

    Memory that was freed but not given back would hide a CPU's peak, so it is given back first. What the first call of
    a kind leaves behind for good (kernels, caches) counts: call something of the kind before.

    Raises:
        RuntimeError: on a CPU, without Linux's /proc.

    Example:
        >>> 60 < peak(lambda: torch.ones(64, 1 << 18).sum()) < 70
        True
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    if not _RESET.exists():
        raise RuntimeError("expected Linux, whose /proc has the peak memory of a process: leave peak memory out here")
    give_back()
    _RESET.write_text("5")  # proc(5): the high-water mark starts again at what is held
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1024


def peak_alone(prepare: Callable[..., Callable[[], Any]], *arguments: Any, device: str = "cpu") -> float:
    """:func:`peak` of the call that ``prepare(*arguments)`` returns, in a process in which nothing else has run.

    The process is forked from one that has imported the library and done nothing else, which spares seconds each time.
    It computes with as many threads as this one, and leaves out warnings, which would come again from each process.

    Args:
        prepare: a function of a module, which builds all that the call needs, and warms up what it uses.
        arguments: what it is given; they are pickled.
        device: where the memory is looked at.

    Raises:
        RuntimeError: as :func:`peak`. What ``prepare`` or the call raise comes through.
        BrokenProcessPool: the process was killed, as for want of memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_prepared_peak, prepare, arguments, device, torch.get_num_threads()).result()


def _prepared_peak(
    prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], device: str, threads: int
) -> float:
    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return peak(prepare(*arguments), device)


def give_back() -> None:
    """Have the C library return freed memory to the system, where it can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def status(key: str) -> int:
    """A figure of this process, in KiB, as /proc gives it: ``VmRSS`` held now, ``VmHWM`` held at the highest."""
    lines = _STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
