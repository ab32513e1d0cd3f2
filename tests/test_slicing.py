"""A sliced network answers as the masked one does, in many kinds of networks, and says why where it cannot."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Sequence

import pytest
import timm
import torch
import torchvision
from models import images, seeded
from snapshot import of_everything, same
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from drnet_captum.data import load_model
from drnet_captum.reconstruct.groups import Group, KeepSet, find_groups
from drnet_captum.reconstruct.masks import MaskedModel
from drnet_captum.reconstruct.slicing import sliced

SMALL = ["tv:resnet18", "embedded", "mobilenetv2_050", "regnety_002", "convnext_atto"]
LARGE = ["tv:resnet50", "tv:vgg16_bn", "mobilenetv2_100", "efficientnet_b0", "densenet121"]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, with norms and layer scales that do not stand at 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.double().eval().modules():
            if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
                for name, value in [*module.named_parameters(), *module.named_buffers()]:
                    if name in ("weight", "running_var"):
                        value.uniform_(0.5, 1.5, generator=generator)
                    elif name in ("bias", "running_mean"):
                        value.normal_(0, 0.3, generator=generator)
            if isinstance(getattr(module, "gamma", None), nn.Parameter):
                module.gamma.uniform_(0.5, 1.5, generator=generator)
    return model


def random_keep(groups: Sequence[Group], share: float, seed: int = 0) -> KeepSet:
    """A share of the groups that go through the same layers, and at least one."""
    rng = random.Random(seed)
    alike: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        alike.setdefault(tuple(group.channels), []).append(group)
    stay: dict[str, list[int]] = {}
    for of_layers in alike.values():
        for group in rng.sample(of_layers, max(1, round(share * len(of_layers)))):
            for name, channels in group.channels.items():
                stay.setdefault(name, []).extend(channels)
    return {name: tuple(sorted(channels)) for name, channels in stay.items()}


def built(name: str) -> nn.Module:
    if name == "embedded":
        return load_model("embedded")
    if name.startswith("tv:"):
        return seeded(torchvision.models.get_model, name[3:], weights=None)
    return seeded(timm.create_model, name, pretrained=False)


def check(model: nn.Module, x: Tensor, share: float, seed: int) -> None:
    keep = random_keep(find_groups(model, x), share, seed)
    classes = [7, 3, 400]
    small = sliced(model, keep, x, classes)
    other = torch.flip(x, [0, 3])[:1] * 0.7  # neither the batch nor the values that were compared inside
    masked = MaskedModel(model, keep, x)
    with torch.no_grad():
        expected, full, got = masked(other)[:, classes], model(other)[:, classes], small(other)
    scale = expected.abs().max()
    assert (got - expected).abs().max() <= 1e-8 * scale
    assert (full - expected).abs().max() > 1e-2 * scale
    for layer, channels in keep.items():
        assert len(small.get_submodule(layer).weight) == len(channels)


@pytest.mark.parametrize("name", SMALL)
def test_sliced_answers_as_masked(name: str) -> None:
    model, x = randomised(built(name)), images(2, dtype=torch.float64, size=(64, 64))
    check(model, x, share=0.6, seed=1)
    check(model, x, share=0.1, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_sliced_answers_as_masked_in_large_networks(name: str) -> None:
    model, x = randomised(built(name)), images(2, dtype=torch.float64, size=(64, 64))
    check(model, x, share=0.6, seed=1)
    check(model, x, share=0.1, seed=2)


def test_last_grid_of_one_position() -> None:
    model = randomised(built("tv:resnet18"))
    check(model, images(2, dtype=torch.float64, size=(32, 32)), share=0.5, seed=3)


def net() -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU()]
    return randomised(seeded(lambda: nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))))  # type: ignore[return-value]


X = images(2, dtype=torch.float64, size=(12, 12))


def test_weights_are_those_of_the_kept_channels() -> None:
    model = net()
    small = sliced(model, {"0": (5, 1), "3": (0, 2, 3)}, X, classes=[4, 0])
    assert torch.equal(small[3].weight, model[3].weight[[0, 2, 3]][:, [1, 5]])
    assert torch.equal(small[1].running_mean, model[1].running_mean[[1, 5]])
    columns = [c * 4 + i for c in (0, 2, 3) for i in range(4)]  # (C, 2, 2) flattened
    assert torch.equal(small[7].weight, model[7].weight[[4, 0]][:, columns])
    assert torch.equal(small[7].bias, model[7].bias[[4, 0]])


def test_result_is_an_ordinary_module() -> None:
    model = net()
    model[0].requires_grad_(False)
    before = of_everything(model, X)
    small = sliced(model, {"0": (1, 4)}, X)
    same(before, of_everything(model, X))
    assert not small.training and all(p.is_leaf and p.grad is None for p in small.parameters())
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(X), small(X))
    twin = copy.deepcopy(small)
    twin.load_state_dict(small.state_dict(), strict=True)
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_without_removed_channels_nothing_changes() -> None:
    model = net()
    assert_close(sliced(model, {}, X)(X), model(X))
    assert_close(sliced(model, {"0": range(6)}, X, classes=[1])(X), model(X)[:, [1]])  # type: ignore[dict-item]


def test_works_under_no_grad_and_inference_mode() -> None:
    model = net()
    with torch.no_grad():
        a = sliced(model, {"0": (1, 4)}, X)(X)
    with torch.inference_mode():
        b = sliced(model, {"0": (1, 4)}, X)(X)
    assert_close(a, b.clone())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.fc((x + self.b(x)).mean((2, 3)))


class Turned(Residual):
    """Turns the order of the channels, of which Torch-Pruning knows nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(F.relu(self.a(x)).flip(1)).mean((2, 3)))


