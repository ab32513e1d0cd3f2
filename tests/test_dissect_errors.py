"""Bad data, bad options and other models: each a clear error, and nothing half-updated; fingerprints of models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import CLASSES, SIZE, ConvNet, NormedConvNet, images, seeded
from snapshot import same
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from drnet_captum import DRNet, DRNetDissection, ModelCard
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.dissect.fingerprint import fingerprint

X, Y = images(4), torch.tensor([0, 1, 2, 3])
MASKS = torch.zeros(4, *SIZE, dtype=torch.long)
CARD = ModelCard("mine", (3, 32, 32), (0.5,) * 3, (0.25,) * 3, lambda photo: torch.zeros(3, 32, 32))
NAN = X.clone()
NAN[1, 0, 3, 3] = float("nan")


def labels(*values: int) -> Tensor:
    return torch.tensor(values)


BATCHES = {
    "label too high": (X, labels(0, 1, CLASSES, 2), r"label 5 is not one of the model's 5 classes, 0 to 4"),
    "label below": (X, labels(0, -2, 1, 2), r"label -2 is not one of the model's 5 classes, 0 to 4"),
    "some labels of -1": (X, labels(0, -1, 1, 2), r"label -1 is not one of the model's 5 classes"),
    "float labels": (X, Y.float(), r"integers of shape \(N,\), got \(4,\) torch.float32"),
    "bool labels": (X, Y.bool(), r"integers of shape \(N,\), got \(4,\) torch.bool"),
    "one-hot labels": (X, torch.eye(4, dtype=torch.long), r"label for each of 4 images.*got \(4, 4\)"),
    "too few labels": (X, Y[:3], r"label for each of 4 images.*got \(3,\)"),
    "no images": (X[:0], Y[:0], "at least one example"),
    "NaN images": (NAN, Y, "finite inputs, got NaN"),
    "larger images": (
        images(4, size=(14, 12)),
        Y,
        r"images of \(3, 12, 10\) as in the first batch, got \(4, 3, 14, 12\)",
    ),
    "slightly larger images": (images(4, size=(13, 11)), Y, "as in the first batch"),
    "smaller images": (images(4, size=(6, 6)), Y, "as in the first batch"),
    "grey images": (X[:, :1], Y, "as in the first batch"),
    "one image": (X[0], Y, "as in the first batch"),
}


def state(dissector: Dissector) -> list[Any]:
    found = [dissector.result().counts, dissector.result().images]
    for units in dissector.result().layers:
        found += [units.importance.state(), units.exemplars.state()]
        found += [units.similarity.state()] if units.similarity else []
    return found


@pytest.mark.parametrize("case", BATCHES)
def test_a_bad_batch_leaves_everything_as_it_was(case: str) -> None:
    x, y, message = BATCHES[case]
    model = seeded(ConvNet)
    dissector = Dissector(model)
    dissector.update(X, Y)
    before = state(dissector)
    with pytest.raises(ValueError, match=message):
        dissector.update(x, y)
    same(before, state(dissector))
    with pytest.raises(ValueError, match=message):
        DRNet(model).dissect([(X, Y), (x, y)])
    dissector.update(X, Y)
    assert dissector.result().counts == {0: 2, 1: 2, 2: 2, 3: 2}


FIRST = [
    "label too high",
    "label below",
    "some labels of -1",
    "float labels",
    "too few labels",
    "no images",
    "NaN images",
]


@pytest.mark.parametrize("case", FIRST)
def test_a_bad_first_batch(case: str) -> None:
    x, y, message = BATCHES[case]
    dissector = Dissector(seeded(ConvNet))
    with pytest.raises(ValueError, match=message):
        dissector.update(x, y)
    dissector.update(X, Y)
    same(state(updated(Dissector(seeded(ConvNet)))), state(dissector))


def updated(dissector: Dissector) -> Dissector:
    dissector.update(X, Y)
    return dissector


class Overflows(ConvNet):
    """The second convolution overflows, and what follows it makes that finite again."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.conv1(x)))
        return self.fc((self.conv2(x) * 1).clamp(-1, 1).mean((2, 3)))


