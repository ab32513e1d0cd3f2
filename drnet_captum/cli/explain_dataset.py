"""``drnet-captum explain-dataset``: every image of a data set explained, in Parquet, resumable."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import progress, say, user_errors
from .data_options import (
    Boxes,
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
from .options import BatchSize, Checkpoint, Device, ModelName

if TYPE_CHECKING:
    from collections.abc import Callable

    from drnet_captum.scale import Finished


class Maps(StrEnum):
    """What is kept of maps."""

    full = "full"
    none = "none"


def command(
    source: Source,
    model: ModelName = "embedded",
    checkpoint: Checkpoint = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help='A method\'s name (see "drnet-captum methods"), or "all"; may be given several times.',
            show_default="grad_cam",
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(help='The class explained: "predicted", "label", or the name of a column of Parquet.')
    ] = "predicted",
    layer: Annotated[
        str | None, typer.Option(help="Dotted name of the layer for the CAM family.", show_default="found by itself")
    ] = None,
    maps: Annotated[Maps, typer.Option(help="Keep every map, or its measures only.")] = Maps.full,
    boxes: Boxes = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    engine: EngineOption = EngineName.local,
    concurrency: Concurrency = 1,
    num_gpus: Gpus = 0,
    threads: Threads = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    rows_per_shard: RowsPerShard = 256,
    max_errors: MaxErrors = 100,
    out: OutFolder = Path("explanations"),
) -> None:
    """Explain every image of a data set; the results are Parquet files, a row an image.

    A run that was stopped goes on where it was, by the same command. "drnet-captum report" makes a page of the folder.
    """

    def run(step: Callable[[str, int, int], None]) -> Finished:
        from drnet_captum.scale import explain_dataset

        named = "all" if method and "all" in method else tuple(method or ("grad_cam",))
        return explain_dataset(
            source,
            model,
            named,
            target,
            out,
            checkpoint=checkpoint,
            layer=layer,
            maps=maps.value,
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
            boxes=boxes,
        )

    finished = carry_out(run, out)
    say(f"{finished.images - finished.failed} images explained: {finished.out / 'rows'}")
    say(f'a page of them: drnet-captum report "{finished.out}"')


def carry_out(run: Callable[[Callable[[str, int, int], None]], Finished], out: Path) -> Finished:
    """Run with a bar, and say what failed."""
    with user_errors():
        try:
            with progress(remaining=True) as bar:
                tasks: dict[str, Any] = {}

                def step(what: str, done: int, total: int) -> None:
                    if what not in tasks:
                        tasks[what] = bar.add_task(what)
                    bar.update(tasks[what], completed=done, total=total or None)

                finished = run(step)
        except ImportError as error:  # of the extra; it says which
            raise ValueError(str(error)) from error
        except KeyboardInterrupt:
            say(f"what is complete is in {out}; the same command goes on from there", "yellow")
            raise
    if finished.failed:
        say(f"{finished.failed} images failed: {finished.out / 'errors.parquet'} has the reasons", "yellow")
    return finished
