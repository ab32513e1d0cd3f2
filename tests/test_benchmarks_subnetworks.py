"""The sub-networks' benchmark: its data, its networks, its means; the results say what the table of all rows says."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from benchmarks.pairs import RESULTS
from benchmarks.report import subnetworks_table
from benchmarks.small_images import NETWORKS, PLAIN, SPARSE, Data, Recipe, fashion_mnist, shrink, train, trained
from benchmarks.subnetwork_bench import Bench, Chain, folded, sliced_chain, spread_over_classes
from benchmarks.subnetwork_plot import best_widths, plot
from benchmarks.subnetworks import file_name, fixed_choices, merged_rows, pair_rows, save_rows, summary
from drnet_captum.layers.units import find_units
from drnet_captum.reconstruct.masks import MaskedModel

KEYS = ("criterion", "widths", "correction", "budget")


def chain(seed: int = 0) -> Chain:
    """A small VGG for pictures of 8 × 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        steps: list[nn.Module] = []
        for inputs, outputs in ((3, 6), (6, 8)):
            steps += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            steps += [nn.MaxPool2d(2)]
        steps += [nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        model = Chain(nn.Sequential(*steps), nn.Linear(12, 10))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, -1, 1)
    return model.eval()


def pictures(per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(10).repeat(per_class)
    return torch.randn(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(seed)), labels


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(chain(), Data("noise", tuple("0123456789"), pictures(30, 0), pictures(4, 1)), torch.arange(40))


def test_a_chain_sliced_by_indexing_answers_as_the_masked_one() -> None:
    model, x = chain().double(), torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    keep = {"features.0": (1, 4, 5), "features.4": (0, 2, 3, 7), "features.8": (5,)}
    small = sliced_chain(model, keep).double()
    expected = MaskedModel(model, keep, x)(x)
    assert_close(small(x), expected, rtol=1e-6, atol=1e-7)  # its weights went through float32
    assert_close(folded(small)(x), expected, rtol=1e-6, atol=1e-7)
    assert sum(p.numel() for p in small.parameters()) == 3 * 27 + 9 + 4 * 27 + 12 + 36 + 3 + 10 + 10


def test_every_row_keeps_its_budget_and_all_pairs_are_there(bench: Bench) -> None:
    pairs = [(0, 1), (3, 9)]
    rows = [*pair_rows(bench, pairs, [0.3, 0.11]), *merged_rows(bench, 1)]
    assert all(r["parameters"] <= r["budget"] * bench.costs.total for r in rows if r["budget"] < 1)
    alone = [r for r in rows if r["budget"] == 0.3]
    assert len(alone) == 2 * (2 + 1 + 2 + 2 * 5)  # pairs × (two kinds of classes, all, weights × 2, seeds × 2)
    again = [r for r in rows if r["correction"] == "recalibrated"]
    assert {(r["criterion"], r["budget"]) for r in again} == {
        (criterion, 0.11) for criterion in ("classes", "all classes", "weight norm", "random")
    }


def test_networks_that_are_no_chain_are_masked() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=10).eval()
    images, labels = (nn.functional.interpolate(x, 32) if x.dim() > 1 else x for x in pictures(6, 0))
    data = Data("noise", tuple("0123456789"), (images, labels), (images, labels))
    rows = list(pair_rows(Bench(model, data, torch.arange(20)), [(0, 1)], [0.3]))
    assert len(rows) == 1 + 2 + 1 + 2 + 2 * 5 and all(0 <= r["among"] <= 1 for r in rows)


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2"])
def test_small_images_leave_the_networks_a_grid(network: str) -> None:
    with torch.device("meta"):
        model = NETWORKS[network]().eval()
        grids = [site.layer.grid for site in find_units(model, (torch.zeros(1, 3, 32, 32),))]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert len(grids) == convolutions and min(grids) == (2, 2)


def test_choices_for_all_pairs_alike_are_run_once(bench: Bench) -> None:
    keep = fixed_choices(bench, 0.3)["random", 0, "even"]
    first = bench.scored((0, 1), keep, fixed=True)
    assert first == bench.scored((0, 1), keep, fixed=True) == bench.scored((0, 1), keep)


def test_other_classes_are_others(bench: Bench) -> None:
    for pair in ((0, 1), (4, 7), (8, 9)):
        assert not {*pair} & {*bench.others(pair)} and len(bench.others(pair)) == 2
        assert bench.others(pair) == bench.others(pair)


def row(classes: str, criterion: str, among: float, over_all: float, **more: Any) -> dict[str, Any]:
    name = {"classes": classes, "budget": 0.05, "criterion": criterion, "seed": 0, "widths": "own"}
    return name | {"correction": "none", "parameters": 10, "among": among, "over_all": over_all} | more


def test_means_and_points_by_hand() -> None:
    rows = [
        row("0 1", "whole network", 0.9, 0.8, budget=1.0),
        row("0 2", "whole network", 1.0, 1.0, budget=1.0),
        row("0 1", "random", 0.8, 0.5),
        row("0 1", "random", 0.6, 0.5, seed=1),
        row("0 2", "random", 1.0, 0.0),
        row("0 2", "random", 1.0, 0.0, seed=1),
        row("0 2", "random", 0.5, 0.9, widths="even"),
    ]
    found = {tuple(r[key] for key in KEYS): r for r in summary(rows)}
    mean = found["random", "own", "none", 0.05]
    assert mean["pairs"] == 2 and mean["among"] == pytest.approx(0.85)
    assert mean["among_points"] == pytest.approx(-10) and mean["among_worst"] == pytest.approx(-30)
    assert mean["over_all_points"] == pytest.approx(-65)
    assert best_widths(summary(rows), "random", 0.05, "among")["widths"] == "own"
    assert best_widths(summary(rows), "random", 0.05, "over_all")["widths"] == "even"


