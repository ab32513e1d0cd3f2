"""Not only photos: signals, volumes, channels at the end, tokens."""

from __future__ import annotations

import pytest
import torch
from methods import CASES, INPUT_SIZE, LAYER_SIZE, NAMES, make
from models import ChannelsLast, TokenNet, seeded, signal_net, volume_net
from torch import Tensor, nn
from torch.testing import assert_close

import drnet_captum as dc

SHAPES = {1: (2, 2, 9), 2: (2, 3, 7, 5), 3: (2, 1, 4, 5, 3)}


def example(dimensions: int) -> Tensor:
    return torch.randn(SHAPES[dimensions], generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize(("make_model", "dimensions"), [(signal_net, 1), (volume_net, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_signals_and_volumes(name, make_model, dimensions, found):
    model, x = seeded(make_model).double(), example(dimensions)
    options = {"layer": None if found else "1"} if CASES[name].init else {}
    maps = make(name, model, **options).attribute(x, target=1, **CASES[name].fast)
    assert maps.shape == (x.shape if name in INPUT_SIZE else (2, 1, *x.shape[2:])) and maps.isfinite().all()


@pytest.mark.parametrize(("make_model", "dimensions"), [(signal_net, 1), (volume_net, 3)])
def test_explain_signals_and_volumes(make_model, dimensions):
    model, x = seeded(make_model).double(), example(dimensions)
    for name, maps in dc.explain(model, x, classes=[1, 2], methods="all").items():
        assert maps.shape == (2, *(x.shape if name in INPUT_SIZE else (2, 1, *x.shape[2:])))


class ChannelsFirst(nn.Module):
    """The same network as a ChannelsLast one, whose layer puts out (N, C, …)."""

    def __init__(self, model: ChannelsLast) -> None:
        super().__init__()
        self.model, self.layer = model, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.model.body(self.model.conv(x).movedim(1, -1)).movedim(-1, 1))
        return self.model.fc(x.flatten(2).mean(2))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", [*LAYER_SIZE, "guided_grad_cam"])
def test_channels_at_the_end(name, dimensions):
    x = example(dimensions)
    model = seeded(ChannelsLast, dimensions, x.shape[1]).double()
    maps = make(name, model, layer="body").attribute(x, target=1)
    assert_close(maps, make(name, ChannelsFirst(model).eval(), layer="layer").attribute(x, target=1))


def tokens() -> Tensor:
    return torch.randint(0, 20, (2, 7), generator=torch.Generator().manual_seed(0))


def embedded(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The embedding of the tokens, and the gradient of score 1 with respect to it."""
    e = model.embedding(tokens()).detach().requires_grad_()
    y = model.fc2(nn.functional.gelu(model.fc1(e)).mean(1))[:, 1]
    return e.detach(), torch.autograd.grad(y.sum(), e)[0]


@pytest.mark.parametrize(
    ("cls", "formula"),
    [
        (dc.GradXImage, lambda e, g: (e * g).sum(2)),
        (dc.HiResCAM, lambda e, g: (e * g).sum(2)),
        (dc.LayerCAM, lambda e, g: (e * g.clamp(min=0)).sum(2)),
        (dc.GradCAM, lambda e, g: (e * g.mean(1, keepdim=True)).sum(2)),
    ],
)
def test_tokens(cls, formula):
    model = seeded(TokenNet).double()
    maps = cls(model, model.embedding).attribute(tokens(), target=1)
    assert_close(maps, formula(*embedded(model)))
    shown = dc.explain(model, tokens(), 1, layer="embedding")
    assert all(m.shape == (2, 7) for m in shown.values()) and "grad_x_image" in shown


@pytest.mark.parametrize("cls", [dc.GuidedBackprop, dc.DeconvNet])
def test_rules_at_the_embedding_of_tokens(cls):
    model = seeded(TokenNet).double()
    maps = cls(model, "embedding").attribute(tokens(), target=1)
    assert maps.shape == (2, 7) and maps.isfinite().all()


def test_tokens_need_their_embedding():
    model = seeded(TokenNet)
    with pytest.raises(TypeError, match=r"layer=.*embedding"):
        dc.explain(model, tokens(), 1)
    with pytest.raises(TypeError, match=r"layer=.*embedding"):
        dc.GradXImage(model).attribute(tokens(), target=1)
