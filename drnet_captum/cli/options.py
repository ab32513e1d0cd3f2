"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[str, typer.Option(help='"embedded", "timm:NAME" or "torchvision:NAME".')]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Weights for the model: safetensors, or a torch file.", show_default=False)
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …", show_default="the GPU if there is one")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in a pass.")]
Out = Annotated[Path, typer.Option(help="Folder for the results; made if it is not there.")]
