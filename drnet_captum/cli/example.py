"""``drnet-captum example``: worked examples, to be read and run."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Annotated

import typer

from .console import say, user_errors

app = typer.Typer(help="Worked examples, each one file of drnet_captum/examples.", no_args_is_help=True)

AVERAGED = 20  # the loss of one batch is noisy


@app.callback()
def main() -> None:
    """Worked examples, each one file of drnet_captum/examples."""


@app.command("simple-cnn")
def simple_cnn(
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|fake",
            help='Folder of CIFAR-10, downloaded there if it is not; "fake": drawn shapes, no network.',
            show_default=False,
        ),
    ],
    epochs: Annotated[int, typer.Option(min=1, help="How often training goes through the data.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for the pictures; made if it is not there.")] = Path(
        "simple-cnn-example"
    ),
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Stop training after so many steps.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of the images.")] = 0,
) -> None:
    """Train a small network on CIFAR-10, measure it, and explain its answers."""
    written: list[Path] = []
    with user_errors(written):
        from drnet_captum.examples.simple_cnn import run

        from .outputs import make_folder

        make_folder(out)
        outcome = run(data, epochs, out, max_steps=max_steps, seed=seed, written=written)
        kind = "fake images (drawn shapes, not CIFAR-10)" if outcome.fake else "CIFAR-10's test photos"
        losses = outcome.losses
        first, last = mean(losses[:AVERAGED]), mean(losses[-AVERAGED:])
        say(f"loss {first:.2f} at first, {last:.2f} at last ({len(losses)} steps)")
        say(f"accuracy {outcome.accuracy:.1%} on {kind}; guessing gives 10%")
        for picture in outcome.pictures:
            say(f"picture: {picture}")
