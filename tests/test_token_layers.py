"""Target layers of models of tokens or with channels last: what they are, and that they are what they claim to be."""

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from structure import activation_map, is_cut, kept_output, live_share
from timm.models.levit import LevitDistilled
from timm.models.mlp_mixer import GatedMlp, MlpMixer, SpatialGatingBlock
from timm.models.nest import Nest
from timm.models.volo import VOLO

from drnet_captum import LayerDiscoveryError, find_cut_layers, find_target_layer


def timm_model(name, **options):
    return partial(timm.create_model, name, num_classes=4, **options)


SMALL = {"num_classes": 4, "img_size": 64}
MIXER = {"patch_size": 16, "num_blocks": 2, "embed_dim": 32}
gmlp = partial(MlpMixer, **SMALL, **MIXER, mlp_ratio=6, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp)
levit = partial(LevitDistilled, **SMALL, embed_dim=(16, 32), num_heads=(2, 2), depth=(1, 1), key_dim=8)
nest = partial(Nest, **SMALL, num_levels=2, embed_dims=(8, 16), num_heads=(1, 2), depths=(1, 1))
volo = partial(VOLO, (1, 1, 1, 1), **SMALL, embed_dims=(24, 48, 48, 48), num_heads=(1, 2, 2, 2))
coat = timm_model("coat_tiny", embed_dims=(16, 16, 16, 16), serial_depths=(1, 1, 1, 1), parallel_depth=1)
crossvit = timm_model("crossvit_tiny_240", depth=((1, 1, 0),) * 3)

#: How it is made, the image's size, and what is found: name, layout, grid, prefix tokens.
MODELS = {
    "ViT": (timm_model("test_vit"), (160, 160), ("blocks.4", "tokens", (10, 10), 1)),
    "ViT, mean of all patches": (timm_model("test_vit2"), (160, 160), ("blocks", "tokens", (10, 10), 1)),
    "ViT, attention pooling": (timm_model("test_vit3"), (160, 160), ("norm", "tokens", (10, 10), 1)),
    "ViT, pooled as SigLIP": (timm_model("test_vit4"), (160, 160), ("blocks", "tokens", (10, 10), 1)),
    "ViT, any size": (timm_model("test_vit", dynamic_img_size=True), (160, 96), ("blocks.4", "tokens", (10, 6), 1)),
    "ViT, made for 96×160": (timm_model("test_vit", img_size=(96, 160)), (96, 160), ("blocks.4", "tokens", (6, 10), 1)),
    "ViT, registers": (timm_model("test_vit", reg_tokens=4), (160, 160), ("blocks.4", "tokens", (10, 10), 5)),
    "ViT, registers, any size": (
        timm_model("test_vit", reg_tokens=4, dynamic_img_size=True),
        (224, 320),
        ("blocks.4", "tokens", (14, 20), 5),
    ),
    "DeiT, distilled": (
        timm_model("deit_tiny_distilled_patch16_224", img_size=64, depth=3),
        (64, 64),
        ("blocks.1", "tokens", (4, 4), 2),
    ),
    "BEiT": (
        timm_model("beit_base_patch16_224", img_size=64, depth=2, embed_dim=32, num_heads=2),
        (64, 64),
        ("blocks.1", "tokens", (4, 4), 1),
    ),
    "EVA": (timm_model("eva02_tiny_patch14_224", img_size=56, depth=2), (56, 56), ("blocks.1", "tokens", (4, 4), 1)),
    "CaiT": (timm_model("cait_xxs24_224", img_size=64, depth=2), (64, 64), ("blocks", "tokens", (4, 4), 0)),
    "XCiT": (timm_model("xcit_nano_12_p16_224", depth=2), (96, 64), ("cls_attn_blocks.0", "tokens", (6, 4), 1)),
    "VOLO": (volo, (64, 64), ("post_network.0", "tokens", (4, 4), 1)),
    "PiT": (
        timm_model("pit_ti_224", img_size=64),
        (64, 64),
        ("transformers.2.blocks.2", "tokens", (2, 2), 1),
    ),
    "PiT, distilled": (
        timm_model("pit_ti_distilled_224", img_size=64),
        (64, 64),
        ("transformers.2.blocks.2", "tokens", (2, 2), 2),
    ),
    "TNT": (
        timm_model("tnt_s_legacy_patch16_224", img_size=64, depth=2),
        (64, 64),
        ("blocks.0", "tokens", (4, 4), 1),
    ),
    "LeViT": (levit, (64, 64), ("stages", "tokens", (2, 2), 0)),
    "MLP-Mixer": (partial(MlpMixer, **SMALL, **MIXER), (64, 64), ("norm", "tokens", (4, 4), 0)),
    "gMLP": (gmlp, (64, 64), ("norm", "tokens", (4, 4), 0)),
    "Nest": (nest, (64, 64), ("norm", "NHWC", (8, 8), 0)),
    "MambaOut": (timm_model("test_mambaout"), (160, 160), ("stages", "NHWC", (5, 5), 0)),
    "MambaOut, wide": (timm_model("test_mambaout"), (64, 96), ("stages", "NHWC", (2, 3), 0)),
    "ResNet": (timm_model("test_resnet"), (64, 96), ("layer4", "NCHW", (2, 3), 0)),
    "CoAtNet": (timm_model("test_coatnet"), (160, 160), ("norm", "NCHW", (5, 5), 0)),
    "MaxViT": (timm_model("test_maxvit"), (160, 160), ("norm", "NCHW", (5, 5), 0)),
}
NAMES = list(MODELS)
#: A few positions that each see the whole image, through pooling and attention, show no quarters of it.
IN_PLACE = [name for name in NAMES if name not in ("PiT", "PiT, distilled", "LeViT", "MambaOut, wide")]


