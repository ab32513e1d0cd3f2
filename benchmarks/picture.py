"""README's picture of the pointing game: Grad-CAM and DRNet on mosaics of the embedded photos.

    python -m benchmarks.picture         # writes docs/grounding.jpg

These photos are free to show; they are not the mosaics that ``benchmarks.grounding`` scores, only made in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt
from torch import nn

import drnet_captum as dc
from benchmarks.games import drnet, grad_cam
from benchmarks.mosaics import Mosaic, answer, cell_shares, random_crop
from drnet_captum.data import embedded_photo, embedded_photos
from drnet_captum.viz import overlay

PATH = Path(__file__).parents[1] / "docs" / "grounding.jpg"
SEED = 0
ARRANGEMENTS = (("chelsea", "coffee", "rocket", "astronaut"), ("rocket", "astronaut", "coffee", "chelsea"))
SHOWN = ("chelsea", "coffee", "rocket")


def embedded_mosaics(model: nn.Module) -> list[Mosaic]:
    """The arrangements, each of new crops. The astronaut, for whom there is no class, only fills a cell."""
    generator = torch.Generator().manual_seed(SEED)
    transform = dc.model_card(model).transform
    photos = {name: answer(model, name, transform(embedded_photo(name))) for name in embedded_photos()}

    return [Mosaic(tuple(random_crop(model, photos[name], generator) for name in names)) for names in ARRANGEMENTS]


def draw(model: nn.Module, path: Path) -> None:
    """Rows mosaics; columns the photo, then for each class Grad-CAM and DRNet."""
    card, mosaics = dc.model_card(model), embedded_mosaics(model)
    columns = 1 + 2 * len(SHOWN)
    figure, axes = plt.subplots(len(mosaics), columns, figsize=(2.0 * columns, 2.24 * len(mosaics)), dpi=100)
    for axis in axes.flat:
        axis.set_axis_off()
    for mosaic, line in zip(mosaics, axes, strict=True):
        photo = card.photo(mosaic.x)
        line[0].imshow(photo)
        names = [cell.name for cell in mosaic.cells]
        for i, shown in enumerate(SHOWN):
            cell = names.index(shown)
            label = mosaic.labels[cell]
            for kind, name, axis in ((grad_cam, "Grad-CAM", line[1 + 2 * i]), (drnet, "DRNet", line[2 + 2 * i])):
                found = kind(model, mosaic.x, [label]).detach()
                share = float(cell_shares(found[None])[0, cell])
                axis.imshow(overlay(photo, found[0].clamp(min=0), alpha=0.6))
                outline(axis, cell, photo.shape[0] // 2)
                axis.set_title(f"{card.label(label)}: {name} {share:.0%}", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, pil_kwargs={"quality": 82})
    plt.close(figure)


def outline(axis: Any, cell: int, side: int) -> None:
    """A frame round the right cell."""
    top, left = divmod(cell, 2)
    frame = plt.Rectangle((left * side, top * side), side - 1, side - 1, fill=False, edgecolor="white", linewidth=1.5)
    axis.add_patch(frame)


if __name__ == "__main__":
    matplotlib.use("agg")
    torch.set_num_threads(1)
    draw(dc.load_model("embedded"), PATH)
