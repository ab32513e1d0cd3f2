"""What a run needs before it begins: the model, how it sees a photo, the images, and where the work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drnet_captum.data.card import ModelCard
from drnet_captum.dissect.run import class_count
from drnet_captum.scale.decode import Decoder
from drnet_captum.scale.find_source import find_source
from drnet_captum.scale.options import Engine, EngineOptions, SourceOptions, engine_of
from drnet_captum.scale.run_folder import read_manifest, versions
from drnet_captum.scale.source import Source
from drnet_captum.scale.worker_model import WorkerModel, own_device

_ENGINE = ("engine", "concurrency", "num_gpus", "threads", "device")
_SOURCE = ("image_column", "label_column", "boxes")


@dataclass(frozen=True)
class Setting:
    """All of it.

    Attributes:
        engine: where the work is done.
        model, card: as this process has them.
        worker: the model as the workers get it.
        source: the images.
        options: of the source.
    """

    engine: Engine
    model: nn.Module
    card: ModelCard
    worker: WorkerModel
    source: Source
    options: SourceOptions

    def decoder(self, *, thumbnails: bool) -> Decoder:
        """What reads the images."""
        return Decoder(self.source, self.card, thumbnails=thumbnails, boxes=self.options.get("boxes") is not None)

    def asked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What a manifest says: the model, the images, the arguments, and what of the engine decides last bits."""
        engine = {"threads": self.engine.threads, "device": self.engine.device.partition(":")[0]}
        return {
            "model": self.worker.described(self.model, self.card),
            "source": self.source.described()
            | {key: value for key, value in self.options.items() if value is not None},
            "arguments": {**arguments, **engine},
            "versions": versions(),
        }


def setting_of(
    source: str | Path,
    model: str | nn.Module,
    out: str | Path,
    *,
    checkpoint: str | Path | None,
    card: ModelCard | None,
    target_column: str | None,
    options: Mapping[str, Any],
    allowed: Any,
) -> Setting:
    """Build the model, list the images; ``allowed`` is the TypedDict of the options that there may be.

    Raises:
        TypeError: another option.
        ValueError: ``out`` lies among the images.
        ValueError, OSError: of :class:`Engine`, :meth:`WorkerModel.build` and :func:`find_source`.
    """
    if unknown := options.keys() - {*allowed.__optional_keys__}:
        raise TypeError(
            f"unexpected keyword {min(unknown)!r}: there are {', '.join(sorted(allowed.__optional_keys__))}"
        )
    check_apart(source, out)
    engine = engine_of(
        EngineOptions(**{key: options[key] for key in _ENGINE if key in options}),  # type: ignore[typeddict-item]
        read_manifest(out),
        device_of(model, options),
    )
    is_local = engine.name == "local"
    built, found = WorkerModel(model, checkpoint, card, engine.device if is_local else "cpu").build()
    given = {key: options[key] for key in _SOURCE if options.get(key) is not None}
    of_source = SourceOptions(**{key: str(value) for key, value in given.items()})  # type: ignore[typeddict-item]
    images = find_source(
        source, card=found, classes=class_count(built, found), target_column=target_column, **of_source
    )
    sent = WorkerModel(model, checkpoint, card, engine.device).sendable
    worker = WorkerModel(built, None, found, engine.device) if is_local else sent()
    return Setting(engine, built, found, worker, images, of_source)


def device_of(model: str | nn.Module, options: Mapping[str, Any]) -> str:
    """Where a model runs if nothing is said: on the GPUs that workers have; here where it is, or on the GPU.

    Example:
        >>> device_of("embedded", {"engine": "ray", "num_gpus": 0.5}), device_of("embedded", {"engine": "ray"})
        ('cuda', 'cpu')
    """
    if options.get("engine") == "ray":
        return "cuda" if options.get("num_gpus") else "cpu"
    if isinstance(model, nn.Module):
        return own_device(model)
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_apart(source: str | Path, out: str | Path) -> None:
    """Raise ValueError where what is written would be found among the images by the next run.

    Example:
        >>> check_apart("photos", "photos/run")
        Traceback (most recent call last):
        ValueError: expected out to be outside of the source photos, got photos/run: its files would be taken for images
    """
    if Path(out).resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(
            f"expected out to be outside of the source {source}, got {out}: its files would be taken for images"
        )
