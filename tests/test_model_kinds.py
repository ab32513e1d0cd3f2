"""Discovery on models of other makes, in other modes: what they state, what wraps them, how they are run."""

import warnings
from types import SimpleNamespace

import pytest
import timm
import torch
from models import CLASSES, Answers, ConvNet, FunctionalConvNet, images, seeded
from structure import is_cut, live_share
from timm.models.hiera import Hiera
from torch import nn
from torch.nn import functional as F

from drnet_captum import GradCAM, LayerDiscoveryError, LogitsOf, find_cut_layers, find_target_layer
from drnet_captum.layers.layout import Placement, placement_of

pytestmark = pytest.mark.usefixtures("every_node_lean")


def timm_model(name, **options):
    return seeded(timm.create_model, name, num_classes=4, **options)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v))


class Tokens(nn.Module):
    """A transformer that states nothing of itself: a class token, two registers, patches of 8×8."""

    def __init__(self, depth=3, read=slice(1)):
        super().__init__()
        self.read = read
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.first = nn.Parameter(torch.randn(1, 3, 16))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, self.read].mean(1))


class Normalize(nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.25


class States(nn.Module):
    """What a model may state of itself."""

    def __init__(self, **statements):
        super().__init__()
        for name, value in statements.items():
            setattr(self, name, value)


def summary(layer):
    return layer.name, layer.layout, layer.grid, layer.prefix_tokens


@pytest.mark.parametrize(("size", "grid"), [((32, 48), (4, 6)), ((96, 32), (12, 4)), ((64, 64), (8, 8))])
def test_shapes_tell_where_a_model_states_nothing(size, grid):
    model, x = seeded(Tokens), images(1, size=size)
    found = find_target_layer(model, (3, *size))
    assert summary(found) == ("blocks.1", "tokens", grid, 3)
    assert is_cut(model, found.module, x)
    assert live_share(model, found, x) == 1
    assert GradCAM(model).attribute(x, target=1).shape == (1, 1, *grid)


@pytest.mark.parametrize(("read", "layer"), [(slice(3, 15), 1), (slice(15), 1), (slice(16), 2), (slice(3, 16), 2)])
def test_more_than_half_of_the_grid_decides_without_the_tokens_before_it(read, layer):
    """Of 24 patches after three other tokens, the head averages 12 or 13."""
    model = seeded(Tokens, read=read)
    assert find_target_layer(model, (3, 32, 48)).name == f"blocks.{layer}"


@pytest.mark.parametrize(("classes", "layer"), [(0, "2"), (6, "0"), (None, "0")])
def test_the_last_convolution_of_a_headless_model_is_no_classifier(classes, layer):
    """Six averaged maps are six scores, unless the model says that it has no classes."""
    steps = (nn.Conv2d(3, 4, 3), nn.Identity(), nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*steps).eval()
    if classes is not None:
        model.num_classes = classes
    assert find_target_layer(model, (3, 12, 12)).name == layer


def test_statements_decide_between_layouts_that_fit():
    tokens, image = (1, 10, 8), (1, 3, 32, 32)
    assert placement_of(tokens, image) == Placement("tokens", (3, 3), 8, 1)
    assert placement_of(tokens, image, States(num_prefix_tokens=6)) == Placement("tokens", (2, 2), 8, 6)
    assert placement_of(tokens, image, nn.Sequential(States(num_prefix_tokens=6))).prefix_tokens == 6
    assert placement_of(tokens, image, States(num_prefix_tokens=5)).prefix_tokens == 1  # there is no grid of 5
    maps = (1, 4, 4, 4)
    assert placement_of(maps, image).layout == "NCHW"
    assert placement_of(maps, image, States(output_fmt="NHWC")) == Placement("NHWC", (4, 4), 4)
    assert placement_of((1, 6, 4, 4), image, States(output_fmt="NHWC")).layout == "NCHW"  # a layer before the change


def test_patches_of_a_padded_image_are_counted_in_full():
    assert placement_of((1, 35, 8), (1, 3, 32, 48)) == Placement("tokens", (5, 7), 8)  # 7×7, the last ones padded


def test_the_channels_of_a_convolution_over_flattened_positions_are_no_tokens():
    """(N, C, h·w), and C happens to be a square number."""

    class Flattened(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).flatten(2)).mean(2)

    model = Flattened(nn.Conv2d(3, 4, 8, stride=8), nn.Conv1d(4, 16, 1)).eval()
    assert [layer.name for layer in find_cut_layers(model, (3, 32, 32))] == ["0"]


def test_patches_that_are_not_square_are_known_where_a_model_states_its_grid():
    shape, image = (1, 8, 5), (1, 3, 32, 32)
    stating = States(num_prefix_tokens=0, patch_embed=SimpleNamespace(grid_size=(2, 4)))
    assert placement_of(shape, image, stating) == Placement("tokens", (2, 4), 5)
    assert placement_of((1, 11, 5), image, States(num_prefix_tokens=3, patch_embed=stating.patch_embed)).grid == (2, 4)


def test_tokens_of_a_model_that_orders_them_otherwise_are_no_rows():
    model = seeded(Hiera, img_size=(64, 64), num_classes=4, embed_dim=16, num_heads=1, stages=(1, 1, 1, 1))
    found, layers = find_target_layer(model, (3, 64, 64)), find_cut_layers(model, (3, 64, 64))
    assert summary(found) == ("blocks.3", "tokens", (2, 2), 0)
    assert [layer.name for layer in layers if layer.layout == "tokens"] == ["blocks.3"]


