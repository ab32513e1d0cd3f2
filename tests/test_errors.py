"""Bad input: a clear error, for every method and for ``explain``. (That nothing changes then: test_contract.py.)"""

from __future__ import annotations

import warnings
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from methods import CASES, LAYER_SIZE, NAMES, OURS, attribute, make
from models import (
    CLASSES,
    Answers,
    ConvNet,
    ManyScores,
    TwoInputs,
    images,
    seeded,
)
from torch import nn
from torch.testing import assert_close

import drnet_captum as dc
from drnet_captum.data import load_image

# Captum's own Saliency checks less. Through explain it is ours.
CALLS = [*OURS, "explain"]


def call(name: str, model: Any, inputs: Any, target: Any = None, **options: Any) -> Any:
    """The class's ``attribute``, or ``explain`` by all the methods that are on by default."""
    if name == "explain":
        return dc.explain(model, inputs, target, **options)
    layer = {"layer": options.pop("layer")} if "layer" in options else {}
    return make(name, model, **(layer if CASES[name].init else {})).attribute(
        inputs, target=target, **{**CASES[name].fast, **options}
    )


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", [5, -6, [1, 5], torch.tensor([1, 5])])
def test_a_target_outside_the_output(name, target):
    with pytest.raises(ValueError, match=r"out of range.*\(N, 5\).*0 to 4"):
        call(name, seeded(ConvNet), images(2), target)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", [[1, 2], [0, 1, 2, 3], torch.tensor([1, 2])])
def test_targets_that_are_not_one_for_each_image(name, target):
    with pytest.raises(ValueError, match=f"one target for each of the 3 examples, got a list of {len(target)}"):
        call(name, seeded(ConvNet), images(3), target)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", [1.0, "cat", torch.tensor([1.0]), True])
def test_targets_that_are_no_integers(name, target):
    with pytest.raises(TypeError, match="expected a target"):
        call(name, seeded(ConvNet), images(1), target)


@pytest.mark.parametrize("name", CALLS)
def test_targets_with_too_few_indices(name):
    with pytest.raises(ValueError, match=r"2 indices for outputs of shape \(N, 5, 2\)"):
        call(name, seeded(ManyScores), images(2), 1)


@pytest.mark.parametrize("name", [n for n in OURS if n != "eigen_cam"])  # which is the same for every class
def test_no_target_where_there_are_several_scores(name):
    with pytest.raises(ValueError, match=r"expected a target.*\(2, 5\)"):
        call(name, seeded(ConvNet), images(2))


@pytest.mark.parametrize("name", [n for n in CALLS if n == "explain" or CASES[n].init])
def test_an_unknown_layer_lists_near_names(name):
    with pytest.raises(ValueError, match=r"no layer 'relu3'.*relu[12]"):
        call(name, seeded(ConvNet), images(1), 1, layer="relu3")


@pytest.mark.parametrize("name", [n for n in CALLS if n == "explain" or CASES[n].init])
def test_a_layer_that_is_not_run(name):
    with pytest.raises(ValueError, match="not run"):
        call(name, seeded(ConvNet), images(1), 1, layer=nn.ReLU())
    with pytest.raises(TypeError, match=r"module or a dotted name, got int"):
        call(name, seeded(ConvNet), images(1), 1, layer=3)


@pytest.mark.parametrize("name", [n for n in OURS if CASES[n].init])
def test_a_layer_without_a_grid(name):
    with pytest.raises(ValueError, match=r"position|grid|spatial"):
        call(name, seeded(ConvNet), images(1), 1, layer="fc")
    with pytest.raises(ValueError, match=r"position|grid|spatial"):
        dc.explain(seeded(ConvNet), images(1), 1, methods=[name], layer="fc")


@pytest.mark.parametrize("name", LAYER_SIZE)
def test_a_model_without_any_grid_needs_no_layer_to_say_so(name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(360, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    with pytest.raises(dc.LayerDiscoveryError, match="layer="):
        call(name, model, images(1), 1, layer=None)


Output = namedtuple("Output", "logits loss")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (
            lambda y: {"logits": y, "loss": 0},
            r"dict with the keys 'logits', 'loss': wrap it, drnet_captum\.LogitsOf\(model\)",
        ),
        (lambda y: (y, None), r"got tuple[\s\S]*self\.model\(x\)\[0\]"),
        (lambda y: Output(y, 0), r"got Output[\s\S]*self\.model\(x\)"),
        (lambda y: SimpleNamespace(logits=y), r"got SimpleNamespace: wrap it, drnet_captum\.LogitsOf\(model\)"),
        (lambda y: y.argmax(1), r"torch\.int64.*class\s+indices"),
    ],
)
@pytest.mark.parametrize("name", CALLS)
def test_a_model_that_returns_no_tensor_of_scores(name, form, said):
    model = Answers(seeded(ConvNet), form).eval()
    with pytest.raises(TypeError, match=said):
        call(name, model, images(1), 1, layer="model.relu2")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", CALLS)
