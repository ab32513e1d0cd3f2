"""compile=True: the same maps, from passes that are captured once and replayed, and never of an earlier model."""

import warnings

import pytest
import timm
import torch
from methods import CASES, OURS, make
from models import NormedConvNet, TwoInputs, images, seeded
from torch import nn

import drnet_captum as dc
from drnet_captum.attr.base import TapeAttribution
from drnet_captum.engine import capture
from drnet_captum.engine.prepared import NORMS

CAPTURED = [n for n in OURS if issubclass(dc.methods()[n].cls, TapeAttribution) and dc.methods()[n].cls._is_captured]
READ_TOGETHER = [name for name in CAPTURED if name != "smooth_grad"]


def network(**options):
    return seeded(NormedConvNet, **options).double()


def x64(n=2, **options):
    return images(n, dtype=torch.float64, **options)


def both(name, model, inputs, target, *, init=None, **options):
    """Maps of the plain class, and of the captured one."""
    options = {**CASES[name].fast, **options}
    plain, quick = (make(name, model, compile=c, **(init or {})) for c in (False, True))
    return tuple(method.attribute(inputs, target=target, **options) for method in (plain, quick))


def check(name, model, inputs, target, **options):
    torch.testing.assert_close(*both(name, model, inputs, target, **options)[::-1], rtol=1e-10, atol=1e-12)


def captured_of(model):
    return list(capture._graphs[model].captured.values())


@pytest.fixture
def no_tape(monkeypatch):
    """A switch after which nothing can be recorded any more."""

    def record(*args, **options):
        raise AssertionError("the model ran")

    return lambda: monkeypatch.setattr(capture.Tape, "forward", record)


@pytest.mark.parametrize("name", CAPTURED)
def test_every_method_and_every_target_of_one_capture(name, no_tape):
    model = network()
    plain = {t: make(name, model).attribute(x64(), target=list(t), **CASES[name].fast) for t in [(1, 1), (4, 0)]}
    method = make(name, model, compile=True)
    for i, (target, expected) in enumerate([*plain.items(), *plain.items()]):
        found = method.attribute(x64(), target=list(target), **CASES[name].fast)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        if i == 0:
            no_tape()
    count = len(captured_of(model))
    torch.testing.assert_close(method.attribute(x64(), target=1, **CASES[name].fast), plain[1, 1])
    assert len(captured_of(model)) == count


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_models(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=7).double().eval()
    x = x64(size=(64, 64)) if name != "test_vit" else x64(1, size=(160, 160))
    options = {"classes": [2, 0], "methods": READ_TOGETHER}
    plain, quick = (dc.explain(model, x, compile=c, **options) for c in (False, True))
    for method, maps in plain.items():
        torch.testing.assert_close(quick[method], maps, rtol=1e-9, atol=1e-11)
    again = dc.explain(model, x.flip(3), compile=True, classes=[1, 4], methods=READ_TOGETHER)
    for method, maps in dc.explain(model, x.flip(3), classes=[1, 4], methods=READ_TOGETHER).items():
        torch.testing.assert_close(again[method], maps, rtol=1e-9, atol=1e-11)
    (found,) = captured_of(model)
    calls = [node.target for node in found.call.graph.nodes]
    assert not NORMS & set(calls)


@pytest.mark.parametrize("precision", [None, "float32", "bfloat16"])
def test_precisions(precision):
    model = seeded(NormedConvNet)
    for name in ("guided_backprop", "grad_cam"):
        plain, quick = both(name, model, images(), [1, 3], init={"precision": precision})
        assert quick.dtype == torch.float32
        tolerance = 0.03 if precision == "bfloat16" else 1e-5
        assert (quick - plain).abs().max() <= tolerance * plain.abs().max()
        wide = make(name, model).attribute(images(), target=[1, 3])
        assert quick.allclose(wide, rtol=1e-4, atol=0) is (precision != "bfloat16")
    for found in captured_of(model):
        calls = {node.target for node in found.call.graph.nodes}
        assert not NORMS & calls


