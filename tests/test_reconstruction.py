"""Modules that add up to R(x), what replaced units cost, and how a reconstruction reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from models import CLASSES, ChannelsLast, ConvNet, images, seeded
from test_modules import NAMES, RED, VERTICAL, layer_of
from torch import Tensor, nn

from drnet_captum.attr.drnet import DRNet
from drnet_captum.dissect.dissection import Dissection, LayerUnits
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.layers.layout import Placement
from drnet_captum.reconstruct.fidelity import by_representatives, replaced
from drnet_captum.reconstruct.modules import Member, Module
from drnet_captum.reconstruct.reconstruction import Reconstruction, reconstruct
from drnet_captum.reconstruct.redundancy import Representative, Substitute

LAYERS = ["relu1", "relu2"]


def dissection_of(model: nn.Module, layers: Sequence[str] = LAYERS, n: int = 24) -> Dissection:
    dissector = Dissector(model, layers=layers)
    dissector.update(images(n, seed=5), torch.arange(n) % CLASSES)
    return dissector.result()


def by_hand(*layers: LayerUnits) -> Dissection:
    return Dissection("tiny", "f00d", NAMES, layers, {0: 40}, {})


def conv_net(*duplicates: tuple[int, int, float]) -> nn.Module:
    """A ConvNet in which conv1's filter ``b`` is ``factor`` times filter ``a``."""
    model = seeded(ConvNet)
    for a, b, factor in duplicates:
        with torch.no_grad():
            model.conv1.weight[b] = factor * model.conv1.weight[a]
            model.conv1.bias[b] = factor * model.conv1.bias[a]
    return model


def one_module(drnet: DRNet, layers: Sequence[LayerUnits], *standing: Representative) -> Reconstruction:
    members = [Member(u.layer.name, k, "red", "colours", 1.0, 0.0) for u in layers for k in range(u.layer.channels)]
    module = Module("All", 1.0, tuple(members), tuple(standing), 1.0)
    return Reconstruction(drnet, [module], layers, "tiny")


# The modules' maps


@pytest.mark.parametrize("n_modules", [1, 3, None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": "local"},
        {"weights": "integrated", "n_steps": 4, "baselines": 0.1},
        {"top_channels": 2},
        {"layer_weights": [0.0, 1.0]},
        {"layer_weights": [1.5, -0.5], "score": "logit", "weights": "local"},
    ],
)
def test_modules_add_up_to_the_reconstruction(options: dict[str, Any], n_modules: int | None) -> None:
    model = seeded(ConvNet).double()
    drnet = DRNet(model, layers=LAYERS)
    dissector = Dissector(model, layers=LAYERS)
    dissector.update(images(6, dtype=torch.float64), torch.arange(6) % CLASSES)
    reconstruction = reconstruct(drnet, dissector.result(), n_modules)
    x = images(2, dtype=torch.float64)
    maps = reconstruction.modules_map(x, [1, 3], **options)
    assert maps.shape == (2, len(reconstruction.modules), 12, 10)
    expected = drnet.attribute(x, [1, 3], **options)
    torch.testing.assert_close(maps.sum(1, keepdim=True), expected, rtol=1e-10, atol=1e-12)
    shares = reconstruction.shares(x, [1, 3], **options)
    torch.testing.assert_close(shares.abs().sum(1), torch.ones(2, dtype=torch.float64))
    sums = maps.sum((2, 3))
    torch.testing.assert_close(shares, sums / sums.abs().sum(1, keepdim=True))


def test_one_modules_map_is_made_of_its_own_channels() -> None:
    drnet = DRNet(seeded(ConvNet), layers=["relu2"])
    layer = layer_of("relu2", [RED, VERTICAL, RED, VERTICAL, VERTICAL, RED])
    reconstruction = reconstruct(drnet, by_hand(layer), 2)
    assert {module.name: module.units("relu2") for module in reconstruction.modules} == {
        "Colour detection: red": [0, 2, 5],
        "Edge detection: vertical edges": [1, 3, 4],
    }
    (part,) = drnet.attribute_layers(images(), target=1)
    red = next(m for m, module in enumerate(reconstruction.modules) if "red" in module.name)
    own = sum(part.evidence[:, k] for k in (0, 2, 5))
    total = reconstruction.modules_map(images(), target=1)[:, red].sum((1, 2))
    torch.testing.assert_close(total, own.sum((1, 2)))  # type: ignore[union-attr]


def test_every_channel_is_in_one_module() -> None:
    model = timm.create_model("test_resnet", num_classes=4).eval()
    drnet = DRNet(model)
    dissector = Dissector(model)
    x = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    dissector.update(x, torch.arange(8) % 4)
    reconstruction = reconstruct(drnet, dissector.result())
    parts = drnet.attribute_layers(x[:1], target=0)
    everything = [(part.name, k) for part in parts for k in range(part.activation.shape[1])]
    members = [(member.layer, member.unit) for module in reconstruction.modules for member in module.members]
    assert sorted(members) == sorted(everything)
    assert sum(module.importance or 0.0 for module in reconstruction.modules) == pytest.approx(1)
    assert all("8 images" in module.note for module in reconstruction.modules)
    torch.testing.assert_close(
        reconstruction.modules_map(x[:1], 0).sum(1, keepdim=True), drnet.attribute(x[:1], 0), rtol=1e-4, atol=1e-6
    )
    again = reconstruct(drnet, dissector.result())
    assert again.modules == reconstruction.modules


