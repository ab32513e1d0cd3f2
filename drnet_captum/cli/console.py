"""What the commands print to, and how a user's mistake or Ctrl-C ends them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

OUT = Console()
ERR = Console(stderr=True)

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_LISTED = 20


def say(text: str, style: str = "", console: Console = OUT) -> None:
    """A line as it is: no markup (file names may have brackets), no colours guessed, not folded."""
    console.print(Text(text, style), soft_wrap=True)


def complain(text: str) -> None:
    """A line on stderr."""
    # On a screen by way of OUT, which knows of the bar at its foot and writes above it.
    on_screen = sys.stdout.isatty() and sys.stderr.isatty()
    say(text, "red", OUT if on_screen else ERR)


def progress(*, remaining: bool = False) -> Progress:
    """A bar for what takes longer than a second; it is gone when it is done, and absent where stdout is no terminal.

    Args:
        remaining: also show the time left, for steps of one length.
    """
    left = [TextColumn("left:"), TimeRemainingColumn()] if remaining else []
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *left,
        console=OUT,
        transient=True,
        disable=not OUT.is_terminal,
    )


@contextmanager
def user_errors(written: Sequence[Path] = ()) -> Iterator[None]:
    """End the command with a line on stderr: code 2 after a user's mistake, 130 after Ctrl-C.

    Args:
        written: the files written so far; they are listed if the command ends early.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError) as error:
        complain(f"error: {error}")
        _list(written)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        complain("stopped")
        _list(written, "nothing was written")
        raise typer.Exit(INTERRUPTED) from None


def _list(written: Sequence[Path], nothing: str | None = None) -> None:
    if written:
        shown = ", ".join(map(str, written[:_LISTED]))
        more = f" and {len(written) - _LISTED} more" if len(written) > _LISTED else ""
        complain(f"written so far: {shown}{more}")
    elif nothing is not None:
        complain(nothing)
