"""What a dissection costs: against plain passes, against Captum layer by layer, and as more images come.

    python -m benchmarks.dissection [--batch-size 8] [--pairs 7] [--threads 2] [--quick]

1. Importance of all channels of all 53 convolutional units of a ResNet-50 against one plain forward and backward pass.
2. The same against Captum's ``LayerGradientXActivation``, asked module by module and summed over positions.
3. Seconds to label the units of the embedded model by rendered stimuli.
4. Seconds an image and bytes of a saved dissection, by the number of images seen.

Both sides of 1 and 2 have the same weights, images and targets. Before anything is timed their numbers are compared: in
float64, and in the float32 that is timed, where rounding turns single ReLUs the other way.
``--quick`` is for trying it out: small images, few of them, in a results file of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import captum.attr as captum_attr
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.agreement import correlation
from benchmarks.options import Options, UnsuitableError
from benchmarks.pairs import Ratio, environment, paired, ratio_of, report, row, write
from drnet_captum import DRNetDissection, load_model, model_card
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.dissect.labelling import label_with_stimuli
from drnet_captum.dissect.run import normalizer

SEED = 0
MOST_OF_PLAIN = 1.3  # times a plain pass
MOST_SECONDS = 60.0  # to label the embedded model
FLAT = 0.8  # least speed on late images, as a share of that on early ones
STOPS = (8, 64, 256)  # images after which a dissection is saved
CLASSES = 8  # of the images that a dissection grows with
TOLERANCE = 1e-9  # in float64, of a layer's largest importance
LEAST_CORRELATION = 0.999  # in float32


class Copy(nn.Module):
    """A new tensor, so that what came before is not written into."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def build(name: str = "resnet50") -> nn.Module:
    """A timm ResNet with random weights; batch norms at the end of blocks are not 0, as timm would have them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: nn.Module = timm.create_model(name, zero_init_last=False).eval()
    return model


def for_captum(model: nn.Module) -> nn.Module:
    """The same weights, with shortcuts added to a copy of a block's last norm: Captum would see it overwritten."""
    other = build(model.pretrained_cfg["architecture"])  # type: ignore[union-attr, index]
    other.load_state_dict(model.state_dict())
    for block in other.modules():
        if hasattr(block, "drop_path"):
            block.drop_path = Copy()
    return other


def unit_module(model: nn.Module, convolution: str) -> str:
    """The module of a timm ResNet that puts out a convolution's units: its activation, or the norm before a sum."""
    names = dict(model.named_modules())
    if convolution.endswith("downsample.0"):
        return convolution[:-1] + "1"
    activation = convolution.replace("conv", "act")
    is_last = convolution != "conv1" and convolution[:-1] + str(int(convolution[-1]) + 1) not in names
    return convolution.replace("conv", "bn") if is_last else activation


def captum_importance(model: nn.Module, modules: Sequence[str], x: Tensor, target: list[int]) -> list[Tensor]:
    """(N, C) of every module: one call of Captum each."""
    found = []
    for name in modules:
        values = captum_attr.LayerGradientXActivation(model, model.get_submodule(name)).attribute(x, target=target)
        found.append(values.detach().sum((2, 3)))
    return found


def with_parameters(model: nn.Module, x: Tensor, target: list[int]) -> None:
    """A plain pass as in training: gradients of all parameters."""
    model.zero_grad()
    model(x)[torch.arange(len(x)), target].sum().backward()


def by_input(model: nn.Module, x: Tensor, target: list[int]) -> Tensor:
    """A plain pass as in saliency: the gradient by the input only."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[torch.arange(len(x)), target].sum(), x)
    return gradient


def greatest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """As a share of a layer's largest value. Raises RuntimeError where the sides do not agree."""
    found = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    if not found < TOLERANCE:
        raise RuntimeError(f"the two sides differ by {found:.2g} of a layer's largest importance: nothing is timed")
    return found


def agreement(
    model: nn.Module, other: nn.Module, modules: Sequence[str], x: Tensor, target: list[int]
) -> dict[str, float]:
    """How well the two sides' numbers agree."""
    single = zip(DRNetDissection(model).attribute(x, target), captum_importance(other, modules, x, target), strict=True)
    least = min(correlation(a, b) for a, b in single)
    if not least > LEAST_CORRELATION:
        raise RuntimeError(f"the two sides' importances correlate by {least:.4f} only: nothing is timed")
    few, wanted = x[:2].double(), target[:2]
    ours = DRNetDissection(model.double()).attribute(few, wanted)
    found = greatest_difference(ours, captum_importance(other.double(), modules, few, wanted))
    model.float(), other.float()
    return {"least_correlation": least, "greatest_difference_float64": found}


def passes(name: str, x: Tensor, pairs: int, slow_pairs: int) -> list[dict[str, Any]]:
    """Cases 1 and 2."""
    model, other = build(name), for_captum(build(name))
    target = [7 * i for i in range(len(x))]
    modules = [unit_module(model, layer.name) for layer in DRNetDissection(model).unit_layers(x)]

    def ours() -> tuple[Tensor, ...]:
        return DRNetDissection(model).attribute(x, target)

    more = {"batch_size": len(x), "units": len(modules)} | agreement(model, other, modules, x, target)
    last = x.contiguous(memory_format=torch.channels_last)
    plain: dict[str, Callable[[], Any]] = {
        "parameters' gradients": lambda: with_parameters(model, x, target),
        "the input's gradient": lambda: by_input(model, x, target),
        "the input's gradient, channels last": lambda: by_input(model, last, target),
    }
    rows = []
    for what, side in plain.items():
        ratio = paired(ours, side, pairs)
        rows.append(row(f"one plain pass with {what}", name, "time", 1 / MOST_OF_PLAIN, ratio, **more))
        report(rows[-1])
        model.zero_grad()
    ratio = paired(ours, lambda: captum_importance(other, modules, x, target), slow_pairs)
    rows.append(row("Captum, module by module", name, "time", 1.0, ratio, **more))
    report(rows[-1])
    return rows


