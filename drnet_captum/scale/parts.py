"""The dissections of shards, added up in their order: groups of them on the way, so that the disk does not fill."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from drnet_captum.dissect.dissection import Dissection
from drnet_captum.scale.dissect_work import PARTS, load_part
from drnet_captum.scale.run_folder import RunFolder, write_whole
from drnet_captum.scale.shards import Shard

GROUPS = "groups"
GROUP = 32  # shards; which ones make a group does not depend on when they were done, so the last bits do not either


class Parts:
    """Parts of a run's dissection on disk.

    Args:
        folder: of the run.
        shards: all of it.
    """

    def __init__(self, folder: RunFolder, shards: Sequence[Shard]) -> None:
        self.folder = folder
        self.groups = {
            Shard(some[0].start, some[-1].stop): some
            for some in (shards[i : i + GROUP] for i in range(0, len(shards), GROUP))
        }

    def done(self) -> set[Shard]:
        """The shards that are dissected, by themselves or in a group."""
        grouped = self.folder.done(GROUPS)
        return self.folder.done(PARTS) | {shard for group in grouped for shard in self.groups.get(group, ())}

    def add_up(self) -> None:
        """Make one of each group whose shards are all there."""
        there, grouped = self.folder.done(PARTS), self.folder.done(GROUPS)
        for group, shards in self.groups.items():
            places = [self.folder.out / PARTS / shard.name for shard in shards]
            if group not in grouped and there.issuperset(shards):
                total = added(places)
                write_whole(self._place(group), Path.mkdir if total is None else total.save)
                grouped.add(group)
            if group in grouped:
                for shard, place in zip(shards, places, strict=True):
                    if shard in there:
                        shutil.rmtree(place)

    def total(self) -> Dissection:
        """The dissection of all images.

        Raises:
            ValueError: not one of them could be read.
        """
        total = added([self._place(group) for group in self.groups])
        if total is None:
            raise ValueError(
                f"none of the images could be dissected: the reasons are in {self.folder.out / 'errors.parquet'}"
            )
        return total

    def _place(self, group: Shard) -> Path:
        return self.folder.out / GROUPS / group.name


def added(places: Sequence[Path]) -> Dissection | None:
    """The sum of what lies in some folders, from the first to the last; None where there are no images."""
    total: Dissection | None = None
    for place in places:
        part = load_part(place)
        if part is not None:
            total = part if total is None else total + part
    return total
