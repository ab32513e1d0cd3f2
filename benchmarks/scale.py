"""Data sets: images a second of the engines and of a loop as one would write it; memory against the number of images.

    python -m benchmarks scale [--quick]

Photos of about 500 × 375 pixels (crops of the embedded ones) as JPEG; the embedded model, Grad-CAM, batches of 32, on
the machine's cores. Each way explains all images in turn, round after round. What it takes to start (a Ray worker
imports torch and builds the model) is told apart: the rate is that between the first shard and the last one.

- loop: a batch is read, explained, and its maps are kept in memory; nothing is written.
- loader: the same, with a ``DataLoader`` of one process that reads ahead.
- local: ``explain_dataset(…, engine="local")``, which reads ahead, measures the maps and writes them.
- ray: the same with ``engine="ray"``, one worker or two, which share the threads.

Peak memory is that of a run in a process of its own; of Ray, of all its processes (proportional set sizes).
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import drnet_captum as dc
from benchmarks.options import Options
from benchmarks.pairs import environment
from benchmarks.peaks import peak_alone
from benchmarks.records import Row
from benchmarks.trees import peak_of_tree
from drnet_captum.data import embedded_photos, load_image, load_model, model_card
from drnet_captum.dissect.photos import PhotoFolder
from drnet_captum.scale import explain_dataset

BATCH, SHARD = 32, 128
METHOD = "grad_cam"
DISTINCT = 64  # photos; more are links to them
SIZE = (500, 375)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        images: of a round.
        rounds: of every way.
        few, many: images at which peak memory is looked at.
    """

    images: int = 1024
    rounds: int = 5
    few: int = 500
    many: int = 5000


QUICK = Scale(images=256, rounds=1, few=8, many=16)


@dataclass(frozen=True)
class Pace:
    """One run: images a second once it is at work, and seconds of all of it."""

    rate: float
    seconds: float


def run(options: Options) -> tuple[dict[str, Any], Iterator[Row]]:
    """The environment, and the rows as they are found."""
    scale = QUICK if options.quick else Scale()
    where = environment(options.device, options.dtype, options.seed)
    return where | {"model": "embedded (SqueezeNet 1.1)", "method": METHOD, "batch_size": BATCH, "photo": SIZE}, rows(
        scale
    )


