"""The tape in the caller's context: grad modes, precision, memory formats, memory, devices."""

import gc
import weakref

import pytest
import torch
from tapes import RULES, Net, gradient, layer_gradient
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
