"""Units led back to the pixels: DeconvNet at their own strongest position, cut to what they can see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import ConvNet, images, seeded
from snapshot import of_everything, same
from torch import nn

from drnet_captum import DeconvNet, DRNet, ModelCard
from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.dissect.exemplars import crop, read_jpeg
from drnet_captum.dissect.projections import around_grey, model_input, project

SIZE = (24, 20)
CARD = ModelCard("small", (3, *SIZE), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), lambda photo: torch.zeros(3, *SIZE))
UNITS = [("conv2", 3), ("conv1", 0), ("conv2", 1), ("conv2", 3)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    model = seeded(ConvNet)
    with torch.no_grad():
        model.conv1.bias[2] = -100  # a unit that never fires
    return model


@pytest.fixture(scope="module")
def dissection(model: nn.Module) -> Dissection:
    dissector = Dissector(model, card=CARD, layers=["conv1", "conv2"])
    dissector.update(images(6, size=SIZE), torch.zeros(6, dtype=torch.long))
    return dissector.result()


def test_each_is_the_deconvnet_of_its_own_position(model: nn.Module, dissection: Dissection) -> None:
    before = of_everything(model)
    found = project(model, dissection, UNITS, CARD)
    same(before, of_everything(model))
    assert found.keys() == set(UNITS)
    again = DRNet(model).project(dissection, UNITS, CARD)
    assert all(np.array_equal(found[unit], again[unit]) for unit in found)
    for (layer, unit), pixels in found.items():
        at = dissection[layer].exemplars.of(unit)[0]
        x = model_input(read_jpeg(dissection.images[at.key]), CARD, model)[None]
        whole = DeconvNet(model, layer=layer).attribute(x, neuron_selector=(unit, at.y, at.x))[0]
        field = dissection[layer].layer.field
        expected = crop(around_grey(whole.permute(1, 2, 0).numpy()), field.box(at.y, at.x, SIZE))
        assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1
        outside = whole.clone()
        top, left, bottom, right = field.box(at.y, at.x, SIZE)
        outside[:, top:bottom, left:right] = 0
        assert not outside.any()  # nothing lies beyond what the unit can see


def test_units_that_never_fired_have_none(model: nn.Module, dissection: Dissection) -> None:
    assert project(model, dissection, [("conv1", 2)], CARD) == {}
    assert project(model, dissection, [], CARD) == {}
    with pytest.raises(ValueError, match="no layer 'conv3'"):
        project(model, dissection, [("conv3", 0)], CARD)


def test_pictures_and_inputs_go_back_and_forth(model: nn.Module) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    for net in (model, seeded(ConvNet).double()):
        x = model_input(picture, CARD, net)
        assert x.dtype == next(net.parameters()).dtype
        np.testing.assert_allclose(CARD.photo(x) * 255, picture, atol=1e-3)


def test_zero_is_grey() -> None:
    values = np.zeros((1, 3, 3))
    values[0, 0], values[0, 1] = 2.0, -4.0
    assert around_grey(values)[0].tolist() == [[191] * 3, [0] * 3, [128] * 3]
    assert (around_grey(np.zeros((2, 2, 3))) == 128).all()
