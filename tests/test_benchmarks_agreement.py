"""What the benchmarks take for agreement; what they see of a model; the bounds; reduced precision."""

from __future__ import annotations

import doctest

import pytest
import timm
import torch
from models import ConvNet, images, seeded
from torch import nn
from torch.nn import functional as F

from benchmarks import agreement, options, pairs, records, sides, subjects
from benchmarks import report_throughput as speed
from benchmarks.agreement import DisagreementError, Reach, agrees, check_plain, closeness, compared
from benchmarks.subjects import Facts, build, facts_of
from drnet_captum import find_target_layer

RELUS = Facts(True, (), "NCHW")
TOKENS = Facts(False, ("gelu",), "tokens")


@pytest.mark.parametrize("module", [agreement, options, records, speed], ids=lambda module: module.__name__)
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def test_comparisons_by_hand():
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert compared(a, a) == {"correlation": pytest.approx(1), "scale": 1, "largest_difference": 0}
    found = compared(2 * a, a)
    assert found == {"correlation": pytest.approx(1), "scale": 2, "largest_difference": 1}
    assert agrees(compared(a, a)) and not agrees(found) and not agrees(compared(-a, a))
    assert compared(a, a[:, :3]) == {"correlation": None, "scale": None, "largest_difference": None}
    flat = torch.ones(1, 4)
    assert agrees(compared(flat, flat)) and not agrees(compared(flat, 1.01 * flat))
    assert not agrees(compared(a, a[:, :3])) and not agrees(compared(a, torch.zeros(1, 4)))
    classes = torch.randn(2, 3, 1, 4, 4)
    assert agrees(compared(classes.repeat_interleave(2, 3).repeat_interleave(2, 4), classes))


def test_agreement_is_the_worst_of_all_methods():
    maps = {name: torch.randn(2, 3, 8, 8) for name in ("grad_x_image", "guided_backprop")}
    reach = Reach(relu_modules=True, channels_first=True)
    found = agreement.agreement(maps, maps, reach, RELUS, "them")
    assert (found["agrees"], found["why"], found["largest_difference"]) == (True, None, 0)
    other = maps | {"guided_backprop": torch.randn(2, 3, 8, 8)}
    found = agreement.agreement(maps, other, reach, TOKENS, "them")
    assert not found["agrees"] and found["why"] == "the model calls gelu outside nn.ReLU modules"
    assert found["correlation"] == pytest.approx(
        float(torch.corrcoef(torch.stack([m["guided_backprop"].flatten() for m in (maps, other)]))[0, 1]), abs=1e-6
    )
    for facts, side in ((RELUS, reach), (TOKENS, Reach()), (TOKENS, Reach(channels_first=True))):
        with pytest.raises(DisagreementError, match="them: guided_backprop differs"):
            agreement.agreement(maps, other, side, facts, "them")
    with pytest.raises(DisagreementError, match="them: grad_x_image differs"):
        agreement.agreement(maps, maps | {"grad_x_image": -maps["grad_x_image"]}, reach, TOKENS, "them")


def test_reasons_are_facts_of_the_model():
    reach = Reach(relu_modules=True, channels_first=True)
    assert reach.reasons("guided_grad_cam", Facts(True, ("silu", "gelu"), "NHWC")) == [
        "the model calls silu, gelu outside nn.ReLU modules",
        "the layer's layout is NHWC",
    ]
    for method in ("grad_cam", "guided_backprop", "guided_grad_cam"):
        assert reach.reasons(method, RELUS) == []
        assert Reach().reasons(method, TOKENS) == []
    assert reach.reasons("grad_cam", TOKENS) == ["the layer's layout is tokens"]
    assert reach.reasons("deconvnet", Facts(True, ("gelu",), "tokens")) == reach.reasons("guided_backprop", TOKENS)
    assert reach.reasons("saliency", TOKENS) == []


def test_plain_gradients_are_checked():
    gradient = torch.randn(1, 3, 4, 4)
    check_plain(gradient, gradient.clone(), "them")
    with pytest.raises(DisagreementError, match="not the plain gradient"):
        check_plain(gradient, gradient.clamp(min=0), "them")


class Mixed(nn.Module):
    """A ReLU module, functions outside of it, and a gate."""

    def __init__(self, *functions):
        super().__init__()
        self.convolution, self.relu, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 2)
        self.functions = functions

    def forward(self, x):
        x = self.relu(self.convolution(x))
        for function in self.functions:
            x = function(x)
        return self.head((x * x.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)))


