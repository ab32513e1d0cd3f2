"""The tape against autograd in float64: on real models, and wherever a batch norm follows a convolution."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from drnet_captum.engine.lean import BatchNorm
from drnet_captum.engine.tape import Tape

pytestmark = pytest.mark.usefixtures("every_node_lean")


def state(model):
    return {
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "flags": {k: (p.requires_grad, p.grad) for k, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
    }


def assert_unchanged(model, before):
    after = state(model)
    torch.testing.assert_close(after.pop("values"), before.pop("values"), rtol=0, atol=0)
    assert after == before


def by_autograd(model, x, k):
    leaf = x.clone().requires_grad_()
    out = model(leaf)
    return out.detach(), torch.autograd.grad(out[:, k].sum(), leaf)[0]


def assert_plain_is_autograd(model, x, k=1, tolerance=1e-9):
    """Values and gradients, up to a share of the largest one."""
    before = state(model)
    expected_value, expected = by_autograd(model, x, k)
    scale = float(expected.abs().max())
    assert scale > 0
    with Tape(model) as tape:
        out = tape.forward(x)
        torch.testing.assert_close(out, expected_value, rtol=tolerance, atol=tolerance)
        for _ in range(2):
            found = tape.gradient(out[:, k])
            assert float((found - expected).abs().max()) <= tolerance * scale
    assert_unchanged(model, before)


TORCHVISION = {
    "resnet18": {},
    "densenet121": {},
    "googlenet": {"init_weights": False, "aux_logits": False},
    "mobilenet_v3_small": {},
    "efficientnet_b0": {},
    "squeezenet1_1": {},
    "shufflenet_v2_x0_5": {},
}
TIMM = [
    "test_vit",
    "test_vit2",
    "test_convnext",
    "test_efficientnet",
    "test_efficientnet_ln",
    "test_resnet",
    "test_nfnet",
    "test_byobnet",
    "test_mambaout",
    "test_maxvit",
]


def randomized(model):
    """Running statistics and scales that are not one and zero, so that nothing is right by accident."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.affine:
                with torch.no_grad():
                    module.weight.normal_(1.0, 0.3, generator=generator)
    return model.double().eval()


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_real_models_in_float64(name):
    torch.manual_seed(0)
    if name in TORCHVISION:
        model = torchvision.models.get_model(name, num_classes=4, **TORCHVISION[name])
    else:
        size = {"img_size": 64} if "vit" in name else {}
        model = timm.create_model(name, num_classes=4, **size)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    model = randomized(model)
    k = int(model(x).argmax())
    assert_plain_is_autograd(model, x, k)
    with Tape(model) as tape:
        out = tape.forward(x)
        plain, guided, deconv = [tape.gradient(out[:, k], rule=rule) for rule in ("plain", "guided", "deconv")]
        assert all(bool(g.isfinite().all()) for g in (plain, guided, deconv))
        assert len({float((g / g.abs().max()).std()) for g in (plain, guided, deconv)}) == 3


class Fold(nn.Module):
    """A convolution and its batch norm, read as the subclass says."""

    def __init__(self, conv, norm, read=lambda conv, norm: norm):
        super().__init__()
        self.conv, self.norm, self.read = conv, norm, read
        self.last = nn.Linear(norm.num_features, 3)

    def forward(self, x):
        conv = self.conv(x)
        out = self.read(conv, self.norm(conv))
        return self.last(F.relu(out).flatten(2).mean(2))


def fold(conv, norm=None, read=lambda conv, norm: norm, n=2, channels=4):
    torch.manual_seed(0)
    norm = norm or (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[n - 1](conv.out_channels)
    x = torch.randn(2, channels, *[15] * n, dtype=torch.float64)
    return randomized(Fold(conv, norm, read)), x


def folded(tape):
    """Whether the graph has a batch norm that was merged into its convolution."""
    stack, seen = [tape.output.grad_fn], set()
    while stack:
        node = stack.pop()
        if getattr(node, "_forward_cls", None) is BatchNorm and getattr(node, "folded", False):
            return True
        new = [child for child, _ in node.next_functions if child is not None and child not in seen]
        seen.update(new)
        stack.extend(new)
    return False


CONVOLUTIONS = {
    "plain": lambda: fold(nn.Conv2d(4, 6, 3)),
    "no bias": lambda: fold(nn.Conv2d(4, 6, 3, bias=False)),
    "strided, padded": lambda: fold(nn.Conv2d(4, 6, 3, stride=2, padding=1)),
    "dilated, oblong": lambda: fold(nn.Conv2d(4, 6, (3, 2), dilation=(2, 1), padding=(0, 1))),
    "grouped": lambda: fold(nn.Conv2d(4, 6, 3, groups=2)),
    "depthwise": lambda: fold(nn.Conv2d(4, 8, 3, groups=4, padding=1)),
    "1d": lambda: fold(nn.Conv1d(4, 6, 3, stride=2), n=1),
    "3d": lambda: fold(nn.Conv3d(4, 6, 3, padding=1), n=3),
    "no affine": lambda: fold(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)),
    "large eps": lambda: fold(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.5)),
}
UNFOLDED = {
    "convolution read elsewhere": lambda: fold(nn.Conv2d(4, 6, 3), read=lambda conv, norm: conv + norm),
    "convolution read later": lambda: fold(
        nn.Conv2d(4, 6, 3), read=lambda conv, norm: norm * torch.sigmoid(conv.mean())
    ),
    "same padding": lambda: fold(nn.Conv2d(4, 6, 3, padding="same")),
    "reflecting": lambda: fold(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), read=lambda c, n: n + c),
    "transposed": lambda: fold(nn.ConvTranspose2d(4, 6, 3)),
    "weight larger than the output": lambda: fold(nn.Conv2d(4, 6, 7)),
}


