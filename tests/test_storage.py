"""Dissections saved and loaded: whole, damaged, and when the writer fails half way."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_dissection import assert_same, dissection

from drnet_captum.dissect import storage
from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.labels import UNLABELLED, UnitLabel


def full() -> Dissection:
    a = dissection(0) + dissection(1)
    words = {"text": (UnitLabel("wheel ⌀", "word", 0.1 + 0.2), UNLABELLED)}
    return replace(a, layers=(a.layers[0], replace(a.layers[1], concepts=words)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    full().save(tmp_path / "shard")
    return tmp_path / "shard"


def edit(folder: Path, **changes: Any) -> None:
    described = json.loads((folder / "dissection.json").read_text())
    (folder / "dissection.json").write_text(json.dumps(described | changes))


# There and back


@pytest.mark.parametrize("kind", [str, Path])
def test_round_trip(tmp_path: Path, kind: type) -> None:
    a = full()
    a.save(kind(tmp_path / "new" / "shard"))
    loaded = Dissection.load(kind(tmp_path / "new" / "shard"))
    assert_same(loaded, a)
    assert_same(loaded + dissection(2), a + dissection(2), 1e-12)
    assert os.listdir(tmp_path / "new") == ["shard"]


def test_round_trip_of_the_least(tmp_path: Path) -> None:
    a = dissection(images=0, class_names=None).without_labels()
    a.save(tmp_path / "a")
    assert_same(Dissection.load(tmp_path / "a"), a)
    assert a.images == {}


def test_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    full().save("shard")
    assert_same(Dissection.load("shard"), full())


def test_equal_dissections_give_equal_bytes(saved: Path, tmp_path: Path) -> None:
    Dissection.load(saved).save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(saved)
    replace(full(), images=dict(reversed(full().images.items()))).save(tmp_path / "reversed")
    assert contents(tmp_path / "reversed") == contents(saved)
    # Also when the sum was made in another order, where it is exact.
    a, b = dissection(0), dissection(1)
    (a + b).save(tmp_path / "ab")
    (b + a).save(tmp_path / "ba")
    for name, held in contents(tmp_path / "ab").items():
        assert name == "statistics.safetensors" or held == contents(tmp_path / "ba")[name]


def test_no_pickle_and_readable_by_others(saved: Path) -> None:
    assert {Path(name).suffix for name in contents(saved)} == {".json", ".safetensors", ".jpg"}
    umask = os.umask(0)
    os.umask(umask)
    assert saved.stat().st_mode & 0o777 == 0o777 & ~umask


def test_loaded_statistics_can_be_replaced_on_disk(saved: Path) -> None:
    loaded = Dissection.load(saved)
    dissection(2).save(saved)
    assert_same(loaded, full())


def test_unknown_fields_are_passed_over(saved: Path) -> None:
    layers = json.loads((saved / "dissection.json").read_text())["layers"]
    edit(saved, novelty=1, layers=[layer | {"novelty": [2]} for layer in layers])
    assert_same(Dissection.load(saved), full())


# Replacing


def test_a_dissection_is_replaced_as_a_whole(saved: Path) -> None:
    other = dissection(2)
    other.save(saved)
    assert_same(Dissection.load(saved), other)
    assert {path.stem for path in (saved / "images").iterdir()} == set(other.images)
    assert os.listdir(saved.parent) == ["shard"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    full().save(tmp_path / "empty")
    assert_same(Dissection.load(tmp_path / "empty"), full())


@pytest.mark.parametrize("failing", ["write_bytes", "write_text", "rename"])
def test_a_failing_writer_leaves_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    before = contents(saved)
    calls: list[Path] = []
    own = getattr(Path, failing)

    def fail(path: Path, *args: Any, **options: Any) -> Any:
        calls.append(path)
        if failing == "rename" and path.suffix != ".new":
            return own(path, *args, **options)
        if failing == "write_bytes" and len(calls) < 3:
            return own(path, *args, **options)
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, failing, fail)
        with pytest.raises(OSError, match="no space left"):
            dissection(2).save(saved)
    assert len(calls) >= 1
    assert contents(saved) == before
    assert os.listdir(saved.parent) == ["shard"]


def test_an_interrupted_first_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(tensors: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        full().save(tmp_path / "shard")
    assert os.listdir(tmp_path) == []


def test_what_is_no_dissection_is_not_replaced(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file: name a folder"):
        full().save(tmp_path / "file")
    others = (("notes.txt", "mine"), ("dissection.json", "{}"), ("dissection.json", "[1"), ("images", None))
    for number, (name, held) in enumerate(others):
        place = tmp_path / f"other{number}"
        place.mkdir()
        (place / name).mkdir() if held is None else (place / name).write_text(held)
        before = contents(place)
        with pytest.raises(ValueError, match=f"{place}"):
            full().save(place)
        assert contents(place) == before
    (saved / "images" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds images/notes\.txt, which is no part of a dissection"):
        full().save(saved)
    assert (saved / "images" / "notes.txt").read_text() == "mine"


def test_keys_that_lead_elsewhere_are_refused(saved: Path, tmp_path: Path) -> None:
    for key in ("../../outside", "a/b", "", "a.b"):
        with pytest.raises(ValueError, match="image keys of letters"):
            replace(full(), images={key: b""}).save(tmp_path / "evil")
        edit(saved, images={key: 0})
        with pytest.raises(ValueError, match="is no image key"):
            Dissection.load(saved)
    assert not (tmp_path / "evil").exists()


def test_numbers_that_json_has_not_are_refused(tmp_path: Path) -> None:
    a = full()
    wrong = replace(a.layers[1], concepts={"text": (UnitLabel("wheel", "word", float("nan")), UNLABELLED)})
    with pytest.raises(ValueError, match="JSON"):
        replace(a, layers=(a.layers[0], wrong)).save(tmp_path / "shard")
    assert os.listdir(tmp_path) == []


# Damage


def truncate(path: Path, keep: float) -> None:
    held = path.read_bytes()
    path.write_bytes(held[: int(len(held) * keep)])


@pytest.mark.parametrize("keep", [0, 0.001, 0.5, 0.999])
def test_truncated_files(saved: Path, keep: float) -> None:
    image = sorted((saved / "images").iterdir())[0]
    for path in (image, saved / "statistics.safetensors", saved / "dissection.json"):
        held = path.read_bytes()
        truncate(path, keep)
        with pytest.raises(ValueError, match=f"{saved}.* damaged .*copy it again"):
            Dissection.load(saved)
        path.write_bytes(held)
    assert_same(Dissection.load(saved), full())


def test_missing_files(saved: Path) -> None:
    sorted((saved / "images").iterdir())[0].unlink()
    with pytest.raises(ValueError, match=f"{saved} is damaged .*jpg.*copy it again"):
        Dissection.load(saved)
    (saved / "statistics.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{saved} is damaged .*copy it again"):
        Dissection.load(saved)
    (saved / "dissection.json").unlink()
    with pytest.raises(ValueError, match=f"{saved} holds no dissection"):
        Dissection.load(saved)
    with pytest.raises(FileNotFoundError, match=r"no folder at .*nowhere"):
        Dissection.load(saved / "nowhere")


def test_statistics_of_other_shapes(saved: Path) -> None:
    path = saved / "statistics.safetensors"
    held = safetensors.torch.load(path.read_bytes())
    for name, tensor in held.items():
        for wrong in (None, torch.zeros(*tensor.shape, 2), torch.zeros(9, 9, dtype=tensor.dtype)):
            changed = {n: t for n, t in held.items() if n != name} | ({} if wrong is None else {name: wrong})
            path.write_bytes(safetensors.torch.save(changed))
            with pytest.raises(ValueError, match=f"{saved} is damaged .*dissect again"):
                Dissection.load(saved)


def test_descriptions_that_lack_something(saved: Path) -> None:
    described = json.loads((saved / "dissection.json").read_text())
    for field in described.keys() - {"content", "format", "library"}:
        for wrong in ({}, {field: 3}):
            changed = {name: value for name, value in described.items() if name != field} | wrong
            (saved / "dissection.json").write_text(json.dumps(changed))
            if field in ("model", "fingerprint") and wrong:
                continue
            with pytest.raises(ValueError, match=f"{saved} is damaged"):
                Dissection.load(saved)
    for field in described["layers"][0]:
        layers = [{name: value for name, value in layer.items() if name != field} for layer in described["layers"]]
        (saved / "dissection.json").write_text(json.dumps(described | {"layers": layers}))
        with pytest.raises(ValueError, match=f"damaged .'{field}' is missing"):
            Dissection.load(saved)


def test_other_versions_and_other_files(saved: Path) -> None:
    edit(saved, format=2, library="9.0")
    with pytest.raises(ValueError, match=r"format 2 of drnet_captum 9\.0, this version reads 1: update drnet_captum"):
        Dissection.load(saved)
    edit(saved, content="cat pictures")
    with pytest.raises(ValueError, match="not the description of a dissection"):
        Dissection.load(saved)
    (saved / "dissection.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="not the description of a dissection"):
        storage.load(saved)
