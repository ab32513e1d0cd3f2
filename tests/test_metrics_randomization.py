"""Rank correlation against a slow one; randomised models layer by layer, and what stays as it was."""

from __future__ import annotations

import pytest
import torch
from models import ConvNet, NormedConvNet, images, seeded
from torch import nn
from torch.testing import assert_close

import drnet_captum as dc
from drnet_captum.metrics import randomization, rank_correlation, ranks
from drnet_captum.metrics.randomization import randomize


def slow_ranks(row):
    return [sum(other < value for other in row) + (sum(other == value for other in row) - 1) / 2 for value in row]


def slow_correlation(a, b):
    a, b = (torch.tensor(slow_ranks(row), dtype=torch.float64) for row in (a, b))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


@pytest.mark.parametrize("decimals", [0, 1, 5])
def test_ranks_and_their_correlation_against_loops(decimals):
    a, b = torch.randn(2, 4, 3, 9, generator=torch.Generator().manual_seed(0)).double().round(decimals=decimals)
    assert ranks(a[0, 0]).tolist() == slow_ranks(a[0, 0].tolist())
    found = rank_correlation(a, b)
    for i in range(4):
        assert float(found[i]) == pytest.approx(slow_correlation(a[i].flatten().tolist(), b[i].flatten().tolist()))


def test_correlation_by_hand():
    row = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert rank_correlation(row, row.exp()).item() == pytest.approx(1)
    assert rank_correlation(row, -row).item() == pytest.approx(-1)
    assert rank_correlation(row, torch.tensor([[2.0, 1.0, 4.0, 3.0]])).item() == pytest.approx(0.6)  # 1 − 6·4 / (4·15)
    assert rank_correlation(row, torch.ones(1, 4)).isnan().all()
    assert ranks(torch.tensor([5, 5, 5])).tolist() == [1, 1, 1]
    large = torch.arange(200_000.0)[None]
    assert rank_correlation(large, large.flip(1)).item() == pytest.approx(-1, abs=1e-5)


def test_correlation_errors():
    with pytest.raises(ValueError, match=r"one shape \(N, …\), got \(1, 2\) and \(1, 3\)"):
        rank_correlation(torch.rand(1, 2), torch.rand(1, 3))
    with pytest.raises(ValueError, match="got NaN"):
        rank_correlation(torch.rand(1, 2), torch.tensor([[1.0, torch.nan]]))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.arange(4.0))
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc((self.norm(self.conv(x)) * self.scale.view(-1, 1, 1)).relu().mean((2, 3)))


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def changed(model, before):
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_which_layers_are_random_when(mode):
    model = seeded(Normed)
    model.norm.running_mean += 1
    model.norm.weight.data += 0.5
    before, said = state_of(model), []

    def explain(of):
        said.append(changed(of, before))
        return torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))

    found = randomization(model, explain, mode=mode)
    assert found.layers == ("fc", "norm", "conv", "")
    own = [{"fc.weight", "fc.bias"}, {"norm.weight", "norm.running_mean"}, {"conv.weight", "conv.bias"}, {"scale"}]
    expected = own if mode == "independent" else [set().union(*own[: i + 1]) for i in range(4)]
    assert said == [set(), *expected]
    assert changed(model, before) == set()
    assert found.signed.shape == found.absolute.shape == (5, 2)
    assert_close(found.signed, torch.ones(5, 2))


def test_blocks_are_randomised_as_a_whole():
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    model.add_module("bodyguard", nn.Conv2d(4, 2, 3))
    before, said = state_of(model), []

    def explain(of):
        said.append(changed(of, before))
        return torch.rand(1, 4, 4)

    body = {f"body.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    found = randomization(model, explain, layers=["body", ""], mode="independent")
    assert found.layers == ("body", "")
    assert said == [set(), body, body | {"bodyguard.weight", "bodyguard.bias"}]


def test_similarities_are_those_of_the_maps():
    maps = torch.randn(3, 2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    given = iter(maps)
    found = randomization(seeded(ConvNet), lambda model: next(given), layers=["fc", "conv2"])
    heat = maps.sum(2)
    for i in range(3):
        for n in range(2):
            pair = heat[i, n].flatten(), heat[0, n].flatten()
            assert float(found.signed[i, n]) == pytest.approx(slow_correlation(*(p.tolist() for p in pair)), abs=1e-6)
            assert float(found.absolute[i, n]) == pytest.approx(
                slow_correlation(*(p.abs().tolist() for p in pair)), abs=1e-6
            )
    assert found.layers == ("fc", "conv2")


def test_a_method_that_does_not_look_at_the_model_stays_the_same_and_a_gradient_does_not():
    model, x = seeded(ConvNet), images(2)
    edges = randomization(model, lambda m: x)
    assert (edges.absolute > 0.999).all()
    found = randomization(model, lambda m: dc.explain(m, x, 1, methods="grad_x_image")["grad_x_image"])
    assert (found.absolute[0] > 0.999).all() and (found.signed[-1].abs() < 0.6).all()


def test_seeds_and_the_callers_state():
    model, x = seeded(NormedConvNet), images(2)
    model.conv1.weight.requires_grad_(False)
    before, state = state_of(model), torch.random.get_rng_state()

    def explain(of):
        assert [p.requires_grad for p in of.parameters()] == [p.requires_grad for p in model.parameters()]
        return dc.explain(of, x, 1, methods="saliency")["saliency"]

    first = randomization(model, explain)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert changed(model, before) == set() and all(p.grad is None for p in model.parameters())
    assert torch.equal(first.signed, randomization(model, explain).signed)
    other = randomization(model, explain, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(first.signed[1:], other.signed[1:])


def test_new_values_are_the_modules_own_or_the_same_ones_in_another_place():
    linear, again = nn.Linear(6, 5), nn.Linear(6, 5)
    randomize(linear, 3)
    randomize(again, 3)
    assert torch.equal(linear.weight, again.weight) and float(linear.weight.detach().abs().max()) <= 6**-0.5
    bare = Normed()
    bare.scale.data = torch.arange(4.0) ** 2
    randomize(bare, 0)
    assert sorted(bare.scale.tolist()) == [0, 1, 4, 9] and bare.scale.tolist() != [0, 1, 4, 9]
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    before = normed.bias.clone()
    randomize(normed, 0)
    assert torch.equal(normed.bias.sort().values, before.sort().values) and not torch.equal(normed.bias, before)


def test_errors():
    model, x = seeded(ConvNet), images(1)
    with pytest.raises(ValueError, match='"cascading" or "independent", got \'all\''):
        randomization(model, lambda m: x, mode="all")
    with pytest.raises(ValueError, match="got 'relu1': there are fc, conv2, conv1"):
        randomization(model, lambda m: x, layers=["relu1"])
    with pytest.raises(ValueError, match="a list of at least one name, got 'fc'"):
        randomization(model, lambda m: x, layers="fc")
    with pytest.raises(ValueError, match="a model with parameters"):
        randomization(nn.ReLU(), lambda m: x)
    shapes = iter([x, x[..., :4]])
    with pytest.raises(ValueError, match=r"got \(1, 12, 4\) after 'fc' was randomised"):
        randomization(model, lambda m: next(shapes))


def test_the_model_is_as_it_was_after_an_exception():
    model = seeded(ConvNet)
    before, calls = state_of(model), []

    def explain(of):
        calls.append(of)
        if len(calls) == 3:
            raise RuntimeError("no map")
        return images(1)

    with pytest.raises(RuntimeError, match="no map"):
        randomization(model, explain)
    assert changed(model, before) == set() and all(of is not model for of in calls[1:])
