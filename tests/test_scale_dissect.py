"""Data sets dissected shard by shard: the same as in one process, in any order, stopped or not."""

import random
from pathlib import Path

import pytest
import torch
from data_sets import Small, card, make_odd, make_photos, no_room

from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.dissect.run import dissect
from drnet_captum.scale import dissect_dataset
from drnet_captum.scale.dissect_work import DissectWorker, load_part
from drnet_captum.scale.rows import read_failures
from drnet_captum.scale.run_folder import RunFolder
from drnet_captum.scale.shards import shards_of


def run(source, out, model=None, **options):
    options = {"card": card(), "batch_size": 4, "rows_per_shard": 8, "threads": 1, "stimuli": False} | options
    return dissect_dataset(source, model or Small().eval(), out, **options)


def same(found, expected, exactly=False):
    assert found.fingerprint == expected.fingerprint and dict(found.counts) == dict(expected.counts)
    assert found.class_names == expected.class_names and dict(found.images) == dict(expected.images)
    assert [units.layer for units in found.layers] == [units.layer for units in expected.layers]
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        options = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-5, "atol": 1e-9}
        for name, value in theirs.importance.state().items():
            torch.testing.assert_close(mine.importance.state()[name], value, **options)
        (a, keys), (b, other_keys) = mine.exemplars.state(), theirs.exemplars.state()
        assert keys == other_keys and mine.labels == theirs.labels
        for name, value in b.items():
            torch.testing.assert_close(a[name], value, **options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"), 21)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run(photos, out)
    return out


def test_as_from_one_process(photos, whole):
    expected = dissect(Small().eval(), photos, card=card(), stimuli=False, batch_size=4)
    found = Dissection.load(whole)
    same(found, expected)
    assert found.counts == {0: 7, 1: 7, 2: 7}
    assert sorted(path.name for path in whole.iterdir() if not path.name.startswith(".")) == [
        "dissection.json",
        "errors.parquet",
        "images",
        "manifest.json",
        "statistics.safetensors",
    ]


def test_with_stimuli(photos, tmp_path):
    expected = dissect(Small().eval(), photos, card=card(), stimuli=True, batch_size=4)
    finished = run(photos, tmp_path / "run", stimuli=True)
    same(Dissection.load(tmp_path / "run"), expected)
    assert finished.manifest["complete"]


def test_predicted_classes_and_contrasts(photos, tmp_path):
    run(photos, tmp_path / "run", target="predicted", contrasts=[0, 2], score="logit", layers=["features.2"])
    expected = dissect(
        Small().eval(),
        photos,
        card=card(),
        stimuli=False,
        batch_size=4,
        target="predicted",
        contrasts=[0, 2],
        layers=["features.2"],
    )
    found = Dissection.load(tmp_path / "run")
    same(found, expected)
    for u, sums in expected["features.2"].contrasts.items():
        torch.testing.assert_close(found["features.2"].contrasts[u].state(), sums.state(), rtol=1e-5, atol=1e-9)


def test_odd_files_without_labels(tmp_path):
    expected = make_odd(tmp_path / "odd")
    finished = run(tmp_path / "odd", tmp_path / "run")
    assert finished.failed == 3 and sum(Dissection.load(tmp_path / "run").counts.values()) == 5
    assert {failure.path for failure in read_failures(tmp_path / "run/errors.parquet")} == {
        n for n, why in expected.items() if why
    }


def test_not_one_image(tmp_path):
    make_odd(tmp_path / "odd")
    for path in (tmp_path / "odd").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the images could be dissected"):
        run(tmp_path / "odd", tmp_path / "run", rows_per_shard=1)


@pytest.mark.parametrize("stopped_at", [1, 2])
def test_a_run_that_died_goes_on_to_the_same_sums(photos, whole, tmp_path, stopped_at):
    def die(what, done, total):
        if done >= 8 * stopped_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "run", progress=die)
    with pytest.raises(ValueError, match="holds no dissection"):
        Dissection.load(tmp_path / "run")
    run(photos, tmp_path / "run")
    same(Dissection.load(tmp_path / "run"), Dissection.load(whole), exactly=True)


