"""What ``analyze`` writes beside the dissection: the report, tables, pictures of filters, feature maps and modules."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image
from torch import Tensor, nn

from drnet_captum.analysis import Analysis
from drnet_captum.analysis_report import report_of
from drnet_captum.dissect.labelling import unit_maps
from drnet_captum.layers.units import find_units
from drnet_captum.viz import feature_grid, filter_grid, panel, save

from .outputs import output_names, write


def write_files(
    analysis: Analysis, model: nn.Module, out: Path, written: list[Path], drawn: Sequence[str] = ()
) -> None:
    """Write all of them; each is in ``written`` when it is complete. ``drawn``: the layers of the feature maps."""
    last = analysis.reconstruction.layers[-1].layer.name

    def keep(name: str, writer: Callable[[IO[bytes]], object]) -> None:
        write(out / name, writer)
        written.append(out / name)

    keep("units.csv", lambda file: file.write(table(analysis.dissection.to_records())))
    keep("modules.csv", lambda file: file.write(table(analysis.reconstruction.to_records())))
    keep("dissection.png", lambda file: analysis.dissection.plot().save(file, "PNG"))
    first = analysis.dissection.layers[0].layer.name
    weight = getattr(model.get_submodule(first), "weight", None)
    if weight is not None and weight.dim() == 4 and weight.shape[1] in (1, 3):
        keep("filters.png", lambda file: filter_grid(weight.detach().float().cpu()).save(file, "PNG"))
    names = output_names([Path(subject.name) for subject in analysis.subjects], out)
    for p, (subject, name) in enumerate(zip(analysis.subjects, names, strict=True)):
        for layer in drawn or [last]:
            maps = feature_maps(model, subject.inputs, layer)
            end = f"-{layer}" if drawn else ""
            keep(f"{name}-features{end}.png", lambda file, maps=maps: maps.save(file, "PNG"))  # type: ignore[misc]
        picture = module_panel(analysis, p, f"{subject.name} · {analysis.card.name}")
        keep(f"{name}-modules.png", lambda file, picture=picture: picture.save(file, "PNG"))  # type: ignore[misc]
    notes = [
        "Importance is first-order: how much the class's score would fall if the unit were zero. A label says which "
        "rendered stimuli excite a unit, and not what the network needs it for."
    ]
    save(report_of(analysis, model, notes), out / "report.html")
    written.append(out / "report.html")


def table(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def feature_maps(model: nn.Module, inputs: Tensor, layer: str) -> Image.Image:
    """The strongest feature maps of a layer for one photo."""
    (maps,) = unit_maps(model, find_units(model, (inputs,), (), [layer]), inputs).values()
    return feature_grid(maps[0])


def module_panel(analysis: Analysis, p: int, title: str) -> Image.Image:
    """A photo, its whole map, and the map of each module."""
    subject = analysis.subjects[p]
    maps = {"DRNet": analysis.maps[p].cpu()}
    for m, module in enumerate(analysis.reconstruction.modules):
        if float(analysis.module_maps[p, m].abs().max()) > 0:
            share = float(analysis.shares[p, m])
            maps[f"{module.name} ({share:+.0%})"] = analysis.module_maps[p, m : m + 1].cpu()
    return panel(
        analysis.card.photo(subject.inputs[0]),
        {name: values[:, None] for name, values in maps.items()},
        [analysis.card.label(subject.target)],
        title=title,
        signed=dict.fromkeys(maps, True),
    )
