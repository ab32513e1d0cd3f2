"""Every method against a slow transcription of its paper, in float64, and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from methods import LAYER_SIZE, NAMES, attribute, make
from models import ConvNet, FunctionalConvNet, ParallelBranches, images, seeded
from torch import nn
from torch.testing import assert_close

import drnet_captum as dc
from drnet_captum.attr.cam import grad_cam_plus_plus_weights, xgrad_cam_weights

TARGETS = [1, 3]
SIZE = (8, 6)
CLOSE = {"rtol": 1e-7, "atol": 1e-12}

IN_PAPERS = {
    "saliency": lambda net, x, c: np.abs(net.input_gradient(x, c)),
    "grad_x_image": lambda net, x, c: x * net.input_gradient(x, c),
    "smooth_grad": lambda net, x, c: reference.smooth_grad(lambda z, n: net.input_gradient(z, c), x[None], 3, 0.15)[0],
    "deconvnet": lambda net, x, c: net.input_gradient(x, c, "deconv"),
    "guided_backprop": lambda net, x, c: net.input_gradient(x, c, "guided"),
    "cam": reference.cam,
    "grad_cam": lambda net, x, c: reference.grad_cam(net.activation(x), net.layer_gradient(x, c)),
    "grad_cam_plus_plus": lambda net, x, c: reference.grad_cam_plus_plus(net.activation(x), net.layer_gradient(x, c)),
    "layer_cam": lambda net, x, c: reference.layer_cam(net.activation(x), net.layer_gradient(x, c)),
    "hires_cam": lambda net, x, c: reference.hires_cam(net.activation(x), net.layer_gradient(x, c)),
    "xgrad_cam": lambda net, x, c: reference.xgrad_cam(net.activation(x), net.layer_gradient(x, c)),
    "eigen_cam": lambda net, x, c: reference.eigen_cam(net.activation(x)),
    "score_cam": lambda net, x, c: reference.score_cam(net.scores, x, net.activation(x), c),
    "guided_grad_cam": lambda net, x, c: reference.guided_grad_cam(
        net.input_gradient(x, c, "guided"),
        reference.grad_cam(net.activation(x), net.layer_gradient(x, c)),
        reference.nearest,
    ),
    "rise": lambda net, x, c: reference.rise(lambda z: net.scores(z)[c], x, 60, (4, 4)),
    "drnet": reference.drnet,
}


def test_every_method_has_a_transcription():
    assert sorted(IN_PAPERS) == NAMES


def in_papers(name: str, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    net = reference.Net.of(model)
    rows = [IN_PAPERS[name](net, image.numpy(), c) for image, c in zip(x, TARGETS, strict=False)]
    maps = torch.from_numpy(np.stack(rows))
    return maps[:, None] if name in LAYER_SIZE else maps


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_paper(name):
    n = 1 if name == "smooth_grad" else 2  # whose noise depends on the batch: see the next test
    model, x = seeded(ConvNet).double(), images(n, dtype=torch.float64, size=SIZE)
    assert_close(attribute(name, model, x, TARGETS[:n]), in_papers(name, model, x), **CLOSE)


def test_smooth_grad_of_images_with_other_ranges():
    model = seeded(ConvNet).double()
    x = images(2, dtype=torch.float64, size=SIZE) * torch.tensor([1.0, 5.0], dtype=torch.float64).view(2, 1, 1, 1)
    net = reference.Net.of(model)
    expected = reference.smooth_grad(lambda z, n: net.input_gradient(z, TARGETS[n]), x.numpy(), 4, 0.1, seed=7)
    options = {"n_samples": 4, "noise_level": 0.1, "generator": torch.Generator().manual_seed(7)}
    found = dc.SmoothGrad(model).attribute(x, TARGETS, perturbations_per_eval=3, **options)
    assert_close(found, torch.from_numpy(expected), **CLOSE)
    assert not torch.allclose(dc.SmoothGrad(model).attribute(x, TARGETS, abs=True, **options), found)


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet", "grad_x_image", "saliency"])
def test_equals_the_paper_where_no_activation_is_a_module(name):
    model, x = seeded(FunctionalConvNet).double(), images(2, dtype=torch.float64, size=SIZE)
    assert_close(attribute(name, model, x, TARGETS), in_papers(name, model, x), **CLOSE)


def test_the_transcription_is_of_the_network():
    model = seeded(ConvNet).double()
    x = images(2, dtype=torch.float64, size=SIZE)
    net = reference.Net.of(model)
    assert_close(torch.from_numpy(np.stack([net.scores(image.numpy()) for image in x])), model(x).detach())


def test_the_bilinear_transcription_is_torch_s():
    small = torch.rand(1, 1, 4, 3, dtype=torch.float64)
    expected = nn.functional.interpolate(small, (8, 7), mode="bilinear", align_corners=False)[0, 0]
    assert_close(torch.from_numpy(reference.bilinear(small[0, 0].numpy(), (8, 7))), expected)


@pytest.mark.parametrize("name", ["grad_cam_plus_plus", "xgrad_cam", "layer_cam", "hires_cam", "grad_cam"])
def test_weights_at_a_layer_with_negative_values(name):
    """Before an activation A and g have all signs, and the denominator of Grad-CAM++ can turn negative."""
    model = seeded(ConvNet).double()
    x = images(1, dtype=torch.float64, size=SIZE)
    net = reference.Net.of(model)
    pooled, _ = reference.max_pool(np.maximum(reference.conv(x[0].numpy(), net.w1, net.b1), 0))
    a = reference.conv(pooled, net.w2, net.b2)
    g = reference.relu_backward(net.layer_gradient(x[0].numpy(), 2), a, "plain")
    assert (a < 0).any() and (g < 0).any() and (g == 0).any()
    expected = getattr(reference, name)(a, g)
    found = make(name, model, layer="conv2").attribute(x, target=2)
    assert_close(found[0, 0], torch.from_numpy(expected), **CLOSE)


def test_grad_cam_plus_plus_where_the_denominator_turns_negative():
    rng = np.random.default_rng(0)
    a, g = rng.normal(size=(6, 4, 3)), 3 * rng.normal(size=(6, 4, 3))
    g[0] = 0
    a[1] = -np.abs(a[1])
    assert ((2 * g**2 + g**3 * a.sum((1, 2), keepdims=True)) < 0).any()
    weights = grad_cam_plus_plus_weights(torch.from_numpy(a)[None], torch.from_numpy(g)[None])[0]
    found = (weights * torch.from_numpy(a)).sum(0)
    assert_close(found, torch.from_numpy(reference.grad_cam_plus_plus(a, g)), **CLOSE)


def test_xgrad_cam_gives_an_empty_channel_no_weight():
    a, g = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert_close(xgrad_cam_weights(a, g), torch.zeros(1, 1, 1, 1))


@pytest.fixture
def by_hand() -> nn.Sequential:
    """x = (x₀, x₁) → z = (x₀ − x₁, x₀ + x₁, −x₀) → ReLU → y = (2 a₀ − a₁ − a₂, −3 a₀ + a₁ + a₂)."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).double().eval()
    model[0].weight.data = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 0.0]]).double()
    model[2].weight.data = torch.tensor([[2.0, -1.0, -1.0], [-3.0, 1.0, 1.0]]).double()
    return model


