"""Importance of units: against their slow removal one by one, against Captum, and for what it says of classes.

The small network learns ten kinds of coloured shapes in some seconds. Its last layer is followed by an average and a
linear map, where first order is exact; in those below ReLUs and pooling lie in between.
"""

from __future__ import annotations

import pytest
import torch
from captum.attr import LayerGradientXActivation
from models import CLASSES, ConvNet, FunctionalConvNet, NormedConvNet, images, seeded
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum import Dissection, DRNet, DRNetDissection
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.examples.shapes import SHAPE_CLASSES, shapes

KINDS = len(SHAPE_CLASSES)
WIDTHS = {"conv1": 12, "conv2": 16, "conv3": 24}
REMOVED = 4  # units of each class
SEEDS = range(5)


class ShapeNet(nn.Module):
    """Three convolutions, each with a norm and an activation that can be got at."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for i, (name, width) in enumerate(WIDTHS.items(), 1):
            setattr(self, name, nn.Conv2d(channels, width, 3, padding=1))
            setattr(self, f"norm{i}", nn.BatchNorm2d(width))
            setattr(self, f"act{i}", nn.ReLU())
            channels = width
        self.fc = nn.Linear(channels, KINDS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act1(self.norm1(self.conv1(x))), 2)
        x = F.max_pool2d(self.act2(self.norm2(self.conv2(x))), 2)
        return self.fc(self.act3(self.norm3(self.conv3(x))).mean((2, 3)))


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Shapes at half their size: (N, 3, 16, 16)."""
    x, y = shapes(count, seed).tensors
    return F.avg_pool2d(x, 2), y


