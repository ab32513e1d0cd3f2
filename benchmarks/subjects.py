"""What is explained: timm's classifiers with random weights, noise images, and what can be said of a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import drnet_captum as dc

CNNS = ("resnet50", "vgg16_bn", "efficientnet_b0", "convnext_tiny", "mobilenetv3_large_100")
MODELS = (*CNNS, "vit_small_patch16_224", "swin_tiny")
QUICK = ("test_resnet", "test_vit")
NAMES = {"swin_tiny": "swin_tiny_patch4_window7_224"}
OFF = 1e-4  # weights of norms and scales that start below this leave their block out
ACTIVATIONS = frozenset(
    "relu relu6 hardtanh leaky_relu rrelu threshold softplus prelu silu gelu hardswish mish elu selu celu tanh "
    "softsign tanhshrink logsigmoid hardshrink softshrink".split()
)


@dataclass(frozen=True)
class Facts:
    """What decides whether another library's answer is the method's.

    Attributes:
        relus: whether the model calls any ``nn.ReLU`` module.
        others: names of the activation functions that it calls elsewhere.
        layout: of the target layer's output: "NCHW", "NHWC" or "tokens".
    """

    relus: bool
    others: tuple[str, ...]
    layout: str


@dataclass(frozen=True)
class Subject:
    """A model, the layer that CAMs look at, and images with a class each."""

    name: str
    model: nn.Module
    target_layer: dc.TargetLayer
    x: Tensor
    facts: Facts

    @property
    def layer(self) -> nn.Module:
        return self.target_layer.module

    @property
    def targets(self) -> list[int]:
        """A class for each image."""
        return [7 * i % 10 for i in range(len(self.x))]

    def copied(self, dtype: torch.dtype | None = None, channels_last: bool = False, frozen: bool = False) -> Subject:
        """The same with a deep copy of the model, which others may do to as they like."""
        layout = torch.channels_last if channels_last else torch.preserve_format
        model = copy.deepcopy(self.model).to(dtype=dtype).to(memory_format=layout)
        if frozen:
            model.requires_grad_(False)
        layer = replace(self.target_layer, module=model.get_submodule(self.target_layer.name))
        x = self.x.detach().to(dtype=dtype).contiguous(memory_format=layout)
        return replace(self, model=model, target_layer=layer, x=x)

    def with_images(self, count: int, seed: int) -> Subject:
        """The same with so many images of noise."""
        noise = torch.randn(count, *self.x.shape[1:], generator=torch.Generator().manual_seed(seed))
        return replace(self, x=noise.to(self.x))

    def first(self, count: int) -> Subject:
        """The same with the first images."""
        return replace(self, x=self.x[:count])


def build(name: str, device: str, dtype: torch.dtype, seed: int) -> Subject:
    """A timm model with random weights, and one image.

    Norms and scales that timm starts at zero, or next to it, are set to one: their blocks would say nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(NAMES.get(name, name)).eval()
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1 and not key.endswith("bias") and parameter.abs().max() <= OFF:
            nn.init.ones_(parameter)
    x = torch.zeros(1, *model.pretrained_cfg["input_size"])  # type: ignore[index]
    layer = dc.find_target_layer(model)
    subject = Subject(name, model, layer, x, facts_of(model, layer, x)).with_images(1, seed)
    return replace(subject, model=model.to(device, dtype), x=subject.x.to(device, dtype))


def facts_of(model: nn.Module, target_layer: dc.TargetLayer, x: Tensor) -> Facts:
    """From one forward pass, in which every activation function is seen called."""
    seen = Seen()
    with torch.no_grad(), inside(model, nn.ReLU, seen), seen:
        model(x)
    return Facts(seen.relus, tuple(dict.fromkeys(seen.others)), target_layer.layout)


class Seen(TorchFunctionMode):
    """Notes calls of activation functions, by ``nn.ReLU`` modules and by others."""

    def __init__(self) -> None:
        super().__init__()
        self.within, self.relus = False, False
        self.others: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").rstrip("_")
        if name in ACTIVATIONS:
            if self.within:
                self.relus = True
            else:
                self.others.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def inside(model: nn.Module, kind: type[nn.Module], seen: Seen) -> Iterator[None]:
    """Tells ``seen`` when the model is inside a module of a kind."""

    def note(within: bool) -> Any:
        return lambda *_: setattr(seen, "within", within)

    found = [module for module in model.modules() if isinstance(module, kind)]
    handles = [module.register_forward_pre_hook(note(True)) for module in found]
    handles += [module.register_forward_hook(note(False)) for module in found]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
