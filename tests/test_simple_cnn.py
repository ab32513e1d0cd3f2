"""The worked example: the tutorial's network, trained for a few steps, measured and explained."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from drnet_captum import explain, find_target_layer
from drnet_captum.cli import app
from drnet_captum.examples import simple_cnn
from drnet_captum.examples.shapes import SHAPE_CLASSES, shapes
from drnet_captum.examples.simple_cnn import METHODS, SimpleCNN, accuracy, first_of, run, train


def loader(count: int = 640) -> Any:
    order = torch.Generator().manual_seed(0)
    return DataLoader(shapes(count, seed=1), 32, shuffle=True, generator=order)


def seeded() -> SimpleCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SimpleCNN()


def test_the_layers_are_the_tutorial_s() -> None:
    sizes = {name: tuple(p.shape) for name, p in SimpleCNN().named_parameters() if name.endswith("weight")}
    assert sizes == {
        "conv1.weight": (6, 3, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "fc1.weight": (120, 400),
        "fc2.weight": (84, 120),
        "fc3.weight": (10, 84),
    }
    assert not any(isinstance(module, nn.ReLU) for module in SimpleCNN().modules())
    assert sum(p.numel() for p in SimpleCNN().parameters()) == 62_006


def test_the_loss_falls() -> None:
    losses = train(seeded(), loader(), epochs=4, lr=0.03)
    assert len(losses) == 80
    assert mean(losses[:5]) == pytest.approx(2.3, abs=0.05)  # log 10: no idea yet
    assert mean(losses[-5:]) < 2.0


def test_max_steps_and_epochs() -> None:
    assert len(train(seeded(), loader(), epochs=2, max_steps=3)) == 3
    assert len(train(seeded(), loader(64), epochs=2, max_steps=9)) == 4
    with pytest.raises(ValueError, match="at least one step"):
        train(seeded(), loader(), epochs=0)


class _First(nn.Module):
    """Scores that are the first values of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


def test_accuracy_by_hand() -> None:
    images = torch.tensor([[3.0, 1, 2], [0, 5, 1], [0, 1, 9], [7, 6, 5]]).view(4, 3, 1, 1)
    data = TensorDataset(images, torch.tensor([0, 1, 1, 2]))  # right, right, wrong, wrong
    assert accuracy(_First(), DataLoader(data, 3)) == 0.5
    with pytest.raises(ValueError, match="not defined"):
        accuracy(_First(), [])  # type: ignore[arg-type]


def test_shapes_are_repeatable_and_balanced() -> None:
    first, again, other = shapes(40, 1).tensors, shapes(40, 1).tensors, shapes(40, 2).tensors
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert first[1].bincount().tolist() == [4] * len(SHAPE_CLASSES)
    assert first[0].min() >= -1 and first[0].max() <= 1
    red = first_of(shapes(40, 1), SHAPE_CLASSES.index("red disc"))
    assert (red[0] - red[2]).max() > 0.8 > (red[2] - red[0]).max()


def test_every_method_explains_it() -> None:
    model = seeded().eval()
    layer = find_target_layer(model, (3, 32, 32))
    assert (layer.channels, layer.grid) == (16, (5, 5))
    maps = explain(model, shapes(10, 1).tensors[0][:2], classes=[0, 7], methods=METHODS)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        name: (2, 2, 1 if name == "grad_cam" else 3, 32, 32) for name in METHODS
    }


def test_the_whole_example(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    outcome = run("fake", 1, tmp_path / "out", max_steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert outcome.fake and len(outcome.losses) == 5 and 0 <= outcome.accuracy <= 1
    assert [p.name for p in outcome.pictures] == ["fake_blue_disc.png", "fake_blue_ring.png", "fake_red_cross.png"]
    for path in outcome.pictures:
        with Image.open(path) as image:
            assert image.width > 1000
    assert run("fake", 1, tmp_path / "again", max_steps=5).losses == outcome.losses


def test_the_command(tmp_path: Path) -> None:
    args = ["example", "simple-cnn", "--data", "fake", "--max-steps", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0
    assert "fake images (drawn shapes, not CIFAR-10)" in result.stdout
    assert str(tmp_path / "fake_blue_disc.png") in result.stdout


class _Cifar(TensorDataset):
    """CIFAR-10 as torchvision has it, small; like it, RuntimeError where the files are not."""

    here = True
    online = True
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(self, root: str, train: bool, transform: Any, download: bool = False) -> None:
        if not self.here and not download:
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        if download and not self.online:
            raise URLError("Name or service not known")
        super().__init__(*shapes(64 if train else 20, seed=3).tensors)


def test_cifar10_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simple_cnn, "CIFAR10", _Cifar)
    outcome = run(tmp_path, 1, tmp_path / "out", max_steps=2)
    assert not outcome.fake
    assert [p.name for p in outcome.pictures] == ["automobile.png", "cat.png", "ship.png"]


def test_cifar10_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simple_cnn, "CIFAR10", _Cifar)
    monkeypatch.setattr(_Cifar, "here", False)
    assert len(run(tmp_path, 1, tmp_path / "out", max_steps=1).losses) == 1  # downloaded
    monkeypatch.setattr(_Cifar, "online", False)
    result = CliRunner().invoke(app, ["example", "simple-cnn", "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert "could not be downloaded" in result.stderr and "--data fake" in result.stderr
