"""Maps of token and channels-last models: their shapes, and their numbers against ones worked out by hand."""

import pytest
import timm
import torch
from models import ChannelsLast, images, seeded
from torch import nn
from torch.nn import functional as F

import drnet_captum as dc

LAYER_MAPS = [dc.GradCAM, dc.GradCAMPlusPlus, dc.LayerCAM, dc.HiResCAM, dc.XGradCAM, dc.EigenCAM, dc.ScoreCAM]
GRIDS = {"test_vit": (10, 10), "test_mambaout": (5, 5)}


def timm_model(name, **options):
    return seeded(timm.create_model, name, num_classes=4, **options)


class Tokens(nn.Module):
    """Patches, a block without norms, and a linear layer of their mean; a class token beside them if asked for."""

    def __init__(self, class_token=False, norm=False):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.class_token = nn.Parameter(torch.randn(1, 1, 8)) if class_token else None
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        x = self.block(x)
        return self.head(self.norm(x if self.class_token is None else x[:, 1:]).mean(1))


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("method", LAYER_MAPS)
def test_layer_maps_have_the_grid_of_the_layer_that_was_found(method, name):
    model, x = timm_model(name), images(2, size=(160, 160))
    found = method(model).attribute(x, target=[1, 3])
    assert found.shape == (2, 1, *GRIDS[name])
    assert found.isfinite().all()
    assert (found != 0).double().mean() > 0.5


@pytest.mark.parametrize("name", GRIDS)
def test_all_maps_of_one_recording_are_those_of_the_classes(name):
    model, x = timm_model(name), images(1, size=(160, 160))
    found = dc.explain(model, x, 2, methods=("grad_cam", "layer_cam", "guided_grad_cam", "grad_x_image"))
    assert found["guided_grad_cam"].shape == found["grad_x_image"].shape == x.shape
    for key, method in (("grad_cam", dc.GradCAM), ("layer_cam", dc.LayerCAM)):
        small = method(model).attribute(x, target=2)
        assert small.shape == (1, 1, *GRIDS[name])
        torch.testing.assert_close(found[key], F.interpolate(small, (160, 160), mode="bilinear"))
    torch.testing.assert_close(found["guided_grad_cam"], dc.GuidedGradCAM(model).attribute(x, target=2))


WEIGHTS = {
    dc.GradCAM: lambda gradient: gradient.mean((2, 3), keepdim=True),
    dc.HiResCAM: lambda gradient: gradient,
    dc.LayerCAM: lambda gradient: gradient.relu(),
}


def by_hand(model, layer, x, target, arrange, weights):
    """A map from a hook and a gradient; ``arrange`` makes (N, C, h, w) of the layer's output."""
    kept = []
    handle = layer.register_forward_hook(lambda m, args, out: kept.append(out))
    try:
        output = model(x.clone().requires_grad_())
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(output[:, target].sum(), kept)
    return (weights(arrange(gradient)) * arrange(kept[0])).sum(1, keepdim=True).detach()


def rows(prefix, h, w):
    """Tokens (N, prefix + h·w, C) as (N, C, h, w), one place at a time."""
    return lambda t: torch.stack([torch.stack([t[:, prefix + i * w + j] for j in range(w)], -1) for i in range(h)], -2)


@pytest.mark.parametrize("method", WEIGHTS)
@pytest.mark.parametrize(
    ("name", "options", "layer", "size", "arrange"),
    [
        ("test_vit", {}, "blocks.4", (160, 160), rows(1, 10, 10)),
        ("test_vit", {"dynamic_img_size": True}, "blocks.4", (64, 96), rows(1, 4, 6)),
        ("test_vit", {"reg_tokens": 4, "dynamic_img_size": True}, "blocks.4", (96, 64), rows(5, 6, 4)),
        ("test_vit2", {}, "blocks", (160, 160), rows(1, 10, 10)),
        ("test_mambaout", {}, "stages", (96, 160), lambda t: t.permute(0, 3, 1, 2)),
    ],
    ids=["class token", "not square", "registers", "mean of patches", "channels last"],
)
def test_maps_are_those_worked_out_by_hand(method, name, options, layer, size, arrange):
    model, x = timm_model(name, **options).double(), images(2, size=size, dtype=torch.float64)
    expected = by_hand(model, model.get_submodule(layer), x, 3, arrange, WEIGHTS[method])
    found = method(model).attribute(x, target=3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(method(model, layer=layer).attribute(x, target=3), expected)
    assert expected.abs().max() > 0


@pytest.mark.parametrize("method", [dc.GradCAM, dc.LayerCAM, dc.EigenCAM])
def test_a_layer_that_was_asked_for_gives_a_grid_too(method):
    model, x = timm_model("test_vit", dynamic_img_size=True), images(2, size=(64, 96))
    assert method(model, layer="blocks.2").attribute(x, target=1).shape == (2, 1, 4, 6)
    assert method(model, layer=model.blocks[2].norm1).attribute(x, target=1).shape == (2, 1, 4, 6)


def test_the_last_block_of_a_class_token_model_gives_zeros_when_asked_for():
    model, x = timm_model("test_vit"), images(1, size=(160, 160))
    assert not dc.GradCAM(model, layer="blocks.5").attribute(x, target=1).any()


@pytest.mark.parametrize("class_token", [False, True])
def test_cam_is_exact_on_the_mean_of_tokens(class_token):
    model, x = seeded(Tokens, class_token).double(), images(2, size=(16, 24), dtype=torch.float64)
    found = dc.CAM(model).attribute(x, target=2)
    assert found.shape == (2, 1, 4, 6)
    torch.testing.assert_close(found.mean((1, 2, 3)) + model.head.bias[2], model(x)[:, 2])
    tokens = []
    with torch.no_grad():
        handle = model.block.register_forward_hook(lambda m, args, out: tokens.append(out))
        model(x)
        handle.remove()
    expected = F.linear(tokens[0], model.head.weight[2:3])[:, int(class_token) :].mT.unflatten(2, (4, 6))
    torch.testing.assert_close(found, expected)


def test_cam_is_exact_on_channels_last():
    model, x = seeded(ChannelsLast, 2).double(), images(2, dtype=torch.float64)
    found = dc.CAM(model).attribute(x, target=1)
    assert found.shape == (2, 1, *x.shape[2:])
    torch.testing.assert_close(found.mean((1, 2, 3)) + model.fc.bias[1], model(x)[:, 1])


def test_cam_raises_where_the_head_is_no_average():
    with pytest.raises(ValueError, match=r"NativeLayerNorm.*use GradCAM"):
        dc.CAM(seeded(Tokens, norm=True), layer="block").attribute(images(1, size=(16, 24)), target=1)
    for name in ("test_vit2", "test_vit3", "test_mambaout"):
        with pytest.raises(ValueError, match="use GradCAM"):
            dc.CAM(timm_model(name)).attribute(images(1, size=(160, 160)), target=1)


def test_cam_of_tokens_is_exact_after_the_norm():
    """Norm, then mean, then linear: the norm's own output is a layer whose head is affine."""
    model, x = seeded(Tokens, norm=True), images(1, size=(16, 24))
    found = dc.CAM(model).attribute(x, target=1)
    torch.testing.assert_close(found.mean() + model.head.bias[1], model(x)[0, 1])
    assert dc.find_target_layer(model, (3, 16, 24)).name == "norm"
