"""Runs made by hand, with answers worked out by hand: what a summary counts, averages and picks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from summary_runs import GRAD_CAM, RAMP, at, many, row, write_run

from drnet_captum.scale import summary_rows
from drnet_captum.scale.best import Best
from drnet_captum.scale.class_maps import border_share, correlations, scaled
from drnet_captum.scale.rows import schema
from drnet_captum.scale.summary import Reason, Summary, summarize
from drnet_captum.scale.summary_counts import spread


def close(a: Summary, b: Summary) -> None:
    """Raise AssertionError where two summaries say something else."""
    assert [(one.index, one.images, one.accuracy, one.wrong, one.sample) for one in a.classes] == [
        (one.index, one.images, one.accuracy, one.wrong, one.sample) for one in b.classes
    ]
    for one, other in zip(a.classes, b.classes, strict=True):
        mine, theirs = one.methods["grad_cam"], other.methods["grad_cam"]
        np.testing.assert_allclose(mine.mean_map, theirs.mean_map, atol=1e-12)
        for cases, others in ((mine.typical, theirs.typical), (mine.atypical, theirs.atypical)):
            assert [case.path for case in cases] == [case.path for case in others]
    assert a.outside == b.outside


def test_answers_are_counted_by_class(tmp_path: Path) -> None:
    labels, answers = [0, 0, 0, 0, 1, 1, None], [0, 1, 1, 2, 1, 0, 2]
    rows = [
        row(i, label, answer, RAMP, target_probability=i / 10)
        for i, (label, answer) in enumerate(zip(labels, answers, strict=True))
    ]
    found = summarize(write_run(tmp_path, rows))
    assert (found.images, found.labelled, found.accuracy) == (7, 6, 2 / 6)
    cat, dog, cup = found.classes
    assert (cat.name, cat.images, cat.accuracy, cat.wrong) == ("tabby cat", 4, 0.25, ((1, 2), (2, 1)))
    assert (dog.images, dog.accuracy, dog.wrong) == (2, 0.5, ((0, 1),))
    assert (cup.images, cup.accuracy, cup.wrong) == (1, None, ())  # the one without a label, by its answer
    assert cat.probability == pytest.approx((0 + 0.1 + 0.2 + 0.3) / 4)
    assert (found.model, found.label(1), found.label(9)) == ("resnet18", "dog", "class 9")


def test_wrong_answers_are_the_three_most_frequent(tmp_path: Path) -> None:
    model = {"name": "m", "classes": 9, "categories": None}
    answers = [1, 2, 2, 3, 3, 3, 4]
    found = summarize(write_run(tmp_path, [row(i, 0, a, RAMP) for i, a in enumerate(answers)], model=model))
    assert found.classes[0].wrong == ((3, 3), (2, 2), (1, 1))
    assert found.classes[0].name == "class 0"


def test_each_map_has_the_same_say_in_the_mean(tmp_path: Path) -> None:
    maps = [at((0, 0), value=400.0), at((7, 7), value=-2.0), np.zeros((14, 14)), at((0, 0), (5, 5), value=1e-6)]
    found = summarize(write_run(tmp_path, [row(i, 0, 0, map) for i, map in enumerate(maps)]))
    expected = at((0, 0), value=0.5) + at((5, 5), value=0.25) + at((7, 7), value=-0.25)
    grad_cam = found.classes[0].methods["grad_cam"]
    np.testing.assert_allclose(grad_cam.mean_map, expected, atol=1e-12)
    assert grad_cam.border == pytest.approx(2 / 3)  # of the positive values


def test_maps_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    broken = at((3, 3))
    broken[2, 2] = np.nan
    rows = [row(0, 0, 0, at((1, 1))), row(1, 0, 0, broken), row(2, 0, 0, at((1, 1), value=np.inf))]
    found = summarize(write_run(tmp_path, rows))
    assert found.left_out == {"grad_cam": 2} and found.classes[0].images == 3
    np.testing.assert_array_equal(found.classes[0].methods["grad_cam"].mean_map, at((1, 1)))
    assert [case.index for case in found.classes[0].methods["grad_cam"].typical] == [0]


def test_typical_images_are_those_like_the_mean_map(tmp_path: Path) -> None:
    maps = [RAMP, -RAMP, 3 * RAMP, np.full((14, 14), 2.0), RAMP.T, np.zeros((14, 14)), RAMP]
    rows = [row(i, 0, i % 4, map, probability=i / 8) for i, map in enumerate(maps)]
    found = summarize(write_run(tmp_path, rows), top=2).classes[0].methods["grad_cam"]
    # The mean is 2x + y up to its scale and a constant, where x and y are uncorrelated.
    assert [case.index for case in found.typical] == [0, 2]  # equally so: by row
    assert [case.index for case in found.atypical] == [1, 4]
    np.testing.assert_allclose([case.score for case in found.typical], 2 / 5**0.5)
    np.testing.assert_allclose([case.score for case in found.atypical], [-2 / 5**0.5, 1 / 5**0.5])
    case = found.typical[1]
    assert (case.path, case.label, case.predicted, case.probability) == ("photos/2.jpg", 0, 2, 0.25)


def test_no_image_is_both_typical_and_not(tmp_path: Path) -> None:
    rows = many()
    for one in summarize(write_run(tmp_path, rows), top=6).classes:
        of = one.methods["grad_cam"]
        shown = [case.index for case in (*of.typical, *of.atypical)]
        assert len(shown) == len(set(shown)) == min(12, one.images)
        assert [case.score for case in of.typical] == sorted((case.score for case in of.typical), reverse=True)
        assert [case.score for case in of.atypical] == sorted(case.score for case in of.atypical)


def test_equal_images_are_shown_once(tmp_path: Path) -> None:
    of = summarize(write_run(tmp_path, [row(i, 0, 0, RAMP) for i in range(7)]), top=3).classes[0].methods["grad_cam"]
    assert [[case.index for case in cases] for cases in (of.typical, of.atypical)] == [[0, 1, 2], [6, 5, 4]]


def test_a_slow_count_over_all_rows_agrees(tmp_path: Path) -> None:
    rows = many(200)
    found = summarize(write_run(tmp_path, rows), top=3)
    for one in found.classes:
        mine = [r for r in rows if (r["predicted"] if r["label"] is None else r["label"]) == one.index]
        maps = [np.array(r["grad_cam_pooled"], dtype=np.float32).astype(np.float64) for r in mine]
        mean = sum(map / np.abs(map).max() for map in maps) / len(maps)
        of = one.methods["grad_cam"]
        np.testing.assert_allclose(of.mean_map.ravel(), mean, atol=1e-12)
        alike = sorted((-np.corrcoef(map, mean)[0, 1], r["index"]) for map, r in zip(maps, mine, strict=True))
        assert [case.index for case in of.typical] == [index for _, index in alike[:3]]
        assert [case.index for case in of.atypical] == [index for _, index in alike[:-4:-1]]
        ring = np.ones((14, 14), bool)
        ring[1:-1, 1:-1] = False
        positive = mean.clip(0).reshape(14, 14)
        assert of.border == pytest.approx(positive[ring].sum() / positive.sum())
        inside = [r["grad_cam_inside"] for r in mine if r["grad_cam_inside"] is not None]
        shares = [r["box_share"] for r in mine if r["box_share"] is not None]
        assert of.inside == pytest.approx(np.mean(inside)) and one.box_share == pytest.approx(np.mean(shares))
    ratios = sorted(
        (r["grad_cam_inside"] / r["box_share"], r["index"]) for r in rows if r["grad_cam_inside"] is not None
    )
    outside = found.outside["grad_cam"]
    assert [case.index for case in outside.worst] == [index for _, index in ratios[:3]]
    np.testing.assert_allclose([case.score for case in outside.worst], [r for r, _ in ratios[:3]], rtol=1e-6)
    assert outside.images == len(ratios)
    assert outside.below == pytest.approx(np.mean([ratio < 1 for ratio, _ in ratios]))


def test_how_rows_lie_in_files_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = many()
    whole = summarize(write_run(tmp_path / "whole", rows), top=4)
    monkeypatch.setattr(summary_rows, "_BATCH", 7)
    close(whole, summarize(write_run(tmp_path / "cut", rows, files=4, row_group_size=5), top=4))


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], Any]] = []
    read = pq.ParquetFile.iter_batches

    def spy(self: Any, *args: Any, columns: list[str], row_groups: Any = None) -> Any:
        asked.append((columns, row_groups))
        return read(self, *args, columns=columns, **({} if row_groups is None else {"row_groups": row_groups}))

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    run = summary_rows.Explanations(write_run(tmp_path, many(40), row_group_size=10))
    assert sorted(run.rows([13, 35, 11], ["path"])) == [11, 13, 35]
    assert [groups for _, groups in asked] == [[1, 3]]
    assert run.rows([], ["path"]) == {} and run.rows([99], ["path"]) == {} and len(asked) == 1
    asked.clear()
    summarize(tmp_path)
    assert not any({"thumbnail", "grad_cam_sum"} & set(columns) for columns, _ in asked)


def test_outside_is_less_in_the_boxes_than_by_chance(tmp_path: Path) -> None:
    shares = [(0.5, 0.5), (0.1, 0.4), (0.0, 0.2), (0.0, 0.6), (1.0, 0.25), (0.3, 0.0), (None, 0.5), (None, None)]
    rows = [row(i, None, 0, RAMP, grad_cam_inside=inside, box_share=share) for i, (inside, share) in enumerate(shares)]
    found = summarize(write_run(tmp_path, rows), top=4)
    outside = found.outside["grad_cam"]
    assert (outside.images, outside.below) == (5, 0.6)
    assert [case.index for case in outside.worst] == [3, 2, 1, 0]  # of two that have nothing inside, the larger box
    np.testing.assert_allclose([case.score for case in outside.worst], [0, 0, 0.25, 1], rtol=1e-6)
    assert outside.worst[2].inside == pytest.approx(0.1) and outside.worst[2].box_share == pytest.approx(0.4)
    assert found.classes[0].box_share == pytest.approx(np.mean([0.5, 0.4, 0.2, 0.6, 0.25, 0, 0.5]))
    assert found.classes[0].methods["grad_cam"].inside == pytest.approx(np.mean([0.5, 0.1, 0, 0, 1, 0.3]))


def test_classes_by_their_border(tmp_path: Path) -> None:
    maps = [at((7, 7)), at((0, 3), (7, 7)), at((13, 13)), at((0, 0), value=-1)]
    found = summarize(write_run(tmp_path, [row(i, i, i, map) for i, map in enumerate(maps)]))
    assert [one.index for one in found.by_border("grad_cam")] == [2, 1, 0]
    assert [one.methods["grad_cam"].border for one in found.classes] == [0, 0.5, 1, None]
    assert border_share(np.ones((14, 14))) == pytest.approx(52 / 196)


def test_one_image_and_nothing_known_of_it(tmp_path: Path) -> None:
    found = summarize(write_run(tmp_path, [row(3, None, 2, RAMP)]))
    assert (found.images, found.labelled, found.accuracy, found.outside) == (1, 0, None, {})
    (one,) = found.classes
    assert (one.index, one.accuracy, one.box_share, one.sample) == (2, None, None, (3,))
    of = one.methods["grad_cam"]
    assert of.inside is None and of.atypical == ()
    assert [(case.index, case.label) for case in of.typical] == [(3, None)]
    assert of.typical[0].score == pytest.approx(1)


def test_failures_are_counted_by_their_reason(tmp_path: Path) -> None:
    errors = [
        (1, "a.jpg", "could not read the image a.jpg: the file is empty"),
        (2, "b.jpg", "could not read the image b.jpg: the file is empty"),
        (5, "c.jpg", "no such file"),
    ]
    write_run(tmp_path, [row(0, 0, 0, RAMP)], errors=errors)
    expected = (Reason("could not read the image …: the file is empty", 2, "a.jpg"), Reason("no such file", 1, "c.jpg"))
    assert summarize(tmp_path).reasons == expected
    # A run that goes on has them by shard.
    (tmp_path / "errors").mkdir()
    (tmp_path / "errors.parquet").rename(tmp_path / "errors" / "000000000-000000032.parquet")
    assert summarize(tmp_path).reasons == expected


def test_methods_are_those_asked_for(tmp_path: Path) -> None:
    names = ("grad_cam", "saliency")
    saliency = {"saliency_pooled": RAMP.T.ravel().tolist(), "saliency_inside": None}
    write_run(tmp_path, [row(0, 0, 0, RAMP) | saliency], methods=names)
    both, one = summarize(tmp_path), summarize(tmp_path, ["saliency", "saliency"])
    assert both.methods == names and both.classes[0].methods.keys() == set(names)
    assert one.methods == ("saliency",)
    np.testing.assert_allclose(one.classes[0].methods["saliency"].mean_map, RAMP.T / 13)
    with pytest.raises(ValueError, match=r"no method 'lime': there are grad_cam, saliency"):
        summarize(tmp_path, ["lime"])


def test_columns_are_those_that_runs_have() -> None:
    assert set(row(0, 0, 0, RAMP)) == set(schema(GRAD_CAM, False).names)


def test_the_best_rows_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    groups, rows = rng.integers(0, 5, 300), np.arange(300)
    scores, ties = rng.integers(0, 20, 300) / 4, rng.integers(0, 3, 300).astype(float)
    expected = {
        group: sorted((-scores[i], -ties[i], i) for i in range(300) if groups[i] == group)[:4] for group in range(5)
    }
    for order in (rows, rows[::-1], rng.permutation(300)):
        best = Best(5, 4)
        for part in np.array_split(order, 9):
            best.add(groups[part], scores[part], rows[part], ties[part])
        for group in range(5):
            assert best.of(group) == [(i, -score) for score, _, i in expected[group]]
        assert best.rows() == {i for found in expected.values() for _, _, i in found}


def test_constant_maps_are_like_nothing() -> None:
    ramp = RAMP.reshape(1, -1)
    for flat in (np.zeros((1, 196)), np.full((1, 196), 0.1), np.full((1, 196), np.float32(1e-3)).astype(np.float64)):
        assert np.isnan(correlations(ramp, flat)).all() and np.isnan(correlations(flat, ramp)).all()
    small = scaled(1e-30 * ramp)
    np.testing.assert_allclose(correlations(small, ramp), 1)


def test_a_sample_is_spread_over_its_rows() -> None:
    picked = np.sort(np.argsort(spread(np.arange(1000)))[-32:])
    assert np.diff(picked).max() < 100 and picked[0] < 100 and picked[-1] > 900
