"""Gates summed up by class, and what is said where gates cannot be learned."""

from __future__ import annotations

import pytest
import torch
from models import ConvNet, images, seeded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.reconstruct.gates import gate_importance, learn_gates

X = images(3, dtype=torch.float64)
OPTIONS = {"cost": 0.05, "steps": 5, "rate": 0.3, "momentum": 0.9}


def net() -> nn.Module:
    return seeded(ConvNet).double()


def test_importance_is_the_mean_gate_of_a_class() -> None:
    model, labels, told = net(), torch.tensor([4, 1, 4]), []
    gates = learn_gates(model, X, **OPTIONS)
    data = [(X[:2].float(), labels[:2]), (X[2:].float(), labels[2:].tolist())]
    found = gate_importance(model, data, progress=lambda *args: told.append(args), **OPTIONS)
    assert told == [("learning gates", 2, 0), ("learning gates", 3, 0)]
    assert list(found) == ["conv1", "conv2"]
    for name, importance in found.items():
        assert importance.classes.tolist() == [1, 4] and importance.counts.tolist() == [1, 2]
        assert_close(importance.signed, torch.stack([gates[name][1], gates[name][[0, 2]].mean(0)]), atol=1e-5, rtol=0)
        assert torch.equal(importance.signed, importance.absolute) and (importance.signed != 1).any()
    apart = [gate_importance(model, [batch], **OPTIONS)["conv2"] for batch in data]
    assert isinstance(apart[0], ClassImportance)
    assert_close((apart[0] + apart[1]).signed, found["conv2"].signed)
    assert list(gate_importance(model, data, ["conv2"], steps=1)) == ["conv2"]


class Moody(nn.Module):
    """Takes another way at every other call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.calls = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        x = self.conv(x)
        return self.fc((F.relu(x) if self.calls[0] % 2 else x.tanh()).mean((2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": -0.1}, "cost of at least 0, got -0.1"),
        ({"cost": float("nan")}, "cost of at least 0, got nan"),
        ({"steps": 0}, "steps to be an integer of at least 1, got 0"),
        ({"steps": 2.0}, "steps to be an integer of at least 1, got 2.0"),
        ({"rate": 0.0}, "rate above 0, got 0.0"),
        ({"momentum": 1.0}, "momentum from 0 to below 1, got 1.0"),
        ({"layers": []}, r"list of at least one module or name, got \[\]"),
        ({"layers": "conv1"}, "list of at least one module or name, got 'conv1'"),
        ({"layers": ["d"]}, "no layer 'd'"),
        ({"layers": ["fc"]}, "'fc' has no units"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learn_gates(net(), X, **options)  # type: ignore[arg-type]


def test_bad_models() -> None:
    model = net()
    model.pool.train()
    with pytest.raises(ValueError, match="eval mode"):
        learn_gates(model, X)
    with pytest.raises(RuntimeError, match="'conv' was not met: the model does not run the same steps"):
        learn_gates(seeded(Moody).double(), X)
    convolution = nn.Conv2d(3, 4, 3).double()
    with pytest.raises(ValueError, match=r"scores of shape \(3, classes\).* got \(3, 2, 10, 8\)"):
        learn_gates(nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(4, 2, 1).double()).eval(), X)
    head = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(320, 2).double()).eval()
    nn.init.constant_(head[3].bias, torch.inf)
    with pytest.raises(ValueError, match="finite scores"):
        learn_gates(head, X)
    with pytest.raises(ValueError, match="no convolution"):
        learn_gates(nn.Sequential(nn.Flatten(), nn.Linear(360, 4).double(), nn.ReLU()).eval(), X)


def test_bad_data_before_anything_is_learned() -> None:
    model = net().train()
    with pytest.raises(ValueError, match="at least one batch"):
        gate_importance(model, [])
    with pytest.raises(ValueError, match="got no labels"):
        gate_importance(model, [X])
    with pytest.raises(ValueError, match=r"one label for each of 3 images, got shape \(2,\)"):
        gate_importance(model, [(X, torch.tensor([0, 1]))])
    with pytest.raises(TypeError, match="integer labels"):
        gate_importance(model, [(X, torch.zeros(3))])
    with pytest.raises(TypeError, match="got str"):
        gate_importance(model, ["images"])
