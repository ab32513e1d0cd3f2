"""Which tokens the output depends on, as read off the graph, against the gradient of random values."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drnet_captum.engine.recording import Recording
from drnet_captum.engine.rules import Switch
from drnet_captum.layers.cuts import flow
from drnet_captum.layers.positions import receiving

TOKENS, CHANNELS = 5, 4
ALL = set(range(TOKENS))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read_and_true(forward):
    """The positions that the graph says receive gradient, and those that do."""
    source = random(1, TOKENS, CHANNELS).requires_grad_().clone()
    with Recording(Switch()):
        layer = source * 2.0
        output = forward(layer)
    assert output.grad_fn is not None
    found = receiving(flow(output.grad_fn, [source.grad_fn]), layer.grad_fn)
    (gradient,) = torch.autograd.grad((output * random(*output.shape, seed=1)).sum(), layer)
    return found, set(gradient.abs().sum((0, 2)).nonzero().flatten().tolist())


def weight(*shape):
    return nn.Parameter(random(*shape, seed=2))


def attention(x):
    heads = x.unflatten(2, (2, 2)).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)


def attention_by_hand(x):
    return (x @ x.transpose(1, 2)).softmax(-1) @ x


def mlp(x):
    hidden = F.gelu(F.linear(x, weight(8, CHANNELS), weight(8)))
    return x + F.linear(hidden, weight(CHANNELS, 8), weight(CHANNELS))


def gated(x):
    left, right = F.linear(x, weight(8, CHANNELS)).chunk(2, dim=-1)
    return F.silu(left) * right


def beside(*parts):
    return torch.cat(parts, dim=1)


def constant(count=1):
    return weight(1, count, CHANNELS)


def written(x):
    y = x.clone()
    y[:, 1:] = 0.0
    return y


def class_attention(x):
    """As CaiT does: the class token asks all tokens, itself among them."""
    return x[:, :1] + (x[:, :1] @ x.transpose(1, 2)).softmax(-1) @ x


#: What is done with tokens (1, 5, 4) → the positions that decide it, which is also where the gradient is.
EXACT = {
    "class token": (lambda x: x[:, 0], {0}),
    "last token": (lambda x: x[:, -1], {4}),
    "slice that starts from the end": (lambda x: x[:, -2:].sum(2), {3, 4}),
    "slice with a step": (lambda x: x[:, 1::2], {1, 3}),
    "slice of a slice": (lambda x: x[:, 1:][:, 1], {2}),
    "select": (lambda x: x.select(1, 3), {3}),
    "mean of all": (lambda x: x.mean(1), ALL),
    "mean of all and channels": (lambda x: x.mean(), ALL),
    "mean of the patches": (lambda x: x[:, 1:].mean(1), {1, 2, 3, 4}),
    "sum of two tokens": (lambda x: x[:, :2].sum(1), {0, 1}),
    "mean of channels, then a token": (lambda x: x.mean(-1)[:, 2], {2}),
    "mean of channels kept, then a token": (lambda x: x.mean(2, keepdim=True)[:, 2], {2}),
    "the tokens themselves": (lambda x: x, ALL),
    "the tokens themselves, changed": (lambda x: torch.tanh(x) + 1, ALL),
    "two heads": (lambda x: F.linear(x[:, 0], weight(3, 4)) + F.linear(x[:, 1], weight(3, 4)), {0, 1}),
    "two heads of the normed tokens": (lambda x: sum(F.layer_norm(x, (4,))[:, i] for i in (0, 1)), {0, 1}),
    "attention": (lambda x: attention(x)[:, 0], ALL),
    "attention by hand": (lambda x: attention_by_hand(x)[:, 0], ALL),
    "class attention": (lambda x: class_attention(x)[:, 0], ALL),
    "flatten": (lambda x: F.linear(x.flatten(1), weight(3, 20)), ALL),
    "MLP": (lambda x: mlp(x)[:, 1], {1}),
    "MLP without bias": (lambda x: F.linear(x, weight(3, 4))[:, 1], {1}),
    "product with a matrix": (lambda x: (x @ weight(4, 3))[:, 1], {1}),
    "product of rows with a matrix": (lambda x: (x[0] @ weight(4, 3))[1], {1}),
    "MLP over tokens": (lambda x: F.linear(x.transpose(1, 2), weight(6, 5))[:, :, 0], ALL),
    "product with a matrix from the left": (lambda x: (weight(1, 5) @ x[0])[0], ALL),
    "gate": (lambda x: gated(x)[:, 3], {3}),
    "layer norm": (lambda x: F.layer_norm(x, (4,), weight(4), weight(4))[:, 0], {0}),
    "layer norm over tokens too": (lambda x: F.layer_norm(x, (5, 4))[:, 0], ALL),
    "RMS norm": (lambda x: F.rms_norm(x, (4,), weight(4))[:, 0], {0}),
    "RMS norm by hand": (lambda x: (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))[:, 0], {0}),
    "batch norm of frozen statistics": (lambda x: F.batch_norm(x.mT, weight(4), weight(4).abs())[:, :, 2], {2}),
    "softmax over channels": (lambda x: x.softmax(-1)[:, 1], {1}),
    "softmax over tokens": (lambda x: x.softmax(1)[:, 1], ALL),
    "softmax over tokens, counted from the end": (lambda x: x.softmax(-2)[:, 1], ALL),
    "log-softmax over channels": (lambda x: F.log_softmax(x, 2)[:, 1], {1}),
    "scaled by the mean": (lambda x: (x * x.mean(1, keepdim=True))[:, 0], ALL),
    "scaled by channels": (lambda x: (x * weight(4) / 3 - 1)[:, 0], {0}),
    "strongest channel": (lambda x: x.amax(2)[:, 3], {3}),
    "transpose": (lambda x: x.transpose(1, 2)[:, :, 3], {3}),
    "transpose, counted from the end": (lambda x: x.mT[..., 3], {3}),
    "transpose and mean": (lambda x: x.transpose(1, 2).mean(-1), ALL),
    "permute": (lambda x: x.permute(2, 0, 1)[:, :, 3], {3}),
    "permute there and back": (lambda x: x.permute(2, 1, 0).permute(2, 1, 0)[:, 3], {3}),
    "transpose of rows": (lambda x: x[0].t()[:, 3], {3}),
    "view as rows": (lambda x: x.view(5, 4)[2], {2}),
    "view of heads": (lambda x: x.view(1, 5, 2, 2)[:, 2], {2}),
    "heads before tokens": (lambda x: x.view(1, 5, 2, 2).transpose(1, 2)[:, :, 2], {2}),
    "new axes": (lambda x: x[:, None].unsqueeze(0).squeeze(0)[:, 0, 4], {4}),
    "expand": (lambda x: x.expand(3, 5, 4)[:, 4], {4}),
    "split": (lambda x: x.split([1, 4], 1)[1].mean(1), {1, 2, 3, 4}),
    "split in equal parts": (lambda x: x.split(2, 1)[1].mean(1), {2, 3}),
    "chunk": (lambda x: x.chunk(2, 1)[0][:, 1], {1}),
    "chunk of channels": (lambda x: x.chunk(2, 2)[1][:, 1], {1}),
    "unbound channels": (lambda x: x.unbind(2)[0][:, 1], {1}),
    "unbound examples": (lambda x: x.unbind(0)[0][1], {1}),
    "a token before": (lambda x: beside(constant(), x)[:, 1], {0}),
    "a token before, without it": (lambda x: beside(constant(), x)[:, 1:].mean(1), ALL),
    "tokens after": (lambda x: beside(x, constant(3))[:, 4], {4}),
    "tokens before and a slice": (lambda x: beside(constant(2), x)[:, 1:4].mean(1), {0, 1}),
    "the mean of patches before": (lambda x: beside(x[:, 1:].mean(1, keepdim=True), x)[:, 0], {1, 2, 3, 4}),
    "itself twice, from the first": (lambda x: beside(x, x)[:, 1], {1}),
    "itself twice, from the second": (lambda x: beside(x, x)[:, 7], {2}),
    "patches, then the class token": (lambda x: beside(x[:, 1:], x[:, :1])[:, -1], {0}),
    "patches, then the class token, the patch": (lambda x: beside(x[:, 1:], x[:, :1])[:, 0], {1}),
    "class token beside channels": (lambda x: torch.cat([x[:, 0], x[:, 2]], 1), {0, 2}),
    "channels beside channels": (lambda x: torch.cat([x, x * x], -1)[:, 1], {1}),
    "class token beside the mean": (lambda x: torch.cat([x[:, 0], x[:, 1:].mean(1)], -1), ALL),
    "residual": (lambda x: (x + mlp(F.layer_norm(x, (4,))))[:, 0], {0}),
    "masked": (lambda x: x.masked_fill(torch.eye(5, 4).bool(), 0.0)[:, 2], {2}),
}

#: What nothing is known of: all that reach it are taken to decide, or more than do.
CONSERVATIVE = {
    "indexed": lambda x: x[:, [0, 2]],
    "gathered": lambda x: x.index_select(1, torch.tensor([1])),
    "rolled": lambda x: x.roll(1, 1)[:, 0],
    "flipped": lambda x: x.flip(1)[:, 0],
    "unbound tokens": lambda x: x.unbind(1)[0],
    "stacked": lambda x: torch.stack([x, x], 1)[:, 0, 0],
    "between two constants": lambda x: beside(constant(), x, constant())[:, 1],
    "L2 norm of channels": lambda x: F.normalize(x, dim=-1)[:, 0],
    "tokens in two axes": lambda x: x[:, 1:].unflatten(1, (2, 2))[:, 0, 0],
}


@pytest.mark.parametrize(("forward", "expected"), EXACT.values(), ids=EXACT)
def test_positions_are_those_with_gradient(forward, expected):
    found, true = read_and_true(forward)
    assert true == expected
    assert found == expected


@pytest.mark.parametrize("forward", CONSERVATIVE.values(), ids=CONSERVATIVE)
def test_no_position_with_gradient_is_left_out_where_a_step_is_not_known(forward):
    found, true = read_and_true(forward)
    assert true < found <= ALL


def test_a_token_that_was_put_beside_the_others_is_none_of_them():
    found, true = read_and_true(lambda x: beside(constant(), x)[:, 0] + 0 * x[:, 3])
    assert found == {3}
    assert true == set()
    found, _ = read_and_true(lambda x: beside(constant(2), x)[:, 1:3].sum(1))
    assert found == {0}


@pytest.mark.parametrize(
    "forward", [lambda x: x.max(1).values, lambda x: x.amax(1), lambda x: x.mT.amax(-1), lambda x: x.min(1).values]
)
def test_a_maximum_over_positions_counts_for_none(forward):
    """It hands gradient to one position for each channel, and no map can be made of that."""
    found, true = read_and_true(forward)
    assert found == set()
    assert 0 < len(true) <= CHANNELS


def test_what_is_overwritten_may_be_counted():
    found, true = read_and_true(lambda x: written(x).mean(1))
    assert true == {0} <= found


def test_the_axis_of_a_grid_can_be_asked_for():
    source = random(1, 3, 4).requires_grad_().clone()
    with Recording(Switch()):
        layer = source * 2.0
        output = layer[:, :, 1:3].mean((1, 2))
    graph = flow(output.grad_fn, [source.grad_fn])
    assert receiving(graph, layer.grad_fn, axis=2) == {1, 2}
    assert receiving(graph, layer.grad_fn, axis=1) == {0, 1, 2}
