"""Not only photos: signals, volumes, several inputs, segmentation, tokens."""

import pytest
import torch
from methods import shape_of
from torch import nn
from torch.nn import functional as F

from drnet_captum import (
    EigenCAM,
    GradCAM,
    GradCAMPlusPlus,
    GradXImage,
    GuidedBackprop,
    GuidedGradCAM,
    HiResCAM,
    LayerCAM,
    LayerDiscoveryError,
    SmoothGrad,
    XGradCAM,
    explain,
    find_cut_layers,
    find_target_layer,
    methods,
)

SHAPES = {1: (23,), 3: (8, 10, 9)}
GRIDS = {1: (12,), 3: (4, 5, 5)}
LINEAR = {1: "linear", 3: "trilinear"}


def convolutional(n):
    """Convolutions in n dimensions, the classifier a pool and a linear layer: defined for CAM too."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[n - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[n - 1]
    torch.manual_seed(0)
    return nn.Sequential(
        conv(2, 6, 3, padding=1),
        norm(6),
        nn.ReLU(inplace=True),
        conv(6, 5, 3, stride=2, padding=1),
        nn.ReLU(),
        pool(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    ).eval()


def data(n, batch=2):
    return torch.randn(batch, 2, *SHAPES[n], generator=torch.Generator().manual_seed(1))


def arguments(method):
    return {"n_samples": 2} if method.cls is SmoothGrad else {}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", methods())
def test_every_method_on_signals_and_volumes(name, n):
    method, model, x = methods()[name], convolutional(n), data(n)
    found = method.cls(model).attribute(x, target=[1, 3], **arguments(method))
    assert found.shape == shape_of(name, x, GRIDS[n])
    assert found.isfinite().all()
    assert found.abs().max() > 0
    for i, target in enumerate([1, 3]):
        single = method.cls(model).attribute(x[i : i + 1], target=target, **arguments(method))
        if method.cls is not SmoothGrad:  # its noise differs from example to example
            torch.testing.assert_close(single, found[i : i + 1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [1, 3])
def test_explain_brings_them_to_input_size(n):
    model, x = convolutional(n), data(n)
    maps = explain(model, x, target=[1, 3], methods="all")
    assert set(maps) == set(methods())
    for name, found in maps.items():
        channels = 2 if methods()[name].output == "input" else 1
        assert found.shape == (2, channels, *SHAPES[n])
    grad_cam = GradCAM(model).attribute(x, target=[1, 3])
    sized = F.interpolate(grad_cam, SHAPES[n], mode=LINEAR[n], align_corners=False)
    torch.testing.assert_close(maps["grad_cam"], sized)
    torch.testing.assert_close(maps["guided_backprop"], GuidedBackprop(model).attribute(x, target=[1, 3]))
    torch.testing.assert_close(maps["guided_grad_cam"], maps["guided_backprop"] * sized.clamp(min=0))
    several = explain(model, x, classes=[0, 2, 3], methods=("grad_cam", "deconvnet"))
    assert several["grad_cam"].shape == (3, 2, 1, *SHAPES[n])
    nearest = explain(model, x, target=1, methods="grad_cam", interpolate_mode="nearest")["grad_cam"]
    torch.testing.assert_close(nearest, F.interpolate(GradCAM(model).attribute(x, target=1), SHAPES[n]))


@pytest.mark.parametrize("n", [1, 3])
def test_layers_of_signals_and_volumes(n):
    model, size = convolutional(n), (2, *SHAPES[n])
    if n == 3:
        found = find_target_layer(model, size)
        assert (found.name, found.grid, found.channels, found.layout) == ("4", GRIDS[n], 5, "NCHW")
        assert [layer.name for layer in find_cut_layers(model, size)] == ["0", "1", "2", "3", "4"]
    assert GradCAM(model).layer_for(data(n), None) is model[4]


@pytest.mark.parametrize("n", [1, 3])
def test_cam_is_exact_on_signals_and_volumes(n):
    model, x = convolutional(n), data(n)
    found = methods()["cam"].cls(model).attribute(x, target=2)
    torch.testing.assert_close(found.flatten(1).mean(1) + model[-1].bias[2], model(x)[:, 2])


class TwoInputs(nn.Module):
    """An image and a vector, with an additional argument that is not explained."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, image, vector, scale=1.0):
        image = F.relu(self.conv(image)).mean((2, 3))
        return self.head(image * torch.tanh(self.linear(vector))) * scale


