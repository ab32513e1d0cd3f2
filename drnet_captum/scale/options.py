"""The keywords that runs over data sets share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

EngineName = Literal["local", "ray"]


class EngineOptions(TypedDict, total=False):
    """Where the work is done; none of it but ``threads`` and ``device`` has a part in the results.

    Attributes:
        engine: "local", in this process; or "ray", on a Ray cluster: the one at hand, or one that is started here.
        concurrency: how many workers hold a model.
        num_gpus: of each worker.
        threads: of each worker, on a CPU. None: its share of the cores; as many as before in a run that goes on.
        device: "cpu", "cuda", … None: the GPU where a worker has one.
    """

    engine: EngineName
    concurrency: int
    num_gpus: float
    threads: int | None
    device: str | None


class SourceOptions(TypedDict, total=False):
    """What is known of the images.

    Attributes:
        image_column: of a Parquet source; None: found by its name.
        label_column: likewise.
        boxes: where the objects are: a JSON or CSV file by path, or a column of a Parquet source.
    """

    image_column: str | None
    label_column: str | None
    boxes: str | None


@dataclass(frozen=True)
class Engine:
    """Those options, checked.

    Raises:
        ValueError: an unknown engine, no worker or thread, several workers in one process.

    Example:
        >>> Engine("ray", concurrency=2, threads=1)
        Engine(name='ray', concurrency=2, num_gpus=0, threads=1, device='cpu')
    """

    name: EngineName = "local"
    concurrency: int = 1
    num_gpus: float = 0
    threads: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.name not in get_args(EngineName):
            raise ValueError(f"expected engine to be one of {', '.join(get_args(EngineName))}, got {self.name!r}")
        if self.concurrency < 1 or self.threads < 1 or self.num_gpus < 0:
            raise ValueError(
                f"expected at least one worker and one thread, got concurrency={self.concurrency}, "
                f"threads={self.threads}, num_gpus={self.num_gpus}"
            )
        if self.name == "local" and (self.concurrency > 1 or self.num_gpus):
            raise ValueError(
                'engine="local" is one worker in this process: pass engine="ray" for several, or for num_gpus'
            )


def engine_of(options: EngineOptions, before: dict[str, Any] | None, device: str) -> Engine:
    """The engine asked for; what was left open is as in the run that it goes on with, if there is one."""
    known = (before or {}).get("arguments", {})
    workers = options.get("concurrency", 1)
    gpus = options.get("num_gpus", 0)
    device = options.get("device") or known.get("device") or device
    share = max(1, (os.cpu_count() or 1) // workers)
    threads = options.get("threads")
    threads = known.get("threads", share) if threads is None else threads
    return Engine(options.get("engine", "local"), workers, gpus, threads, device)


def check_batches(batch_size: int, rows_per_shard: int, max_errors: int) -> None:
    """Raise ValueError where a count is none."""
    if batch_size < 1 or rows_per_shard < 1 or max_errors < 0:
        raise ValueError(
            f"expected batch_size and rows_per_shard of at least 1, and max_errors of at least 0, got "
            f"{batch_size}, {rows_per_shard} and {max_errors}"
        )