@pytest.mark.parametrize(
    ("functions", "others"),
    [
        ((), ()),
        ((F.relu,), ("relu",)),
        ((torch.relu, torch.Tensor.relu_), ("relu",)),
        ((F.silu, nn.GELU(), nn.GELU()), ("silu", "gelu")),
        ((nn.ReLU6(), nn.Hardswish()), None),
    ],
)
def test_activations_are_seen_where_they_are_called(functions, others):
    model, x = Mixed(*functions).eval(), torch.rand(1, 3, 8, 8)
    found = facts_of(model, find_target_layer(model, (3, 8, 8)), x)
    assert found.relus and found.layout == "NCHW"
    if others is None:
        assert "hardswish" in found.others and len(found.others) == 2
    else:
        assert found.others == others
    assert not model.relu._forward_hooks and not model.relu._forward_pre_hooks
    model.relu = nn.Identity()
    assert not facts_of(model, find_target_layer(model, (3, 8, 8)), x).relus


def test_subjects():
    state = torch.random.get_rng_state()
    subject = build("test_resnet", "cpu", torch.float32, 0)
    again = build("test_resnet", "cpu", torch.float32, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    parameters = dict(subject.model.named_parameters())
    assert all(torch.equal(p, parameters[name]) for name, p in again.model.named_parameters())
    norms = [m.weight for m in subject.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(weight.abs().max() > 0.5 for weight in norms)
    assert any(m.weight.abs().max() == 0 for m in timm.create_model("test_resnet").modules() if hasattr(m, "eps"))
    shown = subject.with_images(3, 1)
    assert shown.x.shape == (3, 3, 160, 160) and shown.targets == [0, 7, 4]
    assert torch.equal(shown.first(2).x, shown.x[:2]) and torch.equal(subject.with_images(3, 1).x, shown.x)
    copied = shown.copied(torch.float64, channels_last=True, frozen=True)
    assert copied.x.dtype == next(copied.model.parameters()).dtype == torch.float64
    assert copied.x.is_contiguous(memory_format=torch.channels_last)
    assert copied.layer is copied.model.get_submodule(shown.target_layer.name) and copied.layer is not shown.layer
    assert not any(p.requires_grad for p in copied.model.parameters())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in subject.model.parameters())
    assert build("swin_tiny", "meta", torch.float32, 0).facts.layout == "NHWC"


@pytest.mark.parametrize("chosen", [{}, {"memory_format": "channels_last"}])
def test_bounds_are_the_bare_passes(chosen):
    model, x = seeded(ConvNet), images(3)
    subject = subjects.Subject("tiny", model, find_target_layer(model, x.shape[1:]), x, RELUS)
    with torch.no_grad():
        torch.testing.assert_close(sides.bound(subject, "grad_cam", "cpu", chosen)(), model(x))
    subject = subjects.replace(subject, x=x[:1])
    y = model(subject.x.requires_grad_())[0, 0]
    (expected,) = torch.autograd.grad(y, subject.x)
    torch.testing.assert_close(sides.bound(subject, "deconvnet", "cpu", chosen)(), expected)
    torch.testing.assert_close(sides.plain_gradient(subject), expected)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_bounds_of_the_best_mode_are_in_bfloat16():
    subject = build("test_resnet", "cpu", torch.float32, 0)
    found = sides.bound(subject, "grad_cam", "cpu", {"precision": "bfloat16"})()
    assert found.dtype == torch.bfloat16
    assert sides.bound(subject, "grad_cam", "cpu", {"memory_format": "channels_last"})().dtype == torch.float32


def test_closeness_by_hand():
    exact = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]], [[[0.0, 1.0], [2.0, 3.0]]]])
    maps = exact.clone()
    assert closeness(maps**3, exact, at_layer=True) == {"rank_correlation": pytest.approx(1)}
    maps[1] = -maps[1]  # one image's order is reversed: 1 and -1
    assert closeness(maps, exact, at_layer=True) == {"rank_correlation": pytest.approx(0)}
    blocks = torch.randn(1, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    fine = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(14, 14)  # gone when pooled
    found = closeness(fine + checker, fine, at_layer=False)
    assert found["pooled_correlation"] == pytest.approx(1)
    assert closeness(-fine, fine, at_layer=False) == dict.fromkeys(found, pytest.approx(-1))
    variance = float(fine.double().var(correction=0))
    assert found["raw_correlation"] == pytest.approx((variance / (variance + 1)) ** 0.5, abs=1e-3)


def test_tf32_is_off_while_maps_are_compared():
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), agreement.without_tf32():
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert flags == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


def test_commits_of_changed_code_are_marked(monkeypatch):
    answers = {"status": "", "rev-parse": "abc1234"}

    class Done:
        def __init__(self, stdout):
            self.stdout = stdout

    monkeypatch.setattr(pairs.subprocess, "run", lambda words, **_: Done(answers[words[1]] + "\n"))
    assert pairs.commit() == "abc1234"
    answers["status"] = " M a.py"
    assert pairs.commit() == "abc1234+"


def test_maps_that_are_nothing_everywhere_agree():
    nothing, something = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 1e-3)
    assert agreement.agrees(agreement.compared(nothing, nothing))
    assert not agreement.agrees(agreement.compared(something, nothing))
    assert not agreement.agrees(agreement.compared(nothing, something))
