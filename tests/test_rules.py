"""Backward rules of every activation, against formulas taken with autograd; and what the recorded nodes keep."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drnet_captum.engine.activations import ACTIVATIONS
from drnet_captum.engine.tape import Tape

pytestmark = pytest.mark.usefixtures("every_node_lean")

# Kinks of every piecewise function, and both sides of them.
POINTS = [-7.0, -3.5, -3.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.1, 0.5, 0.7, 1.0, 2.0, 3.0, 3.5, 5.9, 6.0, 7.0, 21.0, 0.3]
SLOPES = torch.tensor([0.3]), torch.tensor([0.25, -0.5, 0.0, 1.5])

#: Canonical name → its forms: modules, functions, methods, in place.
FORMS = {
    "relu": [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        lambda z: F.relu(z, inplace=True),
        F.relu_,
        torch.relu,
        torch.relu_,
        torch.Tensor.relu,
        torch.Tensor.relu_,
    ],
    "relu6": [nn.ReLU6(), nn.ReLU6(inplace=True), F.relu6, lambda z: F.relu6(z, inplace=True)],
    "hardtanh": [
        nn.Hardtanh(-2.0, 2.0),
        nn.Hardtanh(inplace=True),
        F.hardtanh,
        lambda z: F.hardtanh_(z, -0.5, 3.0),
        lambda z: F.hardtanh(z, min_val=0.0, max_val=6.0, inplace=True),
    ],
    "clamp": [
        lambda z: z.clamp(min=0),
        lambda z: z.clamp(0.0),
        lambda z: z.clamp(0, 6),
        lambda z: z.clamp_(0.0, 6.0),
        lambda z: torch.clamp(z, min=0.0, max=2.0),
        lambda z: z.clamp_min(0),
        lambda z: z.clamp_min_(0.0),
        lambda z: torch.clamp_min(z, 0),
        lambda z: z.clip(0.0, 6.0),
        lambda z: torch.clip(z, min=0),
    ],
    "leaky_relu": [
        nn.LeakyReLU(0.1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.LeakyReLU(-0.2),
        F.leaky_relu,
        lambda z: F.leaky_relu(z, negative_slope=0.3, inplace=True),
        lambda z: F.leaky_relu_(z, 0.3),
    ],
    "rrelu": [
        nn.RReLU().eval(),
        nn.RReLU(0.1, 0.3, inplace=True).eval(),
        F.rrelu,
        torch.rrelu,
        lambda z: F.rrelu_(z, 0.2, 0.4),
    ],
    "threshold": [
        nn.Threshold(0.5, 20.0),
        nn.Threshold(-0.5, -1.0, inplace=True),
        lambda z: F.threshold(z, 0.5, 0.0),
        lambda z: F.threshold_(z, 0.5, 0.25),
        lambda z: torch.threshold(z, 0.0, 0.0),
    ],
    "softplus": [nn.Softplus(), nn.Softplus(2.0, 5.0), F.softplus, lambda z: F.softplus(z, beta=0.5)],
    "prelu": [
        lambda z: F.prelu(z, SLOPES[0].to(z)),
        lambda z: torch.prelu(z, SLOPES[1].to(z)),
        lambda z: z.prelu(SLOPES[1].to(z)),
    ],
    "silu": [nn.SiLU(), nn.SiLU(inplace=True), F.silu, lambda z: F.silu(z, inplace=True)],
    "gelu": [nn.GELU(), nn.GELU("tanh"), F.gelu, lambda z: F.gelu(z, approximate="tanh")],
    "hardswish": [nn.Hardswish(), nn.Hardswish(inplace=True), F.hardswish, lambda z: F.hardswish(z, True)],
    "mish": [nn.Mish(), nn.Mish(inplace=True), F.mish, lambda z: F.mish(z, inplace=True)],
    "elu": [nn.ELU(), nn.ELU(0.5, inplace=True), F.elu, lambda z: F.elu(z, 2.0, True), lambda z: F.elu_(z, 0.3)],
    "selu": [nn.SELU(), nn.SELU(inplace=True), F.selu, torch.selu, torch.selu_, F.selu_],
    "celu": [nn.CELU(), nn.CELU(0.5, inplace=True), F.celu, torch.celu, lambda z: torch.celu_(z, 2.0)],
    "tanh": [nn.Tanh(), F.tanh, torch.tanh, torch.tanh_, torch.Tensor.tanh, torch.Tensor.tanh_],
    "softsign": [nn.Softsign(), F.softsign],
    "tanhshrink": [nn.Tanhshrink(), F.tanhshrink],
    "logsigmoid": [nn.LogSigmoid(), F.logsigmoid],
    "hardshrink": [nn.Hardshrink(), nn.Hardshrink(1.5), F.hardshrink, torch.hardshrink, lambda z: z.hardshrink(0.2)],
    "softshrink": [nn.Softshrink(), F.softshrink, lambda z: F.softshrink(z, 1.0)],
}
#: Functions that are no activations: plain under every rule.
GATES = {
    "sigmoid": [nn.Sigmoid(), F.sigmoid, torch.sigmoid, torch.sigmoid_, torch.Tensor.sigmoid, torch.Tensor.sigmoid_],
    "hardsigmoid": [nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True), F.hardsigmoid],
    "erf": [torch.erf, torch.Tensor.erf_],
    "softmax": [nn.Softmax(dim=1), lambda z: F.softmax(z, 1), torch.nn.LogSoftmax(1)],
    "glu": [nn.GLU(1), lambda z: F.glu(z, 1)],
    "attention": [lambda z: F.scaled_dot_product_attention(z, z, z)],
    "clamp_guard": [lambda z: z.clamp(min=1e-6), lambda z: z.clamp(-1, 1), lambda z: z.clamp(max=2.0)],
}


def cases(table):
    return [pytest.param(name, form, id=f"{name}-{i}") for name, forms in table.items() for i, form in enumerate(forms)]


def batch(dtype=torch.float64, kinks=True):
    """(5, 4, 20): the points in every channel, shifted a little from row to row; the first row holds the kinks."""
    offsets = torch.tensor([0.0 if kinks else 0.007, 0.013, -0.021, 0.4, -0.37])
    return (torch.tensor(POINTS) + offsets[:, None, None]).expand(5, 4, -1).to(dtype).contiguous()


def evaluated(form):
    return form.eval() if isinstance(form, nn.Module) else form


def seeds(like):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(like)


def reference(form, x, rule):
    """The value, and the rule's gradient from its formula with f′ by autograd."""
    z = x.clone().requires_grad_()
    out = form(z.clone())
    g = seeds(out)
    if rule == "plain":
        return out.detach(), torch.autograd.grad(out, z, g)[0]
    slope = torch.autograd.grad(out.sum(), z)[0]
    return out.detach(), g.clamp(min=0) * (slope.clamp(min=0) if rule == "guided" else torch.ones_like(slope))


