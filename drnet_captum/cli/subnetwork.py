"""``drnet-captum subnetwork``: the part of a network that some classes need, as a smaller network in a file."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .analyze import find_classes, only_classes
from .console import OUT, progress, say, user_errors
from .options import BatchSize, Checkpoint, Device, ModelName, Out

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from drnet_captum.data.card import ModelCard
    from drnet_captum.dissect.photos import PhotoFolder
    from drnet_captum.reconstruct.subnetwork import SubNetwork
    from drnet_captum.reconstruct.subnetwork_report import SubNetworkReport

FEW = 10  # classes that are taken where none are named


class BudgetOf(StrEnum):
    """What a budget counts."""

    parameters = "parameters"
    macs = "macs"
    channels = "channels"


class Method(StrEnum):
    """How a channel's importance is found."""

    taylor = "taylor"
    gates = "gates"


def command(
    model: ModelName = "embedded",
    checkpoint: Checkpoint = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photos to dissect on, one subfolder a class, or flat: the model's answers are then labels.",
            show_default="the photos in the package",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", "--classes", help="Names or numbers of classes, with commas.", show_default="those of the data"
        ),
    ] = None,
    budget: Annotated[float, typer.Option(help="The share of the network that may stay, up to 1.")] = 0.65,
    budget_of: Annotated[BudgetOf, typer.Option(help="What is counted.")] = BudgetOf.parameters,
    method: Annotated[
        Method, typer.Option(help="Importances of one backward pass an image, or gates learned on the photos.")
    ] = Method.taylor,
    device: Device = None,
    batch_size: BatchSize = 32,
    out: Out = Path("subnetwork"),
) -> None:
    """Cut a network to the channels that some classes need, and compare it with the whole one.

    Writes the smaller network (exported, and as a module to train on), its channels by layer, and the comparison.
    """
    written: list[Path] = []
    with user_errors(written):
        if not 0 < budget <= 1:
            raise ValueError(f"expected --budget to be above 0 and at most 1, the share that may stay, got {budget:g}")
        say("Loading trained CNN model…")
        from drnet_captum.data import load_model, model_card

        from .device import find_device
        from .outputs import make_folder
        from .subnetwork_files import write_files

        net = load_model(model, checkpoint=checkpoint).to(find_device(device))
        card = model_card(net)
        named = find_classes(classes or [], card)
        if budget_of is not BudgetOf.channels:
            check_traceable(net, card)
        make_folder(out)
        photos = labelled_photos(net, card, data, batch_size)
        chosen = chosen_classes(photos, named, card)
        part = find_part(net, photos, chosen, budget, budget_of, method, batch_size)
        with OUT.status("comparing"):
            report = part.report(photos.batches(batch_size))
        say(report.title)
        OUT.print(comparison(report))
        counted = f"{report.images} photo{'s' * (report.images != 1)}"
        say(f"of the {counted} that it was chosen by; others say more. Other channels are as many in each layer")
        for note in report.notes:
            say(note)
        for note in lost(report):
            say(f"note: {note}", "yellow")
        with OUT.status("exporting"):
            lines = write_files(part, report, card, budget, method, out, written)
        for line in lines:
            say(line)


def check_traceable(net: nn.Module, card: ModelCard) -> None:
    """Raise ValueError where the network cannot be sliced: before its dissection, which takes long."""
    from drnet_captum.layers.discovery import example_inputs
    from drnet_captum.reconstruct.groups import find_groups

    try:
        find_groups(net, example_inputs(net, card.input_size)[0])
    except (ImportError, ValueError) as error:
        raise ValueError(f"{error}; --budget-of channels needs no slices, and finds channels to mask") from error


