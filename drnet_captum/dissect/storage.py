"""Dissections on disk: a folder of JSON, safetensors and JPEG files, whole or not there at all."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

import drnet_captum
from drnet_captum.dissect.dissection import Dissection, LayerUnits
from drnet_captum.dissect.exemplars import Exemplars
from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.dissect.labels import UnitLabel
from drnet_captum.dissect.moments import ChannelMoments
from drnet_captum.layers.fields import Field
from drnet_captum.layers.units import UnitLayer

FORMAT = 1

_CONTENT = "drnet_captum dissection"
_JSON = "dissection.json"
_STATISTICS = "statistics.safetensors"
_IMAGES = "images"
_CONTRAST = "contrast_"  # and the class that others are set against
_FILE_NAME = re.compile(r"[0-9A-Za-z_-]{1,100}")  # of an image key: it must not lead out of the folder


def save(dissection: Dissection, folder: str | Path) -> None:
    """Write a dissection to a folder.

    The folder appears when it is complete: it is written beside its place and then renamed. One that holds a dissection
    is replaced; after an error it is as it was. Equal dissections give equal bytes.

    dissection.json has the model, the layers and the labels; statistics.safetensors the sums in float64, by layer;
    images/KEY.jpg what the model saw.

    Raises:
        ValueError: a file or a folder with anything else in that place; image keys that are no file names.
        OSError: it cannot be written.
    """
    place = Path(folder).resolve()
    _check_place(place)
    if wrong := [key for key in dissection.images if not _FILE_NAME.fullmatch(key)]:
        raise ValueError(f"expected image keys of letters, digits, - and _, got {wrong[0]!r}: content_key() makes them")
    described, tensors = _describe(dissection)
    text = json.dumps(described, ensure_ascii=False, allow_nan=False) + "\n"
    place.parent.mkdir(parents=True, exist_ok=True)
    new, old = (place.with_name(f".{place.name}.{uuid4().hex}.{end}") for end in ("new", "old"))
    try:
        (new / _IMAGES).mkdir(parents=True)
        for key, jpeg in dissection.images.items():
            (new / _IMAGES / f"{key}.jpg").write_bytes(jpeg)
        (new / _STATISTICS).write_bytes(safetensors.torch.save(tensors))
        (new / _JSON).write_text(text, encoding="utf-8")
        if place.exists():
            place.rename(old)
        try:
            new.rename(place)
        except OSError:
            if old.exists():
                old.rename(place)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: str | Path) -> Dissection:
    """Read a dissection that `save` wrote.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder that holds no dissection, a damaged one, or one of a later version of the library.
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"no folder at {place}")
    described = _read_json(place)
    if described.get("format") != FORMAT:
        raise ValueError(
            f"the dissection in {place} has the format {described.get('format')!r} of drnet_captum "
            f"{described.get('library', 'of an unknown version')}, this version reads {FORMAT}: "
            "update drnet_captum, or dissect again"
        )
    try:
        tensors = safetensors.torch.load_file(place / _STATISTICS)
        images = {key: _read_image(place, key, size) for key, size in described["images"].items()}
        return _rebuild(described, tensors, images)
    except (AttributeError, IndexError, KeyError, OSError, SafetensorError, TypeError, ValueError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the dissection in {place} is damaged ({why}): copy it again, or dissect again") from error


def _check_place(place: Path) -> None:
    """Only what `save` wrote is ever replaced."""
    if not place.exists():
        return
    if not place.is_dir():
        raise ValueError(f"{place} is a file: name a folder for the dissection")
    others = [path.name for path in place.iterdir() if path.name not in (_JSON, _STATISTICS, _IMAGES)]
    if (place / _IMAGES).is_dir():
        others += [f"{_IMAGES}/{path.name}" for path in (place / _IMAGES).iterdir() if path.suffix != ".jpg"]
    if others:
        raise ValueError(f"{place} holds {sorted(others)[0]}, which is no part of a dissection: name another folder")
    if any(place.iterdir()):
        _read_json(place)


def _read_json(place: Path) -> dict[str, Any]:
    try:
        described = json.loads((place / _JSON).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{place} holds no dissection, {_JSON} is not there: name another folder") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{place / _JSON} is damaged ({error}): copy it again, or remove the folder") from error
    if not isinstance(described, dict) or described.get("content") != _CONTENT:
        raise ValueError(f"{place / _JSON} is not the description of a dissection: name another folder")
    return described


def _read_image(place: Path, key: str, size: int) -> bytes:
    if not _FILE_NAME.fullmatch(key):
        raise ValueError(f"{key!r} is no image key")
    jpeg = (place / _IMAGES / f"{key}.jpg").read_bytes()
    if len(jpeg) != size:
        raise ValueError(f"image {key} has {len(jpeg)} bytes of {size}")
    return jpeg


def _describe(dissection: Dissection) -> tuple[dict[str, Any], dict[str, Tensor]]:
    layers: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, units in enumerate(dissection.layers):
        exemplars, keys = units.exemplars.state()
        states = {"importance": units.importance.state(), "exemplars": exemplars}
        if units.similarity is not None:
            states["similarity"] = units.similarity.state()
        states |= {f"{_CONTRAST}{u}": sums.state() for u, sums in units.contrasts.items()}
        for what, state in states.items():
            tensors |= {f"{number}.{what}.{name}": tensor.contiguous() for name, tensor in state.items()}
        labels = {"labels": _rows(units.labels), "concepts": {k: _rows(v) for k, v in sorted(units.concepts.items())}}
        layers.append(asdict(units.layer) | {"statistics": sorted(states), "exemplar_keys": keys} | labels)
    described = {
        "content": _CONTENT,
        "format": FORMAT,
        "library": drnet_captum.__version__,
        "model": dissection.model,
        "fingerprint": dissection.fingerprint,
        "class_names": dissection.class_names,
        "counts": sorted(dissection.counts.items()),
        "images": {key: len(jpeg) for key, jpeg in sorted(dissection.images.items())},
        "layers": layers,
    }
    return described, tensors


def _rebuild(described: dict[str, Any], tensors: dict[str, Tensor], images: dict[str, bytes]) -> Dissection:
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, _, part = name.rpartition(".")
        grouped.setdefault(owner, {})[part] = tensor
    layers = []
    for number, layer in enumerate(described["layers"]):
        states = {what: grouped[f"{number}.{what}"] for what in layer["statistics"]}
        others = sorted(int(what.removeprefix(_CONTRAST)) for what in states if what.startswith(_CONTRAST))
        field = {name: tuple(layer["field"][name]) for name in ("size", "stride", "start")}
        layers.append(
            LayerUnits(
                layer=UnitLayer(
                    name=layer["name"],
                    kind=layer["kind"],
                    channels=layer["channels"],
                    grid=tuple(layer["grid"]),
                    field=Field(**field),
                ),
                importance=ClassImportance.from_state(states["importance"]),
                exemplars=Exemplars.from_state(states["exemplars"], layer["exemplar_keys"]),
                labels=_labels(layer["labels"]),
                concepts={source: _labels(rows) for source, rows in layer["concepts"].items()},
                similarity=ChannelMoments.from_state(states["similarity"]) if "similarity" in states else None,
                contrasts={u: ClassImportance.from_state(states[f"{_CONTRAST}{u}"]) for u in others},
            )
        )
    names = described["class_names"]
    return Dissection(
        model=described["model"],
        fingerprint=described["fingerprint"],
        class_names=None if names is None else tuple(names),
        layers=tuple(layers),
        counts={int(c): int(n) for c, n in described["counts"]},
        images=images,
    )


def _rows(labels: tuple[UnitLabel, ...]) -> list[list[Any]]:
    return [[label.name, label.family, label.score] for label in labels]


def _labels(rows: list[list[Any]]) -> tuple[UnitLabel, ...]:
    return tuple(UnitLabel(name, family, float(score)) for name, family, score in rows)