# At x = (3, 1): z = (2, 4, −3), so y₀'s gradient at the ReLU is (2, −1, −1) and y₁'s (−3, 1, 1).
@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("saliency", 0, (1, 3)),  # 2·(1, −1) − (1, 1) = (1, −3)
        ("grad_x_image", 0, (3, -3)),  # (1·3, −3·1)
        ("guided_backprop", 0, (2, -2)),  # 2·(1, −1); the −1 at the active a₁ stops
        ("deconvnet", 0, (2, -2)),
        ("guided_backprop", 1, (1, 1)),  # 1·(1, 1); a₂ is off
        ("deconvnet", 1, (0, 1)),  # (1, 1) + (−1, 0): the switched-off a₂ lets the positive gradient through
    ],
)
def test_a_network_worked_out_by_hand(by_hand, name, target, expected):
    x = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    assert_close(attribute(name, by_hand, x, target), torch.tensor([expected], dtype=torch.float64))


def test_guided_gradient_times_image_by_hand(by_hand):
    x = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    found = dc.GradXImage(by_hand, gradient="guided").attribute(x, target=0)
    assert_close(found, torch.tensor([[6.0, -2.0]], dtype=torch.float64))


# One pixel row of four; A₀ = x, A₁ = −x + 4 (after ReLU); y = w·A + … with flatten → linear, so that g varies.
A0, A1 = (1.0, 2.0, 3.0, 4.0), (3.0, 2.0, 1.0, 0.0)
G0, G1 = (1.0, 0.0, 1.0, -2.0), (2.0, 2.0, 0.0, 0.0)


@pytest.fixture
def two_maps() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)).double().eval()
    model[0].weight.data = torch.tensor([1.0, -1.0]).double().view(2, 1, 1, 1)
    model[0].bias.data = torch.tensor([0.0, 4.0]).double()
    model[3].weight.data = torch.tensor([[*G0, *G1]]).double()
    return model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grad_cam", (3, 2, 1, 0)),  # w = (0, 1): the mean gradients
        ("hires_cam", (1 + 6, 0 + 4, 3 + 0, -8 + 0)),
        ("layer_cam", (1 + 6, 0 + 4, 3 + 0, 0)),
        # w₀ = (1 + 3 − 8)/10, w₁ = (6 + 4)/6
        ("xgrad_cam", (-0.4 + 5, -0.8 + 10 / 3, -1.2 + 5 / 3, -1.6)),
        # ΣA = (10, 6): α₀ = 1/12 where g is 1, 0 where it is 0 or the denominator 2 − 20 is negative; α₁ = 1/(2 + 12)
        ("grad_cam_plus_plus", (1 / 6 + 6 / 7, 2 / 6 + 4 / 7, 3 / 6 + 2 / 7, 4 / 6)),
    ],
)
def test_maps_worked_out_by_hand(two_maps, name, expected):
    x = torch.tensor([A0], dtype=torch.float64).view(1, 1, 1, 4)
    found = make(name, two_maps, layer="1").attribute(x)
    assert_close(found, torch.tensor(expected, dtype=torch.float64).view(1, 1, 1, 4))
    positive = make(name, two_maps, layer="1").attribute(x, relu_attributions=True)
    assert_close(positive, torch.tensor(expected, dtype=torch.float64).clamp(min=0).view(1, 1, 1, 4))


