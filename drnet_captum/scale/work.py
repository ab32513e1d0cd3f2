"""The run itself: which shards are left, who does them, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from drnet_captum.scale.decode import Decoder
from drnet_captum.scale.job import Job
from drnet_captum.scale.local_engine import here
from drnet_captum.scale.options import Engine
from drnet_captum.scale.ray_engine import on_ray
from drnet_captum.scale.rows import ALL_ERRORS, ERRORS, failures_of, note_failures, write_failures
from drnet_captum.scale.shards import Shard

Step = Callable[[str, int, int], None]
_NAMED = 3  # failures that an error tells


def do(
    job: Job,
    decoder: Decoder,
    shards: Sequence[Shard],
    done: set[Shard],
    out: Path,
    *,
    engine: Engine,
    batch_size: int,
    max_errors: int,
    progress: Step | None,
    each: Callable[[], object] = lambda: None,
) -> None:
    """Have all shards done that are not.

    Args:
        job, decoder: for the workers.
        shards: all of the run.
        done: those that are complete.
        out: the run's folder.
        engine: where the work is done.
        batch_size: rows explained at once.
        max_errors: failures at which the run goes on; at one more it stops.
        progress: told "images", how many are done, and of how many.
        each: called after each shard.

    Raises:
        ValueError: too many failures.
        OSError: what was found could not be written.
    """
    left = [shard for shard in shards if shard not in done]
    total, count = shards[-1].stop if shards else 0, sum(shard.stop - shard.start for shard in done)
    for shard in left:
        note_failures(out, shard, ())  # of a worker that died before its shard was complete
    known = failures_of(out, done)
    if left and (out / ALL_ERRORS).exists():  # shards of a finished run were lost: what it says of them does not count
        write_failures(out / ALL_ERRORS, known)
    failed = len(known)
    check_failed(failed, max_errors, out)
    if progress is not None:
        progress("images", count, total)
    if not left:
        return
    engines = {"local": here, "ray": on_ray}
    with closing(engines[engine.name](job, decoder, left, batch_size, engine)) as outcomes:
        for outcome in outcomes:
            count += outcome.shard.stop - outcome.shard.start
            failed += outcome.failed
            if progress is not None:
                progress("images", count, total)
            each()
            check_failed(failed, max_errors, out)


def check_failed(failed: int, most: int, out: Path) -> None:
    """Raise ValueError at more failures than are borne."""
    if failed > most:
        noted = [Shard.named(path.name) for path in (out / ERRORS).glob("*.parquet")]
        some = "; ".join(f.reason for f in failures_of(out, [s for s in noted if s is not None])[:_NAMED])
        raise ValueError(
            f"{failed} images failed, more than max_errors={most} ({some} …): all are listed in {out / ERRORS}; "
            "a higher max_errors goes on from here"
        )