def two_inputs():
    torch.manual_seed(0)
    return TwoInputs().eval(), (torch.randn(2, 3, 7, 6), torch.randn(2, 5))


def test_several_inputs():
    model, inputs = two_inputs()
    leaves = tuple(v.clone().requires_grad_() for v in inputs)
    expected = torch.autograd.grad(model(*leaves)[:, 1].sum(), leaves)
    found = GradXImage(model).attribute(inputs, target=1)
    for x, g, e in zip(inputs, found, expected, strict=True):
        torch.testing.assert_close(g, x * e)
    for method in (GuidedBackprop(model), methods()["deconvnet"].cls(model), SmoothGrad(model)):
        maps = method.attribute(inputs, target=[0, 2], additional_forward_args=2.0)
        assert [m.shape for m in maps] == [v.shape for v in inputs]
        assert all(bool(m.isfinite().all()) for m in maps)
    scaled = GradXImage(model).attribute(inputs, target=1, additional_forward_args=(torch.tensor([[2.0], [3.0]]),))
    torch.testing.assert_close(scaled[0][1], found[0][1] * 3)
    assert isinstance(GradXImage(model).attribute(inputs, target=1), tuple)


def test_layer_maps_of_several_inputs():
    model, inputs = two_inputs()
    found = GradCAM(model, layer="conv").attribute(inputs, target=1)
    assert found.shape == (2, 1, 7, 6)
    with pytest.warns(UserWarning, match="empty tensor"):
        guided = GuidedGradCAM(model, layer="conv").attribute(inputs, target=1)
    assert guided[0].shape == (2, 3, 7, 6)
    assert guided[1].numel() == 0
    with pytest.raises(LayerDiscoveryError, match=r"ends in several branches.*pass layer=.* conv \(7, 6\)"):
        GradCAM(model).attribute(inputs, target=1)


def test_explain_with_several_inputs():
    model, inputs = two_inputs()
    maps = explain(model, inputs, 1, methods=("saliency", "grad_x_image", "guided_backprop", "grad_cam"), layer="conv")
    for name in ("saliency", "grad_x_image", "guided_backprop"):
        assert [m.shape for m in maps[name]] == [v.shape for v in inputs]
    assert maps["grad_cam"].shape == (2, 1, 7, 6)
    one = explain(model, inputs, None, methods="grad_x_image", additional_forward_args=2.0)["grad_x_image"]
    best = model(*inputs).argmax(1).tolist()
    for a, b in zip(one, GradXImage(model).attribute(inputs, best, 2.0), strict=True):
        torch.testing.assert_close(a, b)


def segmenter():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, padding=1),
        nn.Upsample(scale_factor=2),
    ).eval()


@pytest.mark.parametrize("target", [(2, 4, 5), [(2, 4, 5), (0, 1, 1)]])
def test_segmentation_outputs(target):
    model, x = segmenter(), torch.randn(2, 3, 8, 10)
    leaf = x.clone().requires_grad_()
    rows = target if isinstance(target, list) else [target] * 2
    y = sum(model(leaf)[i][row] for i, row in enumerate(rows))
    (expected,) = torch.autograd.grad(y, leaf)
    torch.testing.assert_close(GradXImage(model).attribute(x, target=target), x * expected)
    assert GuidedBackprop(model).attribute(x, target=target).shape == x.shape
    for cls in (GradCAM, HiResCAM, LayerCAM, GradCAMPlusPlus, XGradCAM, EigenCAM):
        assert cls(model, layer="1").attribute(x, target=target).shape == (2, 1, 8, 10)
    maps = explain(model, x, target, methods=("grad_cam", "grad_x_image", "guided_backprop"), layer="1")
    torch.testing.assert_close(maps["grad_x_image"], x * expected)


