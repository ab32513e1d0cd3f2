"""Gates are no activations, and changes in place between the parts of one make no wrong numbers."""

import pytest
import torch
from tapes import by_autograd, by_tape, linspace
from timm.layers import activations as timm_functions
from torch import nn
from torch.nn import functional as F


class Rectified(torch.autograd.Function):
    """ReLU under the rules "guided" and "deconv", written out."""

    @staticmethod
    def forward(ctx, x, rule):
        ctx.save_for_backward(x > 0)
        ctx.rule = rule
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return g.clamp(min=0) * (ctx.saved_tensors[0] if ctx.rule == "guided" else 1), None


class Gate(nn.Module):
    """A gate computed from another tensor than the one it multiplies, after a ReLU (so that the rules have a site)."""

    def __init__(self, gate):
        super().__init__()
        self.first, self.fc, self.gate = nn.Linear(10, 8).double(), nn.Linear(8, 8).double(), gate

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.gate(x, self.fc(x))


GATES = {
    "sigmoid": lambda x, s: x * torch.sigmoid(s),
    "sigmoid in place": lambda x, s: x.mul(s.sigmoid_()),
    "pooled": lambda x, s: x * torch.sigmoid(s.mean(1, keepdim=True)),
    "hardsigmoid": lambda x, s: x * F.hardsigmoid(s),
    "relu6": lambda x, s: x * (F.relu6(s + 3) / 6),
    "relu6, in-place division": lambda x, s: x * F.relu6(s + 3.0).div_(6.0),
    "relu6 in place": lambda x, s: x * (F.relu6(s + 3, inplace=True) / 6),
    "hardtanh": lambda x, s: x * (F.hardtanh(3 + s, 0.0, 6.0) / 6),
    "clamp": lambda x, s: x * (s + 3).clamp(0, 6) / 6,
    "timm": lambda x, s: x * timm_functions.hard_sigmoid(s),
    "timm in place": lambda x, s: x * timm_functions.hard_sigmoid(s, inplace=True),
    "all in place": lambda x, s: x * s.add_(3.0).clamp_(0.0, 6.0).div_(6.0),
    "timm module": lambda x, s: x * timm_functions.HardSigmoid(inplace=True)(s),
    "glu": lambda x, s: F.glu(torch.cat([x, s], 1), 1),
    "chunks": lambda x, s: (lambda a, b: a * torch.sigmoid(b))(*torch.cat([x, s], 1).chunk(2, 1)),
    "softmax": lambda x, s: x * F.softmax(s, 1),
    "choice": lambda x, s: torch.where(s > 0, x, torch.zeros_like(x)),
    "choice of others": lambda x, s: torch.where(x > 0.5, s, torch.zeros_like(x)),
    "comparison": lambda x, s: x * (s > 0).to(x.dtype),
    "filled": lambda x, s: x.masked_fill(s < 0, 0.0),
    "filled in place": lambda x, s: (1 * x).masked_fill_(s < 0, 0.0),
    "bound": lambda x, s: torch.where(x > 0.1, x, 0.1) + s,
    "larger": lambda x, s: torch.maximum(x, s),
    "floor": lambda x, s: torch.maximum(x, torch.full_like(x, 0.1)) + s,
    "zeros no more": lambda x, s: torch.maximum(torch.zeros_like(x).add_(0.1), x) + s,
    "wider zeros": lambda x, s: torch.maximum(x[:, :1] - 0.1, torch.zeros_like(x)) + s,
    "choice of wider zeros": lambda x, s: torch.where(x[:, :1] > 0.1, x[:, :1], torch.zeros_like(x)) + s,
    "largest": lambda x, s: x.max(0).values + s.max(1, keepdim=True).values + s.max(),
}


@pytest.mark.parametrize("rule", ["plain", "guided", "deconv"])
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_gates_on_another_tensor_are_plain(gate, rule):
    torch.manual_seed(0)
    model, x = Gate(gate), linspace()
    value, gradient = by_tape(model, x, rule)

    def written_out(z):
        z = model.first(z)
        z = Rectified.apply(z, rule) if rule != "plain" else F.relu(z)
        return gate(z, model.fc(z))

    expected_value, expected = by_autograd(written_out, x)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def changed_before_product(x):
    x = x * 1.0
    s = torch.sigmoid(x)
    x.add_(1.0)
    return x * s


def changed_by_noise(x):
    x = x + 0.0
    s = torch.sigmoid(x)
    x.copy_(x.flip(1))
    return x * s


def changed_base_of_both(x):
    x = x.clone()
    a, s = x * 2, torch.sigmoid(x)
    x.mul_(0.0)
    return a * s + x


def changed_through_a_view(x):
    x = x.clone()
    s = torch.tanh(x)
    x[:, 2:5] = 1.5
    return x * s


def changed_gate(x):
    s = torch.sigmoid(x)
    s = s * 1
    s[:, ::2] *= 0.5
    return x * s


def changed_result(x):
    y = x * torch.sigmoid(x)
    y.add_(x)
    return y * torch.sigmoid(y)


def relu_on_the_base(x):
    x = x * 1.0
    s = torch.sigmoid(x)
    F.relu(x, inplace=True)
    return x * s


def written_over_itself(x):
    x = x.clone()
    x.mul_(x.sigmoid())
    x.mul_(x.sigmoid())
    return x * x


def gate_of_a_part(x):
    return x[:, :5] * torch.sigmoid(x[:, 5:]) + x[:, :5] * torch.sigmoid(x[:, :5])


def broadcast_gate(x):
    return x * torch.sigmoid(x[:, :1])


def numbers_first(x):
    return (1 - torch.sigmoid(-x)) * (2 * x - 1) + x.neg().sigmoid() * x.sub(1) ** 2


def changed_before_choice(x):
    x = x * 1.0
    mask = x > 0
    x.sub_(2.0)
    return torch.where(mask, x, torch.zeros_like(x)) + x * mask


def changed_mask(x):
    mask = x > 0
    mask[:, ::2] = True
    return torch.where(mask, x, 0.0) + torch.where(~mask, x, 0.5 * x)


def chosen_twice(x):
    y = torch.where(x > 0, x, 0.2 * x)
    return torch.where(y > 1, y * y, y) + torch.where(x > 0, 0.0, 0.0)


def filled_in_place(x):
    y = x * 1.0
    y.masked_fill_(y < 0, 0.0)
    return y + y * x


def scaled_sum(x):
    return torch.add(x, x, alpha=3.0) * torch.sigmoid(x)


def gate_read_twice(x):
    s = torch.sigmoid(x)
    return x * s + (1 - s) * x.detach() + s


@pytest.mark.parametrize(
    "model",
    [
        changed_before_product,
        changed_by_noise,
        changed_base_of_both,
        changed_through_a_view,
        changed_gate,
        changed_result,
        relu_on_the_base,
        written_over_itself,
        gate_of_a_part,
        broadcast_gate,
        numbers_first,
        gate_read_twice,
        filled_in_place,
        scaled_sum,
        changed_before_choice,
        changed_mask,
        chosen_twice,
    ],
)
def test_plain_is_autograd_whatever_the_parts(model):
    for ours, theirs in zip(by_tape(model, linspace()), by_autograd(model, linspace()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