def test_the_table_shows_the_better_widths() -> None:
    rows = summary(
        [
            row("0 1", "whole network", 0.9, 0.8, budget=1.0),
            row("0 1", "classes", 0.89, 0.81),
            row("0 1", "random", 0.5, 0.0),
            row("0 1", "random", 0.7, 0.0, widths="even"),
        ]
    )
    where = {"parameters": 2e6, "data": "D", "test_images": 9, "dissected_images": 8, "torch": "t", "seed": 0}
    table = subnetworks_table({"plain": {"rows": rows, "environment": where}})
    assert "| plain: 90.00% of two, 80.00% over ten | **of the two classes** |  | -1.0 / +1.0 |" in table
    assert "|  | random, mean of 5 |  | -20.0 / -80.0 |" in table
    assert "recalibrated" not in table


def test_the_learning_rate_rises_stays_and_falls() -> None:
    recipe = Recipe("r", steps=100, rate=1, weight_decay=0, rise=0.1, hold=0.5)
    assert [recipe.factor(s) for s in (0, 9, 50, 75)] == [0.1, 1.0, 1.0, 0.5]
    assert Recipe("r", steps=100, rate=1, weight_decay=0).factor(25) == 0.75
    assert SPARSE.start == PLAIN


def test_the_proximal_step() -> None:
    p = torch.tensor([0.3, -0.05, 0.1, -0.4])
    shrink([p], 0.1)
    assert_close(p, torch.tensor([0.2, 0.0, 0.0, -0.3]))


def test_a_network_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "small", lambda: chain(int(torch.randint(9, (1,)))))
    data = Data("noise", tuple("0123456789"), pictures(20, 0), pictures(1, 1))
    first = Recipe("first", steps=3, rate=0.01, weight_decay=0)
    then = Recipe("then", steps=2, rate=0.01, weight_decay=0, penalty=1.0, start=first)
    model = trained("small", data, then, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["small-noise-first.pt", "small-noise-then.pt"]
    assert not model.training and any((p == 0).any() for n, p in model.named_parameters() if n == "features.1.weight")
    monkeypatch.setattr("benchmarks.small_images.train", lambda *args: pytest.fail("trained again"))
    assert_close(dict(trained("small", data, then, tmp_path).state_dict()), dict(model.state_dict()))


def test_training_lowers_the_loss() -> None:
    images, labels = pictures(13, 0)
    images += labels[:, None, None, None] / 3
    data = Data("steps", tuple("0123456789"), (images, labels), (images, labels))
    model = chain()
    before = nn.functional.cross_entropy(model(images), labels)
    train(model, data, Recipe("r", steps=40, rate=0.05, weight_decay=0), "cpu")
    assert nn.functional.cross_entropy(model(images), labels) < before - 0.3


def test_fashion_mnist_is_read_from_its_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected Fashion-MNIST's files"):
        fashion_mnist(tmp_path)
    for kind, count in (("train", 3), ("t10k", 2)):
        pixels, labels = np.full((count, 28, 28), 255, np.uint8), np.arange(count, dtype=np.uint8)
        for what, header, values in (("images-idx3", 16, pixels), ("labels-idx1", 8, labels)):
            with gzip.open(tmp_path / f"{kind}-{what}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + values.tobytes())
    data = fashion_mnist(tmp_path)
    assert data.train[0].shape == (3, 3, 32, 32) and data.test[1].tolist() == [0, 1]
    assert_close(data.train[0][0, 0, 2, 2], torch.tensor((1 - 0.2860) / 0.3530))
    assert_close(data.train[0][0, 0, 1, 1], torch.tensor(-0.2860 / 0.3530))


def test_as_many_images_of_each_class() -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 1, 0])
    rows = spread_over_classes(labels, 2, seed=0)
    assert sorted(labels[rows].tolist()) == [0, 0, 1, 1] and len({*rows.tolist()}) == 4


def test_rows_and_a_picture_are_written(bench: Bench, tmp_path: Path) -> None:
    rows = list(pair_rows(bench, [(0, 1)], [0.3, 0.11]))
    merged = list(merged_rows(bench, 1))
    save_rows(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    plot(summary(rows), merged, {"network": "n", "data": "d"}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_means_are_those_of_the_rows() -> None:
    files = list(RESULTS.glob("subnetworks_*.json"))
    assert files
    for file in files:
        with file.with_suffix(".csv").open() as table:
            numbers = {"budget": float, "seed": int, "parameters": float, "among": float, "over_all": float}
            rows = [r | {key: of(r[key]) for key, of in numbers.items()} for r in csv.DictReader(table)]
        pairs = rows[: max(i for i, r in enumerate(rows) if r["criterion"] == "random") + 1]  # then come other sets
        found = {tuple(r[key] for key in KEYS): r for r in summary(pairs)}
        for r in json.loads(file.read_text())["rows"]:
            mean = found[tuple(r[key] for key in KEYS)]
            assert mean["among"] == pytest.approx(r["among"], abs=1e-4) and mean["pairs"] == r["pairs"] == 45


def test_names_of_results() -> None:
    class Asked:
        network, data, sparse, quick = "n", "d", True, False

    assert file_name("subnetworks", Asked()) == "subnetworks_n_d_sparse"  # type: ignore[arg-type]
