"""What a worker does with a shard: dissect its images, and write what they add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from drnet_captum.attr.score import Score
from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.dissect.run import example_parameter
from drnet_captum.scale.decode import Batch, Row, inputs
from drnet_captum.scale.rows import Failure, note_failures
from drnet_captum.scale.run_folder import write_whole
from drnet_captum.scale.shards import Outcome, Shard
from drnet_captum.scale.worker_model import WorkerModel

PARTS = "parts"


@dataclass(frozen=True)
class DissectJob:
    """All that a worker has to know to dissect; it travels to the workers.

    Attributes:
        model: what is dissected.
        by_label: whether the evidence for each image's label is summed up, and not that for the predicted class.
        out: the run's folder.
        layers, score, exemplars, contrasts: as of :func:`drnet_captum.dissect.run.dissect`.
    """

    model: WorkerModel
    by_label: bool
    out: Path
    layers: tuple[str, ...] | None = None
    score: Score = "logit"
    exemplars: int = 4
    contrasts: tuple[int, ...] = ()

    def worker(self) -> DissectWorker:
        """A worker, with a model of its own."""
        return DissectWorker(self)


class DissectWorker:
    """Holds the model and knows its layers; every shard is summed up by itself."""

    def __init__(self, job: DissectJob) -> None:
        self.job = job
        model, self.card = job.model.build()
        self.like = example_parameter(model)
        self.dissector = Dissector(
            model,
            layers=job.layers,
            score=job.score,
            exemplars=job.exemplars,
            card=self.card,
            contrasts=job.contrasts,
        )

    def __call__(self, shard: Shard, batches: Iterable[Batch]) -> Outcome:
        """Write the dissection of a shard, an empty folder where no image could be read, and before it what failed.

        Raises:
            OSError: they could not be written.
        """
        self.dissector = self.dissector.emptied()
        failures: list[Failure] = []
        for whole in batches:
            batch = whole.without(unlabelled) if self.job.by_label else whole
            failures += [Failure(row.index, row.path, row.problem) for row in batch.rows if row.problem is not None]
            if rows := batch.readable:
                self._update(rows, inputs(batch.pixels, self.card, self.like), failures)
        note_failures(self.job.out, shard, failures)
        seen = self.dissector.images_seen
        write_whole(self.job.out / PARTS / shard.name, self.dissector.result().save if seen else Path.mkdir)
        return Outcome(shard, len(failures))

    def _update(self, rows: list[Row], images: Tensor, failures: list[Failure]) -> None:
        """A batch at once; where that fails, its images one by one, so that one of them spoils no other."""
        try:
            self.dissector.update(images, self._labels(rows))
        except ValueError:
            for row, image in zip(rows, images, strict=True):
                try:
                    self.dissector.update(image[None], self._labels([row]))
                except ValueError as error:
                    failures.append(Failure(row.index, row.path, str(error)))

    def _labels(self, rows: list[Row]) -> Tensor | None:
        return torch.tensor([row.label for row in rows]) if self.job.by_label else None


def unlabelled(row: Row) -> str | None:
    """What is wrong with a row without a label."""
    return f"{row.path} has no label, whose evidence is to be summed up" if row.label is None else None


def load_part(folder: Path) -> Dissection | None:
    """The dissection of a shard; None where it has no images."""
    return Dissection.load(folder) if any(folder.iterdir()) else None
