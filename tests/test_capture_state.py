"""compile=True: what has changed is captured anew, what cannot be is refused, nothing of the caller's is touched."""

import gc
import weakref

import pytest
import torch
from methods import OURS, make
from models import CLASSES, ManyScores, TokenNet, images, seeded
from test_capture import CAPTURED, both, captured_of, check, network, x64
from torch import nn
from torch.nn import functional as F

import drnet_captum as dc
from drnet_captum.engine import capture
from drnet_captum.engine.fingerprint import Fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.conv1.weight.data.mul_(-2.0),
        lambda m: m.fc.weight.data.fill_(0.3),
        lambda m: m.norm.running_var.mul_(3.0),
        lambda m: m.norm.running_mean.data.add_(1.0),
        lambda m: setattr(m, "conv2", seeded(nn.Conv2d, 4, 6, 3, padding=1, seed=9).double()),
        lambda m: setattr(m, "relu1", nn.SiLU().eval()),
        lambda m: setattr(m, "relu1", m.relu2) or setattr(m, "relu2", nn.Tanh().eval()),
        lambda m: setattr(m.conv1, "padding", (0, 0)),
        lambda m: setattr(m.norm, "eps", 0.5),
        lambda m: setattr(m.conv1, "weight", nn.Parameter(-m.conv1.weight.detach())),
        lambda m: setattr(m.conv1.weight, "data", -m.conv1.weight.data),
    ],
)
def test_what_has_changed_is_captured_anew(change):
    model, x = network(), x64()
    before = make("guided_backprop", model, compile=True).attribute(x, target=1)
    change(model)
    plain, quick = both("guided_backprop", model, x, 1)
    torch.testing.assert_close(quick, plain)
    assert not quick.allclose(before)
    assert len(captured_of(model)) == 1


def test_changes_of_a_model_that_are_noticed():
    """A single number that is no sample; the same modules in other places; new ones where old ones were in memory."""
    same, other = nn.ReLU(), nn.Tanh()
    model = nn.Sequential(same, other, same, nn.Linear(9, 9)).eval()
    now = Fingerprint(model)
    assert now.holds(model)
    with torch.no_grad():
        model[3].weight[0, 1] += 1.0
    assert not now.holds(model)
    now = Fingerprint(model)
    model[2] = other
    assert not now.holds(model)
    for _ in range(20):
        model[0] = nn.ReLU().eval()
        now = Fingerprint(model)
        model[0] = None
        model[0] = nn.Tanh().eval()
        assert not now.holds(model)


def test_a_step_of_training():
    model, x = network(), x64()
    check("guided_backprop", model, x, 1)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    F.cross_entropy(model(x), torch.tensor([1, 2])).backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        make("guided_backprop", model, compile=True).attribute(x, 1)
    check("guided_backprop", model.eval(), x, 1)


def test_only_a_few_graphs_are_kept():
    model = network()
    method = make("guided_backprop", model, compile=True)
    for n in [1, 2, 1, *range(3, capture.MOST + 2)]:
        method.attribute(x64(n), target=0)
    order = [1, *range(3, capture.MOST + 2)]  # 2 is the one that was not used for longest
    for n, found in zip(order, captured_of(model), strict=True):
        with torch.no_grad():
            assert len(found.call(x64(n), torch.zeros(1, n, dtype=torch.int64))[0]) == n


def test_nothing_keeps_a_model_alive():
    model = network()
    model.itself = [model]
    dc.explain(model, x64(), methods=["grad_cam", "guided_backprop"], layer="relu2", compile=True)
    make("grad_cam", model, layer=model, compile=True)
    kept, entries = weakref.ref(model), len(capture._graphs)
    del model
    gc.collect()
    assert kept() is None
    assert len(capture._graphs) < entries


