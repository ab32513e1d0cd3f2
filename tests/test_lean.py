"""Lean nodes and gradients written in place: the same numbers as PyTorch's own, and nobody else's memory touched."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from drnet_captum.engine.lean import Convolution
from drnet_captum.engine.rules import is_exclusive
from drnet_captum.engine.tape import Tape


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [case for case in itertools.product([1, 2, 3, 4, 7], [2, 3, 4], [0, 1, 3])],
)
def test_strided_stems_by_phases(kernel, stride, padding):
    torch.manual_seed(0)
    for size in ((17, 20), (24, 31)):  # with and without positions that no stride reaches
        x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(5, 3, kernel, kernel + 1, dtype=torch.float64)
        out = F.conv2d(x, weight, stride=stride, padding=padding)
        seed = torch.randn_like(out)
        (expected,) = torch.autograd.grad(out, x, seed)
        lean = Convolution.apply(x, weight, None, (stride, stride), (padding, padding), (1, 1), 1)
        torch.testing.assert_close(lean, out)
        torch.testing.assert_close(torch.autograd.grad(lean, x, seed)[0], expected)


class Probe(torch.autograd.Function):
    """Says whether the gradient that comes to it is its own."""

    said: list[bool]

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        Probe.said.append(is_exclusive(g))
        return g


@pytest.mark.parametrize(
    ("function", "exclusive"),
    [
        (lambda x: (Probe.apply(x) * 3).sum(), [True]),
        (lambda x: ((Probe.apply(x) * 3) + x).sum(), [True]),
        (lambda x: ((Probe.apply(x) + Probe.apply(x)) * 3).sum(), [False, True]),  # the last reader may have it
        (lambda x: Probe.apply(x).sum(), [False]),  # one number, expanded
        (lambda x: (Probe.apply(x).flatten() * 3).sum(), [True, ...]),  # a view that nothing else holds: may, need not
        (lambda x: ((Probe.apply(x).flatten() + x.flatten()) * 3).sum(), [False]),  # a view of what x gets too
    ],
)
def test_whose_a_gradient_is(function, exclusive):
    x, Probe.said = torch.randn(3, 4, requires_grad=True), []
    torch.autograd.grad(function(x), x)
    assert not any(said and not may for said, may in zip(Probe.said, exclusive, strict=False))
    if exclusive == [True] and hasattr(torch.Tensor, "_use_count"):
        assert Probe.said == exclusive


class Keeps(nn.Module):
    """A model that keeps a gradient of its own, as Grad-CAM is often written by hand."""

    def __init__(self, by):
        super().__init__()
        self.first, self.last, self.by, self.kept = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), by, []
        if by == "module":
            self.last.register_full_backward_hook(lambda m, grad_in, grad_out: self.kept.append(grad_in[0]))

    def forward(self, x):
        a = F.relu(self.first(x))
        if self.by == "tensor" and a.requires_grad:
            a.register_hook(self.kept.append)
        return self.last(a).mean((2, 3))


@pytest.mark.parametrize("by", ["tensor", "module"])
def test_gradients_that_the_model_keeps_are_not_written_into(by):
    torch.manual_seed(0)
    model, x = Keeps(by).eval(), torch.randn(2, 3, 8, 8)
    model(x.clone().requires_grad_())[:, 1].sum().backward()
    expected = model.kept.pop()
    assert (expected < 0).any()
    with Tape(model) as tape:
        out = tape.forward(x)
        for rule in ("plain", "guided", "deconv"):
            tape.gradient(out[:, 1], rule=rule)
    assert len(model.kept) == 3
    for kept in model.kept:
        torch.testing.assert_close(kept, expected)