@pytest.mark.parametrize("name", LAYER_SIZE)
def test_shares_of_the_channels_add_up(name):
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    shares = attribute(name, model, x, 1, attr_dim_summation=False)
    assert shares.shape == (2, 6, 6, 5)
    assert_close(shares.sum(1, keepdim=True), attribute(name, model, x, 1))


def test_a_map_at_what_goes_into_a_layer_is_the_map_of_what_came_out_before():
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    before = make("grad_cam", model, layer="relu2").attribute(x, target=1, attribute_to_layer_input=True)
    assert_close(before, make("grad_cam", model, layer="conv2").attribute(x, target=1))


def test_log_probability_sets_the_class_against_the_others():
    """∂ log p_c = ∂ y_c − Σ_k p_k ∂ y_k."""
    model, x = seeded(ConvNet).double(), images(1, dtype=torch.float64)
    probabilities = model(x).softmax(1)[0]
    maps = torch.stack([attribute("grad_cam", model, x, k) for k in range(5)])
    expected = maps[2] - (probabilities.view(-1, 1, 1, 1, 1) * maps).sum(0)
    assert_close(attribute("grad_cam", model, x, 2, score="log_prob"), expected.detach())


def leaky(z, slope=0.1):
    return torch.where(z > 0, 1.0, slope)


def swish_slope(z):
    s = 1 / (1 + torch.exp(-z))
    return s + z * s * (1 - s)


def gelu_slope(z):
    return 0.5 * (1 + torch.erf(z / 2**0.5)) + z * torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5


@pytest.mark.parametrize(
    ("activation", "slope"),
    [
        (nn.LeakyReLU(0.1), leaky),
        (nn.LeakyReLU(0.1, inplace=True), leaky),
        (nn.ReLU6(), lambda z: ((z > 0) & (z < 6)).double()),
        (nn.SiLU(), swish_slope),
        (nn.GELU(), gelu_slope),
        (nn.Tanh(), lambda z: 1 - torch.tanh(z) ** 2),
        (nn.Softplus(), lambda z: 1 / (1 + torch.exp(-z))),
    ],
)
def test_rules_of_other_activations(activation, slope):
    """plain g·f′(z), guided max(g, 0)·max(f′(z), 0), deconv max(g, 0)."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), activation, nn.Linear(8, 3))).double()
    x = 4 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = x @ model[0].weight.T + model[0].bias
    g = model[2].weight[1].expand(3, -1)
    expected = {
        "grad_x_image": x * ((g * slope(z)) @ model[0].weight),
        "guided_backprop": (g.clamp(min=0) * slope(z).clamp(min=0)) @ model[0].weight,
        "deconvnet": g.clamp(min=0) @ model[0].weight,
    }
    for name, values in expected.items():
        assert_close(attribute(name, model, x, 1), values.detach())


@pytest.mark.parametrize(("name", "rule"), [("deconvnet", "deconv"), ("guided_backprop", "guided")])
def test_one_relu_module_on_parallel_branches(name, rule):
    model = seeded(ParallelBranches).double()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = []
    for row in x:
        z = (model.fc1(row)).detach().numpy()
        g = model.fc2.weight[1].detach().numpy()
        left = reference.relu_backward(g @ model.left.weight.detach().numpy(), z, rule)
        right = reference.relu_backward(-g @ model.right.weight.detach().numpy(), -z, rule)
        expected.append((left - right) @ model.fc1.weight.detach().numpy())
    assert_close(attribute(name, model, x, 1), torch.from_numpy(np.stack(expected)))


def test_a_channel_is_projected_from_its_strongest_position():
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64, size=SIZE)
    net = reference.Net.of(model)
    found = dc.DeconvNet(model, layer="conv2").attribute(x, neuron_selector=4)
    for row, image in zip(found, x.numpy(), strict=True):
        z1 = reference.conv(image, net.w1, net.b1)
        pooled, switches = reference.max_pool(np.maximum(z1, 0))
        z2 = reference.conv(pooled, net.w2, net.b2)
        g = np.zeros_like(z2)
        g[4].flat[z2[4].argmax()] = 1
        g = reference.max_unpool(reference.conv_backward(g, net.w2), switches, z1.shape)
        expected = reference.conv_backward(reference.relu_backward(g, z1, "deconv"), net.w1)
        assert_close(row, torch.from_numpy(expected), **CLOSE)
