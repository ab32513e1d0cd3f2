"""The benchmarks, by one command.

    python -m benchmarks SUITE… [--device cpu] [--dtype float32] [--models resnet50,vgg16_bn] [--batch-size 1,8]
                         [--modes same,captured,best] [--pairs 15] [--seconds 60] [--no-peers] [--quick] [--out DIR]

Suites: ``throughput``, ``memory`` and ``panel`` (against Captum and other libraries), ``drise``, ``dissect``,
``faithfulness``, ``growth``, and ``all`` of them that the device has. Each writes ``.csv`` and ``.json`` files
``SUITE_DEVICE_DTYPE_torchVERSION``; what it was measured on and with is in the latter. They are written after every
row, so Ctrl-C loses nothing.

Rows of ``throughput``, ``memory`` and ``panel`` are merged into the file that is there: a row of the same model, case,
measure, batch size, mode and side is replaced, others stay, and each says of which commit it is. Where the file is of
another machine, or of other versions, threads or flags, nothing is measured. The other suites write their file anew.
"""

from __future__ import annotations

import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import DETECTOR, MODES, Options, UnsuitableError
from benchmarks.pairs import RESULTS
from benchmarks.suites import CPU_ONLY, SUITES, run_suite

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
Suite = StrEnum("Suite", [*SUITES, "all"])  # type: ignore[misc]


def words(given: list[str] | None) -> tuple[str, ...]:
    """An option that was given several times, or with commas.

    Example:
        >>> words(["resnet50,vgg16_bn", "swin_tiny"])
        ('resnet50', 'vgg16_bn', 'swin_tiny')
    """
    return tuple(word for part in given or () for word in part.split(",") if word)


@app.command(help=__doc__)
def main(
    suites: Annotated[list[Suite], typer.Argument(help="What is measured.", show_default=False)],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of both sides, in the same precision.")] = "float32",
    models: Annotated[list[str] | None, typer.Option(help="timm's names, by commas.")] = None,
    batch_size: Annotated[list[str] | None, typer.Option(help="Images at once; several by commas.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Of a row, at most.")] = 15,
    seconds: Annotated[float, typer.Option(help="About how long a row may take; three pairs are run at least.")] = 60.0,
    quick: Annotated[bool, typer.Option(help="Tiny models, one pair: to try it out.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    peers: Annotated[bool, typer.Option(help="Ask pytorch-grad-cam, torchcam and zennit too.")] = True,
    modes: Annotated[
        list[str] | None, typer.Option(help="same, captured (throughput only), best.", show_default="all")
    ] = None,
    detector: Annotated[str, typer.Option(help="Of D-RISE.")] = DETECTOR,
    photos: Annotated[Path | None, typer.Option(help="Of faithfulness: a folder with more photos.")] = None,
) -> None:
    """The command line."""
    warnings.filterwarnings("ignore", category=UserWarning)
    try:
        chosen = words(modes) or MODES
        sizes = tuple(map(int, words(batch_size)))
        options = Options(
            device, dtype, words(models), sizes, pairs, seconds, quick, out, peers, chosen, detector=detector
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    names = [str(suite) for suite in suites]
    if "all" in names:
        names = [name for name in SUITES if not (options.is_cuda and name in CPU_ONLY)]
    try:
        for name in dict.fromkeys(names):
            more = {"photos": photos} if name == "faithfulness" else {}
            typer.echo(run_suite(name, options, **more))
    except UnsuitableError as error:
        raise typer.BadParameter(str(error)) from error
    except KeyboardInterrupt:
        typer.echo("Interrupted: the rows found so far are written.", err=True)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
