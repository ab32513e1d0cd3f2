"""Runs over data sets that stop and go on, and those that must not be mixed: the same rows, none twice or missing."""

import fcntl
import json
import shutil
from dataclasses import replace

import pyarrow.parquet as parquet
import pytest
from data_sets import MEAN, METHODS, STD, Small, card, explain_small, make_odd, no_room, rows_of
from PIL import Image
from torchvision import transforms

from drnet_captum.scale import decode, explain_dataset
from drnet_captum.scale.rows import Failure, note_failures, read_failures
from drnet_captum.scale.shards import Shard


@pytest.mark.parametrize("stopped_at", [1, 2])
def test_a_run_that_died_goes_on_to_the_same_rows(labelled_photos, explained_photos, tmp_path, monkeypatch, stopped_at):
    def die(what, done, total):
        if done >= 8 * stopped_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explain_small(labelled_photos, tmp_path / "run", progress=die)
    assert len(list((tmp_path / "run/rows").iterdir())) == stopped_at
    assert not json.loads((tmp_path / "run/manifest.json").read_text())["complete"]
    (tmp_path / "run/rows/.000000016-000000021.parquet.abc.part").write_text("half")
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/rows").glob("0*")}
    told = []
    explain_small(
        labelled_photos,
        tmp_path / "run",
        threads=None,
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert told[0] == ("images", 8 * stopped_at, 21) and told[-1] == ("images", 21, 21)
    assert rows_of(tmp_path / "run") == rows_of(explained_photos)
    assert {path.name for path in (tmp_path / "run/rows").iterdir()} == {
        path.name for path in (explained_photos / "rows").iterdir()
    }
    assert all((tmp_path / "run/rows" / name).stat().st_mtime_ns == at for name, at in done.items())


def test_a_finished_run_is_not_done_again(labelled_photos, explained_photos, tmp_path, monkeypatch):
    monkeypatch.setattr("drnet_captum.scale.explanation_run.do", lambda *args, **kwargs: pytest.fail("done again"))
    finished = explain_small(labelled_photos, explained_photos)
    assert finished.images == 21 and finished.failed == 0 and finished.manifest["complete"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"methods": "grad_cam"}, r"methods: \['grad_cam', 'saliency'\] there, \['grad_cam'\] here"),
        ({"batch_size": 8}, "arguments.batch_size: 4 there, 8 here"),
        ({"maps": "none"}, "arguments.maps: 'full' there, 'none' here"),
        ({"threads": 2}, "arguments.threads: 1 there, 2 here"),
        ({"layer": "features.1"}, "arguments.layer: None there, 'features.1' here"),
        ({"precision": "bfloat16"}, "arguments.precision: None there, 'bfloat16' here"),
    ],
)
def test_other_arguments_are_refused(labelled_photos, explained_photos, options, message):
    before = (explained_photos / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        explain_small(labelled_photos, explained_photos, **options)
    assert (explained_photos / "manifest.json").read_bytes() == before


def test_other_images_or_weights_are_refused(labelled_photos, explained_photos, tmp_path):
    shutil.copytree(labelled_photos, tmp_path / "photos")
    next((tmp_path / "photos").rglob("*.jpg")).unlink()
    with pytest.raises(ValueError, match=r"source\.fingerprint"):
        explain_small(tmp_path / "photos", explained_photos)
    model = Small().eval()
    model.head.weight.data[0, 0] += 1
    with pytest.raises(ValueError, match=r"model\.fingerprint"):
        explain_dataset(
            labelled_photos,
            model,
            METHODS,
            out=explained_photos,
            card=card(),
            batch_size=4,
            rows_per_shard=8,
            threads=1,
        )


def test_a_worker_that_died_between_its_two_files(tmp_path):
    """What it noted of failures counts once, and not at all where the images can be read now."""
    make_odd(tmp_path / "odd")
    with pytest.raises(ValueError, match="3 images failed"):
        explain_small(tmp_path / "odd", tmp_path / "run", max_errors=1)
    (rows,) = (tmp_path / "run/rows").iterdir()
    rows.unlink()
    assert explain_small(tmp_path / "odd", tmp_path / "run", max_errors=3).failed == 3
    assert len(rows_of(tmp_path / "run")) == 5


def test_failures_of_an_earlier_try_do_not_stay(labelled_photos, explained_photos, tmp_path):
    """A worker noted some, and died before it had written the shard's rows; now all can be read."""
    out = shutil.copytree(explained_photos, tmp_path / "run")
    lost = sorted((out / "rows").iterdir())[1]
    lost.unlink()
    note_failures(out, Shard.named(lost.name), [Failure(9, "9.jpg", "no more")])
    assert explain_small(labelled_photos, out).failed == 0
    assert rows_of(out) == rows_of(explained_photos)


def test_a_shard_that_is_lost_is_done_again(tmp_path):
    """What failed in the others stays noted."""
    expected = make_odd(tmp_path / "odd")
    options = {"batch_size": 2, "rows_per_shard": 2}
    explain_small(tmp_path / "odd", tmp_path / "run", **options)
    before = rows_of(tmp_path / "run")
    (tmp_path / "run/rows/000000002-000000004.parquet").unlink()
    finished = explain_small(tmp_path / "odd", tmp_path / "run", **options)
    assert rows_of(tmp_path / "run") == before and finished.failed == 3
    failures = read_failures(tmp_path / "run/errors.parquet")
    assert [failure.path for failure in failures] == [name for name, why in expected.items() if why]


def test_a_lost_shard_whose_images_can_be_read_now(tmp_path):
    """What failed in it before is no longer an error: no image is both a row and a failure."""
    make_odd(tmp_path / "odd")
    options = {"batch_size": 2, "rows_per_shard": 2}
    explain_small(tmp_path / "odd", tmp_path / "run", **options)
    lost = [shard for shard in (tmp_path / "run/rows").iterdir() if parquet.read_metadata(shard).num_rows < 2]
    for shard in lost:
        shard.unlink()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decode, "decode_image", lambda data, name: Image.new("RGB", (40, 40), "red"))
        assert explain_small(tmp_path / "odd", tmp_path / "run", **options).failed == 0
    assert [row["index"] for row in rows_of(tmp_path / "run")] == list(range(8))


