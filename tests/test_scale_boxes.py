"""Boxes from files: both forms, by which names, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from drnet_captum.scale.boxes import as_boxes, boxes_for, read_boxes


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_json_of_one_box_and_of_several(tmp_path: Path) -> None:
    text = '{"a/x.jpg": [0, 1, 8, 9.5], "ü.jpg": [[0, 0, 1, 1], [2, 2, 4, 4]], "none.jpg": []}'
    assert read_boxes(str(written(tmp_path, "boxes.JSON", text))) == {
        "a/x.jpg": ((0, 1, 8, 9.5),),
        "ü.jpg": ((0, 0, 1, 1), (2, 2, 4, 4)),
    }


def test_csv_of_several_rows_a_path(tmp_path: Path) -> None:
    text = '\ufeffsplit,path,x0,y0,x1,y1\ntrain,a.jpg,0,1,8,9.5\ntrain,"b, c.jpg",0,0,1,1\ntest,a.jpg,2,2,4,4\n'
    assert read_boxes(written(tmp_path, "boxes.csv", text)) == {
        "a.jpg": ((0, 1, 8, 9.5), (2, 2, 4, 4)),
        "b, c.jpg": ((0, 0, 1, 1),),
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("boxes.txt", "", r"expected boxes in a \.json or \.csv file, got .*boxes\.txt"),
        ("boxes.json", "{", r"could not read the boxes in .*boxes\.json: "),
        ("boxes.json", "[]", r"expected \{path: box or boxes\} in .*boxes\.json, got a list"),
        ("boxes.csv", "", r"expected the header path,x0,y0,x1,y1 in .*boxes\.csv, it has no path"),
        ("boxes.csv", "path,x0,y0,x1\na,0,0,1", r"it has no y1"),
        (
            "boxes.csv",
            "path,x0,y0,x1,y1\na.jpg,0,0,1",
            r"a box of a\.jpg as four numbers .*, got \['0', '0', '1', None\]",
        ),
        ("boxes.csv", "path,x0,y0,x1,y1\na.jpg,0,0,one,1", r"a box of a\.jpg as four numbers"),
    ],
)
def test_files_of_another_form(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_boxes(written(tmp_path, name, text))


def test_a_file_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_bytes(b"path,x0\xff")
    with pytest.raises(ValueError, match=r"could not read the boxes in .*boxes\.csv"):
        read_boxes(tmp_path / "boxes.csv")
    with pytest.raises(FileNotFoundError, match=r"no file of boxes at .*none\.json"):
        read_boxes(tmp_path / "none.json")


@pytest.mark.parametrize(
    "box",
    [[0, 0, 1], [0, 0, 1, 1, 1], "1234", 7, {"x0": 1}, [0, 0, 1, "one"], [0, 0, 1, None], [[0, 0, 1, 1], 7], [[]]],
)
def test_what_is_no_box(box: object) -> None:
    with pytest.raises(ValueError, match=r"expected a box of a\.jpg as four numbers x0, y0, x1, y1, got"):
        as_boxes(box, "a.jpg")


@pytest.mark.parametrize(
    "box", [[0, 0, 0, 1], [0, 0, 1, 0], [5, 0, 4, 1], [0, 5, 1, 4], [0, 0, float("inf"), 1], [float("nan"), 0, 1, 1]]
)
def test_boxes_without_an_area(box: list[float]) -> None:
    with pytest.raises(ValueError, match=r"a box of a\.jpg in xyxy pixels with x1 > x0 and y1 > y0, got .*x \+ width"):
        as_boxes([[0, 0, 1, 1], box], "a.jpg")


def test_by_path_and_by_bare_name(tmp_path: Path) -> None:
    file = written(tmp_path, "boxes.json", '{"a/x.jpg": [0, 0, 1, 1], "y.jpg": [0, 0, 2, 2], "z.jpg": [0, 0, 3, 3]}')
    paths = ["a/x.jpg", "b/x.jpg", "deep/er/y.jpg", "z.jpg", "c/z.jpg"]
    assert boxes_for(paths, file) == [((0, 0, 1, 1),), None, ((0, 0, 2, 2),), ((0, 0, 3, 3),), None]


def test_a_bare_name_of_several_images(tmp_path: Path) -> None:
    file = written(tmp_path, "boxes.json", '{"x.jpg": [0, 0, 1, 1]}')
    with pytest.raises(ValueError, match=r"the boxes of 'x\.jpg' are of one of 2 images of that name: write its path"):
        boxes_for(["a/x.jpg", "b/x.jpg"], file)


@pytest.mark.parametrize(("text", "named"), [('{"q.jpg": [0, 0, 1, 1]}', r"names 'q\.jpg', …"), ("{}", "names none")])
def test_boxes_of_no_image(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"paths such as 'a/x\.jpg': the file {named}, and none of the 1 images is among"
    ):
        boxes_for(["a/x.jpg"], written(tmp_path, "boxes.json", text))
