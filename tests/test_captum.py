"""Equality with Captum where it is right, its own test configuration, its tools, its signatures."""

from __future__ import annotations

import copy
import inspect
from functools import cache

import captum.attr as ca
import matplotlib
import pytest
import timm
import torch
import torchvision
from captum.attr import visualization
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from captum.testing.attr.helpers.test_config import config
from methods import CASES, INPUT_SIZE, LAYER_SIZE, NAMES, TWINS, attribute, make, make_twin, shape_of
from models import ConvNet, FunctionalConvNet, ParallelBranches, images, seeded
from torch import nn
from torch.testing import assert_close

import drnet_captum as dc

# Activations of all of these are nn.ReLU modules, none of them on two branches.
NETWORKS = {
    "torchvision:resnet18": "layer4",
    "torchvision:squeezenet1_1": "features.12",
    "timm:repvgg_a0": "stages.3",
    "timm:regnety_002": "s4",
}
EXACT = {"rtol": 1e-8, "atol": 1e-10}


@cache
def network(spec: str) -> nn.Module:
    library, name = spec.split(":")
    build = torchvision.models.get_model if library == "torchvision" else timm.create_model
    return seeded(build, name, num_classes=7).double()


@pytest.mark.parametrize("spec", NETWORKS)
@pytest.mark.parametrize("name", TWINS)
def test_equals_captum_on_real_networks(name, spec):
    model, layer = network(spec), network(spec).get_submodule(NETWORKS[spec])
    x = images(2, dtype=torch.float64, size=(64, 64))
    options = {"layer": layer} if CASES[name].init else {}
    found = make(name, model, **options).attribute(x, target=[3, 5])
    assert_close(found, make_twin(name, model, layer).attribute(x, target=[3, 5]), **EXACT)


@pytest.mark.parametrize("spec", NETWORKS)
def test_hires_cam_is_captum_s_gradient_times_activation_summed(spec):
    model, layer = network(spec), network(spec).get_submodule(NETWORKS[spec])
    x = images(1, dtype=torch.float64, size=(64, 64))
    shares = ca.LayerGradientXActivation(model, layer).attribute(x, target=3)
    assert_close(dc.HiResCAM(model, layer).attribute(x, target=3), shares.sum(1, keepdim=True).detach(), **EXACT)
    each = dc.HiResCAM(model, layer).attribute(x, target=3, attr_dim_summation=False)
    assert_close(each, shares.detach(), **EXACT)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(dc.GuidedBackprop, ca.NeuronGuidedBackprop), (dc.DeconvNet, ca.NeuronDeconvolution)]
)
@pytest.mark.parametrize("selector", [(3, 1, 0), (0, slice(0, 2), 1), lambda layer: layer[:, 5].sum((1, 2))])
@pytest.mark.parametrize("at_input", [False, True])
def test_units_equal_captum_s_neuron_classes(ours, theirs, selector, at_input):
    model = network("torchvision:resnet18")
    x = images(2, dtype=torch.float64, size=(64, 64))
    options = {"neuron_selector": selector, "attribute_to_neuron_input": at_input}
    found = ours(model, layer="layer3").attribute(x, **options)
    assert_close(found, theirs(model, model.layer3).attribute(x, **options), **EXACT)


@pytest.mark.parametrize("options", [{"relu_attributions": True}, {"attr_dim_summation": False}])
@pytest.mark.parametrize("at_input", [False, True])
def test_options_of_grad_cam_equal_captum_s(options, at_input):
    model, x = seeded(ConvNet, inplace=True).double(), images(2, dtype=torch.float64)
    options = {**options, "attribute_to_layer_input": at_input, "grad_kwargs": {"create_graph": False}}
    found = dc.GradCAM(model, model.conv2).attribute(x, 1, **options)
    assert_close(found, ca.LayerGradCam(model, model.conv2).attribute(x, 1, **options).detach())


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("at_input", [False, True])
def test_guided_grad_cam_interpolates_as_captum_s(mode, at_input):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    options = {"interpolate_mode": mode, "attribute_to_layer_input": at_input}
    found = dc.GuidedGradCAM(model, model.conv2).attribute(x, 1, **options)
    assert_close(found, ca.GuidedGradCam(model, model.conv2).attribute(x, 1, **options).detach())