def test_nothing_of_the_callers_changes():
    model, x = network(), x64().requires_grad_()
    model.conv1.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    state = torch.random.get_rng_state()
    for _ in range(2):
        with torch.inference_mode():
            maps = make("guided_grad_cam", model, compile=True).attribute(x, target=1)
        assert not maps.requires_grad
    with torch.inference_mode():
        assert not make("guided_backprop", model, compile=True).attribute(x, target=1).is_inference()
    assert torch.random.get_rng_state().equal(state)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters()) and x.grad is None and x.requires_grad
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in model.modules())
    assert torch.is_grad_enabled()


class Draws(nn.Module):
    """Random numbers in eval mode, and a table that it keeps for the next call."""

    table = None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(3.0)
        return (F.dropout(x, 0.5, training=True) * self.table).tanh()


def test_models_that_draw_random_numbers():
    model, x = Draws().eval(), torch.ones(2, 3)
    state = torch.random.get_rng_state()
    first, second = (make("grad_x_image", model, compile=True).attribute(x, target=1) for _ in range(2))
    assert torch.random.get_rng_state().equal(state)
    torch.testing.assert_close(first, second)
    assert model.table is None


class ByValues(nn.Module):
    def forward(self, x):
        return x.relu() if x.sum() > 0 else -x


class Writes(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x * self.count


def hooked(model):
    model.register_forward_hook(lambda m, args, out: None)
    return model


@pytest.mark.parametrize(
    ("model", "inputs", "match"),
    [
        (lambda: lambda x: x, torch.ones(1, 2), "got a function: leave it out"),
        (lambda: nn.ReLU(), torch.ones(1, 2), "ReLU in train mode"),
        (lambda: nn.Sequential(nn.ReLU().train()).eval().append(nn.Tanh()), torch.ones(1, 2), "Tanh in train mode"),
        (lambda: hooked(nn.ReLU().eval()), torch.ones(1, 2), "would not call the hooks of ReLU"),
        (lambda: ByValues().eval(), torch.ones(1, 2), "decides by values: leave it out"),
        (lambda: Writes().eval(), torch.ones(1, 2), "writes into its own buffers"),
        (lambda: seeded(ManyScores), images(), r"returns scores \(N, C\), got \(2, 5, 2\): leave it out"),
        (lambda: nn.Flatten(0, 1).eval(), torch.ones(2, 3, 4), r"returns scores \(N, C\), got \(6, 4\)"),
        (lambda: seeded(TokenNet), torch.ones(1, 4).long(), "does not serve integer tokens"),
        (lambda: nn.ReLU().eval(), torch.tensor([[torch.nan, 1]]), "finite inputs"),
    ],
)
def test_what_cannot_be_captured(model, inputs, match):
    with pytest.raises(ValueError, match=match):
        make("grad_x_image", model(), compile=True).attribute(inputs, target=0)


def test_targets_are_checked_at_every_call():
    model, x = network(), x64()
    plain, quick = (make("guided_backprop", model, compile=c) for c in (False, True))
    for target in (CLASSES, [0, -CLASSES - 1], [0], (1, 2), None, torch.tensor([1, 2, 3]), 0, "a", 1.5):
        said = []
        for method in (plain, quick):
            try:
                said.append(method.attribute(x, target=target))
            except (ValueError, TypeError) as error:
                said.append((type(error), str(error)))
        assert said[0] == said[1] if isinstance(said[0], tuple) else said[0].allclose(said[1])
    x[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="finite inputs"):
        quick.attribute(x, target=0)


def test_options_that_do_not_go_together():
    model = network()
    with pytest.raises(ValueError, match="not units of a layer"):
        make("guided_backprop", model, layer="relu1", compile=True).attribute(x64(), neuron_selector=1)
    with pytest.raises(ValueError, match="takes no grad_kwargs"):
        make("grad_cam", model, compile=True).attribute(x64(), 1, grad_kwargs={"create_graph": True})
    with pytest.raises(ValueError, match="'logit' or 'log_prob', got 'probability'"):
        make("grad_cam", model, compile=True).attribute(x64(), 1, score="probability")
    for name in set(OURS) - set(CAPTURED) - {"rise"}:
        with pytest.raises(ValueError, match="compile=True has no meaning"):
            make(name, model, compile=True)
