"""The tape through wrappers, threads, compilers and checkpoints: right, or an error; and the state that it keeps."""

import threading

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from drnet_captum.engine.tape import Tape
from drnet_captum.engine.unwrap import eager

pytestmark = pytest.mark.usefixtures("every_node_lean")

RULES = ("plain", "guided", "deconv")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 3)
    ).eval()


def images():
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def maps(model, x, layer=None):
    with Tape(model, [layer] if layer else []) as tape:
        out = tape.forward(x)
        found = [tape.gradient(out[:, 1], rule=rule) for rule in RULES]
        return [out.detach(), *found, *([tape.gradient(out[:, 1], layer)] if layer else [])]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_data_parallel_is_explained_as_its_module():
    model, x = network(), images()
    expected = maps(model, x, "3")
    assert_same(maps(nn.DataParallel(model), x, "3"), expected)
    assert_same(maps(nn.DataParallel(nn.DataParallel(model)), x, model[3]), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_models_are_explained_eagerly():
    model, x = network(), images()
    expected = maps(model, x, "3")
    wrapped = torch.compile(model, backend="eager")
    wrapped(x)
    assert eager(wrapped) is model
    assert_same(maps(wrapped, x, "3"), expected)
    in_place = network()
    in_place.compile(backend="eager")
    in_place(x)
    assert_same(maps(in_place, x, "3"), expected)
    inside = nn.Sequential(torch.compile(model[:3].eval(), backend="eager"), model[3:]).eval()
    inside(x)
    assert_same(maps(inside, x), expected[:-1])
    function = torch.compile(lambda z: model(z) * 1.0, backend="eager")
    function(x)
    assert_same(maps(function, x), expected[:-1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_models_run_compiled_again_afterwards():
    ran = []

    def backend(graph, _):
        return lambda *args: ran.append(True) or graph(*args)

    compiled, x = torch.compile(network(), backend=backend), images()
    compiled(x)
    times = len(ran)
    maps(compiled, x)
    assert len(ran) == times
    with pytest.raises(ValueError, match="finite"):
        maps(compiled, x * float("nan"))
    compiled(x)
    assert len(ran) > times


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tapes_in_two_threads_leave_the_compiler_as_it_was():
    ran, order = [], [threading.Event() for _ in range(2)]

    def backend(graph, _):
        return lambda *args: ran.append(True) or graph(*args)

    compiled, x = torch.compile(network(), backend=backend), images()
    compiled(x)

    def first(z):  # enters first, and leaves while the second is inside
        order[0].set()
        order[1].wait(10)
        return F.relu(z).flatten(1)

    def second(z):
        order[1].set()
        thread.join(10)
        return F.relu(z).flatten(1)

    thread = threading.Thread(target=maps, args=(first, x))
    thread.start()
    order[0].wait(10)
    maps(second, x)
    times = len(ran)
    try:
        compiled(x)
        assert len(ran) > times
    finally:
        torch.compiler.set_stance("default")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, images())], ids=["script", "trace"])
@pytest.mark.parametrize("runs", [0, 3])
@pytest.mark.parametrize("part", [False, True])
def test_scripted_models_are_plain_or_raise(make, runs, part):
    model, x = network(), images()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    scripted = nn.Sequential(make(model[:3].eval()), model[3:]).eval() if part else make(model)
    for _ in range(runs):  # the profiling executor merges operators after a few runs
        scripted(x.clone().requires_grad_()).sum().backward()
    scripted.zero_grad()
    with Tape(scripted) as tape:
        out = tape.forward(x)
        torch.testing.assert_close(tape.gradient(out[:, 1]), expected)
        for rule in ("guided", "deconv"):
            with pytest.raises(ValueError, match="cannot reach"):
                tape.gradient(out[:, 1], rule=rule)


