"""The work done by Ray Data: tasks decode, actors that hold a model explain, and blocks go from one to the other."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from drnet_captum.scale.decode import Batch, Decoder, Row
from drnet_captum.scale.extra import distributed
from drnet_captum.scale.job import Job, Worker
from drnet_captum.scale.options import Engine
from drnet_captum.scale.shards import Outcome, Shard

_LIBRARIES = 768 << 20  # bytes of a process that decodes, before it does
_AHEAD = 4  # blocks for each worker and core
# Threads that wait give their core to others: where processes share cores, spinning made everything 2.5 times as long.
_PATIENT = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}
Block = dict[str, Any]  # column → array of as many rows as the shard has


def on_ray(job: Job, decoder: Decoder, shards: Sequence[Shard], batch_size: int, engine: Engine) -> Generator[Outcome]:
    """Shards as they are done, in any order. A block of Ray's data is a shard, so batches are as in any other run."""
    ray, data = distributed("ray"), distributed("ray.data")
    block = pixel_bytes(decoder, shards)
    with cluster(ray), settings(ray, data.DataContext.get_current(), block, engine):
        reference = ray.put(decoder)  # once, and read by all tasks from where it lies
        work = data.from_items(
            [{"start": shard.start, "stop": shard.stop} for shard in shards], override_num_blocks=len(shards)
        ).map_batches(
            _decode,
            batch_size=None,
            fn_kwargs={"decoder": [reference], "batch_size": batch_size},
            runtime_env=_PATIENT,
            memory=_LIBRARIES + 2 * block,  # said of this step alone, it keeps it from joining the next
        )
        work = work.map_batches(
            _Actor,
            batch_size=None,
            fn_constructor_kwargs={"job": job, "threads": engine.threads, "batch_size": batch_size},
            compute=data.ActorPoolStrategy(size=min(engine.concurrency, len(shards))),
            runtime_env=_PATIENT,
            num_cpus=cpus_of_worker(ray, engine),
            num_gpus=engine.num_gpus or None,
        )
        for row in work.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield Outcome(Shard(int(row["start"]), int(row["stop"])), int(row["failed"]))


@contextmanager
def settings(ray: Any, context: Any, block: int, engine: Engine) -> Iterator[None]:
    """Ray Data's settings for a run: blocks are never cut, and decoding is only some blocks ahead; then as before."""
    limits = context.execution_options.resource_limits
    before = context.target_max_block_size, context.enable_progress_bars
    ahead = _AHEAD * (engine.concurrency + int(ray.cluster_resources().get("CPU", 1))) * block
    context.target_max_block_size, context.enable_progress_bars = None, False
    known = limits.object_store_memory
    context.execution_options.resource_limits = limits.copy(object_store_memory=min(known or ahead, ahead))
    try:
        yield
    finally:
        context.target_max_block_size, context.enable_progress_bars = before
        context.execution_options.resource_limits = limits


def pixel_bytes(decoder: Decoder, shards: Sequence[Shard]) -> int:
    """Of a shard's block, at most."""
    rows = max(shard.stop - shard.start for shard in shards)
    return rows * math.prod(decoder.card.input_size) * (1 if decoder.is_exact else 4)


def cpus_of_worker(ray: Any, engine: Engine) -> float:
    """How much of the cluster a worker counts for: its threads, as long as a core is left to decode.

    Raises:
        ValueError: the cluster has fewer GPUs than are asked for.
    """
    found = ray.cluster_resources()
    if found.get("GPU", 0) < engine.num_gpus * engine.concurrency:
        raise ValueError(
            f"expected a cluster with {engine.num_gpus * engine.concurrency:g} GPUs for {engine.concurrency} workers, "
            f"got {found.get('GPU', 0):g}: pass a smaller num_gpus or concurrency"
        )
    if engine.num_gpus:
        return 1.0
    largest = max(float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    share = (float(found.get("CPU", 1)) - 1) / engine.concurrency
    return min(float(engine.threads), largest, max(0.0, share))


@contextmanager
def cluster(ray: Any) -> Iterator[None]:
    """The Ray cluster at hand; where there is none, one on this machine, for as long as it is needed."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    distributed("ray.data").from_items([0])  # which sets its logger up
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
        ray.shutdown()


class _Actor:
    """A worker in a process of its own. Its errors are rows, as Ray would not bring them back as they were."""

    def __init__(self, job: Job, threads: int, batch_size: int) -> None:
        torch.set_num_threads(threads)
        self.job, self.batch_size = job, batch_size
        self.worker: Worker | None = None

    def __call__(self, block: Block) -> Block:
        shard, failed, error = Shard(int(block["start"][0]), int(block["stop"][0])), 0, b""
        try:
            self.worker = self.worker or self.job.worker()
            failed = self.worker(shard, from_block(block, shard, self.batch_size)).failed
        except (ValueError, TypeError, OSError, RuntimeError) as caught:
            error = pickle.dumps(caught)
        return {"start": [shard.start], "stop": [shard.stop], "failed": [failed], "error": [error]}


def _decode(block: Block, decoder: list[Any], batch_size: int) -> Block:
    torch.set_num_threads(1)  # the tasks are what runs side by side
    shard = Shard(int(block["start"][0]), int(block["stop"][0]))
    read = _decoder(*decoder)  # in a list, or Ray would fetch it for every task
    return to_block(shard, [read(*span) for span in shard.batches(batch_size)])


@lru_cache(maxsize=1)
def _decoder(reference: Any) -> Decoder:
    found: Decoder = distributed("ray").get(reference)
    return found


def to_block(shard: Shard, batches: Sequence[Batch]) -> Block:
    """The rows of a shard as columns; pixels of rows that have none are left at zero."""
    rows = [row for batch in batches for row in batch.rows]
    first = batches[0]
    pixels = np.zeros((len(rows), *first.pixels.shape[1:]), first.pixels.dtype)
    block: Block = {
        "start": np.full(len(rows), shard.start),
        "stop": np.full(len(rows), shard.stop),
        "row": [pickle.dumps(row) for row in rows],
        "pixels": pixels,
        "boxed": np.zeros(len(rows), bool),
    }
    if first.inside is not None:
        block["inside"] = np.zeros((len(rows), *first.inside.shape[1:]), bool)
    offset = 0
    for batch in batches:
        at = offset + np.flatnonzero([row.problem is None for row in batch.rows])
        pixels[at], block["boxed"][at] = batch.pixels, batch.boxed
        if batch.inside is not None:
            block["inside"][at] = batch.inside
        offset += len(batch.rows)
    return block


def from_block(block: Block, shard: Shard, batch_size: int) -> Iterator[Batch]:
    """The batches of a shard."""
    if len(block["row"]) != shard.stop - shard.start:
        raise RuntimeError(f"expected the {shard.stop - shard.start} rows of {shard}, got {len(block['row'])}")
    for start, stop in shard.batches(batch_size):
        part = slice(start - shard.start, stop - shard.start)
        rows: list[Row] = [pickle.loads(row) for row in block["row"][part]]
        readable = np.array([row.problem is None for row in rows])
        inside = block["inside"][part][readable] if "inside" in block else None
        yield Batch(rows, block["pixels"][part][readable], inside, block["boxed"][part][readable])
