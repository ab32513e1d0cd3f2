"""Layer discovery: that cut layers cut, tested on the models themselves; the target layers of many families."""

import gc
import weakref

import pytest
import timm
import torch
import torchvision
from torch import nn

from drnet_captum import LayerDiscoveryError, find_cut_layers, find_target_layer
from drnet_captum.layers.discovery import target_layer_for
from drnet_captum.layers.layout import in_proportion, placement_of


def torchvision_model(name, **options):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, num_classes=4, **options).eval()


def timm_model(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=4, **options).eval()


def cut_at(model, layer, x):
    """The output with the layer's output cut off from the input, differentiable by the input where a path is left."""
    handle = layer.register_forward_hook(lambda m, args, out: out.detach())
    try:
        return model(x)
    finally:
        handle.remove()


SIZE = (3, 64, 96)
#: Name → target layer, its grid and channels for images of 64×96.
TORCHVISION = {
    "resnet18": ("layer4", (2, 3), 512),
    "squeezenet1_1": ("features", (3, 5), 512),
    "vgg11_bn": ("features", (2, 3), 512),
    "densenet121": (None, (2, 3), 1024),
    "googlenet": ("inception5b", (2, 3), 1024),
    "efficientnet_b0": ("features", (2, 3), 1280),
    "mobilenet_v3_small": ("features", (2, 3), 576),
    "shufflenet_v2_x0_5": ("conv5", (2, 3), 1024),
    "alexnet": (None, (1, 2), 256),
}
TIMM = {
    "convnext_atto": (None, (2, 3), 320),
    "resnet18": ("layer4", (2, 3), 512),
    "test_efficientnet": (None, (2, 3), 256),
    "test_resnet": ("layer4", (2, 3), 96),
    "test_nfnet": (None, None, None),
    "test_byobnet": (None, None, None),
    "test_convnext": (None, None, None),
}


def load(library, name):
    options = {"googlenet": {"init_weights": False, "aux_logits": False}}
    return torchvision_model(name, **options.get(name, {})) if library == "torchvision" else timm_model(name)


def zeros_for(model):
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    return model