def test_the_callers_autocast_is_part_of_what_is_captured():
    model, method = seeded(NormedConvNet), "guided_backprop"
    wide = make(method, model, compile=True).attribute(images(), target=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, quick = both(method, model, images(), 1)
        assert not quick.equal(wide)
        assert (quick - plain).abs().max() <= 0.03 * plain.abs().max()
        own = make(method, model, compile=True, precision="float32").attribute(images(), target=1)
    torch.testing.assert_close(own, wide)


def test_log_probabilities():
    check("grad_cam", network(), x64(), [1, 3], score="log_prob")
    model = network()
    plain, contrastive = (
        make("grad_cam", model, compile=True).attribute(x64(), 1, score=s) for s in ("logit", "log_prob")
    )
    assert not plain.allclose(contrastive)


def test_the_layers_input_and_another_layer():
    model = network()
    for layer in ("relu1", model.conv2):
        for at_input in (True, False):
            check("grad_cam", model, x64(), 1, init={"layer": layer}, attribute_to_layer_input=at_input)
    check("grad_x_image", model, x64(), 2, init={"layer": "conv1"})


def test_predicted_classes_and_methods_that_capture_nothing():
    model, x = network(), x64(3)
    plain, quick = (
        dc.explain(model, x, methods=["cam", "eigen_cam", "saliency", "deconvnet"], compile=c) for c in (False, True)
    )
    assert list(plain) == list(quick)
    for name, maps in plain.items():
        torch.testing.assert_close(quick[name], maps)
    other = -x
    assert model(other).argmax(1).ne(model(x).argmax(1)).any()
    torch.testing.assert_close(
        *(dc.explain(model, other, methods="saliency", compile=c)["saliency"] for c in (False, True))
    )
    assert dc.explain(model, x, target=(1, 2), methods="grad_cam", compile=True)["grad_cam"].shape[:2] == (2, 3)


def test_one_score():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double().eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    for target in (None, 0, -1):
        check("guided_backprop", model, x, target)
    torch.testing.assert_close(*(dc.explain(model, x, methods="saliency", compile=c) for c in (False, True)))


def test_a_rule_without_activations_is_only_asked_for_by_its_methods():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match="met no activation"):
        make("guided_backprop", model, compile=True).attribute(images(), 1)
    said = []
    for options in ({}, {"compile": True}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            said.append((dc.explain(model, images(), 1, **options), sorted(str(w.message) for w in caught)))
    (plain, warned), (quick, warned_too) = said
    assert warned == warned_too
    assert any("Guided" in message and "met no activation" in message for message in warned)
    for name, maps in plain.items():
        torch.testing.assert_close(quick[name], maps)


def test_several_inputs_and_further_arguments():
    model = seeded(TwoInputs).double()
    pair = (x64(), x64(seed=5))
    for extra in (2.0, torch.tensor(3.0, dtype=torch.float64), 0.5, torch.tensor(7.0, dtype=torch.float64)):
        for name in ("grad_x_image", "guided_backprop", "smooth_grad"):
            check(name, model, pair, 1, additional_forward_args=extra)
        check("grad_cam", model, pair, 1, additional_forward_args=extra)
    check("grad_x_image", model, x64(), 1, additional_forward_args=x64(seed=5))
    with pytest.raises(ValueError, match=r"tensors or hashable, got set"):
        make("grad_x_image", model, compile=True).attribute(pair, 1, additional_forward_args=({1},))


class Options(nn.Module):
    """Further arguments in a dict."""

    def forward(self, x, options):
        return (x * options["scale"]).tanh().cumsum(1) * options.get("times", 1) + x ** options.get("power", 1)


def test_arguments_in_containers():
    model, x = Options().eval(), torch.randn(2, 3, dtype=torch.float64)
    for scale, name, value in ((1.0, "times", 2), (3.0, "times", 2), (3.0, "times", 4), (3.0, "power", 2)):
        options = {"scale": torch.tensor(scale, dtype=torch.float64), name: value}
        check("grad_x_image", model, x, 1, additional_forward_args=(options,))
    assert len(captured_of(model)) == 3


def test_shapes_types_and_layouts():
    model = network()
    for x in (x64(), x64(3), x64(size=(9, 14)), x64().contiguous(memory_format=torch.channels_last), x64().mT):
        check("guided_backprop", model, x, 1)
        check("grad_cam", model, x, 1, init={"memory_format": "preserve"})
    torch.testing.assert_close(*both("guided_backprop", model.float(), images(), 1))


def test_maps_are_the_callers_own():
    model, x = network(), x64()
    method = make("grad_cam", model, compile=True)
    first = method.attribute(x, target=1)
    kept = first.clone()
    second = method.attribute(x, target=3)
    assert first.equal(kept)
    first.zero_()
    assert method.attribute(x, target=3).equal(second)
