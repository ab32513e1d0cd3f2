"""``drnet-captum analyze``: a network taken apart into what its channels do, and put together as named modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import OUT, complain, progress, say, user_errors
from .options import BatchSize, Checkpoint, Device, ModelName, Out

if TYPE_CHECKING:
    from PIL import Image
    from rich.progress import Progress
    from torch import nn

    from drnet_captum.analysis import Analysis
    from drnet_captum.data.card import ModelCard
    from drnet_captum.detect.detector import Detector
    from drnet_captum.dissect.dissection import Dissection
    from drnet_captum.dissect.photos import PhotoFolder

SHOWN = 4  # photos of a folder of data


def command(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files and folders of them.", show_default="the photos in the package"),
    ] = None,
    model: ModelName = "embedded",
    checkpoint: Checkpoint = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos to dissect on, one subfolder a class, or flat.", show_default="the images explained"
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", "--classes", help="Names or numbers of classes, with commas; the others are left out."),
    ] = None,
    modules: Annotated[
        int | None, typer.Option(min=1, help="How many modules.", show_default="as many as there are")
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Layers whose feature maps are drawn.", show_default="the last one that DRNet reads"),
    ] = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    out: Out = Path("analysis"),
) -> None:
    """Take a network apart: what its units detect, the modules they form, and what each adds to the answers.

    Writes an HTML report, the dissection (a folder that Python loads again), tables and pictures.
    """
    written: list[Path] = []
    with user_errors(written):
        say("Loading trained CNN model…")
        from drnet_captum.data import load_model, model_card

        from .device import find_device
        from .outputs import make_folder

        place = find_device(device)
        net = load_model(model, checkpoint=checkpoint).to(place)
        card = model_card(net)
        chosen = find_classes(classes or [], card)
        make_folder(out)
        analyze_into(out, written, net, card, images or [], data, chosen, modules, batch_size, layer or [])


def analyze_into(
    out: Path,
    written: list[Path],
    net: nn.Module,
    card: ModelCard,
    images: Sequence[Path] = (),
    data: Path | None = None,
    classes: Sequence[int] = (),
    modules: int | None = None,
    batch_size: int = 32,
    drawn: Sequence[str] = (),
) -> None:
    """Analyse a model, say what was found, and write it to a folder that is there."""
    from drnet_captum.analysis import detected_lines
    from drnet_captum.engine.naming import find_module

    from .analysis_files import write_files

    for name in drawn:
        find_module(net, name)
    with progress() as bar:
        analysis = run(net, card, images, data, classes, modules, batch_size, out, written, bar)
    say("Detected features:")
    for line in detected_lines(analysis.dissection):
        say(f"  {line}")
    say("Reconstructing interpretable modules…")
    for line in analysis.reconstruction.describe():
        say(line)
    say("Kept, and what it costs:")
    for line in analysis.kept_lines():
        say(f"  {line}")
    with OUT.status("drawing"):
        write_files(analysis, net, out, written, drawn)
    say(f"report: {out / 'report.html'}")
    say("DRNet analysis complete")


def run(
    net: nn.Module,
    card: ModelCard,
    images: Sequence[Path],
    data: Path | None,
    classes: Sequence[int],
    modules: int | None,
    batch_size: int,
    out: Path,
    written: list[Path],
    bar: Progress,
) -> Analysis:
    """Dissect, label and group; what an interrupted run has of the dissection is saved."""
    import torch

    from drnet_captum.analysis import analyze, layer_line, subjects
    from drnet_captum.dissect.dissector import Dissector
    from drnet_captum.dissect.labelling import label_with_stimuli
    from drnet_captum.dissect.run import batches, class_count, labelled, normalizer

    folder = None if data is None else photo_folder(data, card, class_count(net, card), classes)
    photos = read_photos(images, None if folder is None else folder.paths)
    chosen = subjects(net, card, photos, classes)
    dissector = Dissector(net, card=card)
    task = bar.add_task("dissecting images", total=len(folder or chosen))
    place = chosen[0].inputs.device
    try:
        if folder is None:
            for subject in chosen:
                dissector.update(subject.inputs, torch.tensor([subject.target]))
                bar.advance(task)
        else:
            for inputs, labels in batches(folder.batches(batch_size), net, card, batch_size):
                dissector.update(inputs.to(place), labels)
                bar.advance(task, len(inputs))
        task = bar.add_task("showing stimuli", total=None)
        stimuli = label_with_stimuli(
            net,
            dissector.sites,
            card.input_size[1:],
            normalizer(card, net),
            batch_size=batch_size,
            step=lambda what, done, total: bar.update(task, completed=done, total=total),
        )
    except BaseException:  # Ctrl-C, or a photo that cannot be read: what was summed up is not lost
        if dissector.images_seen:
            save_dissection(dissector.result(), out, written)
        raise
    dissection = labelled(dissector.result(), stimuli.labels)
    save_dissection(dissection, out, written)
    convolutions = [units for units in dissection.layers if units.layer.kind == "convolution"]
    for units in convolutions or dissection.layers:
        say(f"Analyzing layer {layer_line(units)}")
    return analyze(net, card, dissection, stimuli, chosen, modules)


def save_dissection(dissection: Dissection, out: Path, written: list[Path]) -> None:
    dissection.save(out / "dissection")
    written.append(out / "dissection")


def photo_folder(data: Path, card: ModelCard, count: int, classes: Sequence[int]) -> PhotoFolder:
    """The folder of data, without the photos of other classes than those asked for."""
    from drnet_captum.dissect.photos import PhotoFolder

    folder = PhotoFolder(data, card, count)
    if classes and any(label >= 0 for label in folder.labels):
        only_classes(folder, classes)
        if not folder.paths:
            raise ValueError(f"no photos in {data} are of the classes {', '.join(map(card.label, classes))}")
    return folder


def only_classes(folder: PhotoFolder, classes: Sequence[int]) -> None:
    """Leave the photos of other classes out."""
    rows = [i for i, label in enumerate(folder.labels) if label in classes]
    folder.paths, folder.labels = [folder.paths[i] for i in rows], [folder.labels[i] for i in rows]


def read_photos(images: Sequence[Path], others: Sequence[Path] | None) -> dict[str, Image.Image]:
    """The photos to explain by name: those named, else some of the data, else those in the package."""
    from drnet_captum.data import embedded_photo, embedded_photos, find_images, load_image

    if not images and others is None:
        return {name: embedded_photo(name) for name in embedded_photos()}
    paths = find_images(images) if images else list(others or ())[:: max(1, len(others or ()) // SHOWN)][:SHOWN]
    photos = {}
    for path in paths:
        try:
            photos[path.name if path.name not in photos else str(path)] = load_image(path)
        except (OSError, ValueError) as error:
            complain(f"failed: {error}")
    if not photos:
        raise ValueError("no image could be read")
    return photos


def find_classes(named: Sequence[str], card: ModelCard | Detector) -> list[int]:
    """Classes by number or name, in any case.

    Raises:
        ValueError: a name that is no class; the nearest ones are named.
    """
    from difflib import get_close_matches

    names = {name.casefold(): number for number, name in reversed(list(enumerate(card.categories or ())))}
    found: list[int] = []
    for part in (part.strip() for text in named for part in text.split(",")):
        number = names.get(part.casefold(), int(part) if part.isdecimal() else -1)
        if not 0 <= number < (len(card.categories) if card.categories else number + 1):
            near = get_close_matches(part.casefold(), names, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "pass a name or a number of one"
            raise ValueError(f"{card.name} has no class {part!r}: {hint}")
        found.append(number)
    return list(dict.fromkeys(found))
