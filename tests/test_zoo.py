"""All of timm without weights: every model's layer is a cut with a grid, and is the one on record.

The record is ``benchmarks/results/zoo_layers.csv``. By default the smallest model of each timm module is tried.
"""

import csv
import re
from pathlib import Path

import pytest
import timm
import torch
from structure import cut_at, tensors, with_grid

from drnet_captum import LayerDiscoveryError, find_target_layer

RECORD = Path(__file__).parent.parent / "benchmarks" / "results" / "zoo_layers.csv"
#: The timm modules whose models may end in several branches, of which none decides alone.
BRANCHING = {"coat", "crossvit", "efficientvim"}


def module_of(name):
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def record():
    """The rows of models that the installed timm has."""
    if not RECORD.exists():
        return []
    with RECORD.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if timm.is_model(row["name"])]


def smallest():
    """The row of the model with fewest parameters, for each module."""
    best = {}
    for row in record():
        module = module_of(row["name"])
        if module not in best or int(row["parameters"]) < int(best[module]["parameters"]):
            best[module] = row
    return [best[module] for module in sorted(best)]


def without_weights(name):
    with torch.device("meta"):
        return timm.create_model(name).eval().requires_grad_(False)


def check_structure(model, size):
    """The layer found; that it is a cut with a grid is seen on the model, not taken from what found it."""
    found = find_target_layer(model)
    height, width = found.grid
    assert height * width > 1
    assert found.module is model.get_submodule(found.name)
    kept = []
    handle = found.module.register_forward_hook(lambda m, args, out: kept.append(tensors(out)))
    try:
        output = cut_at(model, found.module, torch.empty(1, *size, device="meta", requires_grad=True))
    finally:
        handle.remove()
    assert not output.requires_grad, f"a path to the output leads around {found.name}"
    assert with_grid(found, kept[-1]).shape == (1, found.channels, height, width)
    return found


def stated_size(model):
    """(C, H, W) of the image that the model was built for."""
    embedding = getattr(model, "patch_embed", None)
    own = getattr(embedding, "img_size", None) if getattr(embedding, "strict_img_size", False) else None
    channels, *size = model.pretrained_cfg["input_size"]
    return (channels, *(own or size))


def numbers(text):
    return tuple(map(int, re.findall(r"\d+", text)))


@pytest.mark.parametrize("row", smallest(), ids=lambda row: row["name"])
def test_the_smallest_model_of_each_module(row):
    model = without_weights(row["name"])
    if row["error"]:
        assert module_of(row["name"]) in BRANCHING
        with pytest.raises(LayerDiscoveryError, match="several branches"):
            find_target_layer(model)
        return
    found = check_structure(model, stated_size(model))
    assert (found.name, found.layout, found.grid) == (row["layer"], row["layout"], numbers(row["grid"]))
    assert (found.channels, found.prefix_tokens) == (int(row["channels"]), int(row["prefix_tokens"]))


def test_the_record_has_errors_of_branching_models_only():
    for row in record():
        assert bool(row["error"]) is not bool(row["layer"]), row["name"]
        if row["error"]:
            assert module_of(row["name"]) in BRANCHING, row["name"]
            assert "several branches" in row["error"], row["name"]
        else:
            assert len(numbers(row["grid"])) == 2 and row["layout"] in ("NCHW", "NHWC", "tokens"), row["name"]


@pytest.mark.zoo
@pytest.mark.parametrize("name", timm.list_models())
def test_every_model(name):
    model = without_weights(name)
    try:
        check_structure(model, stated_size(model))
    except LayerDiscoveryError as error:
        assert "several branches" in str(error)
        assert module_of(name) in BRANCHING


@pytest.mark.zoo
def test_every_model_is_on_record():
    assert {row["name"] for row in record()} == set(timm.list_models())
