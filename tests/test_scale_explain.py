"""Data sets explained in this process: the numbers, odd files, mistakes."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from data_sets import (
    CLASSES,
    MEAN,
    METHODS,
    SIDE,
    STD,
    Small,
    card,
    explain_small,
    make_odd,
    make_photos,
    map_of,
    rows_of,
    seen,
)
from PIL import Image
from torchvision import transforms

import drnet_captum as dc
from drnet_captum.scale import decode, dissect_dataset, explain_dataset
from drnet_captum.scale.decode import Decoder
from drnet_captum.scale.rows import read_failures


def test_rows_are_what_explain_gives(labelled_photos, explained_photos):
    rows = rows_of(explained_photos)
    assert [row["index"] for row in rows] == list(range(21))
    assert [path.name for path in sorted((explained_photos / "rows").iterdir())] == [
        "000000000-000000008.parquet",
        "000000008-000000016.parquet",
        "000000016-000000021.parquet",
    ]
    model = Small().eval()
    for row in rows:
        x = seen(labelled_photos / row["path"])
        maps = dc.explain(model, x, methods=METHODS, interpolate_mode="none")
        probabilities = maps.scores.softmax(1)[0]
        assert CLASSES[row["label"]] == row["path"].split("/")[0]
        assert row["predicted"] == row["target"] == int(probabilities.argmax())
        assert row["probability"] == pytest.approx(float(probabilities.max()), rel=1e-4)
        assert row["target_probability"] == row["probability"]
        for name in METHODS:
            expected = maps[name][0]
            largest = float(expected.abs().max())
            torch.testing.assert_close(map_of(row, name), expected, rtol=2e-3, atol=2e-3 * largest)
            heat = expected.sum(0)
            assert row[f"{name}_sum"] == pytest.approx(float(heat.sum()), rel=1e-3, abs=1e-3 * largest)
            assert row[f"{name}_low"] == pytest.approx(float(heat.min()), rel=1e-3, abs=1e-4 * largest)
            assert row[f"{name}_high"] == pytest.approx(float(heat.max()), rel=1e-3, abs=1e-4 * largest)
            assert row[f"{name}_inside"] is None
        with Image.open(io.BytesIO(row["thumbnail"])) as thumbnail:
            assert (thumbnail.format, thumbnail.size) == ("JPEG", (SIDE, SIDE))
            assert abs(np.asarray(thumbnail).mean() / 255 - float(card().photo(x[0]).mean())) < 0.02
        pooled = torch.nn.functional.interpolate(maps["grad_cam"], (14, 14), mode="bilinear").flatten()
        torch.testing.assert_close(torch.tensor(row["grad_cam_pooled"]), pooled, rtol=1e-3, atol=1e-5)


def test_the_manifest_says_what_was_done(explained_photos):
    manifest = json.loads((explained_photos / "manifest.json").read_text())
    assert manifest["complete"] and manifest["methods"] == list(METHODS)
    assert manifest["model"]["classes"] == 3 and manifest["model"]["categories"] == list(CLASSES)
    assert manifest["source"]["images"] == 21 and manifest["source"]["labelled"]
    assert manifest["arguments"] | {"threads": 1, "batch_size": 4, "target": "predicted"} == manifest["arguments"]
    assert manifest["versions"]["torch"] == torch.__version__
    assert not (explained_photos / "errors").exists()


def test_labels_are_explained_where_they_are_asked_for(labelled_photos, tmp_path):
    explain_small(labelled_photos, tmp_path / "run", target="label", methods="grad_cam", maps="none")
    model = Small().eval()
    for row in rows_of(tmp_path / "run"):
        assert row["target"] == row["label"]
        with torch.no_grad():
            expected = model(seen(labelled_photos / row["path"])).softmax(1)[0, row["label"]]
        assert row["target_probability"] == pytest.approx(float(expected), rel=1e-4)
        assert "grad_cam_map" not in row and len(row["grad_cam_pooled"]) == 196


def test_odd_files(tmp_path):
    expected = make_odd(tmp_path / "odd")
    finished = explain_small(tmp_path / "odd", tmp_path / "run")
    failures = {row["path"]: row["reason"] for row in parquet.read_table(tmp_path / "run/errors.parquet").to_pylist()}
    assert {row["path"] for row in rows_of(tmp_path / "run")} == {name for name, why in expected.items() if not why}
    assert set(failures) == {name for name, why in expected.items() if why} and finished.failed == 3
    for name, reason in failures.items():
        assert expected[name] in reason
    assert all(row["label"] is None for row in rows_of(tmp_path / "run"))


def test_an_image_that_the_model_fails_on_spoils_no_other(labelled_photos, tmp_path, monkeypatch):
    class Fussy(Small):
        def forward(self, x):
            if float(x.detach()[:, 0].max()) > 2.0:
                raise ValueError("too red for me")
            return super().forward(x)

    inputs = {path: seen(path) for path in sorted(labelled_photos.rglob("*.jpg"))}
    bright = {str(path.relative_to(labelled_photos)) for path, x in inputs.items() if float(x[:, 0].max()) > 2.0}
    assert 0 < len(bright) < 21
    explain_dataset(
        labelled_photos, Fussy().eval(), out=tmp_path / "run", card=card(), batch_size=4, rows_per_shard=8, threads=1
    )
    failures = read_failures(tmp_path / "run/errors.parquet")
    assert {failure.path for failure in failures} == bright
    assert all("too red" in failure.reason for failure in failures)
    assert len(rows_of(tmp_path / "run")) == 21 - len(bright)


def test_rows_without_a_label_are_told_and_others_keep_their_batch(tmp_path):
    make_photos(tmp_path / "photos", 4, classes=())
    images = [path.read_bytes() for path in sorted((tmp_path / "photos").iterdir())]
    table = pa.table({"image": images, "label": [0, None, 2, 1]})
    parquet.write_table(table, tmp_path / "data.parquet")
    seen_sizes = []

    class Counting(Small):
        def forward(self, x):
            seen_sizes.append(len(x))
            return super().forward(x)

    options = {"card": card(), "target": "label", "threads": 1, "out": tmp_path / "run"}
    finished = explain_dataset(tmp_path / "data.parquet", Counting().eval(), **options)
    assert finished.failed == 1 and seen_sizes[-1] == 3
    (failure,) = read_failures(tmp_path / "run/errors.parquet")
    assert failure.index == 1 and "has no label, which is to be explained" in failure.reason
    assert [(row["index"], row["target"]) for row in rows_of(tmp_path / "run")] == [(0, 0), (2, 2), (3, 1)]


def test_decoders_may_raise_anything(labelled_photos, tmp_path, monkeypatch):
    real = decode.decode_image

    def fragile(data, name):
        if name.endswith("0003.jpg"):
            raise KeyError("orientation")
        return real(data, name)

    monkeypatch.setattr(decode, "decode_image", fragile)
    assert explain_small(labelled_photos, tmp_path / "run", maps="none").failed == 1
    (failure,) = read_failures(tmp_path / "run/errors.parquet")
    assert failure.reason == "could not read the image bar/0003.jpg: KeyError: 'orientation'"
    assert not (tmp_path / "run/errors").exists()  # all of them are in one file


def test_out_among_the_images_is_refused(labelled_photos, monkeypatch):
    monkeypatch.chdir(labelled_photos)
    with pytest.raises(ValueError, match="expected out to be outside of the source"):
        explain_small(".", "explanations")
    assert not (labelled_photos / "explanations").exists()


def test_pixels_that_are_not_bytes(labelled_photos, explained_photos, tmp_path):
    """A transform that resizes after the bytes became numbers: pixels travel as float32, and nothing is rounded."""
    steps = [transforms.ToTensor(), transforms.Resize(32), transforms.CenterCrop(32), transforms.Normalize(MEAN, STD)]
    smooth = replace(card(), transform=transforms.Compose(steps))
    assert Decoder(None, card()).is_exact and not Decoder(None, smooth).is_exact
    explain_dataset(
        labelled_photos, Small().eval(), METHODS, out=tmp_path / "run", card=smooth, batch_size=4, threads=1
    )
    first = rows_of(tmp_path / "run")[0]
    with Image.open(labelled_photos / first["path"]) as image:
        x = smooth.transform(image.convert("RGB"))[None]
    expected = dc.explain(Small().eval(), x, methods="saliency")["saliency"][0]
    torch.testing.assert_close(map_of(first, "saliency"), expected, rtol=2e-3, atol=2e-3 * float(expected.max()))


def test_too_many_failures_stop_the_run_and_more_may_be_borne(tmp_path):
    make_odd(tmp_path / "odd")
    with pytest.raises(ValueError, match=r"3 images failed, more than max_errors=2 \(.*empty.*max_errors goes on"):
        explain_small(tmp_path / "odd", tmp_path / "run", max_errors=2)
    with pytest.raises(ValueError, match="3 images failed"):
        explain_small(tmp_path / "odd", tmp_path / "run", max_errors=0)
    assert explain_small(tmp_path / "odd", tmp_path / "run", max_errors=3).failed == 3
    assert len(rows_of(tmp_path / "run")) == 5


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"batch_size": 0}, ValueError, "batch_size and rows_per_shard of at least 1"),
        ({"maps": "some"}, ValueError, "expected maps to be 'full' or 'none', got 'some'"),
        ({"methods": "grad_camm"}, ValueError, "grad_camm"),
        ({"layer": "features.9"}, ValueError, "features.9"),
        ({"engine": "spark"}, ValueError, "expected engine to be one of local, ray, got 'spark'"),
        ({"concurrency": 2}, ValueError, 'engine="local" is one worker'),
        ({"threads": 0}, ValueError, "at least one worker and one thread"),
    ],
)
def test_mistakes_are_told_at_the_door(labelled_photos, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        explain_small(labelled_photos, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_unknown_keywords_are_not_ignored(labelled_photos, tmp_path):
    with pytest.raises(TypeError, match=r"unexpected keyword .num_gpu.: there are .*num_gpus"):
        explain_small(labelled_photos, tmp_path / "run", num_gpu=1)
    with pytest.raises(TypeError, match="unexpected keyword 'precision'"):
        dissect_dataset(labelled_photos, Small().eval(), tmp_path / "run", card=card(), precision="bfloat16")


def test_labels_that_are_not_known(tmp_path):
    make_odd(tmp_path / "odd")
    with pytest.raises(ValueError, match="expected images with labels for target='label'"):
        explain_small(tmp_path / "odd", tmp_path / "run", target="label")


def test_evidence_inside_boxes(labelled_photos, tmp_path):
    """Boxes of the whole photo hold all of it, a corner holds its share, and photos without a box have none."""
    paths = sorted(str(path.relative_to(labelled_photos)) for path in labelled_photos.rglob("*.jpg"))
    boxes = {
        paths[0]: [0, 0, 1000, 1000],
        paths[1]: [[0, 0, 20, 1000], [20, 0, 1000, 1000]],
        paths[2]: [0, 0, 1000, 20],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    explain_small(labelled_photos, tmp_path / "run", boxes=str(tmp_path / "boxes.json"))
    rows = {row["path"]: row for row in rows_of(tmp_path / "run")}
    for path in paths[:2]:
        assert rows[path]["box_share"] == 1 and rows[path]["saliency_inside"] == pytest.approx(1)
    third = rows[paths[2]]
    with Image.open(labelled_photos / paths[2]) as image:
        width, height = image.size
    short = min(height, width)
    expected = 20 / short if height == short else (20 - (height - short) / 2) / short
    assert third["box_share"] == pytest.approx(expected, abs=0.05)
    cells = round(third["box_share"] * 32)
    heat = map_of(third, "saliency").sum(0)
    assert third["saliency_inside"] == pytest.approx(float(heat[:cells].sum() / heat.sum()), abs=0.01)
    assert rows[paths[3]]["box_share"] is None and rows[paths[3]]["saliency_inside"] is None


def test_nothing_of_the_callers_is_changed(labelled_photos, tmp_path):
    model, threads = Small(), torch.get_num_threads()
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain_dataset(labelled_photos, model, out=tmp_path / "run", card=card(), threads=2, maps="none")
    assert torch.get_num_threads() == threads and all(p.requires_grad for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_small_gradients_survive_half_precision():
    from drnet_captum.scale.measures import packed

    map = torch.randn(3, 5, 5) * 1e-7
    found = packed(map)
    torch.testing.assert_close(torch.from_numpy(found.map()), map, rtol=1e-3, atol=1e-10)
    assert packed(torch.zeros(1, 2, 2)).map().tolist() == [[[0.0, 0.0], [0.0, 0.0]]]