@pytest.mark.parametrize("case", [*CONVOLUTIONS, *UNFOLDED])
def test_a_batch_norm_folded_into_its_convolution(case):
    model, x = (CONVOLUTIONS | UNFOLDED)[case]()
    assert_plain_is_autograd(model, x, tolerance=1e-12)
    with Tape(model) as tape:
        out = tape.forward(x)
        tape.gradient(out[:, 0])
        assert folded(tape) == (case in CONVOLUTIONS)


@pytest.mark.parametrize("layers", [("conv",), ("norm",), ("conv", "norm"), ("norm", "conv", "last")])
@pytest.mark.parametrize("case", ["plain", "grouped", "convolution read elsewhere"])
@pytest.mark.parametrize("wrt_input", [True, False])
def test_layers_between_convolution_and_batch_norm(case, layers, wrt_input):
    """Gradients by the convolution's output exist, with the batch norm's scale in them; so do those below."""
    model, x = (CONVOLUTIONS | UNFOLDED)[case]()
    leaf = x.clone().requires_grad_()
    conv = model.conv(leaf)
    norm = model.norm(conv)
    at_last = model.last(F.relu(model.read(conv, norm)).flatten(2).mean(2))
    expected = torch.autograd.grad(at_last[:, 2].sum(), [leaf, conv, norm, at_last])
    expected = dict(zip(["input", "conv", "norm", "last"], expected, strict=True))
    with Tape(model, layers, wrt_input=wrt_input) as tape:
        out = tape.forward(x)
        places = [*layers, "input"] if wrt_input else list(layers)
        together = tape.gradients([out[:, 2], out[:, 0]], places)
        for place in places:
            torch.testing.assert_close(tape.gradient(out[:, 2], place), expected[place], rtol=1e-11, atol=1e-13)
            torch.testing.assert_close(together[place][0][0], expected[place], rtol=1e-11, atol=1e-13)


def test_one_convolution_with_two_batch_norms():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            x = F.relu(self.first(self.conv(x)))
            y = self.conv(x)
            return (self.first(y) * self.second(y)).mean((2, 3)) + self.second(self.conv(y)).mean((2, 3))

    torch.manual_seed(0)
    assert_plain_is_autograd(randomized(Twice()), torch.randn(2, 3, 6, 6, dtype=torch.float64))


def test_unbatched_images():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(0))

        def forward(self, x):
            return torch.stack([self.body(image) for image in x])

    assert_plain_is_autograd(Single().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64))


def test_recurrent_layers_take_parameters_in_lists():
    class ConvLSTM(nn.Module):
        def __init__(self, cell):
            super().__init__()
            self.conv, self.cell, self.head = nn.Conv2d(3, 5, 3), cell, nn.Linear(8, 4)

        def forward(self, x):
            x = F.relu(self.conv(x)).flatten(2).transpose(1, 2)
            return self.head(self.cell(x)[0].mean(1))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    lstm = ConvLSTM(nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True)).double().eval()
    assert_plain_is_autograd(lstm, x)
    assert_plain_is_autograd(ConvLSTM(nn.GRU(5, 8, batch_first=True)).double().eval(), x)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_modules(wrap):
    torch.manual_seed(0)
    conv, linear = wrap(nn.Conv2d(3, 4, 3)), wrap(nn.Linear(4, 3))
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    assert_plain_is_autograd(randomized(model), torch.randn(2, 3, 6, 6, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_by_hooks():
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model(torch.randn(1, 3, 6, 6))
    assert_plain_is_autograd(model.double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64))


def test_transformer_layers_take_no_fast_path():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))
    model = model.double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert_plain_is_autograd(model, x)
    with Tape(model.requires_grad_(False)) as tape:
        out = tape.forward(x)
        assert not torch.equal(tape.gradient(out[:, 0]), tape.gradient(out[:, 0], rule="guided"))
