"""A whole data set explained: a row for each image, in Parquet, resumable."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import nn

from drnet_captum.data.card import ModelCard
from drnet_captum.engine.running import Running, RunOptions
from drnet_captum.explanation import explain
from drnet_captum.layers.discovery import example_inputs
from drnet_captum.registry import find_methods
from drnet_captum.scale.explainer import LABEL, PREDICTED, ExplainJob
from drnet_captum.scale.options import EngineOptions, SourceOptions, check_batches
from drnet_captum.scale.rows import ALL_ERRORS, ERRORS, ROWS, failures_of, read_failures, write_failures
from drnet_captum.scale.run_folder import Finished, RunFolder
from drnet_captum.scale.setting import Setting, setting_of
from drnet_captum.scale.shards import shards_of
from drnet_captum.scale.work import Step, do

CONTENT = "drnet_captum explanations"
Maps = Literal["full", "none"]
_LONG = ("rise", "score_cam")


class ExplainOptions(RunOptions, EngineOptions, SourceOptions, total=False):
    """The keywords of ``explain_dataset`` that it shares with others: how the model runs, where, on which images."""


def explain_dataset(
    source: str | Path,
    model: str | nn.Module = "embedded",
    methods: str | Iterable[str] = ("grad_cam",),
    target: str = PREDICTED,
    out: str | Path = "explanations",
    *,
    checkpoint: str | Path | None = None,
    card: ModelCard | None = None,
    layer: str | None = None,
    maps: Maps = "full",
    batch_size: int = 32,
    rows_per_shard: int = 256,
    thumbnails: bool = True,
    max_errors: int = 100,
    progress: Step | None = None,
    **options: Unpack[ExplainOptions],
) -> Finished:
    """Explain every image of a data set.

    The rows of the images are cut into batches and shards once and for all: batch i has the rows i·B … (i + 1)·B − 1.
    A run that died goes on from the shards that are complete, and ends with the same rows, bit for bit on CPUs of one
    kind (on a GPU kernels may round differently each time). An image that cannot be read or explained is a row of
    ``errors.parquet``.

    Args:
        source: a folder of photos, one subfolder a class, or flat; Parquet files with images or their paths; tar shards
            of WebDataset. Files, folders and patterns.
        model: "embedded", "timm:NAME", "torchvision:NAME", or a model, which is then sent to the workers.
        methods: names of the registry, or "all".
        target: the class explained: the one "predicted", the "label", or that of a column of a Parquet source.
        out: the folder for ``rows/*.parquet``, ``errors.parquet`` and ``manifest.json``.
        checkpoint: weights for a model by its name.
        card: how the model sees a photo. None: its own.
        layer: where the CAM family looks, as a dotted name. None: found.
        maps: "full" keeps every map, of the layer's size for the CAM family, as float16; "none" its measures only.
        batch_size: rows explained at once.
        rows_per_shard: rows of a file, at least; as many are lost at most, by each worker that dies.
        thumbnails: keep a small JPEG of each image, for the report.
        max_errors: failures that are borne.
        progress: told "images", how many are done, and of how many.
        memory_format, precision, compile: as of :func:`drnet_captum.explain`.
        engine, concurrency, num_gpus, threads, device: see :class:`drnet_captum.scale.options.EngineOptions`.
        image_column, label_column, boxes: see :class:`drnet_captum.scale.options.SourceOptions`.

    Returns:
        Where the rows are, and how many images failed. Columns: ``index``, ``path``, ``label``, ``predicted``,
        ``probability``, ``target``, ``target_probability``, ``thumbnail``, ``box_share``; and for each method its map's
        ``_sum``, ``_low``, ``_high`` (in units of the logit), ``_pooled`` to 14 × 14, ``_inside`` (the share of its
        positive values in the boxes), and with full maps ``_map``, ``_scale``, ``_shape``: the map is
        ``map · scale``, reshaped to (C, h, w).

    Raises:
        ValueError: a model, method, layer, target or source that is not there; labels that are not known and are to be
            explained; a folder of another run; more than ``max_errors`` failures.
        OSError: the results cannot be written; complete shards stay.
        ImportError: the extra ``distributed`` is not installed.

    Example:
        >>> import tempfile
        >>> from drnet_captum.data import embedded_photos
        >>> photos = next(iter(embedded_photos().values())).parent
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = explain_dataset(photos, out=folder, threads=1)
        ...     run.images, run.failed, [path.name for path in sorted(run.out.glob("rows/*"))]
        (4, 0, ['000000000-000000004.parquet'])
    """
    check_batches(batch_size, rows_per_shard, max_errors)
    if maps not in ("full", "none"):
        raise ValueError(f"expected maps to be 'full' or 'none', got {maps!r}")
    column = None if target in (PREDICTED, LABEL) else target
    setting = setting_of(
        source,
        model,
        out,
        checkpoint=checkpoint,
        card=card,
        target_column=column,
        options=dict(options),
        allowed=ExplainOptions,
    )
    running: Any = {key: options[key] for key in Running.__annotations__ if key in options}  # type: ignore[literal-required]
    chosen = methods_of(setting, methods, layer, running)
    arguments = {
        "target": target,
        "layer": layer,
        "maps": maps,
        "batch_size": batch_size,
        "rows_per_shard": rows_per_shard,
        "thumbnails": thumbnails,
    }
    arguments |= {name: getattr(Running(**running), name) for name in Running.__annotations__}
    check_target(setting, target)
    folder = RunFolder(out, CONTENT, setting.asked(arguments) | {"methods": list(chosen)})
    job = ExplainJob(setting.worker, chosen, target, folder.out, layer, maps == "full", running)
    with folder.held() as manifest:
        shards = shards_of(len(setting.source), batch_size, rows_per_shard)
        done = folder.done(ROWS)
        if not manifest["complete"] or done != set(shards):
            do(
                job,
                setting.decoder(thumbnails=thumbnails),
                shards,
                done,
                folder.out,
                engine=setting.engine,
                batch_size=batch_size,
                max_errors=max_errors,
                progress=progress,
            )
            folder.check_done(ROWS, shards)
            write_failures(folder.out / ALL_ERRORS, failures_of(folder.out, shards))
            folder.finish(manifest)
        shutil.rmtree(folder.out / ERRORS, ignore_errors=True)
        failed = len(read_failures(folder.out / ALL_ERRORS))
    return Finished(folder.out, len(setting.source), failed, manifest)


def check_target(setting: Setting, target: str) -> None:
    """Raise ValueError where labels are to be explained and none are known."""
    if target == LABEL and not setting.source.described()["labelled"]:
        raise ValueError(
            "expected images with labels for target='label', one subfolder a class or a column of them: pass "
            "target='predicted' to explain what the model answers"
        )


def methods_of(
    setting: Setting, methods: str | Iterable[str], layer: str | None, running: RunOptions
) -> tuple[str, ...]:
    """The methods by name, tried on noise: what would fail for every image fails here, and "all" is all that can be.

    Those of very many passes are not tried.
    """
    x = example_inputs(setting.model, setting.card.input_size)[0]
    chosen = []
    for method in find_methods(methods):
        try:
            if method.name not in _LONG:
                explain(setting.model, x, 0, (method.name,), layer=layer, **running)
        except ValueError as error:
            if methods != "all":
                raise
            warnings.warn(f"{method.title} is left out: {error}", stacklevel=3)
            continue
        chosen.append(method.name)
    return tuple(chosen)