def trained(seed: int = 0, steps: int = 150) -> ShapeNet:
    model = seeded(ShapeNet, seed=seed).train()
    x, y = data(1280, seed=1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        chosen = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return model.eval()


class Case:
    """A trained network, images that it has not seen, its dissection, and its answers without some units."""

    def __init__(self) -> None:
        self.model, (self.x, self.y) = trained(), data(200, seed=2)
        self.whole = self.without("conv1", [])
        batches = zip(self.x.split(64), self.y.split(64), strict=True)
        self.dissection: Dissection = DRNet(self.model).dissect(batches, layers=[*WIDTHS])

    def without(self, layer: str, units: list[int]) -> Tensor:
        """Scores (N, K) with units set to 0 after their norm and activation."""

        def remove(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output.clone()
            output[:, units] = 0
            return output

        handle = self.model.get_submodule(layer.replace("conv", "act")).register_forward_hook(remove)
        with torch.no_grad():
            scores = self.model(self.x)
        handle.remove()
        return scores

    def harm(self, layer: str, units: list[int]) -> Tensor:
        """By how much the right class's score and the accuracy fall without units, (2, K): means over each class."""
        scores = self.without(layer, units)
        fall = (self.whole - scores).gather(1, self.y[:, None])[:, 0].double()
        loss = (self.whole.argmax(1) == self.y).double() - (scores.argmax(1) == self.y).double()
        return torch.stack([torch.stack([v[self.y == c].mean() for c in range(KINDS)]) for v in (fall, loss)])


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def own_and_others(table: Tensor) -> tuple[float, float]:
    """Row c is without the units of class c, column j is the harm to class j: mean of the diagonal, and of all else."""
    own = table.diagonal().mean()
    return float(own), float((table.sum() - table.diagonal().sum()) / (table.numel() - len(table)))


def test_the_network_learned(case: Case) -> None:
    assert (case.whole.argmax(1) == case.y).double().mean() > 0.9


@pytest.mark.parametrize("layer", WIDTHS)
def test_units_rank_as_their_removal_one_by_one_says(case: Case, layer: str) -> None:
    importance = case.dissection[layer].importance
    falls = torch.stack([case.harm(layer, [unit])[0] for unit in range(WIDTHS[layer])], 1)  # (K, C)
    assert importance.classes.tolist() == list(range(KINDS))
    by_class = [spearmanr(importance.signed[c], falls[c]).statistic for c in range(KINDS)]
    assert sum(by_class) / KINDS >= 0.8
    if layer == "conv3":
        assert_close(importance.signed, falls, rtol=1e-4, atol=1e-4)


def test_removing_a_class_s_units_hurts_that_class(case: Case) -> None:
    """Five times as much as others in the last layer; the units of the layers below it serve several classes."""
    for layer, factor in (("conv1", 1.5), ("conv2", 2.5), ("conv3", 5.0)):
        importance = case.dissection[layer].importance
        without = [case.harm(layer, [unit for unit, _ in importance.top(c, REMOVED)]) for c in range(KINDS)]
        falls, losses = torch.stack(without, 1)  # (K, K) each
        own, others = own_and_others(falls)
        assert own > factor * others > 0, layer
        own_loss, others_loss = own_and_others(losses)
        assert own_loss > 0.3
        assert own_loss > (5 if layer == "conv3" else 1.2) * others_loss, layer
        for seed in SEEDS:
            order = torch.randperm(WIDTHS[layer], generator=torch.Generator().manual_seed(seed))
            chance_fall, chance_loss = case.harm(layer, order[:REMOVED].tolist()).mean(1)
            assert own > 1.5 * chance_fall, (layer, seed)
            assert own_loss > chance_loss, (layer, seed)


@pytest.mark.parametrize("layer", WIDTHS)
def test_it_is_captum_s_gradient_x_activation_summed(case: Case, layer: str) -> None:
    model, x, y = case.model, case.x[:50], case.y[:50]
    captum = LayerGradientXActivation(model, model.get_submodule(layer.replace("conv", "act")))
    expected = captum.attribute(x, target=y.tolist()).detach().sum((2, 3))
    dissection = DRNetDissection(model, [layer])
    (found,) = dissection.attribute(x, target=y.tolist())
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert dissection.unit_layers(x)[0].channels == found.shape[1] == WIDTHS[layer]
    summed = DRNet(model).dissect([(x, y)], layers=[layer])[layer].importance
    for c in range(KINDS):
        assert_close(summed.of(c)[0], expected[y == c].mean(0).double(), rtol=1e-4, atol=1e-5)
        assert_close(summed.of(c)[1], expected[y == c].abs().mean(0).double(), rtol=1e-4, atol=1e-5)


# Small networks in float64, where the numbers can be compared closely


def by_captum(model: nn.Module, module: str, x: Tensor, target: list[int], score: str = "logit") -> Tensor:
    forward = model if score == "logit" else nn.Sequential(model, nn.LogSoftmax(1))
    found = LayerGradientXActivation(forward, model.get_submodule(module)).attribute(x, target=target)
    return found.detach().sum((2, 3))


class SmoothConvNet(ConvNet):
    """Units before and after these activations have another importance; with ReLU they have not."""

    def __init__(self) -> None:
        super().__init__()
        self.relu1, self.relu2 = nn.SiLU(), nn.Tanh()


@pytest.mark.parametrize("make", [ConvNet, NormedConvNet, FunctionalConvNet, SmoothConvNet])
@pytest.mark.parametrize("score", ["logit", "log_prob"])
def test_small_networks(make: type[ConvNet], score: str) -> None:
    x, target = images(4, dtype=torch.float64), [0, 4, 2, 2]
    # The same weights, with activations that are modules, so that Captum can see them.
    model = seeded(make).double()
    seen = seeded(ConvNet if make is FunctionalConvNet else make).double()
    found = DRNetDissection(model, ["conv2", "conv1"]).attribute(x, target, score=score)
    for values, module in zip(found, ("relu2", "relu1"), strict=True):
        assert_close(values, by_captum(seen, module, x, target, score))


def test_every_batch_and_every_class_counts_alike() -> None:
    """Means over the images of a class, not over batches."""
    model, x = seeded(ConvNet).double(), images(7, dtype=torch.float64)
    y = torch.tensor([1, 1, 1, 4, 1, 4, 0])
    found = DRNet(model).dissect([(x[:5], y[:5]), (x[5:], y[5:])])["conv1"].importance
    expected = by_captum(model, "relu1", x, y.tolist())
    assert found.classes.tolist() == [0, 1, 4]
    for c in (0, 1, 4):
        assert_close(found.of(c)[0], expected[y == c].mean(0))
        assert_close(found.of(c)[1], expected[y == c].abs().mean(0))
    with pytest.raises(ValueError, match="no image of class 3 was seen; the classes seen are: 0, 1, 4"):
        found.of(3)


def test_predicted_classes_and_log_probabilities() -> None:
    model, x = seeded(ConvNet).double(), images(5, dtype=torch.float64)
    answers = model(x).argmax(1)
    found = DRNet(model).dissect([(x, torch.zeros(5, dtype=torch.long))], target="predicted", score="log_prob")
    expected = by_captum(model, "relu2", x, answers.tolist(), "log_prob")
    for c in answers.unique().tolist():
        assert_close(found["conv2"].importance.of(c)[0], expected[answers == c].mean(0))


def test_a_result_is_a_copy_and_more_may_follow() -> None:
    model, x = seeded(ConvNet), images(6)
    dissector = Dissector(model)
    scores = dissector.update(x[:3], torch.tensor([0, 1, 2]))
    assert_close(scores, model(x[:3]).detach())
    first = dissector.result()
    before = first["conv1"].importance.signed.clone()
    dissector.update(x[3:])
    assert first.counts == {0: 1, 1: 1, 2: 1} and len(first.images) == 3
    assert_close(first["conv1"].importance.signed, before, rtol=0, atol=0)
    assert sum(dissector.result().counts.values()) == 6 and len(dissector.result().images) == 6
    with pytest.raises(ValueError, match="at least one batch of images"):
        Dissector(model).result()


def test_channels_that_vary_together() -> None:
    """Over the positions of all images, of the layers that are no convolutions'."""
    model, x = seeded(ConvNet), images(8)
    found = DRNet(model).dissect([(x[:3], torch.arange(3)), (x[3:], torch.arange(5))])
    assert found["conv2"].similarity is None
    moments = found["relu2"].similarity
    with torch.no_grad():
        maps = model.relu2(model.conv2(model.pool(model.relu1(model.conv1(x)))))
    expected = torch.corrcoef(maps.double().movedim(1, 0).flatten(1))
    assert moments.count == maps[:, 0].numel()
    assert_close(moments.correlation(), expected, rtol=1e-4, atol=1e-5)


def test_exemplars_are_the_images_of_the_highest_activations() -> None:
    model, x = seeded(ConvNet), images(12)
    found = DRNet(model).dissect([(x[:5], torch.arange(5)), (x[5:], torch.arange(7) % CLASSES)], exemplars=3)
    with torch.no_grad():
        peaks, places = model.relu1(model.conv1(x)).flatten(2).max(2)
    for unit in range(4):
        best = peaks[:, unit].argsort(descending=True)[:3]
        exemplars = found["conv1"].exemplars.of(unit)
        assert_close(torch.tensor([e.value for e in exemplars]), peaks[best, unit].double(), check_dtype=False)
        assert [(e.y, e.x) for e in exemplars] == [divmod(int(places[i, unit]), x.shape[3]) for i in best]
        assert all(e.key in found.images for e in exemplars)
