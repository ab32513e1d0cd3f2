"""The report: one file, nothing beside it, every name literal, and a page that works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drnet_captum.viz import (
    Report,
    ReportExemplar,
    ReportLayer,
    ReportModule,
    ReportPhoto,
    ReportUnit,
    render,
    save,
)
from drnet_captum.viz.pictures import Pictures
from drnet_captum.viz.report import waterfall

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "</script><b>bold</b> <!-- & \"double\" 'single' {{ 7 * 7 }}"


def picture(seed: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def report(units: int = 130) -> Report:
    """Two layers, three photos' worth of maps, two modules, and names that would break a careless page."""
    patch = ReportExemplar(picture(1), 3.25, NASTY)
    first = [
        ReportUnit(
            number,
            "vertical edges" if number % 2 else "red",
            "edges" if number % 2 else "colours",
            np.float32(0.5),
            served=[("tabby, tabby cat", 0.5), ("Border collie", -0.25)],
            exemplars=[patch],
            stimuli=[("grating, 90°", 0.75), ("disc", 0.25)],
            filter=picture(2, 7),
        )
        for number in range(units)
    ]
    second = [
        ReportUnit(4, NASTY, "textures", 0.3, {"masks": "wheel"}, [(NASTY, 1.0)], [patch], projection=picture(3)),
        ReportUnit(9, "unlabelled"),
    ]
    layers = [
        ReportLayer("conv1", "convolution", (112, 112), first, {"edges": units // 2, "colours": units - units // 2}),
        ReportLayer("layer4.1", "cut", (7, 7), second, {"textures": 1, "unlabelled": 511}),
    ]
    photo = ReportPhoto(NASTY, picture(4, 224), [("tabby, tabby cat", 0.625)], "tabby, tabby cat", picture(5, 224))
    modules = [
        ReportModule("Edges", [("conv1", 1), ("conv1", 3)], "1 stands for 2", [0.75], [picture(6, 224)]),
        ReportModule(NASTY, [("layer4.1", 4), ("layer4.1", 77)], "", [-0.125], [picture(7, 224)]),
    ]
    return Report(f"What it sees {NASTY}", "resnet18", [photo], layers, modules, ["A note"], [("Units", "132")])


PAGE = render(report())


def data(page: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    parsed: dict[str, Any] = json.loads(found[0])
    return parsed


def change_unit(**changes: Any) -> Report:
    whole = report(1)
    layer = whole.layers[0]
    return replace(whole, layers=[replace(layer, units=[replace(layer.units[0], **changes)])])


def test_the_page_needs_nothing_beside_itself() -> None:
    html = PAGE.split("<script")[0]
    targets = re.findall(r"(?:src|href|srcset|action|poster)=\"(.*?)\"", html)
    assert targets == ["data:,", "#photos", "#modules", "#units"]
    assert not re.search(r"https?://|@import|url\(", PAGE)
    assert PAGE.count("default-src 'none'") == 1  # the browser's own word for it


def test_data_hold_what_was_given() -> None:
    parsed = data(PAGE)
    assert [layer["name"] for layer in parsed["layers"]] == ["conv1", "layer4.1"]
    assert [len(layer["units"]) for layer in parsed["layers"]] == [130, 2]
    unit = parsed["layers"][1]["units"][0]
    assert (unit["index"], unit["label"], unit["concepts"]) == (4, NASTY, [["masks", "wheel"]])
    assert unit["served"] == [[NASTY, 1.0]]
    assert unit["exemplars"][0][1:] == [3.25, NASTY]
    assert parsed["layers"][1]["units"][1]["projection"] is None
    assert parsed["layers"][0]["units"][0]["score"] == 0.5
    assert parsed["modules"] == [[["conv1", 1], ["conv1", 3]], [["layer4.1", 4], ["layer4.1", 77]]]


def test_names_are_shown_literally() -> None:
    assert PAGE.count("</script>") == 2  # the data's and the code's own
    assert "<b>" not in PAGE and "<!--" not in PAGE
    title = re.search(r"<h1>(.*?)</h1>", PAGE)
    assert title and unescape(title[1]) == f"What it sees {NASTY}"


def test_each_picture_is_there_once_and_small() -> None:
    images = data(PAGE)["images"]
    assert len(images) == len(set(images)) == 7  # of 130 × 2 + 2 patches, filters and maps
    assert PAGE.count("data:image/") == 7 + 1  # the code asks for "data:image/png"
    assert [uri.startswith("data:image/png") for uri in images].count(True) == 1  # the filter, kept exactly
    assert len(render(report(5000))) - len(PAGE) < 5000 * 400


def test_pictures_keep_small_pixels_and_shrink_large_ones() -> None:
    pictures = Pictures()
    small = picture(0, 7)
    assert [pictures.add(image, 96, "it") for image in (small, picture(0, 300), small.copy())] == [0, 1, 0]
    opened = [Image.open(BytesIO(b64decode(uri.split(",")[1]))) for uri in pictures.uris]
    np.testing.assert_array_equal(np.asarray(opened[0].convert("RGB")), small)
    assert (opened[1].format, opened[1].size) == ("WEBP", (96, 96))
    flat = [np.zeros(shape, np.uint8) for shape in ((2, 8, 3), (8, 2, 3))]  # equal bytes, other shapes
    assert pictures.add(flat[0], 96, "it") != pictures.add(flat[1], 96, "it")


def test_parts_add_up_to_the_whole() -> None:
    bars = waterfall([("a", 0.5), ("b", 0.75), ("c", -0.5), ("d", 0.25)])
    assert [(bar.name, bar.left, bar.width) for bar in bars] == [
        ("a", 0, 40),
        ("b", 40, 60),
        ("c", 60, 40),
        ("d", 60, 20),
        ("the whole map", 0, 80),
    ]
    below = waterfall([("against", -1.0), ("for", 2.0)])
    assert [(bar.left, bar.width) for bar in below] == [(0, 50), (0, 100), (50, 50)]
    against = waterfall([("for", 1.0), ("against", -2.0)])
    assert [(bar.left, bar.width, bar.share) for bar in against] == [(50, 50, 1.0), (0, 100, -2.0), (0, 50, -1.0)]
    shares = re.findall(r'<span class="value">(−?[\d.]+)%</span>\n</li>', PAGE)
    assert shares == ["75.0", "−12.5", "62.5"]  # Edges, the other, the whole


def test_many_modules_share_a_bar() -> None:
    whole = report(1)
    ten = [ReportModule(f"m{k}", [("conv1", 0)], "", [(k - 4) / 5], [picture(6)]) for k in range(10)]
    page = render(replace(whole, modules=ten))
    names = re.findall(r'<span class="name">(.*?)</span>', page)[1:]  # after the model's answer
    assert names == ["m9", "m8", "m7", "m6", "m3", "m2", "m1", "m0", "2 smaller modules", "the whole map"]
    maps = re.findall(r"<figcaption><span>(.*?)</span>", page)
    assert maps == ["m9", "m0", "m8", "m1", "m7", "m2", "m6", "m3", "m5", "m4"]  # those that matter most first
    assert "2 more modules" in page
    alone = render(replace(whole, modules=()))
    assert 'id="modules"' not in alone and "the whole map" not in alone


def test_parts_that_are_empty_are_left_out() -> None:
    page = render(Report("Nothing yet", "resnet18"))
    assert not re.search(r"<section|<nav[^>]*>\s*<a|<dl|<ul", page.split("<script")[0])
    assert data(page) == {"layers": [], "modules": [], "images": []}


def test_what_cannot_be_shown() -> None:
    with pytest.raises(ValueError, match=r"unit 0 as a uint8 array, got float32: \(image \* 255\)"):
        render(change_unit(filter=np.zeros((7, 7, 3), np.float32)))
    with pytest.raises(ValueError, match="as a uint8 array, got list"):
        render(change_unit(filter=[[0]]))
    for shape in ((7, 7), (3, 7, 7), (0, 7, 3)):
        with pytest.raises(ValueError, match=rf"of shape \(h, w, 3\), got {re.escape(str(shape))}"):
            render(change_unit(projection=np.zeros(shape, np.uint8)))
    for changes in ({"score": float("nan")}, {"served": [("cat", float("inf"))]}, {"stimuli": [("disc", np.nan)]}):
        with pytest.raises(ValueError, match="finite numbers for unit 0 of conv1"):
            render(change_unit(**changes))
    whole = report(2)
    with pytest.raises(ValueError, match="every layer once, got 'conv1' twice"):
        render(replace(whole, layers=[whole.layers[0]] * 2))
    with pytest.raises(ValueError, match="every unit of conv1 once, got 1 twice"):
        render(replace(whole, layers=[replace(whole.layers[0], units=[whole.layers[0].units[1]] * 2)]))
    with pytest.raises(ValueError, match="'Edges' for each of 1 photos, got 2 and 1"):
        render(replace(whole, modules=[replace(whole.modules[0], shares=[0.5, 0.5])]))
    with pytest.raises(ValueError, match="finite numbers for the shares of module 'Edges'"):
        render(replace(whole, modules=[replace(whole.modules[0], shares=[np.nan])]))
    with pytest.raises(ValueError, match="finite numbers for the answers"):
        render(replace(whole, photos=[replace(whole.photos[0], answers=[("cat", np.nan)])]))


def test_save_writes_the_whole_page_or_nothing(tmp_path: Path) -> None:
    path = save(report(1), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render(report(1))
    with pytest.raises(ValueError, match="finite"):
        save(change_unit(score=float("nan")), path)
    assert path.read_text(encoding="utf-8") == render(report(1))
    save(Report("a name that is no text: \udcff", "resnet18"), tmp_path / "odd.html")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["odd.html", "report.html"]


WATCH = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(String(event.message)), true);
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective));
console.error = console.warn = (...what) => errors.push(what.join(" "));
</script>"""

# Drives the page as a reader would, and leaves what it saw in the document.
DRIVE = """<script>
(async () => {
  const seen = {};
  const $ = (selector) => document.querySelector(selector);
  const $$ = (selector) => [...document.querySelectorAll(selector)];
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const visible = () => $$(".layer:not([hidden])").map((layer) => layer.querySelectorAll(".tile").length);
  const type = async (text) => {
    $("#search").value = text;
    $("#search").dispatchEvent(new Event("input"));
    await wait(300);
  };
  await wait(300);
  seen.start = visible();
  seen.pictures = $$("img").every((image) => image.src.startsWith("data:image/"));
  $(".rest").click();
  seen.all = visible();
  await type("TABBY edges");
  seen.search = [$("#count").textContent, visible()];
  await type("border");
  seen.against = [$("#count").textContent, visible(), $("#none").textContent];
  await type("wheel");
  seen.concept = [$("#count").textContent, visible(), $$(".layer")[1].open];
  $$(".layer:not([hidden]) .tile")[0].click();
  seen.dialog = [$("#unit").open, $("#unit-title").textContent, $$(".patches img").length, $("#unit-body").textContent];
  $("#unit").close();
  await type("");
  seen.cleared = [$$(".layer")[1].open, $("#count").textContent];
  $('[data-family="textures"]').click();
  seen.chip = [$("#count").textContent, visible(), $('[data-family="textures"]').getAttribute("aria-pressed")];
  $('[data-family="textures"]').click();
  $(".strip button").click();
  $("#next").click();
  seen.module = [$("#position").textContent, $("#unit-body p").textContent, $("#next").disabled];
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
  seen.back = $("#position").textContent;
  $("#close").click();
  $$(".module .more")[1].open = true;
  await wait(100);
  seen.members = $$(".module .more")[1].querySelector("dl").innerText.split(/\\s+/);
  seen.injected = $$("b").length;
  seen.buttons = $$(".tile").every((tile) => tile.matches("button[type=button][aria-haspopup=dialog]"));
  seen.errors = errors;
  document.body.replaceChildren(Object.assign(document.createElement("pre"), { textContent: JSON.stringify(seen) }));
})();
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page in")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE.replace("<style>", WATCH + "<style>", 1).replace("</body>", DRIVE + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    run = subprocess.run(
        [str(CHROMIUM), *options, "--virtual-time-budget=20000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"<pre>(.*?)</pre>", run.stdout, re.DOTALL)
    assert found, run.stderr[-2000:]
    seen = json.loads(unescape(found[1]))
    assert seen["errors"] == []
    assert seen["start"] == [72, 0] and seen["all"] == [130, 0]
    assert seen["pictures"] and seen["buttons"]
    assert seen["search"] == ["65 units in 1 layer", [65]]
    assert seen["against"] == ["No unit matches", [], "No unit matches “border”."]
    assert seen["concept"] == ["1 unit in 1 layer", [1], True]
    opened, title, patches, text = seen["dialog"]
    assert (opened, title, patches) == (True, NASTY, 1)
    assert all(word in text for word in ("layer4.1, unit 4", "textures · selectivity 0.3 of 1", "3.25", "wheel"))
    assert seen["cleared"] == [False, "132 units in 2 layers"]
    assert seen["chip"] == ["1 unit in 1 layer", [1], "true"]
    assert seen["module"] == ["2 of 2", "conv1, unit 3", True] and seen["back"] == "1 of 2"
    assert seen["members"] == ["layer4.1", "4", "77"]
    assert seen["injected"] == 0