def test_a_layer_that_overflows_leaves_the_others_as_they_were() -> None:
    model = seeded(Overflows)
    model.conv2.weight.data *= 1e37
    dissector = Dissector(model, layers=["conv1", "conv2"])
    dissector.update(X * 1e-30, Y)
    before = state(dissector)
    with pytest.raises(ValueError, match="NaN or infinite values: run the model in float32"):
        dissector.update(X * 1e3, Y)
    same(before, state(dissector))


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([], {}, ValueError, "at least one batch of images, got none: is the loader empty, or used up"),
        (iter([]), {}, ValueError, "used up"),
        (DataLoader(TensorDataset(X[:0], Y[:0])), {}, ValueError, "is the loader empty"),
        (X, {}, ValueError, r"a batch of images, \(N, C, H, W\), got \(3, 12, 10\)"),
        ([{"image": X}], {}, TypeError, "batches of .images, labels. tensors, got dict"),
        ([(X, Y)], {"target": "foo"}, ValueError, "'label' or 'predicted', got 'foo'"),
        ([(X, Y)], {"score": "loss"}, ValueError, "'logit' or 'log_prob', got 'loss'"),
        ([(X, Y)], {"exemplars": 0}, ValueError, "exemplars to be at least 1, got 0"),
        ([(X, Y)], {"similarity": lambda x: x}, ValueError, "got similarity= alone: pass concepts="),
        ([(X, Y)], {"concepts": ["cat"]}, ValueError, "got concepts= alone: pass similarity="),
        (None, {"similarity": lambda x: x, "concepts": ["cat"]}, ValueError, "pass data= with similarity="),
        ([(X, Y)], {"similarity": lambda x: X[0], "concepts": ["a", "b"]}, ValueError, "similarity of shape"),
        ([(X, Y)], {"stimuli": True}, ValueError, "expected card= with stimuli=True"),
        (None, {"stimuli": True}, ValueError, "expected card= with stimuli=True"),
        ("photos", {}, ValueError, "expected card= with a folder"),
        ([(X, Y)], {"masks": [(X, MASKS)]}, ValueError, "got masks= alone: pass mask_names="),
        ([(X, Y)], {"mask_names": ["sky"]}, ValueError, "got mask_names= alone: pass masks="),
        ([(X, Y)], {"masks": [], "mask_names": ["sky"]}, ValueError, "batches of images and masks, got none"),
        ([(X, Y)], {"masks": iter([(X, MASKS)]), "mask_names": ["sky"]}, ValueError, "gone through twice, and gave 4"),
        (
            [(X, Y)],
            {"masks": [(X, MASKS[:, ::2, ::2])], "mask_names": ["sky"]},
            ValueError,
            "masks of 6×5 pixels do not",
        ),
        ([(X, Y)], {"masks": [(X, MASKS + 3)], "mask_names": ["sky"]}, ValueError, "ids from 0 to 0"),
        ([(X, Y)], {"layers": []}, ValueError, "at least one module or name"),
        ([(X, Y)], {"layers": "conv1"}, ValueError, "list of at least one module or name, got 'conv1'"),
        ([(X, Y)], {"layers": ["conv7"]}, ValueError, "no layer 'conv7'"),
        ([(X, Y)], {"layers": ["fc"]}, ValueError, "'fc' has no units to look at.*no grid"),
        ([(X, Y)], {"layers": ["conv1", "conv1"]}, ValueError, "'conv1' twice"),
    ],
)
def test_bad_arguments(data: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DRNet(seeded(ConvNet)).dissect(data, **options)


def test_images_alone_and_labels_of_minus_one_take_the_model_s_answers() -> None:
    model = seeded(ConvNet)
    answers = sorted(model(X).argmax(1).tolist())
    every = [[X], [(X,)], [[X]], [(X, torch.full((4,), -1))], DataLoader(TensorDataset(X), 4)]
    for data in every:
        assert list(DRNet(model).dissect(data).counts) == sorted(set(answers))
    # The labels then have no part in it.
    found = DRNet(model).dissect([(X, Y)], target="predicted")
    assert sorted(c for c, n in found.counts.items() for _ in range(n)) == answers
    assert_close(found["conv1"].importance.signed, DRNet(model).dissect([X])["conv1"].importance.signed)


def test_scores_of_another_kind() -> None:
    with pytest.raises(ValueError, match=r"several classes, \(N, K\), got an output of \(4, 1\)"):
        DRNet(seeded(ConvNet, outputs=1)).dissect([(X, torch.zeros(4, dtype=torch.long))])
    with pytest.raises(TypeError, match=r"expected an nn.Module to take apart, got function"):
        DRNet(lambda x: x.mean((2, 3))).dissect([(X, Y)])


class RunsTwice(ConvNet):
    """Its second convolution again on what it put out, and another name for its first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, CLASSES)
        self.alias = self.conv1

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.conv1(x)))
        return self.fc(self.conv2(self.relu1(self.conv2(x))).mean((2, 3)))


def test_layers_that_share_a_module() -> None:
    model = seeded(RunsTwice)
    drnet = DRNet(model)
    with pytest.raises(ValueError, match="'conv2' has no units to look at: it runs 2 times"):
        drnet.dissect([(X, Y)], layers=["conv1", "conv2"])
    with pytest.warns(UserWarning, match="convolutions are left out: conv2, as it runs 2 times"):
        found = drnet.dissect([(X, Y)])
    assert [units.layer.name for units in found.layers] == ["conv1", "pool"]
    for twice in (["conv1", "alias"], [model.conv1, "alias"]):
        with pytest.raises(ValueError, match="'conv1' twice: names may share a module"):
            drnet.dissect([(X, Y)], layers=twice)
        with pytest.raises(ValueError, match="'conv1' twice: names may share a module"):
            DRNetDissection(model, twice).attribute(X, target=0)
    assert [units.layer.name for units in drnet.dissect([(X, Y)], layers=["alias"]).layers] == ["conv1"]


class OnlyTwice(ConvNet):
    """Its one convolution again on what it put out."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.relu1(self.conv1(x))[:, :3]
        return self.fc(F.pad(x, (0, 0, 0, 0, 0, self.fc.in_features - 3)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:convolutions are left out")
def test_a_model_without_units() -> None:
    model = seeded(OnlyTwice)
    for ask in (lambda: DRNet(model).dissect([(X, Y)]), lambda: DRNetDissection(model).attribute(X, target=0)):
        with pytest.raises(ValueError, match=r"no convolution that has a grid, runs once .* pass layers="):
            ask()


# Which model a dissection is of


def test_a_dissection_of_another_model() -> None:
    found = DRNet(seeded(ConvNet)).dissect([(X, Y)])
    other = seeded(ConvNet, seed=1)
    found.check(fingerprint(seeded(ConvNet)))
    with pytest.raises(ValueError, match=r"dissection of ConvNet .* other weights"):
        found.check(fingerprint(other))
    with pytest.raises(ValueError, match=r"dissection of ConvNet .* other weights"):
        DRNet(other).reconstruct(found)
    with pytest.raises(ValueError, match="expected dissections of one model"):
        found + DRNet(other).dissect([(X, Y)])


class Buffers(NormedConvNet):
    """Buffers of every kind, and tied weights."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1, stride=stride)
        self.tied = nn.Linear(6, CLASSES)
        self.tied.weight = self.fc.weight
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool):
            name = str(dtype).partition(".")[2]
            self.register_buffer(f"some_{name}", torch.tensor([1, 0, 1]).to(dtype))
            self.register_buffer(f"one_{name}", torch.tensor(1).to(dtype))
        self.register_buffer("no_values", torch.zeros(0, 3))


def test_the_fingerprint_is_that_of_architecture_and_weights() -> None:
    model = seeded(Buffers)
    found = fingerprint(model)
    again = Buffers()
    assert fingerprint(again) != found
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    assert fingerprint(again) == fingerprint(copy.deepcopy(model)) == found
    model.train()
    model.norm.num_batches_tracked += 7
    assert fingerprint(model) == found
    assert fingerprint(model.eval().to(memory_format=torch.channels_last).requires_grad_(False)) == found
    strided = Buffers(stride=2)
    strided.load_state_dict(model.state_dict())
    assert fingerprint(strided) != found


def test_the_fingerprint_changes_with_every_number() -> None:
    found = {fingerprint(seeded(Buffers))}
    names = [n for n, t in seeded(Buffers).state_dict().items() if t.numel() and not n.endswith("num_batches_tracked")]
    for name in names:
        changed = seeded(Buffers)
        value = changed.state_dict()[name]
        last = (-1,) * value.dim()
        value[last] = not value[last] if value.dtype == torch.bool else value[last] + 1
        found.add(fingerprint(changed))
    assert len(found) == len(names)  # two names are of one weight
    assert fingerprint(seeded(Buffers).double()) not in found
