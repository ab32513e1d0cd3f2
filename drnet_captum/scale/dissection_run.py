"""A network dissected over a whole data set, shard by shard, resumable."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from torch import nn

from drnet_captum.attr.score import Score
from drnet_captum.data.card import ModelCard
from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.dissect.labelling import label_with_stimuli
from drnet_captum.dissect.run import labelled, normalizer
from drnet_captum.layers.discovery import example_inputs
from drnet_captum.layers.units import Site
from drnet_captum.scale.dissect_work import PARTS, DissectJob
from drnet_captum.scale.explainer import LABEL, PREDICTED
from drnet_captum.scale.options import EngineOptions, SourceOptions, check_batches
from drnet_captum.scale.parts import GROUPS, Parts
from drnet_captum.scale.rows import ALL_ERRORS, ERRORS, failures_of, read_failures, write_failures
from drnet_captum.scale.run_folder import PART, Finished, RunFolder
from drnet_captum.scale.setting import Setting, setting_of
from drnet_captum.scale.shards import shards_of
from drnet_captum.scale.work import Step, do

CONTENT = "drnet_captum dissection run"


class DissectOptions(EngineOptions, SourceOptions, total=False):
    """The keywords of ``dissect_dataset`` that it shares with others: where it runs, on which images."""


def dissect_dataset(
    source: str | Path,
    model: str | nn.Module = "embedded",
    out: str | Path = "dissection",
    *,
    checkpoint: str | Path | None = None,
    card: ModelCard | None = None,
    layers: Sequence[str] | None = None,
    target: str = LABEL,
    score: Score = "logit",
    exemplars: int = 4,
    contrasts: Sequence[int] = (),
    stimuli: bool = True,
    batch_size: int = 32,
    rows_per_shard: int = 1024,
    max_errors: int = 100,
    progress: Step | None = None,
    **options: Unpack[DissectOptions],
) -> Finished:
    """Dissect a network over every image of a data set.

    As :func:`drnet_captum.dissect.run.dissect` does in one process: the result is the same, up to the rounding of sums.
    A run that died goes on from the shards that are complete. An image that cannot be read is a row of
    ``errors.parquet``.

    Args:
        source, model, checkpoint, card: as of :func:`explain_dataset`.
        out: the folder, which in the end is a dissection that ``Dissection.load`` reads, with ``errors.parquet`` and
            ``manifest.json`` beside it.
        layers: dotted names. None: as of ``dissect``.
        target: whose evidence: the "label" of each image, or the class "predicted", as where no image has a label.
        score, exemplars, contrasts: as of ``dissect``.
        stimuli: label the units by rendered stimuli, at the end.
        batch_size, rows_per_shard, max_errors, progress: as of :func:`explain_dataset`; a shard is a part of the sum.
        engine, concurrency, num_gpus, threads, device: see :class:`drnet_captum.scale.options.EngineOptions`.
        image_column, label_column: see :class:`drnet_captum.scale.options.SourceOptions`.

    Raises:
        ValueError: a model, layer or source that is not there; a folder of another run; more than ``max_errors``
            failures; boxes, which have no part in a dissection.
        OSError: the results cannot be written; complete shards stay.
        ImportError: the extra ``distributed`` is not installed.

    Example:
        >>> import tempfile
        >>> from drnet_captum.data import embedded_photos
        >>> photos = next(iter(embedded_photos().values())).parent
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = dissect_dataset(photos, out=folder, layers=["features.0"], stimuli=False, threads=1)
        ...     Dissection.load(folder)
        Dissection(embedded (SqueezeNet 1.1): 1 layer, 64 units, 4 classes, 4 images, 4 kept)
    """
    check_batches(batch_size, rows_per_shard, max_errors)
    if target not in (LABEL, PREDICTED):
        raise ValueError(f"expected target to be 'label' or 'predicted', got {target!r}")
    if options.get("boxes") is not None:
        raise ValueError("boxes have no part in a dissection: leave boxes= out")
    if isinstance(layers, str):
        raise ValueError(f"expected layers to be a list of at least one name, got {layers!r}")
    setting = setting_of(
        source,
        model,
        out,
        checkpoint=checkpoint,
        card=card,
        target_column=None,
        options=dict(options),
        allowed=DissectOptions,
    )
    arguments = {
        "layers": None if layers is None else list(layers),
        "target": target,
        "score": score,
        "exemplars": exemplars,
        "contrasts": list(contrasts),
        "stimuli": stimuli,
        "batch_size": batch_size,
        "rows_per_shard": rows_per_shard,
    }
    by_label = target == LABEL and bool(setting.source.described()["labelled"])
    folder = RunFolder(out, CONTENT, setting.asked(arguments))
    names = None if layers is None else tuple(layers)
    job = DissectJob(setting.worker, by_label, folder.out, names, score, exemplars, tuple(contrasts))
    sites = tried(setting, job)
    with folder.held() as manifest:
        shards = shards_of(len(setting.source), batch_size, rows_per_shard)
        parts = Parts(folder, shards)
        if not manifest["complete"] or not (folder.out / "dissection.json").exists():
            parts.add_up()
            done = parts.done()
            do(
                job,
                setting.decoder(thumbnails=False),
                shards,
                done,
                folder.out,
                engine=setting.engine,
                batch_size=batch_size,
                max_errors=max_errors,
                progress=progress,
                each=parts.add_up,
            )
            folder.check_done(GROUPS, list(parts.groups))
            write_failures(folder.out / ALL_ERRORS, failures_of(folder.out, shards))
            dissection = parts.total()
            if stimuli:
                dissection = with_stimuli(dissection, setting, sites, batch_size, progress)
            place(dissection, folder)
            folder.finish(manifest)
        for leftover in (ERRORS, PARTS, GROUPS):
            shutil.rmtree(folder.out / leftover, ignore_errors=True)
        failed = len(read_failures(folder.out / ALL_ERRORS))
    return Finished(folder.out, len(setting.source), failed, manifest)


def tried(setting: Setting, job: DissectJob) -> list[Site]:
    """The layers' places, found on noise: what would fail for every image fails here."""
    dissector = Dissector(
        setting.model,
        layers=job.layers,
        score=job.score,
        exemplars=job.exemplars,
        card=setting.card,
        contrasts=job.contrasts,
    )
    return dissector.begin(example_inputs(setting.model, setting.card.input_size)[0])


def with_stimuli(
    dissection: Dissection, setting: Setting, sites: Sequence[Site], batch_size: int, progress: Step | None
) -> Dissection:
    """The same with labels by rendered stimuli."""
    model, card = setting.model, setting.card
    found = label_with_stimuli(
        model, sites, card.input_size[1:], normalizer(card, model), batch_size=batch_size, step=progress
    )
    return labelled(dissection, found.labels)


def place(dissection: Dissection, folder: RunFolder) -> None:
    """Lay the files of a dissection into the run's folder; the one that says what they are comes last."""
    stage = folder.out / f".dissection{PART}"
    dissection.save(stage)
    for path in sorted(stage.iterdir(), key=lambda path: path.suffix == ".json"):
        there = folder.out / path.name
        if there.is_dir():
            shutil.rmtree(there)
        path.replace(there)
    stage.rmdir()
