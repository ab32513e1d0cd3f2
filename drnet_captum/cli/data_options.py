"""Options of the commands that go through a data set."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        help="A folder of photos (one subfolder a class, or flat), Parquet files, or tar shards of WebDataset; "
        "patterns as *.tar or train-{000..127}.tar.",
        show_default=False,
    ),
]


class EngineName(StrEnum):
    """Where the work is done."""

    local = "local"
    ray = "ray"


EngineOption = Annotated[EngineName, typer.Option(help="In this process, or on a Ray cluster (of its own, if none).")]
Concurrency = Annotated[int, typer.Option(min=1, help="Workers with a model of their own (Ray).")]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of each worker (Ray).")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads of each worker on a CPU.", show_default="its share of the cores"),
]
MaxErrors = Annotated[int, typer.Option(min=0, help="Images that may fail before the run stops.")]
RowsPerShard = Annotated[int, typer.Option(min=1, help="Images of a shard, which is written whole or not at all.")]
ImageColumn = Annotated[
    str | None, typer.Option(help="Of Parquet: bytes or paths of images.", show_default="found by its name")
]
LabelColumn = Annotated[str | None, typer.Option(help="Of Parquet: the classes.", show_default="found by its name")]
Boxes = Annotated[
    str | None,
    typer.Option(
        help="Where the objects are: JSON or CSV by path (xyxy in pixels), or a column of Parquet.", show_default=False
    ),
]
OutFolder = Annotated[Path, typer.Option(help="Folder of the run: a run that died goes on from there.")]