@pytest.mark.parametrize("name", TWINS)
def test_in_place_activations_equal_captum_s(name):
    x = images(2, dtype=torch.float64)
    found = attribute(name, seeded(ConvNet, inplace=True).double(), x, 1)
    assert_close(found, make_twin(name, seeded(ConvNet, inplace=True).double()).attribute(x, target=1).detach())


@pytest.mark.parametrize("name", ["grad_x_image", "smooth_grad", "deconvnet", "guided_backprop"])
def test_functional_activations_equal_their_module_twins(name):
    x = images(2, dtype=torch.float64)
    found = attribute(name, seeded(FunctionalConvNet).double(), x, 1)
    assert_close(found, attribute(name, seeded(ConvNet).double(), x, 1))


@pytest.mark.parametrize("name", [n for n in LAYER_SIZE if n != "cam"] + ["guided_grad_cam"])
def test_functional_activations_equal_their_module_twins_at_a_layer(name):
    x = images(2, dtype=torch.float64)
    options = {"layer": "conv2"}
    found = make(name, seeded(FunctionalConvNet).double(), **options).attribute(x, target=1)
    assert_close(found, make(name, seeded(ConvNet).double(), **options).attribute(x, target=1))


def test_captum_is_wrong_on_functional_and_on_parallel_activations():
    """Why the equalities above keep to module activations on one path. (That ours is right: test_papers.py.)"""
    x = images(1, dtype=torch.float64)
    functional, modules = seeded(FunctionalConvNet).double(), seeded(ConvNet).double()
    right = ca.GuidedBackprop(modules).attribute(x, target=1)
    assert not torch.allclose(ca.GuidedBackprop(functional).attribute(x, target=1), right)
    model = seeded(ParallelBranches).double()
    rows = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours = dc.DeconvNet(model).attribute(rows, target=1)
    assert not torch.allclose(ca.Deconvolution(model).attribute(rows, target=1), ours)


OF_CAPTUM = {
    ca.GuidedBackprop: dc.GuidedBackprop,
    ca.Deconvolution: dc.DeconvNet,
    ca.InputXGradient: dc.GradXImage,
    ca.LayerGradCam: dc.GradCAM,
    ca.GuidedGradCam: dc.GuidedGradCAM,
    ca.NeuronGuidedBackprop: dc.GuidedBackprop,
    ca.NeuronDeconvolution: dc.DeconvNet,
}
RUNS = [(case, theirs) for case in config for theirs in case["algorithms"] if theirs in OF_CAPTUM]


@pytest.mark.parametrize(("case", "theirs"), RUNS, ids=[f"{case['name']}-{cls.__name__}" for case, cls in RUNS])
def test_captum_s_own_configuration(case, theirs):
    """All of it, in eval mode: its models have module activations on single paths, where Captum is right."""
    model = copy.deepcopy(case["model"]).eval()
    arguments = {k: v for k, v in case["attribute_args"].items() if k != "baselines"}
    layer = [model.get_submodule(case["layer"])] if "layer" in case else []
    found, expected = OF_CAPTUM[theirs](model, *layer), theirs(model, *layer)
    if case.get("noise_tunnel"):
        found, expected = ca.NoiseTunnel(found), ca.NoiseTunnel(expected)
    assert_close(found.attribute(**arguments), detached(expected.attribute(**arguments)))


def test_captum_s_configuration_was_found():
    assert len(RUNS) > 40 and {theirs for _, theirs in RUNS} == set(OF_CAPTUM)


def detached(maps):
    return tuple(m.detach() for m in maps) if isinstance(maps, tuple) else maps.detach()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
def test_noise_tunnel(name, kind):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    tunnel = ca.NoiseTunnel(make(name, model))
    options = {"target": [1, 2], "nt_samples": 3, **CASES[name].fast}
    maps = tunnel.attribute(x, nt_type=kind, stdevs=0.1, nt_samples_batch_size=2, **options)
    assert maps.shape == shape_of(name, x) and maps.isfinite().all()
    if kind == "smoothgrad" and name != "smooth_grad":  # which draws other noise for another batch
        still = tunnel.attribute(x, nt_type=kind, stdevs=0.0, **options)
        assert_close(still, attribute(name, model, x, [1, 2]))


