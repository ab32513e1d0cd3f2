"""Tar shards as sources: what a sample is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sources import IMAGES, records, source, tar, write


def test_samples_of_a_shard(tmp_path: Path) -> None:
    place = tar(
        tmp_path / "a.tar",
        ("README.md", "no sample"),
        ("./cats/0.cls", "tabby cat\n"),
        ("./cats/0.JPG", IMAGES[0]),
        ("cats/1.jpg", IMAGES[1]),
        ("cats/1.json", json.dumps({"label": 2})),
        ("cats/1.png", IMAGES[6]),  # a second image of the sample
        ("dogs/1.webp", IMAGES[2]),  # of another folder: another sample
        ("dogs/1.json", json.dumps({"cls": "pier", "label": None})),
        ("x.json", json.dumps({"cls": "pier"})),
        ("x.cls", "1"),
        ("x.bmp", IMAGES[3]),
        ("x.seg.png", IMAGES[6]),
        ("only.cls", "0"),  # no image: left out
        ("y.jpeg", IMAGES[4]),
        ("y.json", "[1, 2]"),
        ("z.cls", "-1"),
        ("z.png", IMAGES[5]),
        ("._z.png", b"of a Mac"),
    )
    assert [(r.path, r.data, r.label) for r in records(source(place))] == [
        ("a.tar/cats/0.JPG", IMAGES[0], 0),
        ("a.tar/cats/1.jpg", IMAGES[1], 2),
        ("a.tar/dogs/1.webp", IMAGES[2], 4),
        ("a.tar/x.bmp", IMAGES[3], 1),
        ("a.tar/y.jpeg", IMAGES[4], None),
        ("a.tar/z.png", IMAGES[5], None),
    ]


def test_names_longer_than_a_header(tmp_path: Path) -> None:
    name = "n" * 150 + "/" + "m" * 150 + ".png"
    assert [(r.path, r.data) for r in records(source(tar(tmp_path / "a.tar", (name, IMAGES[0]))))] == [
        (f"a.tar/{name}", IMAGES[0])
    ]


def test_boxes_of_the_samples(tmp_path: Path) -> None:
    place = tar(
        tmp_path / "a.tar",
        ("0.jpg", IMAGES[0]),
        ("0.json", json.dumps({"boxes": [[0, 1, 8, 9], [1, 1, 2, 2]], "label": 0})),
        ("1.jpg", IMAGES[1]),
        ("1.json", json.dumps({"boxes": [0, 1, 8, 9]})),
        ("2.jpg", IMAGES[2]),
    )
    expected = [((0, 1, 8, 9), (1, 1, 2, 2)), ((0, 1, 8, 9),), None]
    assert [r.boxes for r in records(source(place, boxes="json"))] == expected
    assert {r.boxes for r in records(source(place))} == {None}
    with pytest.raises(ValueError, match="boxes='json' has none for any of the 1 images of"):
        source(tar(tmp_path / "b.tar", ("0.jpg", IMAGES[0])), boxes="json")
    with pytest.raises(ValueError, match=r"a box of c\.tar/0\.jpg as four numbers"):
        source(tar(tmp_path / "c.tar", ("0.jpg", IMAGES[0]), ("0.json", '{"boxes": [1, 2]}')), boxes="json")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("0.cls", b"\xff\xfe"), r"expected an integer or a class name in a\.tar/0\.cls, got b'\\xff\\xfe'"),
        (("0.cls", "dog"), r"the names dog of the tar files of .* are none of the model's 5 classes"),
        (("0.json", "{"), r"could not read a\.tar/0\.json: "),
        (("0.json", '{"label": [1]}'), r"expected integers or class names in the tar files of .*, got \[1\]"),
        (("0.json", '{"label": true}'), r"expected integers or class names in the tar files of .*, got True"),
    ],
)
def test_members_that_say_nothing(member: tuple[str, bytes | str], message: str, tmp_path: Path) -> None:
    place = tar(tmp_path / "a.tar", ("0.png", IMAGES[0]), member)
    with pytest.raises(ValueError, match=message):
        source(place)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_compressed_shards(mode: str, suffix: str, tmp_path: Path) -> None:
    tar(tmp_path / f"a{suffix}", ("0.png", IMAGES[0]), mode=mode)
    with pytest.raises(
        ValueError, match=r"a\.(tar|tgz).* is a compressed tar, where an image .*: decompress the file once"
    ):
        source(tmp_path)


@pytest.mark.parametrize("data", [b"", b"not a tar at all" * 100])
def test_files_that_are_no_tar(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"could not read the tar file .*a\.tar: "):
        source(write(tmp_path / "a.tar", data))


def test_shards_cut_off(tmp_path: Path) -> None:
    place = tar(tmp_path / "a.tar", ("0.png", IMAGES[0]), ("1.png", IMAGES[1]))
    found = source(place)
    whole = place.read_bytes()
    place.write_bytes(whole[: 3 * 512 + len(IMAGES[0]) + 100])
    first, second = records(found)
    assert first.data == IMAGES[0]
    assert second.data == b""
    assert str(second.problem).startswith("could not read the image a.tar/1.png: the tar file ends after ")
    with pytest.raises(ValueError, match=r"could not read the tar file .*a\.tar: unexpected end of data"):
        source(place)