def test_a_wrapper_hides_no_statement():
    vit = timm_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=16, num_heads=2, reg_tokens=5)
    assert find_target_layer(nn.Sequential(Normalize(), vit).eval()).prefix_tokens == 6
    assert find_target_layer(nn.Sequential(Normalize(), vit).eval()).grid == (2, 2)
    wrapped = nn.Sequential(Normalize(), timm_model("test_vit")).eval()
    assert summary(find_target_layer(wrapped)) == ("1.blocks.4", "tokens", (10, 10), 1)
    wrapped = nn.Sequential(Normalize(), timm_model("test_mambaout")).eval()
    assert summary(find_target_layer(wrapped)) == ("1.stages", "NHWC", (5, 5), 0)


@pytest.mark.parametrize("name", ["test_vit", "test_mambaout"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_caller_may_have_gradients_off(name, mode):
    model, x = timm_model(name), images(1, size=(160, 160))
    expected = GradCAM(timm_model(name)).attribute(x, target=1)
    with mode():
        assert find_target_layer(model).grid == expected.shape[2:]
        torch.testing.assert_close(GradCAM(model).attribute(x.clone(), target=1), expected)


def test_parameters_made_in_inference_mode_raise():
    with torch.inference_mode():
        model = timm_model("test_vit")
    for find in (find_target_layer, find_cut_layers):
        with pytest.raises(ValueError, match="inference_mode") as raised:
            find(model)
        assert "input_size" not in str(raised.value)


@pytest.mark.parametrize(("name", "grid"), [("test_vit", (10, 10)), ("test_mambaout", (5, 5)), ("test_resnet", (5, 5))])
def test_half_precision(name, grid):
    model = timm_model(name).bfloat16()
    assert summary(find_target_layer(model)) == summary(find_target_layer(timm_model(name)))
    found = GradCAM(model).attribute(images(1, size=(160, 160)).bfloat16(), target=1)
    assert found.shape == (1, 1, *grid)
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["test_vit", "test_mambaout", "test_resnet"])
def test_the_model_is_left_as_it_was(name, train):
    model = timm_model(name, drop_path_rate=0.1).train(train)
    next(model.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    values, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    find_target_layer(model)
    torch.testing.assert_close(dict(model.state_dict()), values, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training is train and not m._forward_hooks for m in model.modules())
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes


def test_each_input_size_has_its_own_grid():
    model = timm_model("test_vit", dynamic_img_size=True)
    for _ in range(2):
        for size, grid in (((160, 96), (10, 6)), ((96, 160), (6, 10)), ((64, 64), (4, 4))):
            assert find_target_layer(model, (3, *size)).grid == grid
            assert GradCAM(model).attribute(images(1, size=size), target=1).shape[2:] == grid


@pytest.mark.parametrize("make", [ConvNet, FunctionalConvNet])
@pytest.mark.parametrize(
    ("form", "key"),
    [
        (lambda y: SimpleNamespace(logits=y), "logits"),
        (lambda y: {"out": y, "aux": None}, "out"),
        (lambda y: {"logits": y, "aux": y + 1}, "logits"),
    ],
    ids=["object", "dict", "dict with logits"],
)
def test_logits_of_a_model_that_answers_with_more(make, form, key):
    inner, x = seeded(make), images(2)
    model = LogitsOf(Answers(inner, form).eval(), key)
    torch.testing.assert_close(model(x), inner(x))
    assert model(x=x).shape == (2, CLASSES)
    found = find_target_layer(model, (3, 12, 10))
    plain = find_target_layer(inner, (3, 12, 10))
    assert (found.name, found.module) == ("model.model." + plain.name, plain.module)
    torch.testing.assert_close(GradCAM(model).attribute(x, target=1), GradCAM(inner).attribute(x, target=1))


def test_logits_that_are_not_there_raise():
    x, inner = images(1), seeded(ConvNet)
    with pytest.raises(TypeError, match="'logits', got the keys 'out', 'aux': pass key="):
        LogitsOf(Answers(inner, lambda y: {"out": y, "aux": y}))(x)
    with pytest.raises(TypeError, match="'scores', got SimpleNamespace: pass key="):
        LogitsOf(Answers(inner, lambda y: SimpleNamespace(logits=y)), "scores")(x)
    with pytest.raises(TypeError, match="'logits', got Tensor"):
        LogitsOf(inner)(x)
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got function"):
        LogitsOf(lambda x: x)
    with pytest.raises(LayerDiscoveryError, match="pass key="):
        find_target_layer(LogitsOf(inner), (3, 12, 10))


@pytest.mark.parametrize("train", [False, True])
def test_logits_of_a_model_are_in_its_mode(train):
    inner = seeded(ConvNet).train(train)
    assert LogitsOf(inner).training is inner.training is train


HUGGING_FACE = {
    "ViT": ({"hidden_size": 32, "patch_size": 8}, ("vit.layers.0", "tokens", (4, 4), 1)),
    "DeiT": ({"hidden_size": 32, "patch_size": 8}, ("deit.layers.0", "tokens", (4, 4), 2)),
    "Swin": ({"embed_dim": 24, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}, ("", "tokens", (4, 4), 0)),
    "ResNet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, ("", "NCHW", (4, 4), 0)),
    "ConvNext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, ("", "NCHW", (4, 4), 0)),
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_classifiers(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other library, at import
        hub = pytest.importorskip("transformers")
        options, (ending, *rest) = HUGGING_FACE[name]
        if "hidden_size" in options:
            options = {**options, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = getattr(hub, f"{name}Config")(num_labels=3, **options)
        config.image_size = 32
        model = LogitsOf(seeded(getattr(hub, f"{name}ForImageClassification"), config))
    found, x = find_target_layer(model), images(2, size=(32, 32))
    assert list(summary(found)[1:]) == rest
    assert found.name.endswith(ending)
    assert is_cut(model, found.module, x) and live_share(model, found, x) == 1
    assert GradCAM(model).attribute(x, target=1).shape == (2, 1, 4, 4)
