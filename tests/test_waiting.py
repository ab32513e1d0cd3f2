"""Convolutions that wait for their batch norm: joined where that is all that reads them, themselves everywhere else."""

import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import drnet_captum as dc
from drnet_captum.engine import waiting
from drnet_captum.engine.tape import Tape
from drnet_captum.engine.waiting import Waiting, before_norms

pytestmark = pytest.mark.usefixtures("every_node_lean")


@pytest.fixture
def counted(monkeypatch):
    """How many norms joined their convolution, and how many convolutions were worked out alone."""
    counts = {"joined": 0, "alone": 0}
    joined, values = Waiting.joined, Waiting.values

    def count_joined(self, *norm):
        counts["joined"] += 1
        return joined(self, *norm)

    def count_values(self):
        counts["alone"] += not self.is_settled
        return values(self)

    monkeypatch.setattr(Waiting, "joined", count_joined)
    monkeypatch.setattr(Waiting, "values", count_values)
    return counts


def trained(model):
    """Norms that do something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.weight, module.bias):
                if tensor is not None:
                    nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.3, 3)
    return model.double().eval()


def check(model, x, layers=()):
    """Output, activations and gradients are PyTorch's own, with and without a graph below the layers."""
    kept = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: kept.__setitem__(name, out))
        for name in layers
    ]
    leaf = x.clone().requires_grad_()
    output = model(leaf)
    seed = torch.randn_like(output)
    wanted = torch.autograd.grad((output * seed).sum(), [leaf, *kept.values()])
    for hook in hooks:
        hook.remove()
    for wrt_input in (True, False):
        if not (layers or wrt_input):
            continue
        with Tape(model, layers, wrt_input=wrt_input, rules=()) as tape:
            found = tape.forward(x)
            torch.testing.assert_close(found.detach(), output.detach())
            y = (found * seed).flatten(1).sum(1)
            for name, by in zip(("input", *layers), wanted, strict=True):
                if name != "input":
                    torch.testing.assert_close(tape.activation(name)[0], kept[name].detach())
                if name != "input" or wrt_input:
                    torch.testing.assert_close(tape.gradient(y, name), by)