def labelling(size: int, repeats: int) -> list[dict[str, Any]]:
    """Case 3."""
    model = load_model("embedded")
    card = model_card(model)
    sites = Dissector(model).begin(torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(SEED)))
    see = normalizer(card, model)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        label_with_stimuli(model, sites, (size, size), see)
        seconds.append(time.perf_counter() - start)
    units = sum(site.layer.channels for site in sites)
    ratio = ratio_of([(s, MOST_SECONDS) for s in seconds])
    rows = [
        row(f"labels by stimuli, against {MOST_SECONDS:.0f} s", card.name, "time", 1.0, ratio, units=units, size=size)
    ]
    report(rows[-1])
    return rows


def soft_images(count: int, size: int, seed: int) -> Tensor:
    """Random images that a JPEG compresses about as well as a photo."""
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (size, size), mode="bicubic")


def growing(
    dissector: Dissector,
    batches: Sequence[Tensor],
    stops: Sequence[int],
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[dict[str, int]]]:
    """Seconds an image of every batch, and what is saved after ``stops`` images."""
    seconds, sizes, seen = [], [], 0
    for images in batches:
        labels = torch.arange(seen, seen + len(images)) % CLASSES
        start = clock()
        dissector.update(images, labels)
        seconds.append((clock() - start) / len(images))
        seen += len(images)
        if seen in stops:
            sizes.append({"images": seen} | saved_size(dissector))
    return seconds, sizes


def saved_size(dissector: Dissector) -> dict[str, int]:
    """Bytes of a saved dissection: of the pictures in it, and of all else; and the number of pictures."""
    with tempfile.TemporaryDirectory() as folder:
        dissector.result().save(Path(folder) / "saved")
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        pictures = [path for path in files if path.suffix == ".jpg"]
        total, of_pictures = (sum(path.stat().st_size for path in paths) for paths in (files, pictures))
        return {"statistics_bytes": total - of_pictures, "pictures_bytes": of_pictures, "pictures": len(pictures)}


def growth(name: str, size: int, batch_size: int, stops: Sequence[int]) -> list[dict[str, Any]]:
    """Case 4: how fast the last quarter of the batches is against the first, the very first left out."""
    dissector = Dissector(build(name))
    batches = [soft_images(batch_size, size, seed) for seed in range(max(stops) // batch_size)]
    seconds, sizes = growing(dissector, batches, stops)
    part = max(1, (len(seconds) - 1) // 4)
    early, late = seconds[1 : 1 + part], seconds[-part:]
    speed = ratio_of(list(zip(late, early, strict=True)))
    first, last = sizes[0], sizes[-1]
    kept = ratio_of([(last["statistics_bytes"], first["statistics_bytes"])])
    rows = [
        row("an image more, late against early", name, "time", FLAT, speed, seconds_an_image=seconds),
        row("statistics after all images against the first", name, "size", FLAT, kept, saved=sizes),
    ]
    for found in rows:
        report(found)
    for found in sizes:
        print(found, flush=True)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The plain passes the other way round: how many times one of them a dissection takes."""
    ratios = {
        r["case"]: Ratio(*(r[k] for k in ("median", "low", "high", "pairs", "ours_median", "theirs_median")))
        for r in rows
    }
    return "\n".join(
        f"{1 / ratio.median:.2f} times {case}" for case, ratio in ratios.items() if case.startswith("one plain")
    )


def measure(
    name: str, size: int, batch_size: int, pairs: tuple[int, int], labelled: int, repeats: int, stops: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """All cases, of a model on images of a size; ``labelled``: the size of the stimuli."""
    found = passes(name, soft_images(batch_size, size, SEED) - 0.5, *pairs)
    print(summary(found), flush=True)
    yield from found
    yield from labelling(labelled, repeats)
    yield from growth(name, size, batch_size, stops)


def run(options: Options) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """As the suite ``dissect`` of ``python -m benchmarks``: the environment, and the rows as they are found.

    Raises:
        UnsuitableError: a device other than the CPU.
    """
    if options.is_cuda:
        raise UnsuitableError(f"dissections are measured on the CPU, got {options.device!r}: pass --device cpu")
    where = environment("cpu", "float32", SEED)
    if options.quick:
        return where, measure("resnet18", 64, 2, (1, 1), 32, 1, (2, 4, 6))
    return where, measure("resnet50", 224, (options.batch_sizes or (8,))[0], (options.pairs, 3), 224, 3, STOPS)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small images and few of them")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(args.threads)
    where = environment("cpu", "float32", SEED)  # before it runs: the commit that is measured
    size, pairs, repeats, stops = (64, (3, 1), 1, (8, 16, 32)) if args.quick else (224, (args.pairs, 3), 3, STOPS)
    rows = list(measure("resnet50", size, args.batch_size, pairs, size, repeats, stops))
    quick = "_quick" if args.quick else ""
    print(write(f"dissection_cpu_float32_torch{torch.__version__.split('+')[0]}{quick}", where, rows))


if __name__ == "__main__":
    main()