def test_a_full_disk(photos, whole, tmp_path, monkeypatch):
    real, saved = Dissection.save, []

    def save(self, folder):
        saved.append(folder)
        if len(saved) == 2:
            no_room()
        real(self, folder)

    monkeypatch.setattr(Dissection, "save", save)
    with pytest.raises(OSError, match=r"parts/000000008-000000016 could not be written \(No space left"):
        run(photos, tmp_path / "run")
    monkeypatch.setattr(Dissection, "save", real)
    run(photos, tmp_path / "run")
    same(Dissection.load(tmp_path / "run"), Dissection.load(whole), exactly=True)


def test_a_shard_that_is_done_twice(photos, whole, tmp_path, monkeypatch):
    """As when a worker is killed after it wrote: the first folder stays, and the run goes on."""
    real = DissectWorker.__call__

    def twice(self, shard, batches):
        batches = list(batches)
        real(self, shard, batches)
        return real(self, shard, batches)

    monkeypatch.setattr(DissectWorker, "__call__", twice)
    run(photos, tmp_path / "run")
    same(Dissection.load(tmp_path / "run"), Dissection.load(whole), exactly=True)
    assert not list((tmp_path / "run").rglob("*.part*"))


def test_a_run_that_died_while_its_result_was_laid_down(photos, whole, tmp_path, monkeypatch):
    real = Path.replace

    def stop(self, target):
        if Path(target).name == "dissection.json" and "part" in str(self.parent):
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path / "run")
    run(photos, tmp_path / "run")
    same(Dissection.load(tmp_path / "run"), Dissection.load(whole), exactly=True)


def test_groups_of_shards(photos, whole, tmp_path, monkeypatch):
    """Parts are added up on the way, an interrupted addition is done again, and nothing counts twice."""
    monkeypatch.setattr("drnet_captum.scale.parts.GROUP", 2)
    seen, stopped = [], []

    def look(what, done, total):
        seen.append((done, sorted(path.name for path in (tmp_path / "run").glob("*/0*"))))
        if done == 16 and not stopped:
            stopped.append(done)
            raise KeyboardInterrupt  # before the second shard's group is made

    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "run", progress=look)
    run(photos, tmp_path / "run", progress=look)
    assert seen[-1] == (21, ["000000000-000000016", "000000016-000000021"])
    same(Dissection.load(tmp_path / "run"), Dissection.load(whole))


def test_any_order_is_the_same(photos, tmp_path):
    shards = shards_of(21, 4, 4)
    job_out = tmp_path / "run"

    def keep(what, done, total):
        if done == total:
            raise KeyboardInterrupt  # with all parts there

    with pytest.raises(KeyboardInterrupt):
        run(photos, job_out, rows_per_shard=4, progress=keep)
    parts = [load_part(job_out / "parts" / shard.name) for shard in shards]
    expected = sum(parts)
    for seed in range(4):
        mixed = random.Random(seed).sample(parts, len(parts))
        same(sum(mixed), expected)
        left = sum(mixed[:2]) + sum(mixed[2:])
        same(left, expected)


def test_emptied(photos):
    dissector = Dissector(Small().eval(), card=card())
    x = torch.rand(3, 3, 32, 32)
    dissector.update(x, torch.tensor([0, 1, 1]))
    other = dissector.emptied()
    assert other.images_seen == 0 and [s.layer for s in other.sites] == [s.layer for s in dissector.sites]
    other.update(x, torch.tensor([0, 1, 1]))
    same(other.result(), dissector.result(), exactly=True)


def test_folder_of_an_explanation_is_refused(photos, tmp_path):
    RunFolder(tmp_path / "run", "drnet_captum explanations", {"model": {"name": "small"}}).held().__enter__()
    with pytest.raises(ValueError, match="content: 'drnet_captum explanations' there"):
        run(photos, tmp_path / "run")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target": "cat"}, "expected target to be 'label' or 'predicted', got 'cat'"),
        ({"boxes": "boxes.json"}, "boxes have no part in a dissection"),
        ({"layers": ["nowhere"]}, "nowhere"),
        ({"layers": "features.0"}, "a list of at least one name, got 'features.0'"),
        ({"contrasts": [1]}, "contrast"),
        ({"exemplars": 0}, "at least 1"),
    ],
)
def test_mistakes_are_told_at_the_door(photos, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(photos, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