class Steps(nn.Module):
    """A convolution and a norm that are registered one after the other, and whatever a test does with them."""

    def __init__(self, steps, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 3)
        self.steps = steps

    def forward(self, x):
        return self.last(self.steps(self, x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups, stride", [(1, 1), (3, 2)])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_norms_join_their_convolutions(dims, groups, stride, affine, bias, counted):
    convolution, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
    model = nn.Sequential(
        convolution(3, 6, 3, stride, groups=groups, padding=1, dilation=1, bias=bias),
        norm(6, affine=affine, eps=0.1),
        nn.ReLU(inplace=True),
        convolution(6, 4, 2, bias=bias),
        norm(4, affine=affine),
    )
    check(trained(model), torch.randn(2, 3, *[9, 8, 7][:dims]).double(), layers=("2",))
    assert counted == {"joined": 4, "alone": 0}


def test_a_network_of_timm(counted):
    model = timm.create_model("test_efficientnet.r160_in1k", pretrained=False)
    check(trained(model), torch.randn(2, 3, 96, 96).double(), layers=("blocks.2",))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert counted == {"joined": 2 * norms, "alone": 0}


class Own(torch.autograd.Function):
    """A function of the model's own, of which torch functions' modes see nothing."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * x


def gate(x):
    return x * torch.sigmoid(x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    scripted = torch.jit.script(gate)


def no_grad_beside(self, x):
    y = self.conv(x)
    with torch.no_grad():
        largest = y.abs().amax()
    return self.norm(y) / largest


def in_place_of_what_is_read(self, x):
    x = x * 2
    y = self.conv(x)
    x.zero_()
    return self.norm(y) + x[:, :1]


def out_of_sight(self, x):
    y = self.conv(x)
    with torch._C.DisableTorchFunction():  # as kernels that others wrote
        beside = y.sigmoid()
    return self.norm(y) + beside


def another_norm(self, x):
    other = x[:, [0, 1, 2, 0]]
    y = self.conv(x)
    return self.norm(other) + y


def norm_of_the_batch(self, x):
    mean, var = self.norm.running_mean.clone(), self.norm.running_var.clone()
    return F.batch_norm(self.conv(x), mean, var, training=True)


def scale_of_the_input(self, x):
    scale = 1 + x.mean((0, 2, 3)).repeat(2)[:4]
    y = self.conv(x)
    return F.batch_norm(y, self.norm.running_mean, self.norm.running_var, scale, self.norm.bias)


def shift_of_the_input(self, x):
    shift = x.mean((0, 2, 3)).repeat(2)[:4]
    y = self.conv(x)
    return F.batch_norm(y, self.norm.running_mean, self.norm.running_var, self.norm.weight, shift)


READERS = {
    "shape first": (lambda self, x: self.norm(_seen(self.conv(x))), 1, 0),
    "two norms": (lambda self, x: (lambda y: self.norm(y) + 2 * self.norm(y))(self.conv(x)), 1, 1),
    "norm, then others": (lambda self, x: (lambda y: self.norm(y) * y + y)(self.conv(x)), 1, 1),
    "others, then norm": (lambda self, x: (lambda y: y.relu() + self.norm(y))(self.conv(x)), 0, 1),
    "written into": (lambda self, x: self.norm(F.relu(self.conv(x), inplace=True)), 0, 1),
    "written into, and read again": (lambda self, x: (lambda y: self.norm(y.relu_()) + y)(self.conv(x)), 0, 1),
    "in a list": (lambda self, x: self.norm(torch.cat([self.conv(x)[:, :2], self.conv(x)[:, 2:]], 1)), 0, 2),
    "a view": (lambda self, x: self.norm(self.conv(x).flip(2)), 0, 1),
    "a part written into": (lambda self, x: self.norm(_first_zero(self.conv(x))), 0, 1),
    "own function": (lambda self, x: (lambda y: Own.apply(y) + self.norm(y))(self.conv(x)), 0, 1),
    "scripted": (lambda self, x: (lambda y: scripted(y) + self.norm(y))(self.conv(x)), 0, 1),
    "out of sight": (out_of_sight, 0, 1),
    "no grad": (no_grad_beside, 0, 1),
    "its input is written into": (in_place_of_what_is_read, 0, 1),
    "norm not used": (lambda self, x: self.conv(x), 0, 1),
    "norm without statistics": (lambda self, x: F.batch_norm(self.conv(x), None, None, training=True), 0, 1),
    "norm of the batch": (norm_of_the_batch, 0, 1),
    "scale of the input": (scale_of_the_input, 0, 1),
    "shift of the input": (shift_of_the_input, 0, 1),
    "another tensor's norm": (another_norm, 0, 1),
}


def _seen(y):
    assert y.shape[1] == y.size(1) == 4 and y.ndim == y.dim() == 4
    assert y.dtype == torch.float64 and y.device.type == "cpu" and not y.is_cuda
    torch._assert(y.shape[2] == 8, "as said")
    return y


def _first_zero(y):
    y[:, 0] = 0
    return y


@pytest.mark.parametrize("case", READERS)
def test_whatever_reads_it_gets_the_convolution(case, counted):
    steps, joined, alone = READERS[case]
    model = trained(Steps(steps))
    with Tape(model, rules=()) as tape:
        tape.forward(torch.randn(2, 3, 8, 9).double())
    assert counted == {"joined": joined, "alone": alone}
    if case == "its input is written into":  # where PyTorch's own graph has no gradient
        x = torch.randn(2, 3, 8, 9).double()
        torch.testing.assert_close(Tape(model).forward(x).detach(), model(x).detach())
        return
    check(model, torch.randn(2, 3, 8, 9).double())


@pytest.mark.parametrize("rule", ["guided", "deconv"])
def test_rules_beside_it(rule):
    model = trained(Steps(lambda self, x: F.relu(self.norm(self.conv(x)) + 1)))
    x = torch.randn(2, 3, 8, 9).double()
    with Tape(model) as tape:
        found = tape.gradient(tape.forward(x)[:, 0].sum((1, 2)), rule=rule)
    with pytest.MonkeyPatch.context() as patched, Tape(model) as tape:
        patched.setattr(waiting, "LARGE", 1 << 62)
        torch.testing.assert_close(found, tape.gradient(tape.forward(x)[:, 0].sum((1, 2)), rule=rule))


@pytest.mark.parametrize("layer", ["conv", "norm"])
def test_layers_that_are_asked_for(layer, counted):
    """The convolution's own output is kept, not the norm's."""
    check(trained(Steps(lambda self, x: F.relu(self.norm(self.conv(x))))), torch.randn(2, 3, 8, 9).double(), (layer,))
    assert counted == {"conv": {"joined": 0, "alone": 0}, "norm": {"joined": 2, "alone": 0}}[layer]


def test_what_goes_into_the_norm(counted):
    model = trained(Steps(lambda self, x: self.norm(self.conv(x))))
    x = torch.randn(2, 3, 8, 9).double()
    for wrt_input in (True, False):
        with Tape(model, ("norm",), at_layer_inputs=True, wrt_input=wrt_input) as tape:
            tape.forward(x)
            torch.testing.assert_close(tape.activation("norm")[0], model.conv(x).detach())
    assert counted == {"joined": 0, "alone": 0}


def test_hooks_of_the_caller_get_ordinary_tensors():
    model = trained(Steps(lambda self, x: self.norm(self.conv(x))))
    kept = []
    model.conv.register_forward_hook(lambda module, args, out: kept.append(out))
    with Tape(model) as tape:
        tape.forward(torch.randn(2, 3, 8, 9).double())
    assert [type(out) for out in kept] == [torch.Tensor]
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: kept.append(out))
    try:
        assert not before_norms(trained(Steps(None)))
    finally:
        handle.remove()


def test_a_convolution_that_is_the_output(counted):
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model.forward = lambda x: model[0](x)
    check(model, torch.randn(2, 3, 8, 9).double())
    assert counted == {"joined": 0, "alone": 1}


@pytest.mark.parametrize(
    "change, count",
    [
        (lambda model: None, 2),
        (lambda model: model[1].train(), 1),
        (lambda model: model[0].register_forward_hook(lambda module, args, out: None), 1),
        (lambda model: model[1].register_forward_pre_hook(lambda module, args: None), 1),
        (lambda model: model.insert(1, nn.Identity()), 1),
        (lambda model: model.register_module("0", None), 1),
    ],
)
def test_which_convolutions_wait(change, count):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)))
    model.eval().append(nn.Sequential(nn.ConvTranspose2d(4, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4))).eval()
    change(model)
    assert len(before_norms(model)) == count
    assert before_norms(model.forward) == frozenset()


def test_reduced_precision_and_small_outputs_do_not_wait(counted, monkeypatch):
    model = trained(Steps(lambda self, x: self.norm(self.conv(x)))).float()
    x = torch.randn(2, 3, 8, 9)
    with Tape(model, precision="bfloat16") as tape:
        tape.forward(x)
    for name, least in (("LARGE", 2 * 4 * 8 * 9), ("WORTH", 6)):  # 576 numbers put out, 108 in the weight
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(waiting, name, least + 1 if name == "LARGE" else least)
            Tape(model).forward(x)
    assert counted == {"joined": 0, "alone": 0}
    monkeypatch.setattr(waiting, "LARGE", 2 * 4 * 8 * 9)
    monkeypatch.setattr(waiting, "WORTH", 5)
    Tape(model).forward(x)
    assert counted == {"joined": 1, "alone": 0}


def test_captured_passes_do_not_wait(counted):
    """Their graph is gone over as a whole."""
    model, x = trained(Steps(lambda self, x: self.norm(self.conv(x)))), torch.randn(2, 3, 8, 9).double()
    model = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    compiled = dc.explain(model, x, 1, methods="saliency", compile=True)["saliency"]
    assert counted == {"joined": 0, "alone": 0}
    torch.testing.assert_close(compiled, dc.explain(model, x, 1, methods="saliency")["saliency"])
    assert counted == {"joined": 1, "alone": 0}


@pytest.mark.parametrize("kernel", [5, 6])
def test_an_input_too_small_for_the_kernel_is_torchs_own_error(kernel):
    model = trained(nn.Sequential(nn.Conv2d(3, 4, kernel), nn.BatchNorm2d(4)))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"), Tape(model) as tape:
        tape.forward(torch.randn(1, 3, 4, 4).double())
