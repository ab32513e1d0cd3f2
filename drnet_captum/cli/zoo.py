"""``drnet-captum zoo``: all of timm's models, a row each, and with photos what Grad-CAM sees in them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer

from .console import INTERRUPTED, complain, progress, say, user_errors
from .stopping import stoppable

_NAMED = 4  # models named for a reason


def command(
    pattern: Annotated[
        str | None, typer.Argument(help='Names of timm\'s, e.g. "resnet*".', show_default="all models")
    ] = None,
    out: Annotated[Path, typer.Option(help="The CSV; one that is there is continued.")] = Path("zoo.csv"),
    images: Annotated[
        list[Path] | None,
        typer.Option(
            help="Photos, or a folder of them, to compute Grad-CAM on; may be given several times.", show_default=False
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="With --images: cpu, cuda, …", show_default="the GPU if there is one")
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="With --images: timm's weights, or random ones."),
    ] = None,
) -> None:
    """Find the target layer of every timm model, without weights: a CSV with a row for each.

    A model that fails is a row with its reason. An interrupted run goes on where it stopped, by the same command.
    """
    with user_errors():
        if not images and (device is not None or pretrained is not None):
            raise ValueError("--device and --pretrained are about the maps of photos: pass --images too")
        from drnet_captum import zoo
        from drnet_captum.data import find_images, load_image

        from .device import find_device

        names = zoo.model_names(pattern)
        maps = None
        if images:
            photos = find_images(images)
            for photo in photos:  # a broken one is told before an hour's work, not after it
                load_image(photo)
            maps = zoo.Maps(photos, find_device(device), pretrained is not False)
        rows = zoo.continue_csv(out, maps)
        todo = [name for name in names if name not in rows]
        with progress() as bar:
            task = bar.add_task("", total=len(names), completed=len(names) - len(todo))
            try:
                with stoppable(lambda: bar.update(task, description="stopping after this model")) as stopped:
                    for name in todo:
                        bar.update(task, description=name)
                        rows[name] = zoo.add_model(out, name, maps)
                        bar.advance(task)
                        if stopped:
                            raise KeyboardInterrupt
            except KeyboardInterrupt:
                done = sum(name in rows for name in names)
                complain(f"stopped: {done} of {len(names)} models are in {out}; the same command goes on from there")
                raise typer.Exit(INTERRUPTED) from None
            bar.update(task, description="contact sheets")
            sheets = zoo.contact_sheets(out, rows) if maps is not None else []
        _summarize([rows[name] for name in names], out)
        if sheets:
            say(f"maps:   {zoo.strip_path(out, '').parent}")
            say(f"sheets: {', '.join(map(str, sheets))}")


def _summarize(rows: list[dict[str, str]], out: Path) -> None:
    layouts = Counter(row["layout"] for row in rows if row["layer"])
    kinds = ", ".join(f"{count} {layout}" for layout, count in layouts.most_common()) or "none"
    say(f"{len(rows)} model{'' if len(rows) == 1 else 's'}: {layouts.total()} with a target layer ({kinds})")
    failed = [row for row in rows if row["error"]]
    if failed:
        say(f"{len(failed)} error{'' if len(failed) == 1 else 's'}:", "yellow")
    for reason, names in reasons(failed).items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        say(f"  {len(names)} × {reason}")
        say(f"      {', '.join(names[:_NAMED])}{more}", "dim")
    say(f"rows:   {out}")


def reasons(failed: list[dict[str, str]]) -> dict[str, list[str]]:
    """Reason → the models that failed for it, most first; the names of a model and its class are left out of it.

    Example:
        >>> reasons([{"name": "ab", "class": "Net", "error": "Net ends in branches"}])
        {'the model ends in branches': ['ab']}
    """
    found = defaultdict(list)
    for row in failed:
        text = row["error"]
        for own, common in ((row["name"], "NAME"), (row["class"], "the model")):
            text = re.sub(rf"\b{re.escape(own)}\b", common, text) if own else text
        found[shorten(text, 100, placeholder=" …")].append(row["name"])
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