@infidelity_perturb_func_decorator(True)
def a_little_noise(inputs):
    return inputs - 0.01 * torch.ones_like(inputs)


@pytest.mark.parametrize("name", NAMES)
def test_infidelity(name):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    maps = attribute(name, model, x, [1, 2])
    if name in LAYER_SIZE:  # Captum wants attributions of the input's shape
        maps = ca.LayerAttribution.interpolate(maps, x.shape[2:], "bilinear")
    maps = maps.expand_as(x)
    value = infidelity(model, a_little_noise, x, maps, target=[1, 2], n_perturb_samples=2)
    assert value.shape == (2,) and value.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_sensitivity_max(name):
    """Captum hands on a tuple of inputs; of several examples it takes nothing but a tuple of maps back.

    Layer-size maps come as one tensor, as LayerGradCam's do, which makes it fail on Captum's own class as well: they
    are wrapped here.
    """
    model, x = seeded(ConvNet), images(2)
    explainer = make(name, model)

    def explain(inputs, **arguments):
        inputs = inputs[0] if isinstance(inputs, tuple) and not CASES[name].several else inputs
        maps = explainer.attribute(inputs, **arguments)
        return maps if isinstance(maps, tuple) else (maps,)

    def perturb(inputs):
        return inputs + 0.3 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))

    options = {"target": [1, 2], **CASES[name].fast}
    value = sensitivity_max(explain, x, perturb, n_perturb_samples=2, **options)
    assert value.shape == (2,) and value.isfinite().all() and (value > 0).all()
    if name in INPUT_SIZE:  # needs no wrapper
        assert_close(sensitivity_max(explainer.attribute, x, perturb, n_perturb_samples=2, **options), value)


@pytest.mark.parametrize("name", ["grad_cam", "guided_backprop", "saliency"])
def test_captum_draws_the_maps(name):
    figure = matplotlib.figure.Figure()
    maps = attribute(name, seeded(ConvNet), images(1), 1)
    visualization.visualize_image_attr(
        maps[0].permute(1, 2, 0).numpy(), sign="all", plt_fig_axis=(figure, figure.subplots()), use_pyplot=False
    )
    assert figure.axes[0].images


SAME_SIGNATURE = [(dc.methods()[name].cls, CASES[name].twin) for name in TWINS]
SAME_SIGNATURE += [(dc.GuidedBackprop, ca.NeuronGuidedBackprop), (dc.DeconvNet, ca.NeuronDeconvolution)]


@pytest.mark.parametrize(("ours", "theirs"), SAME_SIGNATURE)
@pytest.mark.parametrize("function", ["__init__", "attribute"])
def test_every_keyword_of_captum_is_accepted(ours, theirs, function):
    wanted = inspect.signature(getattr(theirs, function)).parameters
    accepted = inspect.signature(getattr(ours, function)).parameters
    assert wanted.keys() <= accepted.keys()
    for key, parameter in wanted.items():
        if parameter.default is not inspect.Parameter.empty:
            assert accepted[key].default == parameter.default


@pytest.mark.parametrize("name", LAYER_SIZE)
def test_every_keyword_of_the_nearest_class_is_accepted(name):
    """Except ``grad_kwargs`` where no gradient is taken: accepted, it would be ignored."""
    ours = dc.methods()[name].cls
    wanted = inspect.signature(ca.LayerGradCam.attribute).parameters.keys()
    if dc.methods()[name].needs in ("layer", "forward passes"):
        wanted -= {"grad_kwargs"}
    assert wanted <= inspect.signature(ours.attribute).parameters.keys()
    init = inspect.signature(ours.__init__).parameters.keys()
    assert inspect.signature(ca.LayerGradCam.__init__).parameters.keys() <= init


@pytest.mark.parametrize("name", TWINS)
def test_positional_arguments_are_in_captum_s_order(name):
    ours, theirs = dc.methods()[name].cls, CASES[name].twin
    for function in ("__init__", "attribute"):
        wanted = list(inspect.signature(getattr(theirs, function)).parameters)
        assert list(inspect.signature(getattr(ours, function)).parameters)[: len(wanted)] == wanted