def made(make, seed=0):
    """The model with random weights throughout: what starts at zero would let no gradient through."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval().requires_grad_(False)
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def image(size, n=1, seed=1):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def summary(layer):
    return layer.name, layer.layout, layer.grid, layer.prefix_tokens


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_found_is_a_cut_whose_positions_receive_gradient(name):
    make, size, expected = MODELS[name]
    model, x = made(make), image(size)
    found = find_target_layer(model, (3, *size))
    assert summary(found) == expected
    assert found.module is model.get_submodule(found.name)
    assert found in find_cut_layers(model, (3, *size))
    assert is_cut(model, found.module, x)
    assert live_share(model, found, x) > 0.5
    assert activation_map(model, found, x).shape == (1, found.channels, *found.grid)


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_change_in_one_quarter_of_the_image_shows_in_that_quarter_of_the_map(name):
    make, size, _ = MODELS[name]
    model, x = made(make), image(size)
    found = find_target_layer(model, (3, *size))
    before = activation_map(model, found, x)
    for quarter in range(4):
        changed = x.clone()
        part(changed, quarter).add_(2 * torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(quarter)))
        difference = (activation_map(model, found, changed) - before).abs().sum(1, keepdim=True)
        means = torch.stack([part(difference, i).mean() for i in range(4)])
        assert int(means.argmax()) == quarter, means


def part(maps, quarter):
    """One quarter of (N, C, h, w), a view; of an odd number of rows or columns the one in the middle is in none."""
    down, right = divmod(quarter, 2)
    h, w = maps.shape[2:]
    rows = slice(h - h // 2, h) if down else slice(0, h // 2)
    return maps[:, :, rows, slice(w - w // 2, w) if right else slice(0, w // 2)]


@pytest.mark.parametrize(
    ("name", "last", "read"),
    [
        ("ViT", "blocks", [0]),
        ("ViT, registers, any size", "blocks", [0]),
        ("DeiT, distilled", "blocks", [0, 1]),
        ("TNT", "blocks.1", [0]),
    ],
)
def test_the_last_block_of_a_class_token_model_is_a_cut_that_shows_nothing(name, last, read):
    """The naive answer: past it only the class token is read, so a gradient map over its patches is zero."""
    make, size, _ = MODELS[name]
    model, x = made(make), image(size)
    found = find_target_layer(model, (3, *size))
    naive = replace(found, name=last, module=model.get_submodule(last))
    assert naive in find_cut_layers(model, (3, *size))
    assert is_cut(model, naive.module, x)
    assert live_share(model, naive, x) == 0
    output, values = kept_output(model, naive.module, x.requires_grad_())
    (gradient,) = torch.autograd.grad(output[:, 1].sum(), values[-1])
    assert gradient[0].abs().sum(1).nonzero().flatten().tolist() == read


@pytest.mark.parametrize(
    ("make", "size", "ends"),
    [(crossvit, 240, "blocks.2.blocks.0 (20, 20), blocks.2.blocks.1 (14, 14)"), (coat, 224, "serial_blocks4.0 (7, 7)")],
    ids=["CrossViT", "CoaT"],
)
def test_several_branches_to_the_answer_are_named(make, size, ends):
    model = made(make)
    with pytest.raises(LayerDiscoveryError, match="ends in several branches") as raised:
        find_target_layer(model, (3, size, size))
    assert ends in str(raised.value)
    assert "pass layer=" in str(raised.value)


def test_either_branch_alone_is_no_cut():
    model, x = made(crossvit), image((240, 240))
    for name in ("blocks.2.blocks.0", "blocks.2.blocks.1"):
        assert not is_cut(model, model.get_submodule(name), x)
    assert is_cut(model, model.get_submodule("blocks.2"), x)


@pytest.mark.parametrize("name", ["ViT", "XCiT", "CaiT", "VOLO", "MambaOut, wide", "Nest", "PiT, distilled", "CoAtNet"])
def test_models_without_weights_have_the_same_layer(name):
    make, size, expected = MODELS[name]
    with torch.device("meta"):
        model = make().eval()
    found = find_target_layer(model, (3, *size))
    assert summary(found) == expected
    assert activation_map(model, found, torch.empty(1, 3, *size, device="meta")).shape[2:] == found.grid