@pytest.mark.parametrize(
    ("library", "name", "expected"),
    [("torchvision", *row) for row in TORCHVISION.items()] + [("timm", *row) for row in TIMM.items()],
)
def test_convolutional_families(library, name, expected):
    with torch.device("meta"):  # no time for weights that do not matter
        model, (wanted, grid, channels) = load(library, name), expected
    model, x = zeros_for(model), torch.rand(1, *SIZE)
    found = find_target_layer(model, SIZE)
    assert found.layout == "NCHW"
    assert found.module is model.get_submodule(found.name)
    assert wanted is None or found.name == wanted
    assert grid is None or found.grid == grid
    assert channels is None or found.channels == channels

    shapes, layers = {}, find_cut_layers(model, SIZE)
    assert found in layers
    names = {layer.module: layer.name for layer in layers}
    handles = [
        module.register_forward_hook(lambda m, args, out: shapes.update({names[m]: tuple(out.shape)}))
        for module in names
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    for layer in layers:
        assert shapes[layer.name] == (1, layer.channels, *layer.grid)
        assert layer.grid[0] * layer.grid[1] > 1


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("resnet18", "layer1.0.conv1"),
        ("squeezenet1_1", "features.3.expand1x1"),
        ("shufflenet_v2_x0_5", "stage2.1.branch2.0"),
        ("timm", "layer1.0.conv1"),
    ],
)
def test_every_cut_layer_is_a_cut(name, inner):
    model = timm_model("test_resnet") if name == "timm" else torchvision_model(name)
    model, size = model.requires_grad_(False), (3, 64, 64)
    layers = find_cut_layers(model, size)
    names = [layer.name for layer in layers]
    assert len(names) == len(set(names)) > 2
    for layer in layers[:: max(1, len(layers) // 4)]:
        x = torch.randn(1, *size, requires_grad=True)
        assert not cut_at(model, layer.module, x).requires_grad, layer.name
    assert inner not in names
    assert cut_at(model, model.get_submodule(inner), torch.randn(1, *size, requires_grad=True)).requires_grad


@pytest.mark.parametrize("size", [(3, 64, 64), (3, 64, 96)])
def test_swin_has_channels_last(size):
    torch.manual_seed(0)
    model = torchvision.models.SwinTransformer(
        [4, 4], embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=[4, 4], num_classes=3
    ).eval()
    found = find_target_layer(model, size)
    assert (found.name, found.layout, found.channels) == ("permute", "NCHW", 16)
    norm = next(layer for layer in find_cut_layers(model, size) if layer.name == "norm")
    assert (norm.layout, norm.channels) == ("NHWC", 16)
    assert norm.grid == found.grid == (size[1] // 8, size[2] // 8)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=size[1:], embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4
    ).eval()
    found = find_target_layer(model, size)
    assert (found.layout, found.channels, found.grid) == ("NHWC", 16, (size[1] // 8, size[2] // 8))
    for layer in find_cut_layers(model, size):
        x = torch.randn(1, *size, requires_grad=True)
        assert not cut_at(model.requires_grad_(False), layer.module, x).requires_grad, layer.name


def test_images_that_are_not_square():
    found = find_target_layer(timm_model("test_resnet"), (3, 224, 320))
    assert (found.name, found.grid) == ("layer4", (7, 10))
    assert find_target_layer(timm_model("test_resnet"), (64, 96)).grid == (2, 3)  # (H, W) is for three channels


def test_models_without_weights_have_layers_too():
    with torch.device("meta"):
        model = timm_model("test_resnet")
    found = find_target_layer(model)
    assert (found.name, found.channels, found.grid) == ("layer4", 96, (5, 5))


def test_the_size_is_the_model_s_own_by_default():
    assert find_target_layer(timm_model("test_efficientnet")).grid == (5, 5)  # pretrained_cfg says 160
    assert find_target_layer(torchvision_model("squeezenet1_1")).grid == (13, 13)


def test_tokens_are_a_grid_behind_the_class_token():
    found = find_target_layer(timm_model("test_vit"))
    assert (found.name, found.layout, found.grid, found.prefix_tokens) == ("blocks.4", "tokens", (10, 10), 1)


def test_functions_and_flat_models_raise():
    assert issubclass(LayerDiscoveryError, ValueError)
    with pytest.raises(LayerDiscoveryError, match="function: pass layer="):
        target_layer_for(lambda x: x.flatten(1), (torch.randn(1, 3, 8, 8),), ())
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(LayerDiscoveryError, match=r"\(layers with a grid: none\)"):
        find_target_layer(flat, (3, 8, 8))
    assert find_cut_layers(flat, (3, 8, 8)) == []


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("find", [find_target_layer, find_cut_layers])
def test_the_model_is_left_as_it_was(find, trainable):
    model = torchvision_model("resnet18").requires_grad_(trainable)
    values = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad():
        find(model, (3, 64, 64))
    torch.testing.assert_close(dict(model.state_dict()), values, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.requires_grad is trainable and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m.training for m in model.modules())


def test_an_error_of_the_model_leaves_it_as_it_was():
    model = torchvision_model("resnet18")
    with pytest.raises(LayerDiscoveryError, match=r"(?s)\(5, 64, 64\): .*channels.*input_size"):
        find_target_layer(model, (5, 64, 64))
    assert not any(m._forward_hooks for m in model.modules())
    assert find_target_layer(model, (3, 64, 64)).name == "layer4"


def test_the_cache_neither_keeps_the_model_nor_confuses_sizes():
    model = torchvision_model("resnet18")
    assert find_target_layer(model, (3, 64, 64)).grid == (2, 2)
    assert find_target_layer(model, (3, 96, 64)).grid == (3, 2)
    runs = []
    handle = model.register_forward_hook(lambda *_: runs.append(1))
    find_target_layer(model, (3, 64, 64))
    assert not runs
    handle.remove()
    alive = weakref.ref(model)
    del model, handle
    gc.collect()
    assert alive() is None


def test_the_cache_knows_that_a_model_trains_otherwise_than_it_answers():
    class Stops(nn.Sequential):
        def forward(self, x):
            return nn.Sequential(*list(self)[: 3 if self.training else 4])(x).mean((2, 3))

    model = Stops(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)))
    names = [[c.name for c in find_cut_layers(model.train(mode), (3, 8, 8))] for mode in (True, False, True)]
    assert names == [["0", "1", "2"], ["0", "1", "2", "3"], ["0", "1", "2"]]


def layout_of(shape, image):
    found = placement_of(shape, image)
    return found and found.layout


def test_layouts():
    assert layout_of((2, 5, 8, 12), (2, 3, 64, 96)) == "NCHW"
    assert layout_of((2, 8, 12, 5), (2, 3, 64, 96)) == "NHWC"
    assert layout_of((2, 5, 100), (2, 1, 400)) == "NCHW"
    assert layout_of((2, 4, 3, 3, 3), (2, 1, 12, 12, 12)) == "NCHW"
    assert layout_of((2, 5), (2, 3, 64, 96)) is None
    assert in_proportion((7, 10), (224, 320))
    assert not in_proportion((10, 7), (224, 320))
