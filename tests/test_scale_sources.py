"""Sources of images of every kind: what their rows give, when the fingerprint changes, and where they are found."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from sources import IMAGES, KINDS, LABELS, encoded, made, parquet, records, source, tar, write

from drnet_captum.data import decode_image, embedded_photos, load_image

# What all kinds have in common


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_rows_are_the_images_in_order(kind: str, tmp_path: Path) -> None:
    found = source(made(kind, tmp_path))
    assert [(r.index, r.data, r.label) for r in records(found)] == list(zip(range(7), IMAGES, LABELS, strict=True))
    assert {(r.target, r.boxes, r.problem) for r in records(found)} == {(None, None, None)}
    assert len({r.path for r in records(found)}) == len(found) == 7


def test_paths_name_the_images(kind: str, tmp_path: Path) -> None:
    expected = {
        "folder": "2/photo-4.png",
        "bytes": "photo-1.parquet#0",
        "struct": "photo-1.parquet#0",
        "paths": "../images/photo-4.png",
        "webdataset": "1.tar/photo-4.png",
    }
    assert records(source(made(kind, tmp_path)))[4].path == expected[kind]


def test_any_split_gives_the_same(kind: str, tmp_path: Path) -> None:
    found = source(made(kind, tmp_path))
    whole = records(found)
    for start in range(8):
        for stop in range(start, 8):
            assert list(found.read(start, stop)) == whole[start:stop]


def test_a_source_is_longer_than_what_is_looked_at_together(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drnet_captum.scale.source._CHUNK", 3)
    test_any_split_gives_the_same(kind, tmp_path)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 8)])
def test_rows_that_are_not_there(kind: str, tmp_path: Path, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=rf"expected rows from 0 up to 7, got {start} up to {stop}"):
        source(made(kind, tmp_path)).read(start, stop)


def test_pickled_it_reads_the_same_and_holds_no_image(kind: str, tmp_path: Path) -> None:
    found = source(made(kind, tmp_path, [encoded(seed, 96) for seed in range(7)]))
    pickled = pickle.dumps(found)
    assert len(pickled) < len(encoded(0, 96)) / 4
    again = pickle.loads(pickled)
    assert records(again) == records(found)
    assert again.described() == found.described()


def test_described(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = made(kind, tmp_path)
    monkeypatch.chdir(place.parent)
    found = source(place.name)
    assert json.loads(json.dumps(found.described())) == {
        "kind": {"bytes": "parquet", "struct": "parquet", "paths": "parquet"}.get(kind, kind),
        "root": str(place),
        "images": 7,
        "fingerprint": found.fingerprint,
        "labelled": True,
    }
    int(found.fingerprint, 16)


def test_the_fingerprint_is_of_the_list(kind: str, tmp_path: Path) -> None:
    place = made(kind, tmp_path / "a")
    before = source(place).fingerprint
    for file in tmp_path.rglob("*.*"):
        os.utime(file, (1, 1))
    assert source(place).fingerprint == before
    assert source(made(kind, tmp_path / "copy")).fingerprint == before
    larger = source(made(kind, tmp_path / "larger", (*IMAGES[:6], encoded(6, 25))))
    other = source(made(kind, tmp_path / "labels", labels=(0, 0, 1, 1, 2, 3, 4)))
    renamed = source(made(kind, tmp_path / "names", stem="picture"))
    fewer = source(made(kind, tmp_path / "fewer", IMAGES[:6], LABELS[:6]))
    assert len({before, larger.fingerprint, other.fingerprint, renamed.fingerprint, fewer.fingerprint}) == 5


def test_the_fingerprint_is_of_boxes_too(kind: str, tmp_path: Path) -> None:
    place = made(kind, tmp_path / "data")
    path = records(source(place))[3].path
    found = {source(place).fingerprint}
    for x1 in (8, 9, 9):
        boxes = write(tmp_path / "boxes.json", json.dumps({path: [0, 0, x1, 8]}).encode())
        there = source(place, boxes=boxes)
        assert [r.boxes for r in records(there)] == [None] * 3 + [((0, 0, x1, 8),)] + [None] * 3
        found.add(there.fingerprint)
    assert len(found) == 3


def test_files_that_vanish_are_rows_with_a_problem(kind: str, tmp_path: Path) -> None:
    found = source(made(kind, tmp_path))
    gone = {
        "folder": "4/photo-5.png",
        "paths": "images/photo-5.png",
        "webdataset": "1.tar",
        "bytes": "photo-1.parquet",
        "struct": "photo-1.parquet",
    }
    (tmp_path / gone[kind]).unlink()
    read = records(found)
    assert [(r.index, r.label) for r in read] == list(enumerate(LABELS))
    lost = {5} if kind in ("folder", "paths") else {4, 5, 6}
    for record in read:
        if record.index in lost:
            assert record.data == b""
            assert record.problem == f"could not read the image {record.path}: No such file or directory"
        else:
            assert (record.data, record.problem) == (IMAGES[record.index], None)


def test_an_empty_image_is_an_image_of_no_bytes(kind: str, tmp_path: Path) -> None:
    record = records(source(made(kind, tmp_path, (b"", *IMAGES[1:]))))[0]
    assert (record.data, record.problem) == (b"", None)


def test_labels_out_of_range(kind: str, tmp_path: Path) -> None:
    place = made(kind, tmp_path, labels=(0, 0, 1, 1, 2, 4, 9))
    expected = {"folder": "subfolders 9 of", "webdataset": "expected classes from 0 to 4 in the tar files of .*, got 9"}
    with pytest.raises(ValueError, match=expected.get(kind, "classes from 0 to 4 in the column 'label' of .*, got 9")):
        source(place)


def test_columns_are_of_parquet_files(kind: str, tmp_path: Path) -> None:
    place = made(kind, tmp_path)
    for name in ("image_column", "label_column", "target_column"):
        if kind in ("folder", "webdataset"):
            with pytest.raises(
                ValueError, match=rf"{name}='odd' names a column, which only Parquet files have: .* {kind}"
            ):
                source(place, **{name: "odd"})
        else:
            with pytest.raises(ValueError, match=r"no column 'odd' in .*0\.parquet: there are (image|path), label"):
                source(place, **{name: "odd"})


def test_boxes_that_are_not_there(kind: str, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no file of boxes at none\.json|'none\.json' is no file, and no column of"
    ):
        source(made(kind, tmp_path), boxes="none.json")


# Where they are


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt"):
        write(tmp_path / name)
    found = source(str(tmp_path))
    assert [(r.path, r.label) for r in records(found)] == [("a.png", None), ("b.JPG", None)]
    assert found.described()["labelled"] is False


def test_subfolders_are_classes_by_name(tmp_path: Path) -> None:
    write(tmp_path / "EGYPTIAN_cat" / "deep" / "a.png")
    write(tmp_path / "pier" / "b.png")
    assert [(r.path, r.label) for r in records(source(tmp_path))] == [("EGYPTIAN_cat/deep/a.png", 1), ("pier/b.png", 4)]
    write(tmp_path / "c.png")
    with pytest.raises(ValueError, match="in one subfolder a class, got both"):
        source(tmp_path)


def test_a_single_image(tmp_path: Path) -> None:
    write(tmp_path / "one.png"), write(tmp_path / "other.png")
    found = source(tmp_path / "one.png")
    assert [(r.path, r.data, r.label) for r in records(found)] == [("one.png", IMAGES[0], None)]
    assert found.described()["root"] == str(tmp_path)


def test_one_file_of_several(tmp_path: Path) -> None:
    assert len(source(made("bytes", tmp_path / "p") / "photo-1.parquet")) == 3
    assert len(source(made("webdataset", tmp_path / "w") / "0.tar")) == 4


def test_patterns_and_ranges(tmp_path: Path) -> None:
    for i in range(12):
        tar(tmp_path / f"train-{i:04d}.tar", ("a.png", IMAGES[0]))
        parquet(tmp_path / "parts" / f"{i}.parquet", image=[IMAGES[0]])
    tars = [f"train-{i:04d}.tar/a.png" for i in range(12)]
    assert [r.path for r in records(source(f"{tmp_path}/train-*.tar"))] == tars
    assert [r.path for r in records(source(f"{tmp_path}/train-{{0008..0011}}.tar"))] == tars[8:]
    assert [r.path for r in records(source(f"{tmp_path}/parts/{{8..11}}.parquet"))] == [
        f"{i}.parquet#0" for i in (8, 9, 10, 11)
    ]
    assert [r.path for r in records(source(f"{tmp_path}/train-00{{0..1}}{{0..1}}.tar"))] == [
        tars[i] for i in (0, 1, 10, 11)
    ]
    assert len(source(f"{tmp_path}/**/*.parquet")) == 12


def test_files_of_a_pattern_are_named_from_the_folder_above_them_all(tmp_path: Path) -> None:
    for part in ("a", "b"):
        tar(tmp_path / part / "0.tar", ("x.png", IMAGES[0]))
    found = source(f"{tmp_path}/?/0.tar")
    assert [r.path for r in records(found)] == ["a/0.tar/x.png", "b/0.tar/x.png"]
    assert found.described()["root"] == str(tmp_path)


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    assert len(source(tar(tmp_path / "[1]{0..3}.tar", ("x.png", IMAGES[0])))) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", r"no such file or folder: .*none"),
        ("none-*.tar", r"no file matches .*none-\*\.tar"),
        ("train-{0..2}.tar", r"no file matches .*train-1\.tar"),
        ("train-{2..1}.tar", r"no number is in the range of .*train-\{2\.\.1\}\.tar"),
    ],
)
def test_nothing_there(name: str, message: str, tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", ("a.png", IMAGES[0]))
    with pytest.raises(FileNotFoundError, match=message):
        source(tmp_path / name)


def test_files_of_several_kinds(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "a.png")
    tar(tmp_path / "b.tar", ("a.png", IMAGES[0]))
    parquet(tmp_path / ".cache" / "hidden.parquet", image=[IMAGES[0]])
    with pytest.raises(
        ValueError,
        match=r"of one kind in .*, got image files \(a\.png, …\) and tar files \(b\.tar, …\): name the files",
    ):
        source(tmp_path)
    assert len(source(tmp_path / "b.tar")) == 1
    for name in ("*.*", "deep/*.png"):
        write(tmp_path / "other.txt")
        with pytest.raises(ValueError, match=r"expected \.parquet or \.tar files, or one image or a folder of them"):
            source(tmp_path / name)
    with pytest.raises(ValueError, match=r"for .*other\.txt, got other\.txt"):
        source(tmp_path / "other.txt")


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images in the folder"):
        source(tmp_path)
    with pytest.raises(ValueError, match=r"no images in .*: the Parquet files there have no rows"):
        source(parquet(tmp_path / "a.parquet", image=pa.array([], pa.binary())))
    with pytest.raises(ValueError, match=r"no images in the tar files of .*: looked for members \.bmp \.jpeg"):
        source(tar(tmp_path / "a.tar", ("a.txt", "a cat"), ("a.seg.png", IMAGES[0])))


def test_names_that_are_no_text(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    with pytest.raises(ValueError, match=r"expected file names in UTF-8, got '.*\.png': rename that file"):
        source(tmp_path)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"drnet-captum\[distributed\]"):
        source(tmp_path)


# Decoding


def test_bytes_are_decoded_as_files_are_read(tmp_path: Path) -> None:
    chelsea = embedded_photos()["chelsea"]
    assert decode_image(chelsea.read_bytes(), "x").tobytes() == load_image(chelsea).tobytes()
    for data, reason in ((b"", "the file is empty"), (b"no image", "not an image that Pillow can read")):
        with pytest.raises(ValueError, match=rf"^could not read the image photos/a\.png: {reason}$"):
            decode_image(data, "photos/a.png")
        with pytest.raises(ValueError, match=rf"^could not read the image .*a\.png: {reason}$"):
            load_image(write(tmp_path / "a.png", data))
    with pytest.raises(ValueError, match=r"could not read the image half: .*truncated"):
        decode_image(chelsea.read_bytes()[:9000], "half")