class Shuffled(Residual):
    """Writes the number of channels down."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).view(len(x), 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.fc(self.b(x).mean((2, 3)))


def test_torn_groups() -> None:
    model = randomised(seeded(Residual))
    with pytest.raises(ValueError, match=r"keeps channel 0 of '[ab]'"):
        sliced(model, {"a": (1, 2)}, X)
    with pytest.raises(ValueError, match="build keep-sets from find_groups"):
        sliced(model, {"a": (1, 2), "b": (1, 3)}, X)


@pytest.mark.parametrize(("kind", "message"), [(Turned, "answer differently"), (Shuffled, "do not run")])
def test_a_step_that_the_slicer_does_not_see(kind: type[nn.Module], message: str) -> None:
    model = randomised(seeded(kind))
    with pytest.raises(ValueError, match=f"Torch-Pruning's slices of {kind.__name__} {message}"):
        sliced(model, {"a": (0, 1)}, X)
    assert torch.isfinite(MaskedModel(model, {"a": (0, 1)}, X)(X)).all()


class Untraceable(Residual):
    """Runs on parameters without gradients only, as custom kernels do."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.b.weight.requires_grad:
            raise NotImplementedError("no graph here")
        return self.fc(F.relu(self.a(x)).mean((2, 3)))


def test_a_model_that_cannot_be_traced() -> None:
    model = randomised(seeded(Untraceable)).requires_grad_(False)
    with pytest.raises(ValueError, match=r"cannot trace Untraceable .*no graph here.*MaskedModel"):
        sliced(model, {"a": (0, 2)}, X)


@pytest.mark.parametrize(
    ("keep", "classes", "message"),
    [
        ({"nowhere": (0,)}, None, "expected names of convolutions and linear layers"),
        ({"0": ()}, None, "at least one channel of '0'"),
        ({"0": (6,)}, None, "from 0 to 5"),
        ({"0": (1, 1)}, None, "different channels"),
        ({"7": (0, 1)}, None, "its channels are classes"),
        ({"0": (1,)}, [5], "different classes from 0 to 4"),
        ({"0": (1,)}, [1, 1], "different classes from 0 to 4"),
        ({"0": (1,)}, [], "different classes from 0 to 4"),
    ],
)
def test_bad_arguments(keep: KeepSet, classes: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sliced(net(), keep, X, classes)


def test_train_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        sliced(net().train(), {"0": (1,)}, X)
