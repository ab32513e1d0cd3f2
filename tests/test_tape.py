"""The tape on module graphs: what it records and what it replays."""

import pytest
import torch
from tapes import RULES, Net, gradient, layer_gradient
from torch import nn
from torch.nn import functional as F

from drnet_captum.engine.tape import Tape

pytestmark = pytest.mark.usefixtures("every_node_lean")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().double().eval()


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_design_example(model, x):
    with Tape(model, layers=("mix",)) as tape:
        logits = tape.forward(x)
        plain = tape.gradient(logits[:, 2], wrt="input")
        guided = tape.gradient(logits[:, 2], wrt="input", rule="guided")
        at_layer = tape.gradient(logits[:, 4], wrt="mix")
        activation = tape.activation("mix")[0]
        torch.testing.assert_close(logits, model(x))
    torch.testing.assert_close(plain, gradient(model, x, 2), rtol=1e-10, atol=1e-12)
    value, expected = layer_gradient(model, model.mix, x, 4)
    torch.testing.assert_close(at_layer, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(activation, value, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(guided, plain)
    assert not plain.requires_grad


@pytest.mark.parametrize("rule", RULES)
def test_several_targets_equal_single_ones(model, x, rule):
    with Tape(model, layers=("mix", "left")) as tape:
        logits = tape.forward(x)
        ys = [logits[:, k] for k in (0, 3, 1)]
        for wrt in (["input"], ["mix"], ["left", "mix"], ["input", "mix", "left"]):
            several = tape.gradients(ys, wrt, rule)
            for place in wrt:
                single = torch.stack([tape.gradient(y, place, rule) for y in ys])
                torch.testing.assert_close(several[place][0], single, rtol=1e-12, atol=1e-14)


def test_gradient_of_any_scalar_of_the_output(model, x):
    with Tape(model) as tape:
        out = tape.forward(x)
        with torch.enable_grad():
            y = torch.log_softmax(out, 1)[:, 1] + out.pow(2).sum(1)
        found = tape.gradient(y)
    expected = gradient(lambda z: (torch.log_softmax(model(z), 1)[:, 1] + model(z).pow(2).sum(1))[:, None], x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_layers_named_and_given_as_modules(model, x):
    for layer in ("mix", "stem.1", model.left, model.stem):
        module = layer if isinstance(layer, nn.Module) else model.get_submodule(layer)
        with Tape(model, [layer], wrt_input=False) as tape:
            found = tape.gradient(tape.forward(x)[:, 1], layer)
            activation = tape.activation(layer)[0]
        value, expected = layer_gradient(model, module, x, 1)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(activation, value, rtol=1e-10, atol=1e-12)


def test_a_layer_followed_by_an_in_place_operation_keeps_its_value(model, x):
    negative = model.stem(x)
    with Tape(model, ["stem"]) as tape:
        tape.forward(x)
        assert (tape.activation("stem")[0] < 0).any()
        torch.testing.assert_close(tape.activation("stem")[0], negative)


def test_what_goes_into_a_layer(model, x):
    with Tape(model, ["head", "mix"], at_layer_inputs=True, wrt_input=False) as tape:
        out = tape.forward(x)
        pooled = tape.activation("head")[0]
        torch.testing.assert_close(model.head(pooled), out)
        torch.testing.assert_close(tape.gradient(out[:, 2], "head"), model.head.weight[2].expand(3, -1))
        assert tape.gradient(out[:, 2], "mix").shape == (3, 16, 8, 8)


def test_layers_with_several_tensors():
    class Pair(nn.Module):
        def forward(self, x):
            return x * 2, x.sum(1)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            a, b = self.pair(x)
            return F.relu(a) * b[:, None]

    x = torch.randn(4, 3)
    with Tape(Two(), ["pair"], wrt_input=False) as tape:
        with pytest.warns(UserWarning, match="train mode"):
            out = tape.forward(x)
        first, second = tape.gradient(out[:, 0], "pair")
    assert first.shape == (4, 3)
    torch.testing.assert_close(second, F.relu(2 * x[:, 0]))


def test_dense_concatenations_and_reused_blocks(x):
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm2d(3 + 4 * i) for i in range(3))
            self.convs = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(3))
            self.twice = nn.Sequential(nn.Conv2d(15, 15, 1), nn.ReLU())
            self.head = nn.Linear(15, 4)

        def forward(self, x):
            for norm, conv in zip(self.norms, self.convs, strict=True):
                x = torch.cat([x, conv(F.relu(norm(x)))], 1)
            return self.head(F.max_pool2d(self.twice(self.twice(x)), 3, 2).amax((2, 3)))

    torch.manual_seed(0)
    model = Dense().double().eval()
    with Tape(model) as tape:
        found = tape.gradient(tape.forward(x)[:, 1])
    torch.testing.assert_close(found, gradient(model, x, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrt_input", [True, False])
def test_of_a_layer_that_runs_twice_the_last_output_is_kept(wrt_input):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.layer(F.relu(self.layer(x)))))

    model, x = Twice().double().eval(), torch.randn(2, 4, dtype=torch.float64)
    last = model.layer(F.relu(model.layer(x))).detach().requires_grad_()
    (expected,) = torch.autograd.grad(model.head(torch.tanh(last))[:, 1].sum(), last)
    with Tape(model, ["layer"], wrt_input=wrt_input) as tape:
        out = tape.forward(x)
        torch.testing.assert_close(tape.activation("layer")[0], last.detach())
        torch.testing.assert_close(tape.gradient(out[:, 1], "layer"), expected)


@pytest.mark.parametrize("rule", ["guided", "deconv"])
def test_one_relu_in_parallel_branches_is_every_branch_s_own(x, rule):
    shared, twin = Net(inplace=False).double().eval(), Net().double().eval()
    twin.load_state_dict(shared.state_dict())

    class Rectify(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z > 0)
            return z.clamp(min=0)

        @staticmethod
        def backward(ctx, g):
            return g.clamp(min=0) * (ctx.saved_tensors[0] if rule == "guided" else 1)

    class Ruled(nn.Module):
        def forward(self, z):
            return Rectify.apply(z)

    found = []
    for model in (shared, twin):
        with Tape(model) as tape:
            found.append(tape.gradient(tape.forward(x)[:, 3], rule=rule))
    shared.relu = Ruled()
    for each in found:
        torch.testing.assert_close(each, gradient(shared, x, 3), rtol=1e-10, atol=1e-12)


def test_a_model_that_writes_into_its_input_leaves_the_caller_s_alone(x):
    def model(z):
        z.mul_(2).sub_(1)
        F.relu(z, inplace=True)
        return z.flatten(1)

    before = x.clone()
    for memory_format in ("auto", "preserve", "channels_last"):
        with Tape(model, memory_format=memory_format) as tape:
            out = tape.forward(x)
            assert torch.equal(x, before)
            torch.testing.assert_close(out, F.relu(2 * before - 1).flatten(1))
            torch.testing.assert_close(tape.gradient(out.sum(1)), 2 * (2 * before > 1).to(x))
    leaf = x.clone().requires_grad_()
    with Tape(model) as tape:
        tape.gradient(tape.forward(leaf).sum(1))
    assert leaf.grad is None
    assert torch.equal(leaf, before)


def test_target_cut_off_raises(model, x):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.loose = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            self.loose(x)
            return F.relu(self.used(x.detach() * 1.0)) + 0 * self.used(x)

    with Tape(Cut().eval(), ["loose"]) as tape:
        out = tape.forward(torch.randn(2, 4))
        with pytest.raises(ValueError, match=r"does not depend on 'loose'"):
            tape.gradient(out[:, 0], "loose")
    with Tape(lambda z: z.detach() * 2 + 1) as tape:
        out = tape.forward(torch.randn(2, 4))
        with pytest.raises(ValueError, match="does not depend on the input"):
            tape.gradient(out[:, 0])
