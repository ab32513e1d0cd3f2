"""The options of how a model is run: precision and memory layout, on every class and on ``explain``."""

import copy

import pytest
import timm
import torch
from torch import nn

import drnet_captum as dc
from drnet_captum.engine.running import Running
from drnet_captum.engine.tape import Tape

CLASSES = (dc.GradCAM, dc.GradCAMPlusPlus, dc.LayerCAM, dc.HiResCAM, dc.XGradCAM, dc.GradXImage, dc.GuidedBackprop)
CLASSES += (dc.DeconvNet, dc.GuidedGradCAM, dc.SmoothGrad, dc.DRNet, dc.EigenCAM, dc.ScoreCAM, dc.RISE)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=5).eval()


@pytest.fixture(scope="module")
def x():
    return torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


@pytest.mark.parametrize("cls", CLASSES)
def test_bfloat16_gives_nearly_the_same_maps_in_the_inputs_dtype(cls, model, x):
    fast = {dc.RISE: {"n_masks": 100}, dc.SmoothGrad: {"n_samples": 4}}.get(cls, {})
    exact = cls(copy.deepcopy(model).double()).attribute(x.double(), target=3, **fast)
    narrow = cls(model, precision="bfloat16").attribute(x, target=3, **fast)
    assert narrow.dtype == torch.float32
    assert not torch.equal(narrow, cls(model).attribute(x, target=3, **fast))  # it was not ignored
    assert correlation(narrow, exact) > 0.98


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_what_is_recorded_is_narrow(name, x, every_node_lean):
    """Activations of 16 bits, and no copies of 32 beside them."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    seen = {}
    x = torch.nn.functional.interpolate(x, model.pretrained_cfg["input_size"][1:])
    for precision in (None, "bfloat16"):
        sizes = []  # of what nodes keep: activations have the images' first dimension
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t) or t, lambda t: t):
            with Tape(model, precision=precision) as tape:
                output = tape.forward(x)
        assert output.dtype == torch.float32
        seen[precision] = sum(t.nbytes for t in sizes if t.dim() > 2 and len(t) == len(x))
    assert seen["bfloat16"] < 0.9 * seen[None]  # masks and switches are as they were


def test_explain_in_bfloat16(model, x):
    methods = ("saliency", "grad_x_image", "guided_backprop", "deconvnet", "grad_cam", "guided_grad_cam", "drnet")
    exact = dc.explain(model, x, classes=[1, 3], methods=methods)
    narrow = dc.explain(model, x, classes=[1, 3], methods=methods, precision="bfloat16")
    for name in methods:
        assert narrow[name].dtype == torch.float32
        assert correlation(narrow[name], exact[name]) > 0.98, name


def test_float32_switches_the_callers_autocast_off(model, x):
    expected = dc.GuidedBackprop(model).attribute(x, 1)
    with torch.autocast("cpu", torch.bfloat16):
        as_it_is = dc.GuidedBackprop(model).attribute(x, 1)
        whole = dc.GuidedBackprop(model, precision="float32").attribute(x, 1)
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(whole, expected, rtol=0, atol=0)
    assert not torch.equal(as_it_is, expected)


def test_completeness_in_bfloat16():
    """DRNet's parts are run again above the layer, in the inputs' own dtype."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    drnet = dc.DRNet(model, layers=["1"], precision="bfloat16")
    x = torch.rand(2, 3, 12, 12)
    _, delta = drnet.attribute(x, 2, weights="integrated", n_steps=16, return_convergence_delta=True, score="logit")
    assert delta.abs().max() < 0.05


@pytest.mark.parametrize("precision", ["half", "float16", 16])
def test_an_unknown_precision(precision, model):
    for make in (dc.GradCAM, dc.RISE, dc.SmoothGrad):
        with pytest.raises(ValueError, match=r"precision.*float32, bfloat16"):
            make(model, precision=precision)
    with pytest.raises(ValueError, match="precision"):
        Running(precision=precision)


def test_an_unknown_option(model):
    with pytest.raises(TypeError, match="presicion"):
        dc.GradCAM(model, presicion="bfloat16")