def recorded(form, x, rule):
    """The value and the rule's gradient by the tape."""
    with Tape(lambda z: form(z + 0.0)) as tape:
        out = tape.forward(x)
        value = out.detach().clone()
        return value, tape.gradient((out * seeds(out)).flatten(1).sum(1), rule=rule)


def test_every_activation_has_its_forms_here():
    aliases = {"_threshold", "log_sigmoid"}
    assert set(ACTIVATIONS) - aliases <= set(FORMS) | set(GATES)


@pytest.mark.parametrize("rule", ["plain", "guided", "deconv"])
@pytest.mark.parametrize(("name", "form"), cases(FORMS))
def test_activation_follows_the_formula(name, form, rule):
    x = batch(kinks=name != "clamp")  # whose gradient at its bounds was 1 in older versions of PyTorch, and is 0
    value, gradient = recorded(form, x, rule)
    expected_value, expected = reference(form, x, rule)
    assert torch.equal(value, expected_value)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "form"), cases({name: forms[:2] for name, forms in FORMS.items()}))
def test_activation_at_lower_precision(name, form, dtype):
    x = batch(dtype, kinks=name != "clamp")
    for rule in ("plain", "guided", "deconv"):
        value, gradient = recorded(form, x, rule)
        expected_value, expected = reference(form, x, rule)
        assert value.dtype == gradient.dtype == dtype
        assert torch.equal(value, expected_value)
        # In place, PyTorch takes the derivative of some functions from their rounded value.
        loose = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(gradient, expected, **loose)


@pytest.mark.parametrize(("name", "form"), cases(GATES))
def test_gates_are_plain_under_every_rule(name, form):
    def model(z):  # the ReLU, of no weight, is for the rule to meet
        return form(z + 0.0) + 0.0 * torch.relu(z.mean())

    expected = reference(form, batch(), "plain")[1]
    for rule in ("guided", "deconv"):
        with Tape(model) as tape:
            out = tape.forward(batch())
            gradient = tape.gradient((out * seeds(out)).flatten(1).sum(1), rule=rule)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", [nn.Sigmoid(), nn.Softmax(1), nn.GLU(1), lambda z: z.clamp(min=1e-6)])
