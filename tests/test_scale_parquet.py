"""Parquet files as sources: which columns are images and labels, what is read of them, and what is refused."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources import IMAGES, encoded, labels, parquet, records, source, write

# Images


@pytest.mark.parametrize("name", ["image", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp"])
@pytest.mark.parametrize("form", [pa.binary(), pa.large_binary()])
def test_columns_of_bytes_are_found(name: str, form: pa.DataType, tmp_path: Path) -> None:
    other: dict[str, Any] = {"caption": ["a", "b"], "path": ["x", "y"], name: pa.array(IMAGES[:2], form)}
    assert [r.data for r in records(source(parquet(tmp_path / "a.parquet", **other)))] == list(IMAGES[:2])


@pytest.mark.parametrize("name", ["path", "image_path", "file_name", "filename", "image"])
@pytest.mark.parametrize("form", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_columns_of_paths_are_found(name: str, form: pa.DataType, tmp_path: Path) -> None:
    write(tmp_path / "deep" / "x" / "0.png", IMAGES[1])
    absolute = write(tmp_path / "elsewhere" / "1.png", IMAGES[2])
    paths: Any = pa.array(["x/0.png", str(absolute), None, "x/none.png"]).cast(form)
    parquet(tmp_path / "deep" / "a.parquet", **{name: paths})
    parquet(tmp_path / "elsewhere.parquet", **{name: pa.array(["elsewhere/1.png"]).cast(form)})
    found = records(source(f"{tmp_path}/**/*.parquet"))
    assert [(r.path, r.data) for r in found] == [
        ("deep/x/0.png", IMAGES[1]),
        (str(absolute), IMAGES[2]),
        ("deep/a.parquet#2", b""),
        ("deep/x/none.png", b""),
        ("elsewhere/1.png", IMAGES[2]),
    ]
    assert [r.problem for r in found] == [
        None,
        None,
        "could not read the image deep/a.parquet#2: the image column has no value here",
        "could not read the image deep/x/none.png: No such file or directory",
        None,
    ]


@pytest.mark.parametrize("hugging_face", [True, False])
def test_values_that_are_null(hugging_face: bool, tmp_path: Path) -> None:
    write(tmp_path / "beside.png", IMAGES[2])
    column: list[Any] = [IMAGES[0], None, IMAGES[1]]
    if hugging_face:
        column = [None if data is None else {"bytes": data, "path": None} for data in column]
        column += [{"bytes": None, "path": None}, {"bytes": None, "path": "beside.png"}]
    found = records(source(parquet(tmp_path / "a.parquet", image=column)))
    null = "the image column has no value here"
    expected = [(IMAGES[0], None), (b"", null), (IMAGES[1], None), (b"", null), (IMAGES[2], None)]
    for record, (data, reason) in zip(found, expected[: len(column)], strict=True):
        assert record.data == data
        assert record.problem == (reason and f"could not read the image {record.path}: {reason}")


def test_only_the_row_groups_asked_for_are_read_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, list[str]]] = []
    read = pq.ParquetFile.read_row_group

    def counted(self: Any, group: int, columns: list[str]) -> Any:
        reads.append((group, columns))
        sleep(0.01)  # long enough for every thread to come
        return read(self, group, columns=columns)

    images = [encoded(seed, 8) for seed in range(10)]
    place = parquet(tmp_path / "a.parquet", 3, image=images, caption=["text"] * 10, label=[1] * 10)
    found = source(place)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for start in range(0, 10, 2):
        assert [r.data for r in found.read(start, start + 2)] == images[start : start + 2]
    assert reads == [(group, ["image"]) for group in range(4)]
    reads.clear()
    assert [r.data for r in found.read(4, 5)] == [images[4]]
    assert reads == [(1, ["image"])]
    assert list(found.read(8, 8)) == []
    assert len(reads) == 1
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda start: next(found.read(start, start + 1)).data, (0, 1, 2) * 8))
    assert rows == images[:3] * 8
    assert len(reads) == 2


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    for time, data in enumerate(IMAGES[:2], 1):
        place = parquet(tmp_path / "a.parquet", image=[data])
        os.utime(place, (time, time))
        assert records(source(place))[0].data == data


def test_files_without_rows_and_row_groups_of_any_size(tmp_path: Path) -> None:
    parquet(tmp_path / "0.parquet", image=pa.array([], pa.binary()))
    parquet(tmp_path / "1.parquet", 1, image=IMAGES[:2])
    parquet(tmp_path / "2.parquet", image=pa.array([], pa.binary()))
    parquet(tmp_path / "3.parquet", 100, image=IMAGES[2:])
    found = records(source(tmp_path))
    assert [r.data for r in found] == list(IMAGES)
    assert [found[i].path for i in (1, 2)] == ["1.parquet#1", "3.parquet#0"]


def test_a_damaged_row_group_is_rows_with_a_problem(tmp_path: Path) -> None:
    place = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": IMAGES}), place, row_group_size=3, compression="none", use_dictionary=False)
    start = pq.ParquetFile(place).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(place.read_bytes())
    data[start : start + 12] = b"\xff" * 12
    place.write_bytes(data)
    found = records(source(place))
    assert [r.problem is None for r in found] == [True] * 3 + [False] * 3 + [True]
    assert str(found[3].problem).startswith("could not read the image a.parquet#3: ")


# Labels and targets


@pytest.mark.parametrize("name", ["label", "labels", "cls", "class"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([4, 0, None, -1], [4, 0, None, None]),
        ([4.0, 0.0, float("nan"), None], [4, 0, None, None]),
        (["PIER", "tabby_cat", "7", None], [4, 0, 3, None]),
        (pa.array(["pier", "0", "pier", None]).dictionary_encode(), [4, 0, 4, None]),
    ],
    ids=["integers", "floats", "names", "categories"],
)
def test_labels_are_found(name: str, values: Any, expected: list[int | None], tmp_path: Path) -> None:
    assert labels(parquet(tmp_path / "a.parquet", image=IMAGES[:4], **{name: values})) == expected


def test_labels_of_a_named_column_and_targets(tmp_path: Path) -> None:
    place = parquet(tmp_path / "a.parquet", image=IMAGES[:2], label=[0, 1], fine=[3, 2], wrong=["pier", None])
    assert labels(place) == [0, 1]
    found = source(place, label_column="fine", target_column="wrong")
    assert [(r.label, r.target) for r in records(found)] == [(3, 4), (2, None)]
    assert found.fingerprint != source(place, label_column="fine").fingerprint
    assert [(r.label, r.target) for r in records(source(place, target_column="label"))] == [(0, 0), (1, 1)]


def test_no_label_known(tmp_path: Path) -> None:
    for values in ([-1, -1], [[1], [2]], pa.array([True, False])):
        found = source(parquet(tmp_path / "a.parquet", image=IMAGES[:2], label=values))
        assert [r.label for r in records(found)] == [None, None]
        assert found.described()["labelled"] is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 5], "expected classes from 0 to 4 in the column 'label' of .*, got 5"),
        ([0, -2], "expected classes from 0 to 4 in the column 'label' of .*, got -2"),
        ([0.0, 1.5], "expected integers or class names in the column 'label' of .*, got 1.5"),
        ([0.0, float("inf")], "expected integers or class names in the column 'label' of .*, got inf"),
        (["pier", "dog"], "the names dog of the column 'label' of .* are none of the model's 5 classes: name them by"),
    ],
)
def test_labels_that_are_no_classes(values: list[Any], message: str, tmp_path: Path) -> None:
    place = parquet(tmp_path / "a.parquet", image=IMAGES[:2], label=values)
    with pytest.raises(ValueError, match=message):
        source(place)
    with pytest.raises(ValueError, match=message.replace("'label'", "'target'")):
        source(parquet(tmp_path / "a.parquet", image=IMAGES[:2], target=values), target_column="target")


# What is refused


def test_columns_that_do_not_fit(tmp_path: Path) -> None:
    place = parquet(tmp_path / "a.parquet", id=[1, 2], picture=IMAGES[:2], tags=[[1], [2]])
    with pytest.raises(
        ValueError, match=r"looked for the columns image, bytes, .*there are id, picture, tags: name one as"
    ):
        source(place)
    assert len(source(place, image_column="picture")) == 2
    with pytest.raises(ValueError, match=r"images as bytes or by their paths in the column 'id' of .*, got int64"):
        source(place, image_column="id")
    for role in ("label_column", "target_column"):
        with pytest.raises(ValueError, match=r"integers or class names in the column 'tags' of .*, got list<"):
            source(place, image_column="picture", **{role: "tags"})
    with pytest.raises(ValueError, match=r"lists of four numbers in the column 'id' of .*, got int64"):
        source(place, image_column="picture", boxes="id")


def test_files_that_differ(tmp_path: Path) -> None:
    parquet(tmp_path / "0.parquet", image=IMAGES[:2], label=[0, 1])
    parquet(tmp_path / "1.parquet", image=["a.png", "b.png"], label=[0, 1])
    with pytest.raises(ValueError, match=r"images as bytes in the column 'image' of .*1\.parquet, got string"):
        source(tmp_path)
    parquet(tmp_path / "1.parquet", image=IMAGES[:2])
    with pytest.raises(ValueError, match=r"no column 'label' in .*1\.parquet: there are image"):
        source(tmp_path)


def test_files_that_are_not_parquet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"could not read the Parquet file .*a\.parquet: "):
        source(write(tmp_path / "a.parquet", b"not at all"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 1, 8, 9], None], [((0, 1, 8, 9),), None]),
        ([[[0, 1, 8, 9], [2, 2, 4, 4.5]], []], [((0, 1, 8, 9), (2, 2, 4, 4.5)), None]),
        (pa.array([[0, 1, 8, 9], None], pa.list_(pa.float32(), 4)), [((0, 1, 8, 9),), None]),
    ],
)
def test_boxes_of_a_column(values: Any, expected: list[Any], tmp_path: Path) -> None:
    place = parquet(tmp_path / "a.parquet", image=IMAGES[:2], objects=values)
    assert [r.boxes for r in records(source(place, boxes="objects"))] == expected
    assert {r.boxes for r in records(source(place))} == {None}


def test_boxes_of_a_column_that_are_none(tmp_path: Path) -> None:
    place = parquet(tmp_path / "a.parquet", image=IMAGES[:2], objects=[[0, 1, 8, 9], [0, 1, 0, 9]])
    with pytest.raises(ValueError, match=r"a box of a\.parquet#1 in xyxy pixels with x1 > x0"):
        source(place, boxes="objects")
    place = parquet(tmp_path / "a.parquet", image=IMAGES[:2], objects=pa.array([None, []], pa.list_(pa.float32())))
    with pytest.raises(ValueError, match="boxes='objects' has none for any of the 2 images of"):
        source(place, boxes="objects")
