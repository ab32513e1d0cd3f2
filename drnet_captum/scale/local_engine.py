"""The work done in this process: batches are decoded in threads while the one before is explained."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

import torch

from drnet_captum.scale.decode import Batch, Decoder
from drnet_captum.scale.job import Job
from drnet_captum.scale.options import Engine
from drnet_captum.scale.shards import Outcome, Shard


def here(job: Job, decoder: Decoder, shards: Sequence[Shard], batch_size: int, engine: Engine) -> Generator[Outcome]:
    """Shard after shard, in order."""
    with threads(engine.threads):
        worker = job.worker()
        spans = [(shard, list(shard.batches(batch_size))) for shard in shards]
        readers = max(1, (os.cpu_count() or 1) - (engine.threads if engine.device == "cpu" else 1))
        stream = decoded(decoder, [span for _, found in spans for span in found], readers)
        try:
            for shard, found in spans:
                yield worker(shard, islice(stream, len(found)))
        finally:
            stream.close()


def decoded(decoder: Decoder, spans: Sequence[tuple[int, int]], readers: int) -> Generator[Batch]:
    """The batches in order, some of them read ahead."""
    pool = ThreadPoolExecutor(readers, thread_name_prefix="decode")
    waiting: deque[Future[Batch]] = deque()
    try:
        for span in spans:
            waiting.append(pool.submit(decoder, *span))
            if len(waiting) > readers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """That many of torch's threads; then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
