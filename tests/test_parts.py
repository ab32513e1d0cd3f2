"""Activations written by parts are one unit, and gates are none."""

import math
from functools import partial

import pytest
import torch
from tapes import by_autograd, by_tape, linspace, seeds
from timm.layers import activations as timm_functions
from torch import nn
from torch.nn import functional as F


def slope_of(function, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf.clone()).sum(), leaf)[0]


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def in_place_swish(x):
    return x.mul_(x.sigmoid())


def swish_with_operators(x):
    x *= torch.sigmoid(x)
    return x


def swish_beta(x):
    return torch.mul(x, (x * 1.3).sigmoid_())


def mish(x):
    return x * torch.tanh(F.softplus(x))


def mish_in_place(x):
    return x.mul_(F.softplus(x).tanh())


def new_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def new_gelu_with_cubes(x):
    return 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))


def erf_gelu(x):
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def erf_gelu_last(x):
    return (torch.erf(x / 2**0.5) + 1) * x / 2


def hard_swish(x):
    return x * F.relu6(x + 3) / 6


def hard_swish_in_place(x):
    return x.mul_(F.relu6(x + 3.0).div_(6.0))


def hard_swish_by_hardtanh(x):
    return x * (F.hardtanh(x + 3, 0.0, 6.0, inplace=True) / 6)


def hard_swish_by_clamp(x):
    return x * torch.clamp(3 + x, 0, 6) / 6


def hard_swish_by_hardsigmoid(x):
    return x * F.hardsigmoid(x)


def lisht(x):
    return x * torch.tanh(x)


def relu_by_where(x):
    return torch.where(x > 0, x, 0.0)


def relu_by_where_not(x):
    return x.where(x.ge(0), torch.zeros_like(x))


def leaky_by_where(x):
    return torch.where(0 > x, 0.1 * x, x)


def relu_by_filling(x):
    return x.masked_fill(x < 0, 0)


def relu_by_filling_in_place(x):
    return x.masked_fill_(x <= 0, 0)


def relu_by_filling_another(x):
    y = 2 * x
    y.masked_fill_(y < 0, 0)
    return y / 2


def relu_by_maximum(x):
    return torch.maximum(x, x.new_zeros(()))


def relu_by_the_larger(x):
    return torch.max(torch.zeros_like(x), x)


def relu_by_product(x):
    return x * (x > 0)


def relu_by_product_of_numbers(x):
    return (x > 0).to(x.dtype) * x


def relu_by_product_with_a_bool(x):
    return torch.gt(x, 0) * x


def relu_moved(x):
    return torch.where(2 * x - 3 > 0, x - 1.5, 0)


def silu_by_where(x):
    return torch.where(x > -20, x * torch.sigmoid(x), torch.zeros_like(x))


HAND_WRITTEN = [
    relu_by_where,
    relu_by_where_not,
    leaky_by_where,
    relu_by_filling,
    relu_by_filling_in_place,
    relu_by_filling_another,
    relu_by_maximum,
    relu_by_the_larger,
    relu_by_product,
    relu_by_product_of_numbers,
    relu_by_product_with_a_bool,
    relu_moved,
    silu_by_where,
    quick_gelu,
    in_place_swish,
    swish_with_operators,
    swish_beta,
    mish,
    mish_in_place,
    new_gelu,
    new_gelu_with_cubes,
    erf_gelu,
    erf_gelu_last,
    hard_swish,
    hard_swish_in_place,
    hard_swish_by_hardtanh,
    hard_swish_by_clamp,
    hard_swish_by_hardsigmoid,
    lisht,
]
#: Autograd refuses this in-place form, which runs without it: compared with the same out of place.
OUT_OF_PLACE = {mish_in_place: mish}
TIMM = [
    pytest.param(partial(getattr(timm_functions, name), inplace=inplace), id=f"{name}-{inplace}")
    for name in ("swish", "mish", "hard_swish", "hard_mish", "gelu", "gelu_tanh", "quick_gelu")
    for inplace in (False, True)
] + [
    pytest.param(getattr(timm_functions, name)(inplace=inplace), id=f"{name}-{inplace}")
    for name in ("Swish", "Mish", "HardSwish", "HardMish", "GELU", "GELUTanh", "QuickGELU")
    for inplace in (False, True)
]


