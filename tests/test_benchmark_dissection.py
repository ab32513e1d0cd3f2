"""The benchmark of dissections: both sides give the same numbers; growth with a fake clock; results that are there."""

from __future__ import annotations

import json

import pytest
import torch
from models import ConvNet, images, seeded

from benchmarks import dissection
from benchmarks.pairs import RESULTS
from drnet_captum import DRNetDissection
from drnet_captum.dissect.dissector import Dissector


def test_captum_s_side_has_the_same_numbers() -> None:
    model = dissection.build("resnet26")
    other, x, target = dissection.for_captum(model), dissection.soft_images(1, 64, 0), [3]
    modules = [dissection.unit_module(model, layer.name) for layer in DRNetDissection(model).unit_layers(x)]
    assert modules[:4] == ["act1", "layer1.0.act1", "layer1.0.act2", "layer1.0.bn3"]
    assert modules[4] == "layer1.0.downsample.1" and len(modules) == 29
    agreement = dissection.agreement(model, other, modules, x, target)
    assert agreement["least_correlation"] > 0.999 and agreement["greatest_difference_float64"] < 1e-12
    assert next(model.parameters()).dtype == next(other.parameters()).dtype == torch.float32
    other.fc.weight.data.neg_()
    with pytest.raises(RuntimeError, match=r"correlate by -.* nothing is timed"):
        dissection.agreement(model, other, modules, x, target)
    with pytest.raises(RuntimeError, match="differ by 2 of a layer's largest importance"):
        dissection.greatest_difference([torch.ones(1, 2)], [-torch.ones(1, 2)])


def test_every_unit_of_resnet50_and_of_plain_blocks() -> None:
    for name, count in (("resnet50", 53), ("resnet18", 20)):
        model = dissection.build(name)
        layers = DRNetDissection(model).unit_layers(torch.rand(1, 3, 64, 64))
        modules = [dissection.unit_module(model, layer.name) for layer in layers]
        assert len(modules) == len(set(modules)) == count
        assert all(model.get_submodule(module) is not None for module in modules)
    assert "layer1.0.bn2" in modules and "layer1.0.act2" not in modules


def test_plain_passes() -> None:
    model, x = seeded(ConvNet), images(2)
    gradient = dissection.by_input(model, x, [0, 1])
    assert gradient.shape == x.shape and model.conv1.weight.grad is None and not x.requires_grad
    dissection.with_parameters(model, x, [0, 1])
    once = model.conv1.weight.grad.clone()
    dissection.with_parameters(model, x, [0, 1])
    torch.testing.assert_close(model.conv1.weight.grad, once)


def test_growth_by_a_fake_clock() -> None:
    now = iter(range(100))
    batches = [images(2, seed=seed, size=(24, 20)) for seed in range(6)]
    found = dissection.growing(
        Dissector(seeded(ConvNet, outputs=dissection.CLASSES)), batches, (2, 8, 12), clock=lambda: float(next(now))
    )
    seconds, sizes = found
    assert seconds == [0.5] * 6
    assert [size["images"] for size in sizes] == [2, 8, 12]
    assert [size["pictures"] for size in sizes] == [2, 8, 12]
    assert sizes[0]["pictures_bytes"] < sizes[1]["pictures_bytes"]
    assert all(size["statistics_bytes"] > 0 for size in sizes)


def test_results_say_what_was_compared() -> None:
    for file in RESULTS.glob("dissection_*.json"):
        rows = json.loads(file.read_text())["rows"]
        compared = [row for row in rows if "least_correlation" in row]
        assert len(compared) == 4 and all(row["units"] == 53 for row in compared)
        assert all(row["greatest_difference_float64"] < dissection.TOLERANCE for row in compared)
