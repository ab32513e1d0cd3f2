"""``drnet-captum detect``: what a detector found in photos, and what of them it saw it by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .analyze import find_classes
from .console import INTERRUPTED, OUT, complain, progress, say, user_errors
from .options import Checkpoint, Device, Out
from .stopping import stoppable

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from drnet_captum.detect.detector import Detector

_MIN_SCORE, _MAX_DETECTIONS = 0.5, 8


def command(
    images: Annotated[list[Path], typer.Argument(help="Image files and folders of them.", show_default=False)],
    detector: Annotated[
        str,
        typer.Option(
            help="torchvision:NAME, huggingface:NAME_OR_FOLDER, ultralytics:FILE.pt, onnx:FILE.onnx, or "
            "python:FILE.py:NAME for a detector of your own, which runs the file's code."
        ),
    ] = "torchvision:fasterrcnn_resnet50_fpn_v2",
    checkpoint: Checkpoint = None,
    box: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="X1 Y1 X2 Y2",
            help="Explain this box, in the photo's pixels, instead of what is found; with --class.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--class", help="Name or number of the class of --box.", show_default=False)
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Least score of a detection.", show_default=str(_MIN_SCORE))
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="The most detections of a photo.", show_default=str(_MAX_DETECTIONS))
    ] = None,
    n_masks: Annotated[int, typer.Option(min=2, help="Random masks; each is a pass through the detector.")] = 5000,
    grid: Annotated[
        tuple[int, int], typer.Option(metavar="H W", help="Cells of a mask: more of them for small objects.")
    ] = (16, 16),
    keep_probability: Annotated[float, typer.Option(help="Share of a mask's cells that are shown.")] = 0.5,
    stop_at: Annotated[
        float | None,
        typer.Option(
            help="Stop when the maps' standard error is below this share of their range, e.g. 0.05.",
            show_default="all masks",
        ),
    ] = None,
    max_side: Annotated[
        int, typer.Option(min=1, help="Larger photos are brought down to this side, in pixels.")
    ] = 1333,
    seed: Annotated[int, typer.Option(min=0, help="Of the masks.")] = 0,
    device: Device = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Masks in a forward pass.", show_default="found by itself")
    ] = None,
    out: Out = Path("detections"),
) -> None:
    """Explain what a detector finds in photos, by D-RISE: for each photo a picture (PNG) and the maps (.npz).

    Ctrl-C stops and writes the maps of the masks so far; a second one ends at once.

    A file that cannot be read is named and the others go on; the exit code is then 1.
    """
    written: list[Path] = []
    failed: list[Path] = []
    with user_errors(written):
        _check_options(box, name, min_score, max_detections, stop_at)
        import torch

        from drnet_captum.attr.drise import DRISE
        from drnet_captum.data import find_images, load_image

        from .detection import estimates, find_subject, save
        from .outputs import make_folder, output_names

        paths = find_images(images)
        net, place = _load(detector, checkpoint, device)
        drise = DRISE(net)
        drawn = None if box is None or name is None else (box, _class(name, net))
        least, most = _MIN_SCORE if min_score is None else min_score, max_detections or _MAX_DETECTIONS
        settings: dict[str, Any] = {"seed": seed, "grid": grid, "keep_probability": keep_probability}
        make_folder(out)

        def explain(path: Path, output: str, photo: Image.Image) -> None:
            """Say what is found, explain it and write it, also after Ctrl-C; the command then ends."""
            subject = find_subject(
                net, photo, place, max_side=max_side, min_score=least, max_detections=most, drawn=drawn
            )
            for line in subject.lines:
                say(f"{path}: {line}")
            if not subject.names:
                say(f"{path}: no detections of at least {least:g}: try a lower --min-score, or --box with --class")
                return
            found = None
            for found in estimates(
                drise,
                subject,
                batch_size=batch_size,
                stop_at=stop_at,
                n_masks=n_masks,
                grid=grid,
                keep_probability=keep_probability,
                generator=torch.Generator().manual_seed(seed),
            ):
                bar.update(task, completed=found.n_masks)
                if stopped:
                    break
            if found is None:
                return
            early = bool(stopped) and found.n_masks < n_masks
            note = f"stopped after {found.n_masks:,} of {n_masks:,} masks" if early else f"{found.n_masks:,} masks"
            files = save(subject, found, out, output, " · ".join([path.name, net.name, *[note] * early]), settings)
            written.extend(files)
            say(f"{path}: {note} → {files[0]}, {files[1]}")
            if early:
                raise typer.Exit(INTERRUPTED)

        answered = False
        with progress(remaining=True) as bar:
            task = bar.add_task("", total=n_masks)
            with stoppable(lambda: bar.update(task, description="stopping after this step")) as stopped:
                for path, output in zip(paths, output_names(paths, out), strict=True):
                    if stopped:
                        raise KeyboardInterrupt
                    bar.reset(task, description=path.name)
                    try:
                        photo = load_image(path)
                    except (OSError, ValueError) as error:
                        complain(f"failed: {error}")
                        failed.append(path)
                        continue
                    try:
                        explain(path, output, photo)
                    except (ValueError, TypeError) as error:
                        if not answered:  # what fails for the first photo is likely in the settings
                            raise
                        complain(f"failed: {path}: {error}")
                        failed.append(path)
                        continue
                    answered = True
        if failed:
            complain(f"{len(failed)} of {len(paths)} images failed: {', '.join(map(str, failed))}")
            raise typer.Exit(1)


def _check_options(
    box: tuple[float, float, float, float] | None,
    name: str | None,
    min_score: float | None,
    max_detections: int | None,
    stop_at: float | None,
) -> None:
    if (box is None) != (name is None):
        given, missing = ("--class", "--box") if box is None else ("--box", "--class")
        raise ValueError(
            f"--box and --class go together, to explain a box drawn by hand: got {given} without {missing}"
        )
    if box is not None and (min_score is not None or max_detections is not None):
        raise ValueError(
            "--min-score and --max-detections are about what the detector finds: leave them out with --box"
        )
    if stop_at is not None and not stop_at > 0:
        raise ValueError(f"expected --stop-at above 0, got {stop_at:g}")


def _load(name: str, checkpoint: Path | None, device: str | None) -> tuple[Detector, torch.device]:
    """The detector, and the device that it is on."""
    from torch import nn

    from drnet_captum.detect.load import load_detector

    from .device import find_device

    place = find_device(device)
    with OUT.status(f"loading {name}"):
        try:
            found = load_detector(name, checkpoint=checkpoint)
        except ImportError as error:
            raise ValueError(str(error)) from error
    if isinstance(found.model, nn.Module):
        found.model.to(place)
    elif device is None:  # a function, or another runtime, which need not take images of the GPU
        place = find_device("cpu")
    return found, place


def _class(name: str, detector: Detector) -> int:
    found = find_classes([name], detector)
    if len(found) != 1:
        raise ValueError(f"expected one class for --box, got {name!r}")
    return found[0]