def test_no_evidence_is_no_share() -> None:
    model = seeded(ConvNet)
    nn.init.zeros_(model.fc.weight)
    reconstruction = reconstruct(DRNet(model, layers=LAYERS), dissection_of(seeded(ConvNet)), 2)
    assert reconstruction.shares(images(), 0).eq(0).all()


# Fidelity


def test_nothing_redundant_changes_nothing() -> None:
    model = conv_net()
    reconstruction = reconstruct(DRNet(model, layers=LAYERS), dissection_of(model), redundant_at=0.99999)
    assert not any(r.stands_for for module in reconstruction.modules for r in module.representatives)
    for layer in reconstruction.fidelity(images(5)).layers:
        assert (layer.replaced, layer.agreement) == (0, 1.0)
        assert (layer.probability_change, layer.worst_probability_change, layer.logit_change) == (0.0, 0.0, 0.0)


def test_an_exact_duplicate_changes_nothing() -> None:
    model = conv_net((0, 1, 1.0), (2, 3, 2.5))
    reconstruction = reconstruct(DRNet(model, layers=LAYERS), dissection_of(model), 1, redundant_at=0.99999)
    assert [len(r.stands_for) for r in reconstruction.modules[0].representatives if r.layer == "relu1"] == [1, 1]
    assert reconstruction.modules[0].note == ""
    fidelity = reconstruction.fidelity(images(5), target=2)
    assert [layer.replaced for layer in fidelity.layers] == [2, 0]
    found = fidelity["relu1"]
    assert (found.replaced, found.units, found.agreement) == (2, 4, 1.0)
    assert abs(found.worst_probability_change) < 1e-6
    assert found.logit_change < 1e-5


class Cut(nn.Module):
    """The rest of the model on a layer's changed output, by a hook."""

    def __init__(self, model: nn.Module, layer: nn.Module, change: Any) -> None:
        super().__init__()
        self.model, self.layer, self.change = model, layer, change

    def forward(self, x: Tensor) -> Tensor:
        handle = self.layer.register_forward_hook(lambda module, args, out: self.change(out.clone()))
        try:
            return self.model(x)
        finally:
            handle.remove()


def tokens(out: Tensor) -> Tensor:
    out[:, 1:, 4] = 0.5 * out[:, 1:, 2] - 0.25  # the class token stays
    return out


def channels_last(out: Tensor) -> Tensor:
    out[..., 4] = 0.5 * out[..., 2] - 0.25
    return out


def channels_first(out: Tensor) -> Tensor:
    out[:, 4] = 0.5 * out[:, 2] - 0.25
    return out


@pytest.mark.parametrize(
    ("make", "layer", "size", "change"),
    [
        (ConvNet, "relu2", (12, 10), channels_first),
        (lambda: ChannelsLast(2), "body", (12, 10), channels_last),
        (lambda: timm.create_model("test_vit", num_classes=CLASSES), "blocks.2", (160, 160), tokens),
    ],
)
def test_fidelity_is_what_a_hook_gives(make: Any, layer: str, size: tuple[int, int], change: Any) -> None:
    model = seeded(make)
    drnet = DRNet(model, layers=[layer])
    x = images(3, size=size)
    channels = drnet.attribute_layers(x, target=0)[0].activation.shape[1]
    standing = Representative(layer, 2, (Substitute(4, 0.5, -0.25, 0.99),))
    reconstruction = one_module(drnet, [layer_of(layer, channels=channels)], standing)
    with torch.no_grad():
        y, other = model(x).double(), Cut(model, model.get_submodule(layer), change)(x).double()
    target = y.argmax(1)
    rows = range(3)
    change_of_p = (other.softmax(1) - y.softmax(1))[rows, target]
    (found,) = reconstruction.fidelity(x).layers
    assert found.replaced == 1
    assert found.agreement == pytest.approx(float((other.argmax(1) == target).double().mean()))
    assert found.probability_change == pytest.approx(float(change_of_p.mean()), abs=1e-6)
    assert abs(found.worst_probability_change) == pytest.approx(float(change_of_p.abs().max()), abs=1e-6)
    moved = (other - y)[rows, target].abs().sum() / y[rows, target].abs().sum()
    assert found.logit_change == pytest.approx(float(moved), abs=1e-5)
    assert found.logit_change > 1e-4  # or the test would show nothing


def test_replacing_leaves_the_layers_output_alone() -> None:
    out = torch.ones(1, 5, 2, 2)
    standing = Representative("x", 2, (Substitute(4, 0.5, -0.25, 0.99),))
    changed = replaced(out, Placement("NCHW", (2, 2), 5), by_representatives([standing]))
    assert out.eq(1).all()
    assert changed.unique().tolist() == [0.25, 1.0]


