"""What a run needs before it begins: the model, how it sees a photo, the images, and where the work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from drnet_captum.data.card import ModelCard
from drnet_captum.dissect.run import class_count
from drnet_captum.scale.decode import Decoder
from drnet_captum.scale.options import Engine, EngineOptions, SourceOptions, engine_of
from drnet_captum.scale.run_folder import read_manifest, versions
from drnet_captum.scale.source import Source, find_source
from drnet_captum.scale.worker_model import WorkerModel, default_device

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
) -> Setting:
    """Build the model, list the images.

    Raises:
        ValueError, OSError: of :class:`Engine`, :meth:`WorkerModel.build` and :func:`find_source`.
    """
    engine = engine_of(
        EngineOptions(**{key: options[key] for key in _ENGINE if key in options}),  # type: ignore[typeddict-item]
        read_manifest(out),
        default_device(model, options.get("num_gpus", 0)),
    )
    is_local = engine.name == "local"
    asked = WorkerModel(model, checkpoint, card, engine.device, engine.threads)
    built, found = WorkerModel(model, checkpoint, card, engine.device if is_local else "cpu").build()
    of_source = SourceOptions(**{key: options[key] for key in _SOURCE if key in options})  # type: ignore[typeddict-item]
    images = find_source(
        source, card=found, classes=class_count(built, found), target_column=target_column, **of_source
    )
    worker = WorkerModel(built, None, found, engine.device, engine.threads) if is_local else asked
    return Setting(engine, built, found, worker, images, of_source)