@pytest.mark.parametrize("activation", [*HAND_WRITTEN, *TIMM])
def test_parts_are_one_unit(activation):
    x, written = linspace(), OUT_OF_PLACE.get(activation, activation)
    value, plain = by_tape(activation, x)
    expected_value, expected = by_autograd(written, x)
    assert torch.equal(value, expected_value)
    torch.testing.assert_close(plain, expected, rtol=1e-12, atol=1e-12)

    g = seeds(x)
    guided = by_tape(activation, x, "guided")[1]
    torch.testing.assert_close(guided, g.clamp(min=0) * slope_of(written, x).clamp(min=0), rtol=1e-12, atol=1e-12)
    # A constant after the unit may belong to it or not: the gradient is rectified with or without that factor.
    deconv = by_tape(activation, x, "deconv")[1]
    assert torch.equal(deconv != 0, g > 0)
    ratio = (deconv / g)[g > 0]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


@pytest.mark.parametrize("activation", HAND_WRITTEN)
def test_parts_inside_a_network(activation):
    """Every part follows a layer, and the unit is followed by one, at two places and in a residual branch."""

    class Net(nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.activation = activation
            self.conv, self.norm, self.next = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.activation(self.norm(self.conv(x)))
            return (y + self.activation(self.next(y))).mean((2, 3))

    torch.manual_seed(0)
    model, x = Net(activation).double().eval(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    value, plain = by_tape(model, x)
    model.activation = OUT_OF_PLACE.get(activation, activation)
    expected_value, expected = by_autograd(model, x)
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain, expected, rtol=1e-10, atol=1e-12)


class Unit(torch.autograd.Function):
    """The paper's rule for a function of one tensor, written out."""

    @staticmethod
    def forward(ctx, x, function, rule):
        ctx.save_for_backward(x)
        ctx.function, ctx.rule = function, rule
        return function(x.clone())

    @staticmethod
    def backward(ctx, g):
        with torch.enable_grad():
            slope = slope_of(ctx.function, ctx.saved_tensors[0].detach())
        return g.clamp(min=0) * (slope.clamp(min=0) if ctx.rule == "guided" else 1), None, None


@pytest.mark.parametrize("rule", ["guided", "deconv"])
@pytest.mark.parametrize("activation", [quick_gelu, in_place_swish, mish, new_gelu, hard_swish_in_place, lisht])
def test_units_in_a_row(activation, rule):
    torch.manual_seed(0)
    first, last, x = nn.Linear(10, 8).double(), nn.Linear(8, 6).double(), linspace()
    gradient = by_tape(lambda z: activation(last(activation(first(z)))), x, rule)[1]
    expected = by_autograd(lambda z: Unit.apply(last(Unit.apply(first(z), activation, rule)), activation, rule), x)[1]
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("form", "same"),
    [
        (lambda z: F.hardtanh(z, 0.0, 6.0), F.relu6),
        (nn.Threshold(0.0, 0.0), F.relu),
        (lambda z: z.clamp(min=0), F.relu),
        (lambda z: z.clamp_min_(0), F.relu),
        (lambda z: z.clamp(0, 6), F.relu6),
        (lambda z: torch.clamp(z, max=6, min=0), F.relu6),
    ],
)
@pytest.mark.parametrize("rule", ["plain", "guided", "deconv"])
def test_disguised_activations(form, same, rule):
    x = linspace()
    if same is F.relu6:  # the bounds too; at 0 PyTorch's clamp(min=0) has slope 1 and its relu 0
        x = torch.cat([x, torch.tensor([[0.0, 6.0] * 5], dtype=torch.float64)])
    for ours, theirs in zip(by_tape(form, x, rule), by_tape(same, x, rule), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rule", ["plain", "guided", "deconv"])
def test_a_choice_is_no_gate_of_what_comes_after_it(rule):
    def with_relu(relu):
        return lambda z: relu(z) * (z + 9)

    x = linspace()
    expected = by_tape(with_relu(F.relu), x, rule)[1]
    for relu in (relu_by_where, relu_by_maximum):
        torch.testing.assert_close(by_tape(with_relu(relu), x, rule)[1], expected)


@pytest.mark.parametrize(
    "compare",
    [torch.gt, torch.greater, torch.ge, torch.greater_equal, torch.lt, torch.less, torch.le, torch.less_equal],
)
def test_choices_at_the_bound(compare):
    def choose(z):
        return torch.where(compare(z, 0), z, 3 * z)

    x = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    for ours, theirs in zip(by_tape(choose, x), by_autograd(choose, x), strict=True):
        assert torch.equal(ours, theirs)
    guided = seeds(x).clamp(min=0) * slope_of(choose, x)
    assert torch.equal(by_tape(choose, x, "guided")[1], guided)
