"""What several files test the tape with: a network, and gradients by the tape and by autograd."""

import torch
from torch import nn

from drnet_captum.engine.tape import Tape

RULES = ("plain", "guided", "deconv")


class Net(nn.Module):
    """A reused ReLU in parallel branches, an in-place residual addition, a concatenation."""

    def __init__(self, inplace=True):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.relu = nn.ReLU(inplace=inplace)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.mix = nn.Conv2d(16, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        left, right = self.relu(self.left(x)), self.right(x)
        right += x
        x = self.relu(self.mix(torch.cat([left, self.relu(right)], 1)))
        return self.head(x.mean((2, 3)))


def gradient(model, x, k=0):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, k].sum(), leaf)[0]


def layer_gradient(model, layer, x, k=0):
    kept = []
    handle = layer.register_forward_hook(lambda m, a, out: kept.append(out.detach().requires_grad_()) or kept[-1] * 1.0)
    y = model(x)[:, k].sum()
    handle.remove()
    return kept[0].detach(), torch.autograd.grad(y, kept[0])[0]


def linspace():
    return torch.linspace(-6.5, 7.5, 30, dtype=torch.float64).view(3, 10)


def seeds(like):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(3)).to(like)


def by_autograd(model, x):
    leaf = x.clone().requires_grad_()
    out = model(leaf.clone())
    return out.detach(), torch.autograd.grad(out, leaf, seeds(out))[0]


def by_tape(model, x, rule="plain"):
    with Tape(model.eval() if isinstance(model, nn.Module) else model) as tape:
        out = tape.forward(x)
        value = out.detach().clone()
        return value, tape.gradient((out * seeds(out)).flatten(1).sum(1), rule=rule)
