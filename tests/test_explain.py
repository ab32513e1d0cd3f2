"""explain(): the same maps as from the classes one by one, on one forward pass."""

from __future__ import annotations

import itertools
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution
from methods import CASES, INPUT_SIZE, LAYER_SIZE, NAMES, make
from models import SIZE, ConvNet, ManyScores, TwoInputs, conv_relu_pool, images, max_pool_linear, seeded
from snapshot import of_everything, same
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import drnet_captum as dc
from drnet_captum.data import embedded_photo

GRADIENTS = ["saliency", "grad_x_image", "guided_backprop", "deconvnet", "grad_cam", "guided_grad_cam"]


def one_by_one(name: str, model: nn.Module, x: Tensor, target: object, mode: str = "bilinear") -> Tensor:
    options = {"interpolate_mode": mode} if name == "guided_grad_cam" else {}
    maps = make(name, model).attribute(x, target=target, **options)
    if name in LAYER_SIZE:
        maps = LayerAttribution.interpolate(maps, SIZE, mode)
    return maps.detach()


@pytest.mark.parametrize("target", [1, [3, 0], torch.tensor([3, 0])])
def test_equals_the_classes_one_by_one(target):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    found = dc.explain(model, x, target, methods=NAMES, layer="relu2")
    assert list(found) == NAMES
    for name, maps in found.items():
        assert maps.shape == (x.shape if name in INPUT_SIZE else (2, 1, *SIZE))
        assert not maps.requires_grad and maps.is_contiguous()
        assert_close(maps, one_by_one(name, model, x, target), msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_one_method_alone(name):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    (maps,) = dc.explain(model, x, 1, methods=name, layer=model.relu2).values()
    assert_close(maps, one_by_one(name, model, x, 1))


@pytest.mark.parametrize("name", ["grad_cam", "guided_grad_cam"])
@pytest.mark.parametrize("mode", ["nearest", "bicubic"])
def test_interpolation_modes(name, mode):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    found = dc.explain(model, x, 1, methods=[name], layer="relu2", interpolate_mode=mode)
    assert_close(found[name], one_by_one(name, model, x, 1, mode))


@pytest.mark.parametrize(
    "methods, compile",
    [
        (["grad_cam"], False),
        (["grad_cam"], True),
        (["saliency", "cam"], False),
        (["eigen_cam"], False),
        (["rise"], False),
    ],
)
def test_scores_are_the_models_answer(methods, compile):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    for classes in (None, [0, 2, 3]):
        found = dc.explain(model, x, methods=methods, layer="relu2", classes=classes, compile=compile)
        assert_close(found.scores, model(x).detach())
        assert not found.scores.requires_grad
        assert found.targets == (classes or [model(x).argmax(1).tolist()])


def test_maps_as_large_as_the_layer():
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    names = [*LAYER_SIZE, "guided_grad_cam"]
    found = dc.explain(model, x, 1, methods=names, layer="relu2", interpolate_mode="none")
    for name in LAYER_SIZE:
        maps = make(name, model).attribute(x, target=1)
        assert maps.shape[2:] != x.shape[2:]
        assert_close(found[name], maps.detach(), msg=lambda m, name=name: f"{name}: {m}")
    assert_close(found["guided_grad_cam"], one_by_one("guided_grad_cam", model, x, 1))  # of the input's size anyway


@pytest.mark.parametrize("classes", [[3, 0, 4], [[3, 0], [1, 2]], [2]])
def test_several_classes_of_every_image(classes):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    found = dc.explain(model, x, classes=classes, methods=NAMES, layer="relu2")
    for name, maps in found.items():
        expected = torch.stack([one_by_one(name, model, x, target) for target in classes])
        assert maps.shape[0] == len(classes)
        assert_close(maps, expected, msg=lambda m, name=name: f"{name}: {m}")


def test_a_tuple_is_several_classes():
    model, x = seeded(ConvNet), images(2)
    found = dc.explain(model, x, target=(3, 0), methods=GRADIENTS)
    assert_close(found, dc.explain(model, x, classes=[3, 0], methods=GRADIENTS), rtol=0, atol=0)


def test_a_tuple_is_one_target_of_scores_with_more_dimensions():
    model, flat, x = seeded(ManyScores), seeded(ConvNet, outputs=10), images(2)
    found = dc.explain(model, x, target=(3, 1), methods=GRADIENTS, layer="relu2")
    assert_close(found, dc.explain(flat, x, target=7, methods=GRADIENTS, layer="relu2"))
    several = dc.explain(model, x, classes=[(3, 1), (0, 0)], methods=GRADIENTS, layer="relu2")
    assert_close(several, dc.explain(flat, x, classes=[7, 0], methods=GRADIENTS, layer="relu2"))


def test_target_and_classes_exclude_each_other():
    model, x = seeded(ConvNet), images(2)
    with pytest.raises(ValueError, match="got both"):
        dc.explain(model, x, 1, classes=[1, 2])
    with pytest.raises(ValueError, match="at least one target"):
        dc.explain(model, x, classes=[])


@pytest.mark.parametrize("methods", [GRADIENTS, ["score_cam"], ["smooth_grad"], ["eigen_cam"]])
def test_without_a_target_the_strongest_class_of_each_image(methods):
    model, x = seeded(ConvNet), images(4)
    strongest = model(x).argmax(1).tolist()
    assert len(set(strongest)) > 1
    assert_close(dc.explain(model, x, methods=methods), dc.explain(model, x, strongest, methods=methods))


def test_without_a_target_the_only_score():
    model, x = seeded(ConvNet, outputs=1), images(2)
    found = dc.explain(model, x, methods=["grad_cam", "guided_backprop"])
    assert_close(found, dc.explain(model, x, 0, methods=["grad_cam", "guided_backprop"]))


def test_which_methods():
    model, x = seeded(ConvNet), images(1)
    defaults = [name for name, method in dc.methods().items() if method.default]
    assert list(dc.explain(model, x, 1)) == defaults
    assert list(dc.explain(model, x, 1, methods="all")) == list(dc.methods())
    assert list(dc.explain(model, x, 1, methods="grad_cam")) == ["grad_cam"]
    assert list(dc.explain(model, x, 1, methods=("layer_cam", "grad_cam"))) == ["layer_cam", "grad_cam"]
    with pytest.raises(ValueError, match="at least one method"):
        dc.explain(model, x, 1, methods=[])


def test_a_method_that_is_not_defined_is_left_out_of_all_and_raises_when_named():
    model, x = seeded(max_pool_linear), images(1)
    with pytest.warns(UserWarning, match="CAM is left out"):
        found = dc.explain(model, x, 1, methods="all")
    assert sorted(found) == [name for name in NAMES if name != "cam"]
    with pytest.raises(ValueError, match="CAM is defined for"):
        dc.explain(model, x, 1, methods=["grad_cam", "cam"])


def test_several_inputs():
    model, x, other = seeded(TwoInputs), images(2), images(2, seed=5)
    found = dc.explain(model, (x, other), 1, additional_forward_args=2.0, layer="relu2", methods=GRADIENTS)
    for name in GRADIENTS:
        expected = make(name, model).attribute(
            (x, other),
            target=1,
            additional_forward_args=2.0,
            **({"interpolate_mode": "bilinear"} if name == "guided_grad_cam" else {}),
        )
        if CASES[name].output == "input":
            assert isinstance(found[name], tuple)
            assert_close(found[name], expected)
        else:
            assert_close(found[name], LayerAttribution.interpolate(expected, SIZE, "bilinear"))
    alone = dc.explain(model, (x, other), classes=[1, 2], methods="saliency")["saliency"]
    assert [m.shape for m in alone] == [(2, *x.shape), (2, *other.shape)]


@pytest.mark.parametrize("options", [{"target": 1}, {"classes": [0, 1, 2, 3, 4]}, {}])
def test_one_forward_pass(options):
    calls = []
    model = seeded(ConvNet)
    model.register_forward_hook(lambda module, args, out: calls.append(1))
    dc.explain(model, images(2), methods=GRADIENTS, layer="relu2", **options)
    assert len(calls) == 1


def test_nothing_changes():
    model, x = seeded(ConvNet), images(2)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            before = of_everything(model, x)
            dc.explain(model, x, classes=[1, 2], methods="all")
            with pytest.raises(ValueError, match="out of range"):
                dc.explain(model, x, 99, methods="all")
            same(before, of_everything(model, x))


def test_methods_of_other_packages_run_too(monkeypatch):
    class Constant(dc.Saliency):
        def attribute(self, inputs, target=None, additional_forward_args=None):
            return torch.full_like(inputs, float(target))

    method = dc.Method("constant", Constant, "Constant", "none", "gradient", "input")
    known = {**dc.methods(), "constant": method}
    monkeypatch.setattr("drnet_captum.registry.methods", lambda: known)
    found = dc.explain(seeded(ConvNet), images(2), classes=[1, 3], methods=["constant", "grad_cam"])["constant"]
    assert found.shape == (2, 2, 3, *SIZE)
    assert_close(found[:, 0, 0, 0, 0], torch.tensor([1.0, 3.0]))


# The embedded model on the embedded photos.


@cache
def embedded() -> nn.Module:
    return dc.load_model("embedded")


@cache
def photo(name: str) -> Tensor:
    return dc.model_card(embedded()).transform(embedded_photo(name))[None]


CAT, ESPRESSO = 285, 967


def test_maps_of_different_methods_differ():
    """Except those that are equal by theorem.

    The class's score map z is positive all over this photo, so the ReLU behind it is the identity, ∂y/∂A is w/(h·w) at
    every position, and CAM, Grad-CAM, HiResCAM and XGrad-CAM are all Σ_k w_k A_k up to a factor (and CAM's bias).
    """
    model, x = embedded(), F.interpolate(photo("chelsea"), (112, 112), mode="bilinear", antialias=True)
    equal = ("cam", "grad_cam", "hires_cam", "xgrad_cam")
    with torch.no_grad():
        assert (model.classifier[:2](model.features(x))[0, CAT] > 0).all()
    maps = dc.explain(model, x, CAT, methods="all")
    flat = {name: m.sum(1).flatten() for name, m in maps.items()}
    for one, other in itertools.combinations(flat, 2):
        correlation = float(torch.corrcoef(torch.stack([flat[one], flat[other]]))[0, 1].abs())
        if one in equal and other in equal:
            assert correlation > 0.9999, (one, other)
        else:
            assert correlation < 0.999, (one, other, correlation)


@pytest.mark.parametrize("make_model", [embedded, lambda: seeded(conv_relu_pool)])
def test_the_theorem_for_heads_like_squeezenet_s(make_model):
    """y = mean(max(z, 0)), z = Σ_k w_k A_k + b: CAM = max(z, 0) = h·w·HiResCAM + b·[z > 0], whatever the signs of z."""
    model = make_model()
    is_embedded = model is embedded()
    layer, conv, c = ("features", model.classifier[1], 292) if is_embedded else ("1", model[2], 0)
    x = photo("chelsea") if is_embedded else images(1)
    cam, hires = dc.CAM(model).attribute(x, target=c), dc.HiResCAM(model, layer).attribute(x, target=c)
    active = (cam > 0).float()
    assert 0 < active.mean() < 1
    assert_close(cam, cam[0, 0].numel() * hires + conv.bias[c].detach() * active, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["grad_cam", "hires_cam", "layer_cam", "cam"])
def test_classes_are_found_where_they_are(name):
    """A cat on the left and an espresso on the right, in one picture."""
    both = torch.cat([photo("chelsea"), photo("coffee")], dim=3)
    found = dc.explain(embedded(), both, classes=[CAT, ESPRESSO], methods=[name])[name]
    columns = found[:, 0, 0].amax(1).argmax(1)
    assert columns[0] < 224 <= columns[1]


@pytest.mark.parametrize("c", [281, 285])
def test_grad_cam_s_strongest_point_lies_on_the_cat(c):
    """On the whole photo, 300 × 451 pixels, where the face is in columns 60 to 345 and the room beside it."""
    card = dc.model_card(embedded())
    pixels = torch.from_numpy(np.array(embedded_photo("chelsea")))
    x = pixels.permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor(card.mean).view(3, 1, 1)) / torch.tensor(card.std).view(3, 1, 1)
    found = dc.explain(embedded(), x, c, methods="grad_cam")["grad_cam"]
    row, column = divmod(int(found.argmax()), 451)
    assert 30 <= row < 290 and 60 <= column < 345, (row, column)


def test_no_warnings_on_the_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dc.explain(embedded(), photo("chelsea"), methods=GRADIENTS)