def test_a_rule_that_meets_gates_only_raises(form):
    with Tape(evaluated(form)) as tape:
        out = tape.forward(batch())
        tape.gradient(out.sum((1, 2)))
        with pytest.raises(ValueError, match="met no activation"):
            tape.gradient(out.sum((1, 2)), rule="guided")


INPLACE = [
    nn.ReLU(inplace=True),
    nn.ReLU6(inplace=True),
    nn.LeakyReLU(0.1, inplace=True),
    nn.SiLU(inplace=True),
    nn.ELU(inplace=True),
    torch.tanh_,
    torch.sigmoid_,
    lambda z: z.clamp_(min=0),
]


@pytest.mark.parametrize("form", INPLACE)
def test_in_place_on_a_view(form):
    """The base sees the change, and gradients pass through both."""

    def model(x):
        y = x * 1.5
        form(y.transpose(1, 2)[:, :8, 1:3])
        return y + 1

    x = batch(kinks=False)
    leaf = x.clone().requires_grad_()
    expected = model(leaf)
    with Tape(model) as tape:
        out = tape.forward(x)
        torch.testing.assert_close(out, expected, rtol=1e-14, atol=1e-14)
        gradient = tape.gradient((out * seeds(out)).sum((1, 2)))
    (expected,) = torch.autograd.grad(expected, leaf, seeds(expected))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", [*INPLACE, nn.ReLU(), nn.GELU(), nn.Softplus()])
def test_reused_in_one_pass(form):
    def model(x):
        return form(form(x * 0.9) - 0.3) + form(x * -0.5)

    x = batch(kinks=False)
    leaf = x.clone().requires_grad_()
    expected = model(leaf)
    with Tape(model) as tape:
        out = tape.forward(x)
        assert torch.equal(out, expected)
        gradient = tape.gradient((out * seeds(out)).sum((1, 2)))
    (expected,) = torch.autograd.grad(expected, leaf, seeds(expected))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_gradients_do_not_share_memory_and_replays_repeat():
    """The backward of a ReLU writes into memory of its own, never into the mask or the caller's seed."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.ReLU(), nn.LeakyReLU(0.2)).double().eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    with Tape(model) as tape:
        out = tape.forward(x)
        first = {rule: tape.gradient(out[:, 1], rule=rule) for rule in ("plain", "guided", "deconv")}
        for rule in ("guided", "deconv", "plain", "guided"):
            assert torch.equal(tape.gradient(out[:, 1], rule=rule), first[rule])


def saved_by(model, x):
    """The tensors that autograd saves while the tape records."""
    saved = []

    def pack(t):
        saved.append((t.dtype, tuple(t.shape)))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), Tape(evaluated(model)) as tape:
        tape.forward(x)
    return saved


LINEAR = ("relu", "relu6", "hardtanh", "leaky_relu", "rrelu", "threshold", "clamp")


@pytest.mark.parametrize(("name", "form"), cases({name: FORMS[name] for name in LINEAR}))
def test_piecewise_linear_activations_save_a_bool_mask(name, form):
    assert saved_by(form, batch()) == [(torch.bool, (5, 4, 20))]


def test_smooth_activations_save_one_tensor():
    for form in (nn.SiLU(), nn.SiLU(inplace=True), nn.GELU(), lambda z: z * torch.sigmoid(z)):
        saved = [s for s in saved_by(form, batch()) if s[0].is_floating_point]
        assert saved.count((torch.float64, (5, 4, 20))) <= 2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_frozen_layers_save_no_input(n):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1](3, 7, 3, padding=1)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[n - 1](7).eval()
    saved = saved_by(nn.Sequential(conv, norm).eval(), torch.randn(2, 3, *[6] * n))
    assert {shape for dtype, shape in saved if dtype.is_floating_point} <= {tuple(conv.weight.shape), (7, *[1] * n)}


def test_max_pool_saves_no_floating_point():
    for pool in (nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d((3, 2), (2, 1), dilation=2)):
        saved = saved_by(pool, torch.randn(2, 3, 9, 9))
        assert saved
        assert not any(dtype.is_floating_point for dtype, _ in saved)
