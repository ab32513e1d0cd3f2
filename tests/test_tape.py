"""The tape on module graphs: what it records, what it replays, and that nothing of the caller's changes."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drnet_captum.engine.tape import Tape

RULES = ("plain", "guided", "deconv")


class Net(nn.Module):
    """A reused ReLU in parallel branches, an in-place residual addition, a concatenation."""

    def __init__(self, inplace=True):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.relu = nn.ReLU(inplace=inplace)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.mix = nn.Conv2d(16, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        left, right = self.relu(self.left(x)), self.right(x)
        right += x
        x = self.relu(self.mix(torch.cat([left, self.relu(right)], 1)))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().double().eval()


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradient(model, x, k=0):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, k].sum(), leaf)[0]


def layer_gradient(model, layer, x, k=0):
    kept = []
    handle = layer.register_forward_hook(lambda m, a, out: kept.append(out.detach().requires_grad_()) or kept[-1] * 1.0)
    y = model(x)[:, k].sum()
    handle.remove()
    return kept[0].detach(), torch.autograd.grad(y, kept[0])[0]


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


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_the_caller_s_grad_mode(model, x, context):
    with context():
        inside = x.clone()
        with Tape(model, ["mix"]) as tape:
            out = tape.forward(inside)
            assert out.requires_grad
            with torch.inference_mode(False), torch.enable_grad():
                ys = [out[:, 1], out[:, 0]]
            found, at_layer = tape.gradient(ys[0]), tape.gradient(ys[0], "mix")
            tape.gradients(ys, ["mix"], "guided")
    torch.testing.assert_close(found, gradient(model, x, 1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(at_layer, layer_gradient(model, model.mix, x, 1)[1], rtol=1e-10, atol=1e-12)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_parameters_made_in_inference_mode_raise(x):
    with torch.inference_mode():
        model = Net().double().eval()
    with Tape(model) as tape, pytest.raises(ValueError, match="inference_mode"):
        tape.forward(x)


def cosine(a, b):
    return float(F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


@pytest.mark.parametrize("rule", RULES)
def test_autocast_and_lower_precision(model, x, rule):
    model, x = model.float(), x.float()

    def maps():
        with Tape(model, ["mix"]) as tape:
            out = tape.forward(x)
            return tape.gradient(out[:, 1], rule=rule), tape.gradients([out[:, 1], out[:, 2]], ["mix"], rule)["mix"][0]

    expected = maps()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        automatic = maps()
    model, x = model.bfloat16(), x.bfloat16()
    lower = maps()
    assert lower[0].dtype == torch.bfloat16
    for found in (automatic, lower):
        assert all(cosine(a, b) > 0.95 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("memory_format", ["auto", "preserve", "channels_last"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_memory_formats(model, x, memory_format, order):
    arranged, layers = x.contiguous(memory_format=order), ["mix"]
    with Tape(model.to(memory_format=order), layers, memory_format=memory_format) as tape:
        out = tape.forward(arranged)
        found, at_layer = tape.gradient(out[:, 1]), tape.gradients([out[:, 1], out[:, 0]], layers)["mix"][0][0]
    torch.testing.assert_close(found, gradient(model, x, 1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(at_layer, layer_gradient(model, model.mix, x, 1)[1], rtol=1e-10, atol=1e-12)
    assert all(p.is_contiguous(memory_format=order) for p in model.parameters() if p.dim() == 4)


def test_no_graph_below_the_lowest_layer(model, x):
    saved = []

    def pack(t):
        saved.append((ran["mix"], t.numel()))
        return t

    ran = {"mix": False}
    handle = model.mix.register_forward_hook(lambda *_: ran.update(mix=True))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with Tape(model, ["mix"], wrt_input=False) as tape:
            out = tape.forward(x)
            assert not tape.inputs[0].requires_grad
            assert tape.kept_tensors("mix")[0].is_leaf
            tape.gradient(out[:, 0], "mix")
    handle.remove()
    assert saved
    assert all(above for above, _ in saved)


def test_closing_a_tape_frees_its_memory(model, x):
    with Tape(model, ["mix"]) as tape:
        out = tape.forward(x)
        alive = [weakref.ref(t) for t in (tape.inputs[0], tape.kept_tensors("mix")[0], out)]
        tape.gradient(out[:, 1], rule="guided")
        del out
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_the_graph_can_be_let_go(model, x):
    with Tape(model) as tape:
        out = tape.forward(x)
        tape.gradient(out[:, 0], keep=False)
        with pytest.raises(RuntimeError, match="second time"):
            tape.gradient(out[:, 0])


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


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_cuda_equals_cpu(model, x, rule):
    def maps(model, x):
        with Tape(model, ["mix"]) as tape:
            out = tape.forward(x)
            ys = [out[:, 1], out[:, 0]]
            return tape.gradient(ys[0], rule=rule).cpu(), tape.gradients(ys, ["mix"], rule)["mix"][0].cpu()

    expected = maps(model, x)
    for found, wanted in zip(maps(model.cuda(), x.cuda()), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    with torch.autocast("cuda", dtype=torch.float16):
        found = maps(model.float(), x.float().cuda())
    assert all(cosine(a, b) > 0.95 for a, b in zip(found, expected, strict=True))
