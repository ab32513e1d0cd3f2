"""Lean nodes and gradients written in place: the same numbers as PyTorch's own, and nobody else's memory touched."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from drnet_captum.engine import graph, lean
from drnet_captum.engine.lean import Convolution
from drnet_captum.engine.rules import is_exclusive
from drnet_captum.engine.tape import Tape

pytestmark = pytest.mark.usefixtures("every_node_lean")


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


@pytest.mark.parametrize(
    "kernel, stride, padding", [((3, 3), 1, 1), ((2, 3), 2, 0), ((1, 1), 2, 0), ((1, 1), (3, 2), 0)]
)
@pytest.mark.parametrize("side", [3, 8])
def test_convolutions_that_kernels_are_slow_at_channels_last(kernel, stride, padding, side):
    """Weights far larger than the image, and strides that pass over most of it."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 48, kernel, stride, padding).double().eval().requires_grad_(False)
    x = torch.randn(1, 64, side, side + 1, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    expected = conv(x.requires_grad_())
    (by_input,) = torch.autograd.grad(expected.square().sum(), x)
    with Tape(conv, rules=()) as tape:
        found = tape.forward(x)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(tape.gradient(found.square().sum((1, 2, 3))), by_input)
    with Tape(
        nn.Sequential(conv, nn.Identity()).eval(), layers=("1",), wrt_input=False
    ) as tape:  # below the layer: no graph
        torch.testing.assert_close(tape.forward(x), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "conv, is_linear",
    [
        (nn.Conv2d(6, 5, (3, 4)), True),
        (nn.Conv2d(6, 5, (3, 4), stride=7, bias=False), True),
        (nn.Conv2d(6, 5, (3, 4), padding=1), False),
        (nn.Conv2d(6, 6, (3, 4), groups=2), False),
        (nn.Conv2d(6, 5, (2, 4), dilation=(2, 1)), False),
        (nn.Conv2d(6, 5, (3, 3)), False),
    ],
    ids=str,
)
def test_a_kernel_as_large_as_the_image_is_a_linear_layer(conv, is_linear, memory_format):
    """Plain, with several gradients at once, and below a layer, where there is no graph."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), conv, nn.Identity()).double().eval().requires_grad_(False)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64).contiguous(memory_format=memory_format)
    expected = model(x.requires_grad_())
    by_input = [torch.autograd.grad(expected[:, k].sum(), x, retain_graph=True)[0] for k in (0, 3)]
    with Tape(model, layers=("0",), rules=()) as tape:
        found = tape.forward(x)
        assert found.shape == expected.shape
        assert is_linear == any(
            node.name() == "AddmmBackward0" or node.name() == "MmBackward0" for node in graph.nodes([found])
        )
        torch.testing.assert_close(found, expected)
        ys = [found[:, k].sum((1, 2)) for k in (0, 3)]
        for k in range(2):
            torch.testing.assert_close(tape.gradient(ys[k]), by_input[k])
        batched = tape.gradients(ys, ["0"])["0"][0]
        torch.testing.assert_close(batched * (x > 0), torch.stack(by_input))
    with Tape(model, layers=("2",), wrt_input=False) as tape:
        torch.testing.assert_close(tape.forward(x), expected)


def test_small_tensors_are_left_to_pytorch(monkeypatch):
    """Where nodes of ours save less than they cost: the same gradients, by other nodes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.SiLU()).double().eval()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    nodes, gradients = [], []
    for small in (0, 1 << 17):
        monkeypatch.setattr(lean, "SMALL", small)
        with Tape(model, rules=()) as tape:
            out = tape.forward(x)
            nodes.append({node.name() for node in graph.nodes([out])})
            gradients.append(tape.gradient(out.sum((1, 2, 3))))
    ours = {f"{kind}Backward" for kind in ("Convolution", "BatchNorm", "PiecewiseLinear", "MaxPool2d")}
    assert ours <= nodes[0]
    assert not ours & nodes[1]
    torch.testing.assert_close(*gradients)


def test_a_rule_that_the_tape_was_not_made_for():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    with Tape(model, rules=()) as tape:
        y = tape.forward(torch.ones(1, 2)).sum(1)
        with pytest.raises(ValueError, match="made for other rules"):
            tape.gradient(y, rule="guided")
