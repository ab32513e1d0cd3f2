"""``drnet-captum report``: what a data set's explanations say, as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import OUT, say, user_errors

if TYPE_CHECKING:
    from drnet_captum.scale.summary import Summary


def command(
    explanations: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder that the explanations were written to.", show_default=False),
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method of the run; may be given several times.", show_default="all of them"),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            "--classes",
            help="Names or numbers of classes to show in detail, with commas.",
            show_default="the 40 of lowest accuracy",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many typical and unusual images of each class.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="File for the page.", show_default="report.html in that folder")
    ] = None,
) -> None:
    """Sum up a data set's explanations: each class's mean map, its typical images, and what lies beside the object.

    A run that is not complete is summed up so far.
    """
    with user_errors():
        path = explanations / "report.html" if out is None else out
        if path.is_dir():
            raise ValueError(f"expected --out to be a file, got the folder {path}")
        try:
            write_report(explanations, path, method, classes or [], top)
        except ImportError as error:
            raise ValueError(str(error)) from error
        say(f"report: {path}")


def write_report(
    explanations: Path, path: Path, methods: Sequence[str] | None, classes: Sequence[str], top: int
) -> None:
    """Sum up, say what is the case, and write the page."""
    with OUT.status("reading the explanations"):
        from drnet_captum.scale.summary import summarize
        from drnet_captum.scale.summary_report import report_of
        from drnet_captum.viz.dataset_report import render_dataset

        from .outputs import write

        summary = summarize(explanations, methods or None, top)
        page = render_dataset(report_of(summary, find_classes(classes, summary)))
    for line in lines_of(summary):
        say(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    # File names can hold bytes that are no text; they are not worth losing the page.
    write(path, lambda file: file.write(page.encode("utf-8", errors="replace")))


def find_classes(named: Sequence[str], summary: Summary) -> list[int]:
    """Classes of the run by number or name, in any case.

    Raises:
        ValueError: one that has no images in the run; the nearest names are given.
    """
    from difflib import get_close_matches

    numbers = {one.name.casefold(): one.index for one in reversed(summary.classes)}
    there = {one.index for one in summary.classes}
    # A name can have commas of its own ("tabby, tabby cat").
    parts = [p for text in named for p in ([text] if text.casefold() in numbers else text.split(","))]
    found = []
    for part in map(str.strip, parts):
        number = numbers.get(part.casefold(), int(part) if part.isdecimal() else -1)
        if number not in there:
            near = get_close_matches(part.casefold(), numbers, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "pass a name or a number of one that has"
            raise ValueError(f"no image of {summary.folder} is of a class {part!r}: {hint}")
        found.append(number)
    return list(dict.fromkeys(found))


def lines_of(summary: Summary) -> list[str]:
    """What the page is of, in a line or two."""
    right = "" if summary.accuracy is None else f", {summary.accuracy:.1%} right"
    failed = sum(one.images for one in summary.reasons)
    lost = f", {failed:,} failed" if failed else ""
    unfinished = "" if summary.manifest["complete"] else "the run is not complete; so far: "
    images = f"{summary.images:,} image{'s' * (summary.images != 1)}"
    classes = f"{len(summary.classes):,} class{'es' * (len(summary.classes) != 1)}"
    return [f"{unfinished}{images} of {classes}{right}{lost}"]