def test_segmentation_targets_that_do_not_fit():
    model, x = segmenter(), torch.randn(2, 3, 8, 10)
    for target in (2, (2, 4), None):
        with pytest.raises(ValueError, match="target"):
            GradXImage(model).attribute(x, target=target)
    with pytest.raises(ValueError, match="out of range"):
        GradXImage(model).attribute(x, target=(2, 8, 0))
    assert explain(model, x, classes=[(2, 4, 5), (0, 0, 0)], methods="grad_x_image")["grad_x_image"].shape[0] == 2


class TextCNN(nn.Module):
    """Tokens (N, t) → embedding → convolution → pool → classifier."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv, self.head = nn.Embedding(20, 6), nn.Conv1d(6, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, tokens):
        x = F.relu(self.conv(self.embedding(tokens).transpose(1, 2)))
        return self.head(x.amax(2))


class TextLSTM(TextCNN):
    def __init__(self):
        super().__init__()
        self.conv = nn.LSTM(6, 8, batch_first=True)

    def forward(self, tokens):
        return self.head(F.relu(self.conv(self.embedding(tokens))[0]).mean(1))


class TextTransformer(TextCNN):
    def __init__(self):
        super().__init__()
        self.conv = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, activation="gelu")
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        return self.head(self.conv(self.embedding(tokens)).mean(1))


def text(kind):
    torch.manual_seed(0)
    return kind().eval(), torch.randint(0, 20, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [TextCNN, TextLSTM, TextTransformer])
def test_tokens_are_attributed_at_their_embedding(kind):
    model, tokens = text(kind)
    kept = []
    handle = model.embedding.register_forward_hook(
        lambda m, a, out: kept.append(out.detach().requires_grad_()) or kept[0]
    )
    (expected,) = torch.autograd.grad(model(tokens)[:, 1].sum(), kept)
    handle.remove()
    product = (kept[0] * expected).sum(-1).detach()
    torch.testing.assert_close(GradXImage(model, layer="embedding").attribute(tokens, target=1), product)
    torch.testing.assert_close(HiResCAM(model, layer="embedding").attribute(tokens, target=1), product)
    # Channels are last: weights are means over the tokens.
    grad_cam = (kept[0] * expected.mean(1, keepdim=True)).sum(-1).detach()
    torch.testing.assert_close(GradCAM(model, layer=model.embedding).attribute(tokens, target=1), grad_cam)
    guided = GuidedBackprop(model, layer="embedding").attribute(tokens, target=[1, 2])
    assert guided.shape == tokens.shape
    maps = explain(model, tokens, 1, layer="embedding")
    assert {"grad_x_image", "guided_backprop", "deconvnet", "saliency", "grad_cam", "hires_cam"} <= set(maps)
    assert all(m.shape == tokens.shape for m in maps.values())
    torch.testing.assert_close(maps["grad_x_image"], product)
    torch.testing.assert_close(maps["grad_cam"], grad_cam)
    torch.testing.assert_close(maps["guided_backprop"][0], guided[0])
    assert explain(model, tokens, classes=[0, 2], methods="grad_cam", layer="embedding")["grad_cam"].shape == (2, 2, 9)


@pytest.mark.parametrize("cls", [GradXImage, GuidedBackprop, SmoothGrad])
def test_tokens_without_a_layer_raise(cls):
    model, tokens = text(TextCNN)
    with pytest.raises(TypeError, match="embedding"):
        cls(model).attribute(tokens, target=1)
    with pytest.raises(TypeError, match="embedding"):
        explain(model, tokens, 1)
    with pytest.raises(TypeError, match="embedding"):
        explain(model, tokens, 1, methods="grad_x_image")


def test_tokens_where_nothing_is_spatial_raise():
    model, tokens = text(TextCNN)
    with pytest.raises(LayerDiscoveryError, match="pass layer="):
        GradCAM(model).attribute(tokens, target=1)
    for name in ("smooth_grad", "score_cam", "guided_grad_cam"):
        with pytest.raises((TypeError, ValueError)):
            explain(model, tokens, 1, methods=name, layer="embedding")
