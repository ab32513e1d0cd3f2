"""``drnet-captum explain``: photos from files, explained by a model of the caller's choice."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .console import OUT, complain, progress, say, user_errors
from .options import Checkpoint, Device, ModelName, Out


class Dtype(StrEnum):
    """The precisions that a model can be run in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


def command(
    images: Annotated[list[Path], typer.Argument(help="Image files and folders of them.", show_default=False)],
    model: ModelName = "embedded",
    checkpoint: Checkpoint = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help='A method\'s name (see "drnet-captum methods"), or "all"; may be given several times.',
            show_default="the classical ones",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many of the likeliest classes to explain.")] = 3,
    layer: Annotated[
        str | None, typer.Option(help="Dotted name of the layer for the CAM family.", show_default="found by itself")
    ] = None,
    device: Device = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision of the model and its input.")] = Dtype.float32,
    out: Out = Path("explanations"),
) -> None:
    """Explain a model's answers on photos: for each a panel (PNG) and the raw maps (.npz).

    A file that cannot be read is named and the others go on; the exit code is then 1.
    """
    written: list[Path] = []
    failed: list[Path] = []
    with user_errors(written):
        import torch

        from drnet_captum.data import find_images, load_model, model_card, read_ahead
        from drnet_captum.registry import find_methods

        from .device import find_device
        from .explanation import explain_photo
        from .outputs import make_folder, output_names

        methods = "all" if method and "all" in method else method or None
        count = len(find_methods(methods))
        place = find_device(device)
        paths = find_images(images)
        make_folder(out)
        with OUT.status(f"loading {model}"):
            net = load_model(model, checkpoint=checkpoint).to(place, getattr(torch, dtype))
        card = model_card(net)
        names = output_names(paths, out)
        noted: set[str] = set()
        with progress() as bar:
            task = bar.add_task("", total=len(paths) * count)
            for number, (path, name, read) in enumerate(zip(paths, names, read_ahead(paths), strict=True)):
                bar.update(task, description=path.name, completed=number * count)
                try:
                    photo = read.result()
                except (OSError, ValueError) as error:
                    complain(f"failed: {error}")
                    failed.append(path)
                    continue

                def step(title: str, path: Path = path) -> None:
                    bar.update(task, description=f"{path.name}: {title}", advance=1)

                try:
                    found = explain_photo(net, card, photo, methods=methods, layer=layer, top_k=top_k, progress=step)
                except (ValueError, TypeError) as error:
                    if not written:  # all photos come in one size: what fails for the first one is in the settings
                        raise
                    complain(f"failed: {path}: {error}")
                    failed.append(path)
                    continue
                for note in found.notes:
                    if note not in noted:
                        say(f"note: {note}", "yellow")
                        noted.add(note)
                written += found.save(out, name, f"{path.name} · {card.name}")
                say(f"{path}: {', '.join(found.answers)} → {written[-2]}")
        _summarize(len(paths), failed, out)


def _summarize(images: int, failed: list[Path], out: Path) -> None:
    if not failed:
        say(f"{images} image{'s' if images > 1 else ''} explained: panels (.png) and raw maps (.npz) are in {out}")
        return
    complain(f"{len(failed)} of {images} images failed: {', '.join(map(str, failed))}")
    raise typer.Exit(1)
