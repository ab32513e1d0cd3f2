"""Tables: the registry, and a model's likeliest answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from .console import OUT, user_errors

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

    from drnet_captum.data.card import ModelCard


def command() -> None:
    """List all methods: name, title, paper, what each needs and what it returns."""
    with user_errors():
        OUT.print(method_table())


def method_table() -> Table:
    """The registry, one row a method; a star marks those that are computed when none are named."""
    from drnet_captum.registry import methods

    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption="* computed when no method is named; detectors are explained by D-RISE: drnet-captum detect",
        caption_justify="left",
    )
    for heading in ("name", "title", "paper", "needs", "output"):
        table.add_column(heading, no_wrap=heading != "needs")
    for name, method in methods().items():
        star = "*" if method.default else ""
        paper = "\n".join(method.paper.rsplit(", ", 1))  # authors and year, then the number: fits 80 columns
        table.add_row(name + star, method.title, paper, method.needs, method.output)
    return table


def answer_table(model: nn.Module, card: ModelCard, photo: Image.Image, count: int) -> Table:
    """The ``count`` likeliest classes of a photo."""
    import torch

    with torch.no_grad():
        scores = model(card.transform(photo)[None])[0]
    likely = scores.softmax(0).topk(count)
    table = Table(box=box.SIMPLE_HEAD, title=f"What {card.name} sees", title_justify="left")
    table.add_column("class", justify="right")
    table.add_column("label")
    table.add_column("probability", justify="right")
    for index, probability in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
        table.add_row(str(index), card.label(index), f"{probability:.1%}")
    return table
