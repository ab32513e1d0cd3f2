"""Masked channels are zero, norms go over the others, and nothing stays behind."""

from __future__ import annotations

import pytest
import torch
from models import images, seeded
from snapshot import of_everything, same
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.reconstruct.masks import MaskedModel

X = images(2, dtype=torch.float64, size=(12, 12))


def run(model: nn.Module, module: nn.Module, x: Tensor = X) -> Tensor:
    """What a module puts out while the model runs."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    model(x)
    handle.remove()
    return seen[0]


def double(model: nn.Module) -> nn.Module:
    """In float64 and eval mode; no shift and no mean is 0."""
    for module in model.double().eval().modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
            nn.init.uniform_(module.bias, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1.0, 1.0)
    return model


def chain(*between: nn.Module) -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3), *between, nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    return double(seeded(lambda: nn.Sequential(*layers)))  # type: ignore[return-value]


@pytest.mark.parametrize("inplace", [False, True])
def test_zero_after_norm_and_activation(inplace: bool) -> None:
    model = chain(nn.BatchNorm2d(6), nn.ReLU(inplace))
    masked = MaskedModel(model, {"0": (4, 1)}, X)
    out, whole = run(masked, model[2]), run(model, model[2])
    assert torch.equal(out[:, [1, 4]], whole[:, [1, 4]])
    assert (whole[:, [0, 2, 3, 5]] != 0).any() and (out[:, [0, 2, 3, 5]] == 0).all()
    after = run(masked, model[3])
    assert_close(after, F.conv2d(out[:, [1, 4]], model[3].weight[:, [1, 4]], model[3].bias))
    assert masked.keep == {"0": (1, 4)}


@pytest.mark.parametrize("activation", [nn.ReLU(True), nn.Hardswish(True), nn.SiLU(True), nn.GELU()])
def test_zero_after_an_activation_alone(activation: nn.Module) -> None:
    model = chain(activation)
    out, whole = run(MaskedModel(model, {"0": (1, 4)}, X), model[1]), run(model, model[1])
    assert torch.equal(out[:, [1, 4]], whole[:, [1, 4]]) and (out[:, [0, 2, 3, 5]] == 0).all()


def test_every_kept_channel_is_the_model_itself() -> None:
    model = chain(nn.ReLU())
    assert torch.equal(MaskedModel(model, {}, X)(X), model(X))
    assert torch.equal(MaskedModel(model, {"0": tuple(range(6))}, X)(X), model(X))


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Softplus(), nn.Hardsigmoid(), nn.ELU()])
def test_activations_that_are_not_zero_at_zero(activation: nn.Module) -> None:
    model = chain(activation)
    masked = MaskedModel(model, {"0": (0, 2, 5)}, X)
    kept = run(model, model[1])[:, [0, 2, 5]]
    assert_close(run(masked, model[2]), F.conv2d(kept, model[2].weight[:, [0, 2, 5]], model[2].bias))


def test_group_norms_go_over_what_stays() -> None:
    model = chain(nn.GroupNorm(2, 6), nn.ReLU())
    masked = MaskedModel(model, {"0": (0, 2, 3, 4)}, X)
    maps = run(model, model[0])
    expected = torch.zeros_like(maps)
    for group in ([0, 2], [3, 4]):
        part = maps[:, group]
        mean, var = part.mean((1, 2, 3), keepdim=True), part.var((1, 2, 3), correction=0, keepdim=True)
        scale, shift = (p[group].view(1, -1, 1, 1) for p in (model[1].weight, model[1].bias))
        expected[:, group] = (part - mean) / (var + 1e-5).sqrt() * scale + shift
    assert_close(run(masked, model[1]), expected)
    with pytest.raises(ValueError, match=r"equally many channels .* got \[2, 1\]"):
        MaskedModel(model, {"0": (0, 2, 3)}, X)(X)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.mlp, self.fc = nn.Conv2d(3, 6, 3), nn.LayerNorm(6), nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.gelu(self.mlp(self.norm(self.conv(x).flatten(2).mT))).mean(1))


def test_layer_norms_go_over_what_stays() -> None:
    model = double(seeded(Tokens))
    masked = MaskedModel(model, {"conv": (1, 2, 5), "mlp": (0, 3)}, X)
    kept = model.conv(X).flatten(2).mT[..., [1, 2, 5]]
    normed = F.layer_norm(kept, (3,), model.norm.weight[[1, 2, 5]], model.norm.bias[[1, 2, 5]])
    hidden = F.linear(normed, model.mlp.weight[[0, 3]][:, [1, 2, 5]], model.mlp.bias[[0, 3]])
    expected = F.linear(F.gelu(hidden).mean(1), model.fc.weight[:, [0, 3]], model.fc.bias)
    assert_close(masked(X), expected)
    assert (run(masked, model.mlp)[..., [1, 2]] == 0).all()


class Joined(nn.Module):
    """Concatenated features with a norm over them, the image's own channels, a constant and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm, self.c, self.fc = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        joined = torch.cat([a, a + b, x, torch.ones_like(x[:, :1])], 1)
        return self.fc(F.relu(self.c(F.relu(self.norm(joined)))).mean((2, 3)))


