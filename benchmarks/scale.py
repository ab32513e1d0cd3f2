"""Data sets: images a second of the engines and of a loop as one would write it; memory against the number of images.

    python -m benchmarks scale [--quick]

Photos of about 500 × 375 pixels (crops of the embedded ones) as JPEG; the embedded model, Grad-CAM, batches of 32, on
the machine's cores. Each way explains some images, and then several times as many, in turn, round after round: the
rate is that of the images which the second run has more. So it holds all that an image costs, reading, explaining and
writing, and not what it takes to start (a Ray worker imports torch and builds the model), which is told apart.

- loop: a batch is read, explained, and its maps are kept in memory; nothing is written.
- loader: the same, with a ``DataLoader`` of one process that reads ahead.
- local: ``explain_dataset(…, engine="local")``, which reads ahead, measures the maps and writes them.
- ray: the same with ``engine="ray"``, one worker or two, which share the threads.

Peak memory is that of a run in a process of its own; of Ray, of all its processes (proportional set sizes).
"""

from __future__ import annotations

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
        less, more: images of the two runs of a round.
        rounds: of every way.
        few, many: images at which peak memory is looked at.
    """

    less: int = 256
    more: int = 1536
    rounds: int = 3
    few: int = 500
    many: int = 5000


QUICK = Scale(less=32, more=96, rounds=1, few=8, many=16)


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
        less, more = (make_photos(Path(place) / str(count), count) for count in (scale.less, scale.more))
        yield from throughput(less, more, scale, threads)
        yield from costs(less, threads)
        yield from memory(Path(place), scale, threads)


def throughput(less: Path, more: Path, scale: Scale, threads: int) -> Iterator[Row]:
    """Every way in turn; the ratio to the faster loop is that of one round."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ways: dict[str, Callable[[Path], None]] = {
        "loop": partial(loop, threads=threads, readers=0),
        "loader": partial(loop, threads=threads, readers=1),
        "local": partial(dataset, threads=threads),
        "ray, 1 worker": partial(dataset, threads=threads, engine="ray"),
        "ray, 2 workers": partial(dataset, threads=max(1, threads // 2), engine="ray", concurrency=2),
    }
    try:
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(scale.rounds):
            for way, go in ways.items():
                found[way].append((seconds(go, less), seconds(go, more)))
    finally:
        ray.shutdown()
    rates = {way: [(scale.more - scale.less) / (b - a) for a, b in times] for way, times in found.items()}
    loops = list(map(max, rates["loop"], rates["loader"]))
    for way, times in found.items():
        shares = [rate / best for rate, best in zip(rates[way], loops, strict=True)]
        starts = [a - scale.less / rate for (a, _), rate in zip(times, rates[way], strict=True)]
        yield {
            "case": way,
            "measure": "images a second",
            "images": scale.more - scale.less,
            "threads": threads,
            "value": statistics.median(rates[way]),
            "of_loop": statistics.median(shares),
            "least_of_loop": min(shares),
            "most_of_loop": max(shares),
            "start_seconds": statistics.median(starts),
            "rounds": len(times),
        }


def seconds(go: Callable[[Path], None], photos: Path) -> float:
    """Of a run."""
    start = time.perf_counter()
    go(photos)
    return time.perf_counter() - start


def loop(photos: Path, threads: int, readers: int) -> None:
    """The bare loop."""
    model = load_model()
    torch.set_num_threads(threads)
    folder = PhotoFolder(photos, model_card(model), 1000)
    kept: list[Any] = []
    for x, _ in torch.utils.data.DataLoader(folder, BATCH, num_workers=readers):
        kept.append(dc.explain(model, x, methods=METHOD, interpolate_mode="none")[METHOD])


def dataset(photos: Path, **options: Any) -> None:
    """A run into a folder that is then removed."""
    with tempfile.TemporaryDirectory() as out:
        explain_dataset(photos, out=out, batch_size=BATCH, rows_per_shard=SHARD, **options)


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
    with tempfile.TemporaryDirectory() as place:
        distinct, out = make_photos(Path(place) / "photos", DISTINCT), Path(place) / "run"
        explain_dataset(distinct, out=out, batch_size=BATCH, threads=threads)
        size = sum(path.stat().st_size for path in out.glob("rows/*"))
    yield {"case": "rows with Grad-CAM", "measure": "bytes an image", "images": DISTINCT, "value": size / DISTINCT}


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
        dataset(some, engine="local", threads=threads)
    return partial(dataset, photos, engine=engine, threads=threads)


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
