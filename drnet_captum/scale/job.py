"""What is to be done with every shard, as it travels to the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from drnet_captum.scale.decode import Batch
from drnet_captum.scale.shards import Outcome, Shard

Worker = Callable[[Shard, Iterable[Batch]], Outcome]


class Job(Protocol):
    """What travels to the workers."""

    def worker(self) -> Worker:
        """A worker, with a model of its own."""
