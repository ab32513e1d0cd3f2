"""Small data sets on disk, whole and broken, and what a run wrote."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from drnet_captum.data import ModelCard
from drnet_captum.scale import explain_dataset

METHODS = ("grad_cam", "saliency")
SIDE, CLASSES = 32, ("bar", "disc", "wall")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Small(nn.Module):
    """Random weights, always the same ones."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.features = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU()
            )
            self.head = nn.Linear(12, len(CLASSES))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def card(side=SIDE):
    steps = [
        transforms.Resize(side),
        transforms.CenterCrop(side),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return ModelCard("small", (3, side, side), MEAN, STD, transforms.Compose(steps), CLASSES)


def explain_small(source, out, **options):
    """A run with the small model."""
    options = {"methods": METHODS, "card": card(), "batch_size": 4, "rows_per_shard": 8, "threads": 1} | options
    return explain_dataset(source, Small().eval(), out=out, **options)


def make_photos(folder: Path, count: int, classes=CLASSES) -> Path:
    """Photos of noise with a bright rectangle, of several sizes, one subfolder a class."""
    draw = np.random.default_rng(count)
    for number in range(count):
        height, width = (int(side) for side in draw.integers(36, 60, 2))
        pixels = draw.integers(0, 90, (height, width, 3), np.uint8)
        top, left = draw.integers(0, height - 20), draw.integers(0, width - 20)
        pixels[top : top + 14, left : left + 14, number % 3] = 250
        place = folder / classes[number % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:04d}.jpg", quality=95)
    return folder


def make_odd(folder: Path) -> dict[str, str]:
    """One file of each odd kind, flat: name -> what its error says, or "" where it can be read."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(folder / "good.jpg")
    Image.fromarray(noise).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise).convert("L").save(folder / "grey.jpg")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(noise[:1, :1]).save(folder / "dot.png")
    whole = (folder / "good.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.jpg").write_bytes(b"")
    failing = {"truncated.jpg": "truncated", "text.jpg": "not an image", "empty.jpg": "empty"}
    return {path.name: failing.get(path.name, "") for path in sorted(folder.iterdir())}


def rows_of(out: Path) -> list[dict]:
    """All rows of a run, by index."""
    found = [row for path in sorted((out / "rows").glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
    return sorted(found, key=lambda row: row["index"])


def map_of(row: dict, method: str) -> torch.Tensor:
    """A map as it was before it was written, but for rounding."""
    values = torch.tensor(row[f"{method}_map"], dtype=torch.float32) * row[f"{method}_scale"]
    return values.reshape(row[f"{method}_shape"])


def seen(path: Path, side=SIDE) -> torch.Tensor:
    """What the model takes of a photo, (1, 3, H, W)."""
    with Image.open(path) as image:
        return card(side).transform(image.convert("RGB"))[None]


def no_room(*args, **kwargs):
    """A file system without any left."""
    raise OSError(28, "No space left on device")