def test_inputs_that_are_not_finite(name, bad):
    x = images(2)
    x[1, 0, 3, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        call(name, seeded(ConvNet), x, 1)


@pytest.mark.parametrize("name", CALLS)
def test_integer_images(name):
    with pytest.raises((TypeError, ValueError), match=r"floating-point inputs, got torch\.uint8"):
        call(name, seeded(ConvNet), torch.zeros(1, 3, 12, 10, dtype=torch.uint8), 1)


@pytest.mark.parametrize("name", CALLS)
def test_an_empty_batch(name):
    with pytest.raises(ValueError, match=r"at least one example.*\(0, 3, 12, 10\)"):
        call(name, seeded(ConvNet), images(2)[:0], 1)
    with pytest.raises(ValueError, match="empty tuple"):
        call(name, seeded(ConvNet), (), 1)


@pytest.mark.parametrize("name", CALLS)
def test_inputs_that_are_no_tensors(name):
    with pytest.raises(TypeError, match=r"torch\.Tensor.*got ndarray"):
        call(name, seeded(ConvNet), images(1).numpy(), 1)


@pytest.mark.parametrize("names", ["gradcam", ["saliency", "gradcam"]])
def test_an_unknown_method_lists_all(names):
    with pytest.raises(ValueError, match=r"unknown method 'gradcam' \(did you mean 'grad_cam'\?\)") as error:
        dc.explain(seeded(ConvNet), images(1), 1, methods=names)
    assert all(name in str(error.value) for name in NAMES)


def test_an_unreadable_image(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        load_image(path)


def test_a_checkpoint_that_does_not_fit(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        dc.load_model("embedded", checkpoint=path)


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "score_cam"])
def test_a_wrong_score(name):
    with pytest.raises(ValueError, match="'logit' or 'log_prob', got 'probability'"):
        attribute(name, seeded(ConvNet), images(1), 1, score="probability")


def test_wrong_options():
    model, x = seeded(ConvNet), images(1)
    with pytest.raises(ValueError, match="plain, guided, deconv, got 'gided'"), dc.Tape(model) as tape:
        tape.gradient(tape.forward(x)[:, 1], rule="gided")
    with pytest.raises(ValueError, match="'plain' or 'guided', got 'deconv'"):
        dc.GradXImage(model, gradient="deconv")
    with pytest.raises(ValueError, match=r"memory_format.*auto, preserve, channels_last"):
        dc.GradCAM(model, memory_format="nhwc")
    for options in ({"n_samples": 0}, {"perturbations_per_eval": 0}, {"noise_level": -0.1}):
        with pytest.raises(ValueError, match="at least"):
            dc.SmoothGrad(model).attribute(x, 1, **options)
    with pytest.raises(ValueError, match="perturbations_per_eval"):
        dc.ScoreCAM(model).attribute(x, 1, perturbations_per_eval=0)
    with pytest.raises(ValueError, match="one input"):
        dc.ScoreCAM(seeded(TwoInputs), "relu2").attribute((x, x), 1)


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_units_that_are_not_there(name):
    model, x = seeded(ConvNet), images(1)
    for selector in (6, (0, 6, 0), (-7, 0, 0)):
        with pytest.raises(ValueError, match=r"out of range for a layer of shape \(N, 6, 6, 5\)"):
            make(name, model, layer="relu2").attribute(x, neuron_selector=selector)
    with pytest.raises(ValueError, match="at most 3 indices"):
        make(name, model, layer="relu2").attribute(x, neuron_selector=(0, 0, 0, 0))
    with pytest.raises(ValueError, match="layer="):
        make(name, model).attribute(x, neuron_selector=1)
    with pytest.raises(ValueError, match="got both"):
        make(name, model, layer="relu2").attribute(x, 1, neuron_selector=1)
    with pytest.raises(ValueError, match="neuron_selector="):
        make(name, model, layer="relu2").attribute(x, 1, attribute_to_neuron_input=True)


def test_a_target_that_is_cut_off_from_the_layer():
    model = Answers(seeded(ConvNet), lambda y: y.detach() + torch.zeros(5, requires_grad=True)).eval()
    with pytest.raises(ValueError, match="does not depend on"):
        dc.GradCAM(model, "model.relu2").attribute(images(1), 1)
    with pytest.raises(ValueError, match="does not depend on"):
        dc.GradXImage(model).attribute(images(1), 1)


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet", "guided_grad_cam"])
def test_a_rule_that_met_no_activation(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)).eval()
    with pytest.raises(ValueError, match="met no activation"):
        call(name, model, images(1), 1, layer="0")


class HiddenReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g * (ctx.saved_tensors[0] > 0)


class Custom(ConvNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.relu2(self.conv2(self.pool(HiddenReLU.apply(self.conv1(x))))).mean((2, 3)))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        return torch.jit.script(ConvNet())


@pytest.mark.parametrize("make_model", [Custom, scripted])
@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_activations_that_cannot_be_reached(name, make_model):
    with pytest.raises(ValueError, match=r"cannot reach .*: .*pass the eager model"):
        attribute(name, seeded(make_model), images(1), 1)


@pytest.mark.parametrize("make_model", [Custom, scripted])
def test_plain_gradients_do_not_mind_them(make_model):
    x = images(1)
    assert_close(attribute("grad_x_image", seeded(make_model), x, 1), attribute("grad_x_image", seeded(ConvNet), x, 1))
