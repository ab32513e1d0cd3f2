"""The page of a data-set run: what it shows of which class, every name literal, and a page that works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64decode
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from summary_runs import CATEGORIES, RAMP, at, jpeg, row, write_run

from drnet_captum.scale.summary import summarize
from drnet_captum.scale.summary_report import in_detail, mean_photo, report_of
from drnet_captum.viz.dataset_report import Case, ClassMap, DatasetReport, ReportClass, render_dataset

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "</script><b>bold</b> <!-- & \"double\" 'single' {{ 7 * 7 }}"


def page_of(out: Path, *classes: int, **options: Any) -> str:
    return render_dataset(report_of(summarize(out, **options), classes))


def text_of(page: str) -> str:
    """What a reader reads, on one line."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def table_of(page: str) -> list[list[str]]:
    """The table of classes, row by row."""
    table = page.split("<tbody>")[1].split("</tbody>")[0]
    return [[text_of(cell) for cell in re.split(r"</t[hd]>", line)[:-1]] for line in table.split("</tr>")[:-1]]


def pictures_of(page: str) -> list[Image.Image]:
    uris = re.findall(r'<img[^>]* src="data:image/[a-z]+;base64,([^"]+)"', page)
    return [Image.open(BytesIO(b64decode(uri))) for uri in uris]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Eight images with all there is to know of them."""
    labels, answers = [0, 0, 0, 0, 1, 1, 3, 3], [0, 0, 1, 0, 1, 1, 0, 1]
    maps = [RAMP, RAMP + at((3, 3)), -RAMP, RAMP**2, at((13, 0)), at((0, 0)), RAMP.T, RAMP.T**2]
    rows = [
        row(
            i,
            labels[i],
            answers[i],
            maps[i],
            path=f"{CATEGORIES[labels[i]]}/{i}.jpg",
            thumbnail=jpeg((20 * i, 90, 160)),
            box_share=0.5,
            grad_cam_inside=i / 10,
        )
        for i in range(8)
    ]
    errors = [(8, "bad <i>.jpg", "could not read the image bad <i>.jpg: the file is empty")]
    return write_run(tmp_path / "out", rows, errors=errors)


def test_the_page_needs_nothing_beside_itself(out: Path) -> None:
    page = page_of(out)
    targets = re.findall(r"(?:src|href|srcset|action|poster)=\"(.*?)\"", page.split("<script>")[0])
    assert all(target.startswith(("data:", "#")) for target in targets)
    anchors = {target[1:] for target in targets if target.startswith("#")}
    assert anchors == {"classes", "border", "outside", "details", "failures", "class-0", "class-1", "class-3"}
    assert all(page.count(f'id="{anchor}"') == 1 for anchor in anchors)
    assert not re.search(r"https?://|@import|url\(", page)
    assert page.count("default-src 'none'") == 1


def test_the_head_says_what_was_explained(out: Path) -> None:
    facts = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page_of(out))
    assert facts == [
        ("Images", "8"),
        ("Classes", "3"),
        ("Right answers", "62.5%"),
        ("Failed", "1"),
        ("Method", "Grad-CAM"),
        ("Class explained", "the model’s answer"),
        ("Date", "2026-03-01"),
    ]


def test_the_table_has_all_classes(out: Path) -> None:
    rows = table_of(page_of(out))
    assert rows[0] == ["tabby cat", "4", "75.0%", "50.0%", "", rows[0][5], "15.0%", "50.0%", "dog 1"]
    assert [line[0] for line in rows] == ["tabby cat", "dog", "<b>fish</b>"]
    assert rows[1][5] == "3.8×"  # all of the map, of a ring of 52 / 196
    assert rows[2][-1] == "tabby cat 1 dog 1"


def test_names_are_shown_literally(out: Path, tmp_path: Path) -> None:
    page = page_of(out)
    assert "<b>" not in page and "<i>" not in page
    assert "could not read the image …: the file is empty" in page and "bad &lt;i&gt;.jpg" in page
    case = Case(NASTY, NASTY, 0.5, NASTY, RAMP, label="other")
    nasty = ReportClass(0, NASTY, 1, 0.5, 0.5, [(NASTY, 1)], None, [ClassMap(NASTY, RAMP, 0.5, typical=[case])])
    page = render_dataset(
        DatasetReport(NASTY, NASTY, [nasty], [0], facts=[(NASTY, NASTY)], notes=[NASTY], unfinished=NASTY)
    )
    assert page.count("</script>") == 1 and "<b>" not in page and "<!--" not in page
    title = re.search(r"<h1>(.*?)</h1>", page)
    assert title and unescape(title[1]) == NASTY


def test_images_say_whether_the_answer_is_right(out: Path) -> None:
    text = text_of(page_of(out))
    assert "<b>fish</b>/6.jpg ✗ tabby cat, 50.0% labelled <b>fish</b> correlation" in text
    assert "tabby cat/0.jpg ✓ tabby cat, 50.0% correlation" in text


def test_what_is_outside_the_object(out: Path) -> None:
    text = text_of(page_of(out, top=3))
    assert "62.5% of 8 images with boxes are below chance." in text
    assert "tabby cat/0.jpg ✓ tabby cat, 50.0% 0.00 × chance: 0% inside, boxes 50%" in text
    assert "tabby cat/2.jpg ✗ dog, 50.0% labelled tabby cat 0.40 × chance: 20% inside, boxes 50%" in text


def test_the_border_ranks_classes(out: Path) -> None:
    section = page_of(out).split('id="border"')[1].split("</section>")[0]
    assert re.findall(r'<strong class="value">(.*?)</strong>', section)[0] == "3.8×"
    assert re.findall(r'href="#class-(\d)"', section) == ["1", "3", "0"]


def test_maps_lie_over_the_pictures_they_are_of(tmp_path: Path) -> None:
    """The right half of a wide thumbnail is coloured, and the left one as it was."""
    half = np.repeat([[0.0] * 7 + [1.0] * 7], 14, axis=0)
    rows = [row(0, 0, 0, half, thumbnail=jpeg((90, 90, 90), (112, 56)))]
    pictures = pictures_of(page_of(write_run(tmp_path, rows)))
    (case,) = [one for one in pictures if one.size == (112, 56) and one is pictures[-1]]
    pixels = np.asarray(case.convert("RGB"), dtype=float)
    np.testing.assert_allclose(pixels[:, :45], 90, atol=12)
    assert np.abs(pixels[:, 70:] - 90).max(axis=2).min() > 30


def test_maps_of_zeros_leave_pictures_as_they_are(tmp_path: Path) -> None:
    rows = [row(0, 0, 0, np.zeros((14, 14)), thumbnail=jpeg((90, 90, 90)), box_share=0.5, grad_cam_inside=0.0)]
    pictures = pictures_of(page_of(write_run(tmp_path, rows)))
    np.testing.assert_allclose(np.asarray(pictures[-1].convert("RGB"), dtype=float), 90, atol=6)


def test_a_mean_photo_keeps_what_all_photos_share() -> None:
    white = np.full((40, 60, 3), 255, np.uint8)
    photos = []
    for value in (0, 100, 200):
        photo = np.full((40, 60, 3), value, np.uint8)
        photo[:8, :8] = 255
        buffer = BytesIO()
        Image.fromarray(photo).save(buffer, "JPEG", quality=95)
        photos.append(buffer.getvalue())
    mean = mean_photo(photos)
    assert mean is not None and mean.shape == white.shape
    assert mean[:7, :7].min() > 240 and np.abs(mean[20:, 20:].astype(int) - 100).max() < 6
    assert mean_photo([]) is None


@pytest.mark.parametrize("known", ["labels", "boxes", "thumbnails", "nothing"])
def test_what_is_not_known_is_left_out(tmp_path: Path, known: str) -> None:
    boxes = {"box_share": 0.4, "grad_cam_inside": 0.2} if known == "boxes" else {}
    thumbnail = jpeg("red") if known == "thumbnails" else None
    label = 1 if known == "labels" else None
    rows = [row(i, label, i % 2, RAMP, thumbnail=thumbnail, **boxes) for i in range(6)]
    page = page_of(write_run(tmp_path, rows))
    text = text_of(page)
    assert ("Right" in text) == ("Taken for" in text) == ("✗" in text) == (known == "labels")
    assert ("The images have no labels" in text) == (known != "labels")
    assert ('id="outside"' in page) == ("In boxes" in text) == (known == "boxes")
    assert ("Mean of 3 photos" in text) == (known == "thumbnails")
    assert 'id="failures"' not in page and 'role="note"' not in page


def test_one_image(tmp_path: Path) -> None:
    text = text_of(page_of(write_run(tmp_path, [row(0, 2, 2, RAMP, thumbnail=jpeg("red"))])))
    assert "1 image · 100.0% right" in text and "Mean of 1 photo " in text and "Unusual" not in text


def test_a_run_that_is_not_complete_says_so(tmp_path: Path) -> None:
    source = {"images": 2000}
    write_run(tmp_path, [row(0, 0, 0, RAMP)], complete=False, source=source, finished=None, started="2026-02-03T04:05")
    page = page_of(tmp_path)
    note = re.search(r'role="note">(.*?)</p>', page)
    assert note and note[1].startswith("This run is not complete: 1 of 2,000 images are explained so far.")
    assert "<dd>2026-02-03</dd>" in page
    empty = text_of(page_of(write_run(tmp_path / "empty", [], complete=False)))
    assert "0 of 0 images are explained so far" in empty and "Find a class" not in empty


def test_maps_that_were_left_out_are_told(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, [row(0, 0, 0, RAMP), row(1, 0, 0, RAMP * np.nan)]))
    assert "<li>Left out of the mean maps: 1 map of Grad-CAM with NaN or infinite values.</li>" in page


def test_classes_in_detail_are_those_with_most_to_look_into(tmp_path: Path) -> None:
    labels = [0] * 4 + [1] * 2 + [2] * 3 + [3]
    answers = [0, 0, 0, 1, 1, 0, 2, 3, 3, 3]
    rows = [row(i, label, answer, RAMP) for i, (label, answer) in enumerate(zip(labels, answers, strict=True))]
    summary = summarize(write_run(tmp_path, rows))
    assert in_detail(summary) == [2, 1, 0, 3]
    report = report_of(summary, detailed=2)
    page = render_dataset(report)
    assert re.findall(r'<article class="class" id="class-(\d)"', page) == ["2", "1"]
    assert len(table_of(page)) == 4 and 'href="#class-0"' not in page
    assert "Shown: 2 of 4 classes, by lowest accuracy; --class names others." in text_of(page)
    chosen = page_of(tmp_path, 3, 0)
    assert re.findall(r'<article class="class" id="class-(\d)"', chosen) == ["3", "0"]
    assert "Shown:" not in text_of(chosen)


def test_without_labels_the_largest_classes_are_shown(tmp_path: Path) -> None:
    summary = summarize(write_run(tmp_path, [row(i, None, answer, RAMP) for i, answer in enumerate([0, 1, 1, 3])]))
    assert in_detail(summary, detailed=2) == [1, 0]
    assert report_of(summary, detailed=1).selection == "Shown: 1 of 3 classes, by most images; --class names others."
    with pytest.raises(ValueError, match=r"no image of .* is of the class cup: there are tabby cat, dog, <b>fish</b>"):
        report_of(summary, [2])


def test_methods_side_by_side(tmp_path: Path) -> None:
    other = {"mine_pooled": RAMP.T.ravel().tolist(), "mine_inside": 0.1, "box_share": 0.5, "grad_cam_inside": 0.4}
    write_run(tmp_path, [row(i, 0, 0, RAMP, **other) for i in range(3)], methods=("grad_cam", "mine"))
    page = page_of(tmp_path, top=1)
    assert re.findall(r"<h4>(.*?)</h4>", page) == [
        f"{kind}, {method}" for method in ("Grad-CAM", "mine") for kind in ("Typical", "Unusual")
    ]
    assert re.findall(r"<h3>(Grad-CAM|mine)</h3>", page) == ["Grad-CAM", "mine"] * 2
    assert table_of(page)[0][5:10] == ["1.0×", "40.0%", "", "1.0×", "10.0%"]


def test_what_cannot_be_shown() -> None:
    def shown(case: Case) -> str:
        cat = ReportClass(0, "cat", 1, None, None, [], None, [ClassMap("m", RAMP, 0.5, typical=[case])])
        return render_dataset(DatasetReport("t", "m", [cat], [0]))

    for map in (np.zeros(14), np.full((14, 14), np.nan), np.zeros((0, 14))):
        with pytest.raises(ValueError, match=r"map of shape \(h, w\) with finite values"):
            shown(Case("a.jpg", "cat", 0.5, "", map))
    with pytest.raises(ValueError, match=r"of shape \(H, W, 3\)"):
        shown(Case("a.jpg", "cat", 0.5, "", RAMP, np.zeros((9, 9), np.uint8)))


def test_a_report_of_nothing() -> None:
    page = render_dataset(DatasetReport("Nothing yet", "resnet18"))
    assert not re.search(r"<section|<nav[^>]*>\s*<a|<dl|<ul|<table", page.split("<script>")[0])


DRIVE = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message)), true);
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective));
addEventListener("load", () => {
  const cells = () => [...document.querySelectorAll("#classes tbody tr:not([hidden]) th")];
  const names = () => cells().map((cell) => cell.textContent.trim());
  const click = (column) => document.querySelector(`[data-column="${column}"]`).click();
  const type = (text) => {
    document.querySelector("#search").value = text;
    document.querySelector("#search").dispatchEvent(new Event("input"));
    return [names(), document.querySelector("#count").textContent];
  };
  const seen = { start: names() };
  for (const column of [2, 2, 0, 0, 1]) {
    click(column);
    (seen.sorted ??= []).push([names(), document.querySelector("[aria-sort]").textContent.trim()]);
  }
  seen.found = [type("FISH"), type("x"), type("")];
  seen.injected = document.querySelectorAll("b, i").length;
  seen.wide = document.documentElement.scrollWidth - innerWidth;
  seen.errors = errors;
  document.body.replaceChildren(Object.assign(document.createElement("pre"), { textContent: JSON.stringify(seen) }));
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page in")
def test_the_page_in_a_browser(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(page_of(out).replace("<style>", DRIVE + "<style>", 1))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    run = subprocess.run(
        [str(CHROMIUM), *options, "--window-size=500,900", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"<pre>(.*?)</pre>", run.stdout, re.DOTALL)
    assert found, run.stderr[-2000:]
    seen = json.loads(unescape(found[1]))
    cat, dog, fish = seen["start"]
    assert (cat, dog, fish) == ("tabby cat", "dog", "<b>fish</b>")
    assert [names for names, _ in seen["sorted"]] == [
        [dog, cat, fish],
        [fish, cat, dog],
        [fish, dog, cat],
        [cat, dog, fish],
        [cat, dog, fish],
    ]
    assert [name for _, name in seen["sorted"]] == ["Right", "Right", "Class", "Class", "Images"]
    assert seen["found"] == [[[fish], "1 class"], [[], "0 classes"], [[cat, dog, fish], "3 classes"]]
    assert (seen["injected"], seen["errors"]) == (0, [])
    assert seen["wide"] <= 0  # nothing but the tables is wider than a phone
