"""What DRNet refuses, and what it leaves as it was."""

from __future__ import annotations

import pytest
import torch
from models import ConvNet, NormedConvNet, images, seeded
from snapshot import of_everything, same
from test_drnet import LAYERS, WEIGHTS, convnet, photos
from torch import nn
from torch.testing import assert_close

from drnet_captum.attr.drnet import DRNet, baseline_of
from drnet_captum.layers.discovery import LayerDiscoveryError


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("target", [1, 99])
def test_nothing_of_the_caller_s_changes(grad, weights, target):
    model, x = seeded(NormedConvNet), images().requires_grad_()
    other = model.relu1.register_forward_hook(lambda *_: None)
    before = of_everything(model, x)
    with grad():
        if target == 1:
            DRNet(model).attribute(x, 1, weights=weights, n_steps=2)
        else:
            with pytest.raises(ValueError, match="target 99 is out of range"):
                DRNet(model).attribute(x, target, weights=weights, n_steps=2)
    same(before, of_everything(model, x))
    other.remove()


class BreaksTheThirdTime(ConvNet):
    def forward(self, x):
        vars(self)["runs"] = vars(self).get("runs", 0) + 1
        if self.runs > 2:
            self.relu1(self.conv1(x))
            raise RuntimeError("broken model")
        return super().forward(x)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_model_that_raises(weights):
    model, x = seeded(BreaksTheThirdTime), images()
    model.runs = 0 if weights == "integrated" else 2
    before = of_everything(model, x)
    with pytest.raises(RuntimeError, match="broken model"):
        DRNet(model, LAYERS).attribute(x, 1, weights=weights)
    same(before, of_everything(model, x))


def test_what_is_refused_at_the_door():
    model = convnet()
    with pytest.raises(TypeError, match=r"a list of modules or names, got one: pass layers=\['relu2'\]"):
        DRNet(model, "relu2")
    with pytest.raises(TypeError, match="a list of modules or names, got one"):
        DRNet(model, model.relu2)
    with pytest.raises(ValueError, match="no module twice"):
        DRNet(model, ["relu2", model.relu2])
    with pytest.raises(ValueError, match="at least one layer"):
        DRNet(model, [])
    with pytest.raises(ValueError, match="no layer 'relu3'; near names: relu2"):
        DRNet(model, ["relu3"])
    with pytest.raises(ValueError, match="memory_format"):
        DRNet(model, memory_format="rows")


REFUSED = {
    "weights": ({"weights": "mean"}, "weights to be one of gradient, local, integrated, got 'mean'"),
    "score": ({"score": "probability"}, "score to be 'logit' or 'log_prob', got 'probability'"),
    "method": ({"weights": "integrated", "method": "simpson"}, "simpson"),
    "no steps": ({"weights": "integrated", "n_steps": 0}, "n_steps to be at least 1, got 0"),
    "no rows": ({"weights": "integrated", "internal_batch_size": 0}, "internal_batch_size to be at least 1, got 0"),
    "no channels": ({"top_channels": 0}, "top_channels to be at least 1, got 0"),
    "fewer channels": ({"top_channels": -1}, "top_channels to be at least 1, got -1"),
    "baselines": ({"baselines": 0}, "baselines are for weights='integrated', got weights='gradient'"),
    "baselines, local": ({"baselines": 0.0, "weights": "local"}, "baselines are for weights='integrated'"),
    "delta": ({"return_convergence_delta": True}, "have a delta, got weights='gradient'"),
    "delta, local": ({"return_convergence_delta": True, "weights": "local"}, "have a delta, got weights='local'"),
    "shares": ({"layer_weights": [0.5, 0.5]}, "layer_weights for the 3 layers relu1, pool, relu2, got 2"),
    "sum of shares": ({"layer_weights": [0.5, 0.5, 0.5]}, "sum 1 for the layers relu1, pool, relu2, got a sum of 1.5"),
    "no number": ({"layer_weights": [0.5, 0.5, float("nan")]}, "got a sum of nan"),
    "target": ({"target": 5}, "target 5 is out of range"),
    "no target": ({"target": None}, "expected a target"),
    "targets": ({"target": [1, 2, 3]}, "one target for each of the 2 examples, got a list of 3"),
    "two baselines": ({"baselines": (0, 0), "weights": "integrated"}, "a baseline for each of the 1 inputs, got 2"),
    "shape of baseline": ({"baselines": torch.zeros(1, 3, 4, 4), "weights": "integrated"}, r"got \(1, 3, 4, 4\)"),
    "rows of baseline": ({"baselines": torch.zeros(3, 3, 12, 10), "weights": "integrated"}, r"got \(3, 3, 12, 10\)"),
    "NaN": ({"inputs": photos() * float("nan")}, "finite inputs"),
    "NaN baseline": ({"baselines": float("nan"), "weights": "integrated"}, "finite inputs"),
    "rows, not images": (
        {"inputs": torch.rand(2, 3).double()},
        r"images, signals or volumes, \(N, C, …\), got \(2, 3\)",
    ),
    "tokens": ({"inputs": torch.ones(2, 3, dtype=torch.long)}, "images, signals or volumes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        DRNet(convnet(), LAYERS).attribute(**{"inputs": photos(), "target": 1, **arguments})


def test_layers_without_a_grid_and_models_without_layers():
    model, x = convnet(), photos()
    for weights in WEIGHTS:
        with pytest.raises(ValueError, match=r"layer 'fc' puts out \(2, 5\), which is no grid of positions"):
            DRNet(model, ["fc"]).attribute(x, 1, weights=weights)
    with pytest.raises(LayerDiscoveryError, match="the model is a function"):
        DRNet(lambda v: model(v)).attribute(x, 1)
    with pytest.raises(LayerDiscoveryError, match="found no layer"):
        DRNet(nn.Sequential(nn.Flatten(), nn.Linear(360, 4)).double()).attribute(x, 1)


def test_a_model_in_train_mode_warns():
    with pytest.warns(UserWarning, match="train mode"):
        DRNet(convnet().train()).attribute(photos(), 1, weights="integrated", n_steps=2)


def test_baselines_as_tensors():
    x, other = photos(), photos(3)[:2]
    assert [b.tolist() for b in baseline_of((x,), None)] == [torch.zeros_like(x).tolist()]
    assert_close(
        baseline_of((x, other), (2, other[:1].float())),
        (torch.full_like(x, 2), other[:1].float().expand_as(x).double()),
    )
    assert_close(baseline_of((x, other), None), (x * 0, x * 0))
    with pytest.raises(ValueError, match="a baseline for each of the 2 inputs, got 1"):
        baseline_of((x, other), 0.0)
