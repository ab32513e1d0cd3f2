"""The peak memory of a process with all that it starts, such as a Ray cluster."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import psutil

_EVERY = 0.2  # seconds


def peak_of_tree(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """MiB of a new process and its descendants at the highest while the call that ``prepare`` returns runs.

    Proportional set sizes: what several processes share counts once.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_watched, args=(queue, prepare, arguments))
    process.start()
    found = queue.get()
    process.join()
    if isinstance(found, BaseException):
        raise found
    return float(found)


def _watched(queue: Any, prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    try:
        run = prepare(*arguments)
        highest, over = [0.0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(highest, over))
        watcher.start()
        try:
            run()
        finally:
            over.set()
            watcher.join()
        queue.put(highest[0])
    except BaseException as error:
        queue.put(error)


def _watch(highest: list[float], over: threading.Event) -> None:
    while not over.wait(_EVERY):
        highest[0] = max(highest[0], held())


def held() -> float:
    """MiB of this process and its descendants now.

    Example:
        >>> held() > 10
        True
    """
    this = psutil.Process()
    return sum(map(_pss, (this, *this.children(recursive=True)))) / 2**20


def _pss(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except psutil.Error:  # it ended meanwhile
        return 0.0