def test_another_card_is_refused(labelled_photos, explained_photos):
    stretched = transforms.Compose(
        [transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    other = replace(card(), transform=stretched)
    with pytest.raises(ValueError, match=r"model\.transform"):
        explain_small(labelled_photos, explained_photos, card=other)
    with pytest.raises(ValueError, match=r"model\.training: False there, True here"), pytest.warns(match="train mode"):
        explain_dataset(
            labelled_photos,
            Small(),
            METHODS,
            out=explained_photos,
            card=card(),
            batch_size=4,
            rows_per_shard=8,
            threads=1,
        )


def test_shards_that_are_somewhere_else(labelled_photos, tmp_path, monkeypatch):
    """As when a worker's disk is not this one's: the run does not end as if all were there."""
    monkeypatch.setattr("drnet_captum.scale.explainer.write_rows", lambda *args: None)
    with pytest.raises(OSError, match=r"3 of 3 shards were written and are not in .*share"):
        explain_small(labelled_photos, tmp_path / "run")
    assert not json.loads((tmp_path / "run/manifest.json").read_text())["complete"]


def test_a_full_disk(labelled_photos, explained_photos, tmp_path, monkeypatch):
    """The first shard is explained_photos, the second one is not there, and the run goes on when there is room."""
    written, real = [], parquet.write_table

    def write(table, where, **options):
        written.append(where)
        if len(written) == 2:
            where.write_bytes(b"half")
            no_room()
        real(table, where, **options)

    monkeypatch.setattr(parquet, "write_table", write)
    with pytest.raises(OSError, match=r"000000016\.parquet could not be written \(No space left.*make room") as caught:
        explain_small(labelled_photos, tmp_path / "run")
    assert caught.value.errno == 28
    assert [path.name for path in (tmp_path / "run/rows").iterdir()] == ["000000000-000000008.parquet"]
    monkeypatch.setattr(parquet, "write_table", real)
    explain_small(labelled_photos, tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(explained_photos)


def test_two_at_one_folder(labelled_photos, tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process writes to"):
            explain_small(labelled_photos, tmp_path / "run")
    explain_small(labelled_photos, tmp_path / "run", methods="grad_cam", maps="none")


def test_folders_of_something_else_are_left_alone(labelled_photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"holds thesis\.txt and no run"):
        explain_small(labelled_photos, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="got the file"):
        explain_small(labelled_photos, tmp_path / "file")
    (tmp_path / "mine/manifest.json").write_text('{"content": "of a ship"}')
    with pytest.raises(ValueError, match="not the manifest of a run"):
        explain_small(labelled_photos, tmp_path / "mine")
