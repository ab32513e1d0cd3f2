"""What a worker does with a shard: explain its batches, and write its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drnet_captum.dissect.run import example_parameter
from drnet_captum.engine.running import RunOptions
from drnet_captum.explanation import AS_THEY_ARE, explain
from drnet_captum.scale.decode import Batch, Row, inputs
from drnet_captum.scale.measures import measured, packed
from drnet_captum.scale.rows import Explained, Failure, note_failures, write_rows
from drnet_captum.scale.shards import Outcome, Shard
from drnet_captum.scale.worker_model import WorkerModel

PREDICTED, LABEL = "predicted", "label"


@dataclass(frozen=True)
class ExplainJob:
    """All that a worker has to know to explain; it travels to the workers.

    Attributes:
        model: what explains.
        methods: names of the registry.
        target: whose class: "predicted", "label", or the name of a column.
        out: the run's folder.
        layer: where the CAM family looks.
        with_maps: whether maps are kept whole.
        running: how the model is run.
    """

    model: WorkerModel
    methods: tuple[str, ...]
    target: str
    out: Path
    layer: str | None = None
    with_maps: bool = True
    running: RunOptions = field(default_factory=RunOptions)

    def worker(self) -> Explainer:
        """A worker, with a model of its own."""
        return Explainer(self)


class Explainer:
    """Holds the model, and explains shard after shard."""

    def __init__(self, job: ExplainJob) -> None:
        self.job = job
        self.model, self.card = job.model.build()
        self.like = example_parameter(self.model)

    def __call__(self, shard: Shard, batches: Iterable[Batch]) -> Outcome:
        """Write the rows of a shard, and before them what failed: the file of rows says that the shard is complete.

        Raises:
            OSError: they could not be written.
        """
        explained: list[Explained] = []
        failures: list[Failure] = []
        for whole in batches:
            batch = whole if self.job.target == PREDICTED else whole.without(self._unknown)
            failures += [Failure(row.index, row.path, row.problem) for row in batch.rows if row.problem is not None]
            explained += self._explained(batch, failures)
        note_failures(self.job.out, shard, failures)
        write_rows(self.job.out, shard, explained, self.job.methods, self.job.with_maps)
        return Outcome(shard, len(failures))

    def _unknown(self, row: Row) -> str | None:
        found = row.label if self.job.target == LABEL else row.target
        return f"{row.path} has no {self.job.target}, which is to be explained" if found is None else None

    def _explained(self, batch: Batch, failures: list[Failure]) -> list[Explained]:
        """A batch at once; where that fails, its images one by one, so that one of them spoils no other."""
        rows = batch.readable
        if not rows:
            return []
        try:
            return [self.explained(rows, batch.pixels, batch.inside, batch.boxed)]
        except ValueError:
            found = []
            for i, row in enumerate(rows):
                inside = None if batch.inside is None else batch.inside[i : i + 1]
                try:
                    found.append(self.explained([row], batch.pixels[i : i + 1], inside, batch.boxed[i : i + 1]))
                except ValueError as error:
                    failures.append(Failure(row.index, row.path, str(error)))
            return found

    def explained(self, rows: list[Row], pixels: Any, inside: Any, boxed: Any) -> Explained:
        """One pass, all methods.

        Raises:
            ValueError: the model or a method cannot do with these images; the target is not one of its classes.
        """
        job = self.job
        x = inputs(pixels, self.card, self.like)
        targets = (
            None if job.target == PREDICTED else [row.label if job.target == LABEL else row.target for row in rows]
        )
        maps = explain(
            self.model, x, targets, job.methods, layer=job.layer, interpolate_mode=AS_THEY_ARE, **job.running
        )
        probabilities = maps.scores.float().softmax(1)
        predicted = maps.scores.argmax(1)  # as explain has it: probabilities may round to equal ones
        target = predicted if targets is None else torch.tensor(targets, device=x.device)
        masks = None if inside is None else torch.from_numpy(np.require(inside, requirements="W")).to(x.device)

        def of(classes: Tensor) -> Any:
            return probabilities.gather(1, classes[:, None])[:, 0].cpu().numpy()

        return Explained(
            rows=rows,
            predicted=predicted.tolist(),
            probability=of(predicted),
            target=target.tolist(),
            target_probability=of(target),
            box_share=box_shares(masks, boxed, len(rows)),
            measures={name: measured(maps[name], masks) for name in job.methods},
            maps={name: [packed(m) for m in maps[name].cpu()] for name in job.methods} if job.with_maps else {},
        )


def box_shares(masks: Tensor | None, boxed: Any, count: int) -> Any:
    """(n,): the share of the crop that lies in boxes; NaN for images without any."""
    if masks is None:
        return np.full(count, np.nan, np.float32)
    shares = masks.flatten(1).float().mean(1).cpu().numpy()
    return np.where(boxed, shares, np.float32(np.nan))
