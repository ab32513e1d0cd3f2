"""On a small Ray cluster: the same rows as in one process, and processes that are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from data_sets import Small, card, make_odd, make_photos, map_of, no_room, rows_of

from drnet_captum.dissect.dissection import Dissection
from drnet_captum.scale import dissect_dataset, explain_dataset

OPTIONS = {"methods": ("grad_cam", "saliency"), "batch_size": 4, "rows_per_shard": 8, "threads": 1}

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Slow(Small):
    """Takes its time, and says which process it runs in."""

    def __init__(self, notes, seconds):
        super().__init__()
        self.notes, self.seconds = notes, seconds

    def forward(self, x):
        (Path(self.notes) / str(os.getpid())).touch()
        time.sleep(self.seconds if len(x) > 1 else 0)
        return super().forward(x)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}  # for the models of these tests
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(num_cpus=3, runtime_env={"env_vars": paths}, **options)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = make_photos(tmp_path_factory.mktemp("photos"), 45)
    (folder / "bar/broken.jpg").write_text("not an image")
    return folder


def explained(photos, out, model=None, **options):
    return explain_dataset(photos, model or Small().eval(), out=out, card=card(), **(OPTIONS | options))


@pytest.fixture(scope="module")
def local(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "run"
    explained(photos, out)
    return out


def alike(rows, expected):
    assert [row["index"] for row in rows] == [row["index"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name in ("path", "label", "predicted", "target", "thumbnail"):
            assert row[name] == other[name]
        for name in ("grad_cam", "saliency"):
            torch.testing.assert_close(
                map_of(row, name), map_of(other, name), rtol=2e-3, atol=2e-3 * other[f"{name}_scale"]
            )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_rows_of_one_process(photos, local, tmp_path, workers):
    finished = explained(photos, tmp_path / "run", engine="ray", concurrency=workers)
    alike(rows_of(tmp_path / "run"), rows_of(local))
    assert finished.images == 46 and finished.failed == 1
    assert sorted(path.name for path in (tmp_path / "run/rows").iterdir()) == sorted(
        path.name for path in (local / "rows").iterdir()
    )


def test_a_run_begun_by_one_engine_goes_on_with_another(photos, local, tmp_path):
    def die(what, done, total):
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explained(photos, tmp_path / "run", progress=die)
    explained(photos, tmp_path / "run", engine="ray", concurrency=2)
    alike(rows_of(tmp_path / "run"), rows_of(local))


@pytest.mark.parametrize("workers", [1, 2])
def test_dissection_by_workers(photos, tmp_path, workers):
    options = {"card": card(), "stimuli": False, "batch_size": 4, "rows_per_shard": 8, "threads": 1}
    dissect_dataset(photos, Small().eval(), tmp_path / "local", **options)
    dissect_dataset(photos, Small().eval(), tmp_path / "run", engine="ray", concurrency=workers, **options)
    found, expected = Dissection.load(tmp_path / "run"), Dissection.load(tmp_path / "local")
    assert dict(found.counts) == dict(expected.counts)
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(mine.importance.signed, theirs.importance.signed, rtol=1e-5, atol=1e-8)
        assert mine.exemplars.state()[1] == theirs.exemplars.state()[1]


def test_a_worker_that_is_killed(photos, local, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    killed = []

    def kill(what, done, total):
        pids = {int(path.name) for path in notes.iterdir()} - {os.getpid()}
        if done >= 8 and not killed:
            killed.append(pids.pop())
            os.kill(killed[0], signal.SIGKILL)

    explained(
        photos, tmp_path / "run", Slow(str(notes), 0.1).eval(), engine="ray", concurrency=1, maps="full", progress=kill
    )
    assert killed and len({path.name for path in notes.iterdir()} - {str(os.getpid())}) == 2
    alike(rows_of(tmp_path / "run"), rows_of(local))


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from data_sets import card
from drnet_captum.scale import explain_dataset
from test_scale_ray import OPTIONS, Slow
if __name__ == "__main__":
    explain_dataset({photos!r}, Slow({notes!r}, 0.6).eval(), out={out!r}, card=card(), engine={engine!r}, **OPTIONS)
"""


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_driver_that_is_killed(photos, tmp_path, engine):
    """The same rows, to the last bit, as of a run that nobody killed."""
    places = {name: tmp_path / name for name in ("notes", "killed", "whole")}
    places["notes"].mkdir()
    code = DRIVER.format(
        tests=str(Path(__file__).parent),
        photos=str(photos),
        notes=str(places["notes"]),
        out=str(places["killed"]),
        engine=engine,
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    rows = places["killed"] / "rows"
    deadline = time.monotonic() + 120
    while len(list(rows.glob("0*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    assert 2 <= len(list(rows.glob("0*"))) < 6
    process.wait()
    time.sleep(1)  # a worker may end the shard that it is at
    slow = Slow(str(places["notes"]), 0.0).eval()
    explained(photos, places["killed"], slow, engine=engine)
    explained(photos, places["whole"], slow, engine=engine)
    assert rows_of(places["killed"]) == rows_of(places["whole"])


def test_an_error_on_a_worker_is_told_as_it_was(photos, tmp_path):
    class Full(Small):
        def forward(self, x):
            if len(x) > 1:
                no_room()
            return super().forward(x)

    with pytest.raises(OSError, match="No space left on device"):
        explained(photos, tmp_path / "run", Full().eval(), engine="ray")


def test_gpus_that_are_not_there(photos, tmp_path):
    with pytest.raises(ValueError, match="expected a cluster with 2 GPUs for 2 workers, got 0"):
        explained(photos, tmp_path / "run", engine="ray", concurrency=2, num_gpus=1, device="cpu")


def test_too_many_failures(tmp_path):
    make_odd(tmp_path / "odd")
    with pytest.raises(ValueError, match="3 images failed, more than max_errors=1"):
        explained(tmp_path / "odd", tmp_path / "run", engine="ray", max_errors=1)