def test_concatenations_constants_and_sums_with_what_stays() -> None:
    model = double(seeded(Joined))
    masked = MaskedModel(model, {"a": (0, 3), "b": (0, 1)}, X)
    a = model.a(X) * torch.tensor([1.0, 0, 0, 1]).view(4, 1, 1)
    b = model.b(X) * torch.tensor([1.0, 1, 0, 0]).view(4, 1, 1)
    maps = F.relu(model.norm(torch.cat([a, a + b, X, torch.ones_like(X[:, :1])], 1)))
    maps[:, [1, 2, 6]] = 0  # a's two, and the sum of two that are gone; the sums 1 and 3 have a part that stays
    assert_close(masked(X), model.fc(F.relu(model.c(maps)).mean((2, 3))))


def test_other_sizes_and_batches() -> None:
    model = chain(nn.BatchNorm2d(6), nn.ReLU())
    x = images(5, dtype=torch.float64, size=(20, 16))
    small, large = MaskedModel(model, {"0": (2, 3)}, X), MaskedModel(model, {"0": (2, 3)}, x)
    assert torch.equal(small(x), large(x))
    assert_close(small(x)[3:4], small(x[3:4]))


def test_nothing_stays_in_the_model() -> None:
    model = chain(nn.BatchNorm2d(6), nn.ReLU(True))
    model[1].train(False)
    before = of_everything(model, X)
    masked = MaskedModel(model, {"0": (2, 3), "6": (0, 1, 2, 3, 4)}, X)
    masked(X)
    same(before, of_everything(model, X))
    with pytest.raises(RuntimeError, match="expected input"):
        masked(X[:, :2])
    same(before, of_everything(model, X))
    assert [p.data_ptr() for p in masked.parameters()] == [p.data_ptr() for p in model.parameters()]


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_flow_and_are_those_of_the_channels_that_stay(inplace: bool) -> None:
    model = chain(nn.BatchNorm2d(6), nn.ReLU(inplace))
    x = X.clone().requires_grad_()
    masked = MaskedModel(model, {"0": (1, 4)}, X)
    weight, image = torch.autograd.grad(masked(x)[:, 0].sum(), [model[0].weight, x])
    assert (weight[[0, 2, 3, 5]] == 0).all() and (weight[[1, 4]] != 0).any()
    stay = torch.zeros(6, dtype=torch.float64)
    stay[[1, 4]] = 1
    y = model[3:](F.relu(model[1](model[0](x))) * stay.view(6, 1, 1))
    assert_close(image, torch.autograd.grad(y[:, 0].sum(), x)[0])


def test_a_layer_that_runs_twice() -> None:
    conv, head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 5, 1)
    model = double(seeded(lambda: nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU(), head, nn.Flatten())))
    stay = torch.tensor([1.0, 0, 1], dtype=torch.float64).view(3, 1, 1)
    expected = model[4:](F.relu(conv(F.relu(conv(X)) * stay)) * stay)
    assert_close(MaskedModel(model, {"0": (0, 2)}, X)(X), expected)


class Moody(nn.Module):
    """Takes another way for large inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.tanh(x) if x.shape[-1] > 20 else F.relu(x)).mean((2, 3))


def test_a_model_that_takes_other_steps() -> None:
    masked = MaskedModel(double(seeded(Moody)), {"a": (0, 2)}, X)
    masked(X)
    with pytest.raises(RuntimeError, match="'a' was not met: the model does not run the same steps"):
        masked(images(1, dtype=torch.float64, size=(24, 24)))


def test_bad_arguments() -> None:
    model = chain(nn.ReLU())
    with pytest.raises(TypeError, match="expected a mapping"):
        MaskedModel(model, [("0", (1,))], X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got '1'"):
        MaskedModel(model, {"1": (0,)}, X)
    with pytest.raises(ValueError, match="at least one channel of '0'"):
        MaskedModel(model, {"0": ()}, X)
    with pytest.raises(ValueError, match=r"from 0 to 5, got \(0, 9\)"):
        MaskedModel(model, {"0": (9, 0)}, X)
    with pytest.raises(ValueError, match="eval mode"):
        MaskedModel(model.train(), {"0": (1,)}, X)
