"""``drnet-captum dissect-dataset``: what a network's units do over a whole data set, resumable."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import say
from .data_options import (
    Concurrency,
    EngineName,
    EngineOption,
    Gpus,
    ImageColumn,
    LabelColumn,
    MaxErrors,
    OutFolder,
    RowsPerShard,
    Source,
    Threads,
)
from .explain_dataset import carry_out
from .options import BatchSize, Checkpoint, Device, ModelName

if TYPE_CHECKING:
    from collections.abc import Callable

    from drnet_captum.scale import Finished


class Target(StrEnum):
    """Whose evidence is summed up."""

    label = "label"
    predicted = "predicted"


def command(
    source: Source,
    model: ModelName = "embedded",
    checkpoint: Checkpoint = None,
    target: Annotated[
        Target,
        typer.Option(help="Whose evidence: each image's label, or the class predicted (as where there are no labels)."),
    ] = Target.label,
    layer: Annotated[
        list[str] | None, typer.Option(help="Dotted names of layers.", show_default="all convolutions with a grid")
    ] = None,
    exemplars: Annotated[int, typer.Option(min=1, help="Images kept for each unit.")] = 4,
    stimuli: Annotated[bool, typer.Option(help="Label the units by rendered stimuli, at the end.")] = True,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    engine: EngineOption = EngineName.local,
    concurrency: Concurrency = 1,
    num_gpus: Gpus = 0,
    threads: Threads = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    rows_per_shard: RowsPerShard = 1024,
    max_errors: MaxErrors = 100,
    out: OutFolder = Path("dissection"),
) -> None:
    """Dissect a network over every image of a data set; the result is a folder that Dissection.load reads.

    A run that was stopped goes on where it was, by the same command.
    """

    def run(step: Callable[[str, int, int], None]) -> Finished:
        from drnet_captum.scale import dissect_dataset

        return dissect_dataset(
            source,
            model,
            out,
            checkpoint=checkpoint,
            layers=layer or None,
            target=target.value,
            exemplars=exemplars,
            stimuli=stimuli,
            batch_size=batch_size,
            rows_per_shard=rows_per_shard,
            max_errors=max_errors,
            progress=step,
            engine=engine.value,
            concurrency=concurrency,
            num_gpus=num_gpus,
            threads=threads,
            device=device,
            image_column=image_column,
            label_column=label_column,
        )

    finished = carry_out(run, out)
    say(f"{finished.images - finished.failed} images dissected: {finished.out}")