def labelled_photos(net: nn.Module, card: ModelCard, data: Path | None, batch_size: int) -> PhotoFolder:
    """A folder's photos, or those in the package, with their classes; in a flat folder, the model's own answers."""
    import torch

    from drnet_captum.data import embedded_photos
    from drnet_captum.dissect.photos import PhotoFolder
    from drnet_captum.dissect.run import class_count, example_parameter

    root = next(iter(embedded_photos().values())).parent if data is None else data
    photos = PhotoFolder(root, card, class_count(net, card))
    if all(label < 0 for label in photos.labels):
        like = example_parameter(net)
        with torch.no_grad(), OUT.status("asking the model"):
            answers = [net(images.to(like)).argmax(1) for images, _ in photos.batches(batch_size)]
        photos.labels = torch.cat(answers).tolist()
        for path, label in zip(photos.paths[:FEW], photos.labels, strict=False):
            say(f"{path.name}: {card.label(label)} ({label})")
        if len(photos) > FEW:
            say(f"… and {len(photos) - FEW} more photos")
    return photos


def chosen_classes(photos: PhotoFolder, named: list[int], card: ModelCard) -> list[int]:
    """The classes that were named, else those of the photos; the photos of others are left out.

    Raises:
        ValueError: a class without photos; none named, and photos of many.
    """
    seen = sorted(set(photos.labels))
    if not named and len(seen) > FEW:
        raise ValueError(f"expected --class: there are photos of {len(seen)} classes, name those that are needed")
    shown = ", ".join(map(card.label, seen[:FEW])) + (f" and {len(seen) - FEW} more" if len(seen) > FEW else "")
    if missing := [c for c in named if c not in seen]:
        raise ValueError(f"no photos are of the classes {', '.join(map(card.label, missing))}: there are {shown}")
    only_classes(photos, named or seen)
    return named or seen


def find_part(
    net: nn.Module,
    photos: PhotoFolder,
    classes: list[int],
    budget: float,
    budget_of: BudgetOf,
    method: Method,
    batch_size: int,
) -> SubNetwork:
    """Dissect the network on the photos, and choose the channels."""
    from drnet_captum.dissect.run import dissect
    from drnet_captum.layers.discovery import example_inputs
    from drnet_captum.reconstruct.subnetwork import subnetwork

    with progress() as bar:
        task = bar.add_task("dissecting images", total=len(photos))
        dissection = dissect(
            net,
            photos.batches(batch_size),
            exemplars=1,
            stimuli=False,
            card=photos.card,
            progress=lambda what, done, total: bar.update(task, completed=done),
        )
        if method is Method.gates:
            bar.add_task("learning gates", total=None)
        return subnetwork(
            net,
            dissection,
            classes,
            budget,
            budget_of=budget_of.value,
            method=method.value,
            data=photos.batches(batch_size) if method is Method.gates else None,
            inputs=example_inputs(net, photos.card.input_size)[0],
        )


def comparison(report: SubNetworkReport) -> Table:
    """Networks, one a row: what they cost and how often they are right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    headings = ("parameters", "MACs", "ms", "right among\nthe classes", "right\nover all")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap="\n" not in heading)
    whole = report.variants[0]
    for v in report.variants:
        cells = [_share(v.parameters, whole.parameters), _share(v.macs, whole.macs), _number(v.milliseconds)]
        table.add_row(v.name, *cells, _percent(v.among), _percent(v.over_all))
    return table


def lost(report: SubNetworkReport) -> Iterator[str]:
    """What the whole network answers right more often."""
    whole, part = report.variants[:2]
    shares = {"among the classes": (whole.among, part.among), "over all outputs": (whole.over_all, part.over_all)}
    for where, (before, now) in shares.items():
        fewer = round(((before or 0) - (now or 0)) * report.images)
        if fewer > 0:
            answers = f"{fewer} right answer{'s' * (fewer > 1)}"
            yield f"{where}, {answers} fewer than of the whole network: a larger --budget keeps more"


def _share(count: int | None, of: int | None) -> str:
    if count is None or not of:
        return "–"
    return f"{count / 1e6:,.2f} M" if count == of else f"{count / of:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
