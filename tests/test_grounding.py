"""The pointing game: mosaics, shares, intervals, rules and curves on tiny inputs; what the results file holds."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

import drnet_captum as dc
from benchmarks.curves import area, between, curve_area
from benchmarks.games import CANDIDATES, FAMILIES, best, capped, layer_maps, mixed, mixtures, right_cells, shuffled
from benchmarks.grounding import row
from benchmarks.mosaics import (
    EMBEDDED,
    LEAST_PROBABILITY,
    SMALLEST_CROP,
    Mosaic,
    Photo,
    bootstrap,
    by_name,
    cell_shares,
    first_crops,
    labelled_images,
    make_mosaics,
    random_crop,
    two_folds,
)
from benchmarks.pairs import RESULTS
from drnet_captum.attr.drnet import DRNet


class Brightness(nn.Module):
    """The logit of class 1 is the mean of the input, of the others 0."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([torch.zeros_like(mean), mean, torch.zeros_like(mean)], 1)


def photo(name, label, value, side=8):
    return Photo(name, label, 0.9, torch.full((3, side, side), float(value)))


def generator():
    return torch.Generator().manual_seed(0)


def test_share_of_the_positive_values_in_each_cell():
    maps = torch.zeros(2, 1, 4, 4)
    maps[0, 0, 0, 0], maps[0, 0, 1, 3], maps[0, 0, 3, 0], maps[0, 0, 2, 2] = 1.0, 2.0, 5.0, -7.0
    maps[1] = -1.0
    expected = torch.tensor([[1 / 8, 2 / 8, 5 / 8, 0.0], [0.25] * 4])  # nothing positive: chance
    torch.testing.assert_close(cell_shares(maps), expected)


def test_each_class_is_judged_by_its_own_cell():
    maps = torch.zeros(2, 4, 4, 4)
    for cell, (y, x) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        maps[0, cell, y, x] = 1.0  # every map right
        maps[1, cell, 0, 0] = 1.0  # every map top left
    assert right_cells(maps).tolist() == [[1.0] * 4, [1.0, 0.0, 0.0, 0.0]]


def test_cells_of_a_mosaic():
    mosaic = Mosaic(tuple(photo(str(i), i, i) for i in range(4)))
    assert mosaic.x.shape == (3, 16, 16)
    assert [mosaic.x[0, y, x].item() for y, x in [(0, 0), (0, 15), (15, 0), (15, 15)]] == [0.0, 1.0, 2.0, 3.0]
    assert mosaic.labels == [0, 1, 2, 3]


def test_mosaics_are_of_four_photos_and_of_the_seed():
    photos = [photo(str(i), i, i) for i in range(6)]  # not known to the model, so uncropped
    found = make_mosaics(Brightness(), photos, 5, generator())
    assert all(len(set(mosaic.labels)) == 4 for mosaic in found)
    assert len({tuple(mosaic.labels) for mosaic in found}) > 1
    assert [m.labels for m in found] == [m.labels for m in make_mosaics(Brightness(), photos, 5, generator())]
    with pytest.raises(ValueError, match="at least four photos of four classes, got 3"):
        make_mosaics(Brightness(), photos[:3], 1, generator())


def test_crops_are_smaller_parts_that_are_named_right():
    ramp = torch.linspace(1, 3, 64).expand(3, 64, 64).contiguous()
    rng, found = generator(), []
    for _ in range(12):
        crop = random_crop(Brightness(), Photo("ramp", 1, 0.9, ramp), rng)
        assert (crop.label, crop.x.shape) == (1, ramp.shape)
        found.append(crop.x)
    widths = torch.tensor([float(x.max() - x.min()) / 2 for x in found])
    assert (widths >= SMALLEST_CROP - 0.05).all() and (widths < 1.0).any()
    slopes = {float(x[0, 0, -1] - x[0, 0, 0]) > 0 for x in found}
    assert slopes == {True, False}  # some are flipped
    unknown = Photo("dark", 1, 0.9, -ramp)
    assert random_crop(Brightness(), unknown, generator()) is unknown


def test_first_crops_of_each_photo():
    mosaics = [Mosaic(tuple(photo(name, i, j) for i, name in enumerate("abcd"))) for j in range(3)]
    crops = first_crops(mosaics, 2)
    assert [(crop.name, crop.x[0, 0, 0].item()) for crop in crops] == [(n, v) for n in "abcd" for v in (0.0, 1.0)]


def test_folds_share_no_photo():
    photos = [photo(str(i), i, i) for i in range(9)]
    first, second = two_folds(photos, generator())
    assert (len(first), len(second)) == (4, 5)
    assert {p.name for p in first} | {p.name for p in second} == {p.name for p in photos}


def test_labels_stand_in_the_file_names(tmp_path):
    for name in ("some_photo_00_243.jpg", "x_7.png", "notes_3.txt", "nolabel.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "png")
    found = {name: labels for name, labels, _ in labelled_images(tmp_path)}
    assert found == {"some_photo_00_243.jpg": (243,), "x_7.png": (7,)} | EMBEDDED


def test_interval():
    found = bootstrap([0.5] * 10, seed=0)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)
    values = torch.randn(200, generator=generator()).tolist()
    found = bootstrap(values, seed=0)
    mean, spread = torch.tensor(values).mean().item(), 1.96 * torch.tensor(values).std().item() / 200**0.5
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == (pytest.approx(mean - spread, abs=0.015), pytest.approx(mean + spread, abs=0.015))
    assert bootstrap(values, seed=0) == found != bootstrap(values, seed=1)


def test_every_photo_counts_once():
    assert by_name(["cat", "cup", "cat", "cat"], [1.0, 5.0, 2.0, 3.0]) == [2.0, 5.0]


