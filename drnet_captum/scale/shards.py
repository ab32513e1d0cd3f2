"""How the rows of a data set are cut: into batches, and into shards of whole batches, the same in every run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NAME = re.compile(r"(\d{9,})-(\d{9,})(\.parquet)?")


@dataclass(frozen=True, order=True)
class Shard:
    """Rows from ``start`` up to ``stop``, the unit that is written whole or not at all.

    Example:
        >>> shards_of(70, batch_size=16, rows_per_shard=40)
        [Shard(start=0, stop=48), Shard(start=48, stop=70)]
        >>> list(Shard(48, 70).batches(16)), Shard(48, 70).name
        ([(48, 64), (64, 70)], '000000048-000000070')
        >>> Shard.named("000000048-000000070.parquet")
        Shard(start=48, stop=70)
    """

    start: int
    stop: int

    @property
    def name(self) -> str:
        """As files of it are called; names sort as rows do."""
        return f"{self.start:09d}-{self.stop:09d}"

    @classmethod
    def named(cls, name: str) -> Shard | None:
        """The shard of a file; None for other files."""
        found = _NAME.fullmatch(name)
        return cls(int(found[1]), int(found[2])) if found else None

    def batches(self, batch_size: int) -> Iterator[tuple[int, int]]:
        """Batch i of a data set has the rows i·B up to (i + 1)·B."""
        for start in range(self.start, self.stop, batch_size):
            yield start, min(start + batch_size, self.stop)


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: how many of its rows failed."""

    shard: Shard
    failed: int = 0


def shards_of(rows: int, batch_size: int, rows_per_shard: int) -> list[Shard]:
    """All shards, each of so many whole batches that it has at least ``rows_per_shard`` rows; the last has the rest."""
    step = -(-rows_per_shard // batch_size) * batch_size
    return [Shard(start, min(start + step, rows)) for start in range(0, rows, step)]
