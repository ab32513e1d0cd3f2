"""``drnet-captum demo``: the embedded model on embedded photos, by every method, and taken apart; needs no network."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from .console import OUT, progress, say, user_errors

PHOTO = "chelsea"
CLASSES = 3
ANSWERS = 5


def command(
    out: Annotated[Path, typer.Option(help="Folder for the results; made if it is not there.")] = Path(
        "drnet-captum-demo"
    ),
) -> None:
    """Explain why the embedded ImageNet model sees a cat, by every method; then take the model apart into its units."""
    written: list[Path] = []
    with user_errors(written):
        start = perf_counter()
        from drnet_captum.data import embedded_photo, load_model, model_card
        from drnet_captum.registry import methods

        from .analyze import analyze_into
        from .explanation import explain_photo
        from .outputs import make_folder
        from .tables import answer_table

        model = load_model("embedded")
        card, photo = model_card(model), embedded_photo(PHOTO)
        OUT.print(answer_table(model, card, photo, ANSWERS))
        make_folder(out)
        with progress() as bar:
            task = bar.add_task(PHOTO, total=len(methods()))
            found = explain_photo(
                model,
                card,
                photo,
                methods="all",
                top_k=CLASSES,
                progress=lambda title: bar.update(task, description=title, advance=1),
            )
            bar.update(task, description="drawing")
            written += found.save(out, PHOTO, f"{PHOTO} · {card.name}")
        for note in found.notes:
            say(f"note: {note}", "yellow")
        seconds = perf_counter() - start
        say(f"{len(found.maps)} methods × {len(found.classes)} classes in {seconds:.0f} s")
        say(f"picture:  {written[0]}")
        say(f"raw maps: {written[1]}")
        make_folder(out / "analysis")
        analyze_into(out / "analysis", written, model, card)
