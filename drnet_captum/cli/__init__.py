"""The command line ``drnet-captum``: one file a command, and what they share.

Nothing here imports torch before a command runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from . import (
    analyze,
    demo,
    detect,
    dissect_dataset,
    example,
    explain,
    explain_dataset,
    layers,
    report,
    subnetwork,
    tables,
    zoo,
)
from .console import OUT

__all__ = ["app"]

app = typer.Typer(
    help="Explain the answers of vision networks: every classical method, on one recorded forward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command("demo")(demo.command)
app.command("explain")(explain.command)
app.command("analyze")(analyze.command)
app.command("detect")(detect.command)
app.command("subnetwork")(subnetwork.command)
app.command("explain-dataset")(explain_dataset.command)
app.command("dissect-dataset")(dissect_dataset.command)
app.command("report")(report.command)
app.command("methods")(tables.command)
app.command("layers")(layers.command)
app.command("zoo")(zoo.command)
app.add_typer(example.app, name="example")


def _show_version(wanted: bool) -> None:
    if wanted:
        from drnet_captum import __version__

        OUT.print(f"drnet-captum {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Explain the answers of vision networks: every classical method, on one recorded forward pass."""
