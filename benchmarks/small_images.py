"""Fashion-MNIST and CIFAR-10 at 32 × 32 pixels, and networks trained on them once and kept."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 32
BATCH, MOMENTUM = 64, 0.9
EVERY = 100  # steps, between lines of progress
SHIFT = 2  # pixels
FASHION = (0.2860, 0.3530)  # mean, deviation
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
FASHION_CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True)
class Data:
    """A data set of ten classes, normalised: images (N, 3, 32, 32), labels (N,)."""

    name: str
    classes: tuple[str, ...]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov's momentum, flips, and shifts by up to two pixels.

    Attributes:
        name: for the file that keeps the network.
        steps: batches of 64.
        rate: the learning rate. It rises over a share ``rise`` of the steps, stays for a share ``hold`` of them, and
            falls to 0.
        penalty: ℓ1, on the scales and shifts of batch norms, by a proximal step: what it drives to 0 is exactly 0.
            Source: Liu et al. 2017, arXiv 1708.06519 (scales only, by subgradients).
        start: the recipe of the network to start from.
    """

    name: str
    steps: int
    rate: float
    weight_decay: float
    rise: float = 0.0
    hold: float = 0.0
    penalty: float = 0.0
    seed: int = 0
    start: Recipe | None = None

    def factor(self, step: int) -> float:
        """Of the learning rate."""
        rising = (step + 1) / (self.rise * self.steps) if self.rise else 1.0
        return min(1.0, rising, (1 - step / self.steps) / (1 - self.hold))


PLAIN = Recipe("plain", steps=8000, rate=0.1, weight_decay=1e-3, rise=0.05, hold=0.5)
SPARSE = Recipe("sparse", steps=3000, rate=0.05, weight_decay=5e-4, penalty=1e-3, seed=1, start=PLAIN)


def fashion_mnist(root: Path) -> Data:
    """The four ``.gz`` files of Fashion-MNIST; 28 × 28 pixels and a frame of two."""

    def part(kind: str) -> tuple[Tensor, Tensor]:
        files = {what: root / f"{kind}-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1")}
        if missing := [str(file) for file in files.values() if not file.exists()]:
            raise FileNotFoundError(f"expected Fashion-MNIST's files in {root}, and there is no {missing[0]}")
        pixels = np.frombuffer(gzip.open(files["images-idx3"]).read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        labels = np.frombuffer(gzip.open(files["labels-idx1"]).read(), np.uint8, offset=8)
        mean, deviation = FASHION
        images = (torch.from_numpy(pixels.copy()).float() / 255 - mean) / deviation
        images = F.pad(images, (SHIFT,) * 4, value=-mean / deviation)
        return images.expand(-1, 3, -1, -1), torch.from_numpy(labels.copy()).long()

    return Data("Fashion-MNIST", FASHION_CLASSES, part("train"), part("t10k"))


def cifar10(root: Path) -> Data:
    """torchvision's CIFAR-10, as it lies under ``root``."""

    def part(train: bool) -> tuple[Tensor, Tensor]:
        found = torchvision.datasets.CIFAR10(str(root), train=train)
        mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in CIFAR)
        images = torch.from_numpy(found.data).movedim(3, 1).float() / 255
        return (images - mean) / deviation, torch.tensor(found.targets)

    names = tuple(torchvision.datasets.CIFAR10(str(root), train=False).classes)
    return Data("CIFAR-10", names, part(True), part(False))


DATA: dict[str, Callable[[Path], Data]] = {"fashion-mnist": fashion_mnist, "cifar10": cifar10}


def vgg16_bn() -> nn.Module:
    """VGG16 with batch norms, and one linear layer 512 → 10 for a head: 14.7 million parameters."""
    model: nn.Module = torchvision.models.vgg16_bn(num_classes=10)
    model.avgpool, model.classifier = nn.Identity(), nn.Linear(512, 10)
    return model


def resnet18() -> nn.Module:
    """torchvision's, with a stem of stride 1: its last grid would be a single position otherwise."""
    model: nn.Module = torchvision.models.resnet18(num_classes=10)
    model.conv1.stride = (1, 1)  # type: ignore[union-attr]
    return model


def mobilenet_v2() -> nn.Module:
    """torchvision's, with a stem of stride 1 as well."""
    model: nn.Module = torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0)
    model.features[0][0].stride = (1, 1)  # type: ignore[index]
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg16_bn": vgg16_bn,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
}


def trained(network: str, data: Data, recipe: Recipe, cache: Path, device: str = "cpu") -> nn.Module:
    """A network from the cache, or trained and put there; in eval mode, on the CPU."""
    file = cache / f"{network}-{data.name.lower()}-{recipe.name}.pt"
    if recipe.start is not None and not file.exists():
        model = trained(network, data, recipe.start, cache, device)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = NETWORKS[network]()
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    print(f"training {network} on {data.name}: {recipe.steps} steps of {BATCH} images; kept in {file}", flush=True)
    train(model.to(device), data, recipe, device)
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(model.cpu().state_dict(), file)
    return model.eval()


def train(model: nn.Module, data: Data, recipe: Recipe, device: str) -> None:
    """Cross-entropy by a recipe; bfloat16 where that is safe."""
    images, labels = (part.to(device) for part in data.train)
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.rate, momentum=MOMENTUM, weight_decay=recipe.weight_decay, nesterov=True, fused=True
    )
    norms = [p for module in model.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.factor)
    generator = torch.Generator().manual_seed(recipe.seed)
    order, taken, start, smooth = torch.randperm(len(labels), generator=generator), 0, time.perf_counter(), 0.0
    for step in range(recipe.steps):
        if taken + BATCH > len(labels):
            order, taken = torch.randperm(len(labels), generator=generator), 0
        rows = order[taken : taken + BATCH].to(device)
        taken += BATCH
        flipped = (torch.rand(BATCH, generator=generator) < 0.5).to(device)
        down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
        batch = torch.where(flipped[:, None, None, None], images[rows].flip(3), images[rows])
        batch = batch.roll((down, right), (2, 3)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = F.cross_entropy(model(batch).float(), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if recipe.penalty:
            shrink(norms, recipe.penalty * optimizer.param_groups[0]["lr"] / (1 - MOMENTUM))
        schedule.step()
        smooth += 0.02 * (loss.item() - smooth)
        if step % EVERY == EVERY - 1:
            seconds = time.perf_counter() - start
            print(f"step {step + 1}: loss {smooth:.3f}, {seconds:.0f} s", flush=True)
    model.eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def shrink(parameters: Sequence[Tensor], by: float) -> None:
    """The proximal step of an ℓ1 penalty."""
    for p in parameters:
        p.copy_(p.sign() * (p.abs() - by).clamp(min=0))