def rows(scale: Scale) -> Iterator[Row]:
    """Throughput, memory, and what an image takes by itself."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as place:
        photos = make_photos(Path(place) / "photos", scale.images)
        yield from throughput(photos, scale, threads)
        yield from costs(photos, threads)
        yield from memory(Path(place), scale, threads)


def throughput(photos: Path, scale: Scale, threads: int) -> Iterator[Row]:
    """Every way in turn; the ratio to the faster loop is that of one round."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ways: dict[str, Callable[[], Pace]] = {
        "loop": partial(loop, photos, threads, 0),
        "loader": partial(loop, photos, threads, 1),
        "local": partial(dataset, photos, threads=threads),
        "ray, 1 worker": partial(dataset, photos, threads=threads, engine="ray"),
        "ray, 2 workers": partial(dataset, photos, threads=max(1, threads // 2), engine="ray", concurrency=2),
    }
    try:
        found: dict[str, list[Pace]] = {way: [] for way in ways}
        for _ in range(scale.rounds):
            for way, go in ways.items():
                found[way].append(go())
    finally:
        ray.shutdown()
    loops = [max(a.rate, b.rate) for a, b in zip(found["loop"], found["loader"], strict=True)]
    for way, paces in found.items():
        shares = [pace.rate / best for pace, best in zip(paces, loops, strict=True)]
        yield {
            "case": way,
            "measure": "images a second",
            "images": scale.images,
            "threads": threads,
            "value": statistics.median(pace.rate for pace in paces),
            "of_loop": statistics.median(shares),
            "least_of_loop": min(shares),
            "most_of_loop": max(shares),
            "seconds": statistics.median(pace.seconds for pace in paces),
            "rounds": len(paces),
        }


def loop(photos: Path, threads: int, readers: int) -> Pace:
    """The bare loop."""
    start, model, marks = time.perf_counter(), load_model(), []
    card = model_card(model)
    torch.set_num_threads(threads)
    folder = PhotoFolder(photos, card, 1000)
    kept: list[Any] = []
    for x, _ in torch.utils.data.DataLoader(folder, BATCH, num_workers=readers):
        kept.append(dc.explain(model, x, methods=METHOD, interpolate_mode="none")[METHOD])
        marks.append((sum(map(len, kept)), time.perf_counter()))
    return pace(start, marks)


def dataset(photos: Path, **options: Any) -> Pace:
    """A run into a folder that is then removed."""
    marks: list[tuple[int, float]] = []
    out = Path(tempfile.mkdtemp())
    start = time.perf_counter()
    try:
        explain_dataset(
            photos,
            out=out,
            batch_size=BATCH,
            rows_per_shard=SHARD,
            progress=lambda what, done, total: marks.append((done, time.perf_counter())),
            **options,
        )
    finally:
        shutil.rmtree(out)
    return pace(start, [mark for mark in marks if mark[0]])


def pace(start: float, marks: list[tuple[int, float]]) -> Pace:
    """From (images done, when).

    Example:
        >>> pace(0.0, [(32, 10.0), (64, 12.0), (96, 14.0)])
        Pace(rate=16.0, seconds=14.0)
    """
    (first, began), (last, ended) = marks[0], marks[-1]
    return Pace((last - first) / (ended - began), ended - start)


def costs(photos: Path, threads: int) -> Iterator[Row]:
    """What one image takes of a core to decode, and of the disk."""
    card = model_card(load_model())
    some = sorted(photos.iterdir())[: 2 * BATCH]
    torch.set_num_threads(1)
    start = time.perf_counter()
    for path in some:
        card.transform(load_image(path))
    each = (time.perf_counter() - start) / len(some)
    torch.set_num_threads(threads)
    yield {"case": "decode and transform", "measure": "core seconds an image", "images": len(some), "value": each}
    with tempfile.TemporaryDirectory() as out:
        explain_dataset(photos, out=out, batch_size=BATCH, threads=threads)
        size = sum(path.stat().st_size for path in Path(out).glob("rows/*"))
        count = len(list(photos.iterdir()))
    yield {"case": "rows with Grad-CAM", "measure": "bytes an image", "images": count, "value": size / count}


def memory(place: Path, scale: Scale, threads: int) -> Iterator[Row]:
    """Peak memory at few images and at many."""
    for count in (scale.few, scale.many):
        photos = make_photos(place / f"photos{count}", count)
        for engine, measured in (("local", peak_alone), ("ray", peak_of_tree)):
            mib = measured(prepared, photos, engine, threads)
            yield {"case": engine, "measure": "peak memory, MiB", "images": count, "threads": threads, "value": mib}


def prepared(photos: Path, engine: str, threads: int) -> Callable[[], Any]:
    """A run, after one of a batch for what is loaded once."""
    with tempfile.TemporaryDirectory() as warm:
        some = Path(warm) / "photos"
        some.mkdir()
        for path in sorted(photos.iterdir())[:BATCH]:
            (some / path.name).hardlink_to(path)
        dataset_once(some, engine="local", threads=threads)
    return partial(dataset_once, photos, engine=engine, threads=threads)


def dataset_once(photos: Path, **options: Any) -> None:
    """A run whose results are dropped."""
    with tempfile.TemporaryDirectory() as out:
        explain_dataset(photos, out=Path(out) / "run", batch_size=BATCH, rows_per_shard=SHARD, **options)


def make_photos(folder: Path, count: int) -> Path:
    """Crops of the embedded photos, flat."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    wholes = [load_image(path) for path in embedded_photos().values()]
    for number in range(min(count, DISTINCT)):
        whole = wholes[number % len(wholes)]
        width, height = whole.size
        left, top = (int(draw.integers(0, side // 4)) for side in (width, height))
        crop = whole.crop((left, top, left + 3 * width // 4, top + 3 * height // 4))
        crop.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:06d}.jpg", quality=90)
    for number in range(DISTINCT, count):
        (folder / f"{number:06d}.jpg").hardlink_to(folder / f"{number % DISTINCT:06d}.jpg")
    return folder