def test_keeping_the_most_important_modules() -> None:
    model = conv_net()
    dissection = dissection_of(model)
    reconstruction = reconstruct(DRNet(model, layers=LAYERS), dissection, 3)
    weights = [module.importance or 0.0 for module in reconstruction.modules]
    assert weights == sorted(weights, reverse=True)
    whole = reconstruction.fidelity(images(5), keep=3)
    assert all(layer.replaced == 0 and layer.logit_change == 0 for layer in whole.layers)
    gone = [unit for module in reconstruction.modules[1:] for unit in module.units("relu2")]
    mean = dissection["relu2"].similarity.mean().float()  # type: ignore[union-attr]

    def to_mean(out: Tensor) -> Tensor:
        for unit in gone:
            out[:, unit] = mean[unit]
        return out

    with torch.no_grad():
        y, other = model(images(5)).double(), Cut(model, model.relu2, to_mean)(images(5)).double()
    found = reconstruction.fidelity(images(5), target=1, keep=1)["relu2"]
    assert found.replaced == len(gone) > 0
    assert found.probability_change == pytest.approx(float((other.softmax(1) - y.softmax(1))[:, 1].mean()), abs=1e-6)
    for keep in (0, 4):
        with pytest.raises(ValueError, match=f"keep from 1 to 3 modules, got {keep}"):
            reconstruction.fidelity(images(), keep=keep)
    stimuli_only = replace(dissection, layers=tuple(layer_of(n, channels=c) for n, c in (("relu1", 4), ("relu2", 6))))
    with pytest.raises(ValueError, match="relu1 is not known: dissect with images"):
        reconstruct(DRNet(model, layers=LAYERS), stimuli_only).fidelity(images(), keep=1)


# How it reads


def test_records_and_descriptions() -> None:
    a = torch.arange(40.0) / 40
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0))
    pooled = torch.stack([a, 2 * a + 1, noise, noise.roll(7)], 1)
    low = layer_of("relu1", [RED, RED, VERTICAL, RED], [[3.0, 1.0, 4.0, 0.5]], pooled)
    high = layer_of("relu2", [VERTICAL] * 6, [[1.0] * 6])
    reconstruction = reconstruct(DRNet(seeded(ConvNet), layers=LAYERS), by_hand(low, high), 2)
    assert reconstruction.describe() == [
        "Module 1: Edge detection: vertical edges: relu1 unit 2, relu2 units 0, 1, 2, 3, 4, 5 (7 units)",
        "Module 2: Colour detection: red: relu1 units 0, 1, 3 (2 units stand for 3)",
    ]
    assert repr(reconstruction) == "Reconstruction(tiny: 2 modules, 9 units of 10 in 2 layers)"
    assert repr(reconstruction.modules[1]) == "Module(Colour detection: red: 2 units stand for 3)"
    rows = {(row["layer"], row["unit"]): row for row in reconstruction.to_records()}
    assert len(rows) == 10
    row = rows["relu1", 1]
    assert (row["module"], row["name"], row["label"], row["represented_by"]) == (2, "Colour detection: red", "red", 0)
    assert (row["slope"], row["intercept"], row["importance"]) == pytest.approx((2.0, 1.0, 1 / 8.5))
    assert rows["relu1", 0]["represented_by"] is None
    assert rows["relu2", 3]["slope"] is None
    lines = reconstruction.fidelity(images(4)).describe()
    assert lines[0].startswith("relu1: 1 of 4 units replaced, top-1 kept for ")


def test_what_cannot_be_reconstructed() -> None:
    model = seeded(ConvNet)
    drnet, dissection = DRNet(model, layers=LAYERS), dissection_of(model)
    with pytest.raises(ValueError, match=r"relu2 was not dissected: dissect with it, layers=\['relu1', 'relu2'\]"):
        reconstruct(drnet, dissection_of(model, ["relu1", "conv2"]))
    for wrong in (0, 1.1, -0.5):
        with pytest.raises(ValueError, match=r"redundant_at in \(0, 1\]"):
            reconstruct(drnet, dissection, redundant_at=wrong)
    with pytest.raises(ValueError, match="n_modules from 1 to 10"):
        reconstruct(drnet, dissection, 11)
    reconstruction = reconstruct(drnet, dissection)
    reconstruction.drnet = DRNet(model, layers=["relu1"])
    with pytest.raises(ValueError, match="units of relu1, relu2, and for inputs of this size DRNet reads relu1"):
        reconstruction.modules_map(images(), 0)
    with pytest.raises(ValueError, match="DRNet reads relu1"):
        reconstruction.fidelity(images())
    with pytest.raises(ValueError, match="no layer 'conv7'; there are: relu1, relu2"):
        reconstruct(drnet, dissection).fidelity(images())["conv7"]
    single = seeded(ConvNet, outputs=1)
    with pytest.raises(ValueError, match=r"scores of several classes, \(N, classes\), got \(2, 1\)"):
        reconstruct(DRNet(single, layers=LAYERS), dissection).fidelity(images())