def test_a_layer_in_another_thread_raises():
    model = network()

    def threaded(x):
        result = []

        def work():
            try:
                with torch.enable_grad():
                    result.append(model(x))
            except ValueError as error:
                result.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if isinstance(result[0], ValueError):
            raise result[0]
        return result[0]

    with Tape(threaded, [model[3]]) as tape, pytest.raises(ValueError, match="other threads"):
        tape.forward(images())
    assert not any(m._forward_hooks for m in model.modules())
    with Tape(threaded) as tape:
        out = tape.forward(images())
        tape.gradient(out[:, 0])
        with pytest.raises(ValueError, match="cannot reach"):
            tape.gradient(out[:, 0], rule="guided")


def test_another_thread_on_the_same_model_sees_no_change():
    """Two threads explain one model at once; nobody ever sees a parameter's flag changed."""
    model, x = network(), images()
    model[3].requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    seen, errors, expected = set(), [], maps(model, x)

    def work():
        try:
            for _ in range(5):
                assert_same(maps(model, x), expected)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.add(tuple(p.requires_grad for p in model.parameters()))
    assert not errors
    assert seen == {tuple(flags)}
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_gradient_checkpointing_is_right_or_raises(reentrant, rule):
    model, x = network(), images()

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = model[:5], model[5:]

        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=reentrant))

    expected = maps(model, x)[1 + RULES.index(rule)]
    with Tape(Checkpointed().eval()) as tape:
        out = tape.forward(x)
        try:
            found = tape.gradient(out[:, 1], rule=rule)
        except ValueError as error:
            assert "checkpoint" in str(error)
        else:
            torch.testing.assert_close(found, expected)
    assert all(p.grad is None for p in model.parameters())


def test_gradient_checkpointing_of_timm():
    model = timm.create_model("test_resnet", num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = maps(model, x)[1]
    model.set_grad_checkpointing()
    with Tape(model) as tape:
        out = tape.forward(x)
        try:
            torch.testing.assert_close(tape.gradient(out[:, 1]), expected)
        except ValueError as error:
            assert "set_grad_checkpointing(False)" in str(error)
    assert all(p.grad is None for p in model.parameters())


def test_train_mode_warns_and_changes_nothing():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )
    model.train()
    buffers = {k: b.clone() for k, b in model.named_buffers()}
    random = torch.get_rng_state()
    with Tape(model) as tape:
        with pytest.warns(UserWarning, match=r"train mode: call model\.eval\(\)"):
            out = tape.forward(images())
        tape.gradient(out[:, 0], rule="guided")
    torch.testing.assert_close(dict(model.named_buffers()), buffers, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("trainable", [True, False])
def test_parameters_stay_as_they_are(trainable):
    model = network().requires_grad_(trainable)
    grads = [torch.ones_like(p) for p in model.parameters()]
    for p, g in zip(model.parameters(), grads, strict=True):
        p.grad = g.clone()
    before = [p.clone() for p in model.parameters()]
    found = maps(model, images(), "3")
    assert_same(maps(network(), images(), "3"), found)
    for p, value, g in zip(model.parameters(), before, grads, strict=True):
        assert p.requires_grad is trainable
        assert torch.equal(p, value)
        assert torch.equal(p.grad, g)


@pytest.mark.parametrize("where", ["forward", "output", "rule", "hook"])
def test_an_exception_leaves_nothing_behind(where):
    model, x = network(), images()
    random = torch.get_rng_state()

    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            out = self.body(x + torch.rand(()))
            if where == "forward":
                raise KeyError("from the model")
            return {"logits": out} if where == "output" else out

    failing = Failing().eval()
    hook = model[5].register_forward_hook(lambda *_: 1 / 0) if where == "hook" else None
    expected = {"forward": KeyError, "output": TypeError, "rule": ValueError, "hook": ZeroDivisionError}[where]
    with pytest.raises(expected), Tape(failing, ["body.2", model[3]]) as tape:
        tape.gradient(tape.forward(x)[:, 0], rule="nonsense")
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == (hook is not None)
    assert torch.equal(torch.get_rng_state(), random)
    assert type(F.relu(x.clone().requires_grad_()).grad_fn).__name__ == "ReluBackward0"
    assert not torch.overrides._get_current_function_mode_stack()
    if hook is not None:
        hook.remove()
    maps(model, x)