def test_row_is_paired():
    values, against = torch.tensor([[0.5, 0.9], [0.3, 0.7]]), torch.tensor([[0.4, 0.8], [0.2, 0.9]])
    found = row("share", "rule", values, against, ["a", "b", "a", "b"], 0)
    assert (found["mean"], found["items"], found["above"]) == (pytest.approx(0.6), 2, 0.75)
    assert found["difference"]["mean"] == pytest.approx(0.025)
    assert (found["difference"]["low"], found["difference"]["high"]) == (pytest.approx(-0.05), pytest.approx(0.1))
    photos = found["difference_over_photos"]  # a: +.1, b: −.05
    assert (photos["low"], photos["high"]) == (pytest.approx(-0.05), pytest.approx(0.1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_shares_of_any_number_of_layers(family, count):
    shares = FAMILIES[family](count)
    assert len(shares) == count and min(shares) >= 0
    assert sum(shares) == pytest.approx(1)
    assert count == 1 or shares[-1] <= 0.5


def test_shares_by_hand():
    assert capped([2, 2, 4]) == [0.25, 0.25, 0.5]
    assert capped([1, 9]) == [0.5, 0.5]
    assert FAMILIES["uniform"](4) == [0.25] * 4
    assert FAMILIES["geometric .75"](3) == pytest.approx([9 / 37, 12 / 37, 16 / 37])
    assert FAMILIES["geometric .5"](3) == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert FAMILIES["half on the last"](3) == [0.25, 0.25, 0.5]
    assert FAMILIES["last two"](4) == [0.0, 0.0, 0.5, 0.5]
    assert FAMILIES["first and last"](4) == [0.5, 0.0, 0.0, 0.5]


def test_mixtures_leave_other_layers_out():
    found = mixtures(["a", "b", "c"], ["a", "c"])
    assert found["uniform"] == [0.5, 0.0, 0.5]
    assert found["uniform over all cut layers"] == [1 / 3] * 3
    assert found["b alone"] == [0.0, 1.0, 0.0]
    assert "uniform over all cut layers" not in mixtures(["a", "c"], ["a", "c"])


def test_rules_are_those_of_the_classes():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 49, 6)
    ).eval()
    x, labels, layers = torch.rand(3, 18, 18), [0, 3, 5, 2], ["1", "3"]
    shares = [[0.3, 0.7], [0.0, 1.0]]
    found = layer_maps(model, x, labels, layers)
    assert {(w, s) for w, s, _ in CANDIDATES} == set(found)
    for (weights, score), maps in found.items():
        both = mixed(maps, shares, (18, 18))
        for i, label in enumerate(labels):
            for mixture, share in zip(both, shares, strict=True):
                options = {"weights": weights, "score": score, "layer_weights": share}
                expected = DRNet(model, layers).attribute(x[None], label, **options)
                torch.testing.assert_close(mixture[i], expected[0, 0], rtol=1e-4, atol=1e-6)
    last = dc.GradCAM(model, layer="3").attribute(x[None], 3, score="log_prob")
    torch.testing.assert_close(found["gradient", "log_prob"][1][1:2], last)


def test_shuffled_weights_are_the_same_numbers():
    torch.manual_seed(0)
    model = nn.Linear(6, 5)
    before = model.weight.clone()
    found = shuffled(model, seed=0)
    assert torch.equal(model.weight, before) and not torch.equal(found.weight, before)
    assert torch.equal(found.weight.flatten().sort().values, before.flatten().sort().values)


def test_best_looks_at_its_mosaics_only():
    shares = {rule: torch.full((4, 4), 0.3) for rule in CANDIDATES}
    shares[CANDIDATES[5]][:2] = 0.6
    shares[CANDIDATES[9]][2:] = 0.9
    assert best(shares, slice(0, 2)) == CANDIDATES[5]
    assert best(shares, slice(2, 4)) == CANDIDATES[9]


def test_most_important_pixels_go_first():
    start, end = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    found = between(start, end, torch.tensor([[0.1, 4.0], [-3.0, 0.1]]), steps=4)
    assert found[:, 0].flatten(1).tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1]]
    torch.testing.assert_close(found[:, 0], found[:, 2])
    assert between(start, end, torch.rand(2, 2), steps=2)[:, 0].flatten(1).sum(1).tolist() == [0, 2, 4]


def test_area_under_a_curve():
    assert area(torch.tensor([0.0, 1.0])) == 0.5
    assert area(torch.tensor([1.0, 0.5, 0.0, 0.0])) == pytest.approx((0.75 + 0.25) / 3)
    start, end = torch.zeros(3, 4, 4), torch.full((3, 4, 4), 50.0)
    end[:, 0] = 150.0
    good = torch.arange(16.0).flip(0).view(4, 4)
    assert curve_area(Brightness(), start, end, good, 1) > curve_area(Brightness(), start, end, -good, 1)


def test_results_are_of_enough_mosaics_of_known_photos_in_two_folds():
    found = json.loads((RESULTS / "grounding.json").read_text())
    where, rows = found["environment"], found["rows"]
    assert where["mosaics"] >= 100
    assert all(p["probability"] >= LEAST_PROBABILITY for p in where["photos"])
    assert {p["fold"] for p in where["photos"]} == {1, 2}
    assert (
        len({p["name"] for p in where["photos"]}) == len(where["photos"]) == len({p["label"] for p in where["photos"]})
    )
    shares = {r["rule"]: r for r in rows if r["measure"] == rows[0]["measure"]}
    names = {", ".join(rule) for rule in CANDIDATES}
    assert names < set(shares)
    assert set(shares["DRNet chosen on the other fold"]["chosen"]) <= names
    assert all(r["difference"]["low"] <= r["difference"]["mean"] <= r["difference"]["high"] for r in rows)
