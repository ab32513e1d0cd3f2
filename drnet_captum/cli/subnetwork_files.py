"""What ``subnetwork`` writes: the smaller network twice, its channels, and the comparison."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drnet_captum.data.card import ModelCard
from drnet_captum.reconstruct.groups import out_channels
from drnet_captum.reconstruct.subnetwork import SubNetwork
from drnet_captum.reconstruct.subnetwork_report import SubNetworkReport

from .analysis_files import table
from .outputs import write

EXPORTED, MODULE = "subnetwork.pt2", "subnetwork.pt"


def write_files(
    part: SubNetwork,
    report: SubNetworkReport,
    card: ModelCard,
    budget: float,
    method: str,
    out: Path,
    written: list[Path],
) -> list[str]:
    """Write all of them; each is in ``written`` when it is complete. Returns lines that say what there is."""
    files = {
        "channels.json": f"{as_json(described(part, card, budget, method))}\n".encode(),
        "report.txt": f"{report}\n".encode(),
        "report.csv": table(report.to_records()),
    }
    lines = [f"channels: {out / 'channels.json'}"]
    try:
        small = part.sliced().cpu()
    except (ImportError, ValueError):  # the report says why
        lines.append('to mask: drnet_captum.reconstruct.masks.MaskedModel(model, keep, inputs), with its "keep"')
    else:
        files[MODULE] = saved(small)
        lines.append(f'to train on: torch.load("{out / MODULE}", weights_only=False)')
        try:
            files[EXPORTED] = exported(small, part.anatomy.example.cpu())
        except Exception as error:  # whatever a model does to a tracer
            lines.append(f"note: torch.export cannot trace it ({type(error).__name__}: {str(error).splitlines()[0]})")
        else:
            lines.append(f'load: torch.export.load("{out / EXPORTED}").module()(images)')
    for name in {MODULE, EXPORTED} - files.keys():  # of a run before: it is not what channels.json says
        (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        write(out / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
        written.append(out / name)
    return lines


def described(part: SubNetwork, card: ModelCard, budget: float, method: str) -> dict[str, Any]:
    """Everything that is needed to use the network, or to cut it out again."""
    return {
        "model": part.dissection.model,
        "fingerprint": part.dissection.fingerprint,
        "classes": list(part.classes),
        "class_names": [card.label(c) for c in part.classes],
        "input_size": card.input_size,
        "mean": card.mean,
        "std": card.std,
        "budget": budget,
        "budget_of": part.choice.budget_of,
        "share": part.choice.share,
        "method": method,
        "images": {str(c): count for c, count in sorted(part.dissection.counts.items())},
        "channels": {name: out_channels(part.model.get_submodule(name)) for name in part.keep},
        "keep": {name: list(channels) for name, channels in part.keep.items()},
    }


def as_json(value: object, indent: str = "") -> str:
    """JSON with a line for every entry of a dict, and lists in one."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    entries = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {as_json(of, inner)}" for key, of in value.items()]
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def saved(model: nn.Module) -> bytes:
    """The whole module, for ``torch.load``."""
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


def exported(model: nn.Module, example: Tensor) -> bytes:
    """The module's computation, for batches of any size; ``torch.export.load`` needs no code of the model's."""
    images = example[:1].repeat(2, *[1] * (example.dim() - 1))  # a batch of one would be taken for a constant
    twin = copy.deepcopy(model).requires_grad_(False)
    program = torch.export.export(twin, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    program.example_inputs = None
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()
