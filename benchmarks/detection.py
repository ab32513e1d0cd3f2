"""Whether D-RISE's maps lie on what was detected: in its box, and by deletion and insertion; against two controls.

    python -m benchmarks.detection chelsea.jpg=cat street.jpg=* --root FOLDER --detector SPEC [--mosaic]

SPEC is as for `load_detector`. ``PHOTO=CLASS`` (or several, with commas) explains the best detection of the class;
``PHOTO=*`` all of at least ``--min-score``, at the default setting only. ``--mosaic`` lays the photos with classes side
by side in one more: there each box is small, and chance with it.

All normalisations and class similarities are of the same masks and passes; a fill needs passes of its own. Controls:
the same masks with their weights shuffled, and a Gaussian in the middle of the image. Deletion is to the mean colour,
insertion into the blurred photo. Rows are written after each photo and fill; the same command goes on where it was
interrupted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks import pairs
from benchmarks.detection_games import (
    BATCH,
    STEPS,
    above_median,
    box_share,
    curve_areas,
    energy_inside,
    enrichment,
    points_inside,
)
from benchmarks.detection_subjects import Subject, add_detector_options, image_range, load, subjects
from drnet_captum.attr.detection_similarity import Similarity, dot
from drnet_captum.detect import Detector
from drnet_captum.detect.detector import answers
from drnet_captum.masking.fill import fill
from drnet_captum.masking.options import MaskingOptions
from drnet_captum.masking.run import MaskedRun
from drnet_captum.masking.sums import MaskSums, Normalize

FILLS = ("mean", "black", "grey", "blur")
GREY = 114 / 255  # what detectors of the YOLO family pad with
SIMILARITIES = {"cosine": Similarity(), "dot": Similarity(classes=dot)}
SHUFFLES = 5
EVERY = 100  # masks between two lines of progress
BLOCK = 64

DEFAULT = {"map": "D-RISE", "fill": "mean", "class_similarity": "cosine", "normalize": "mean"}
CONTROLS = ("shuffled weights", "centred Gaussian")


@dataclass(frozen=True)
class Setting:
    """How a map was made, and the maps: for each of M detections one, or several of which the mean score counts."""

    made: dict[str, Any]
    maps: list[list[Tensor]]


class Weighing:
    """Asks the detector what it still finds, and keeps all weights: (similarities · M, N)."""

    def __init__(self, detector: Detector, subject: Subject) -> None:
        self.detector, self.subject = detector, subject
        self.found: list[Tensor] = []

    def __call__(self, copies: Tensor, m: int) -> Tensor:
        found = answers(self.detector.propose(copies), m)
        weights = torch.cat([s.strongest(found, self.subject.targets).mT for s in SIMILARITIES.values()])
        self.found.append(weights)
        return weights

    @property
    def weights(self) -> Tensor:
        """Of all masks so far."""
        return torch.cat(self.found, 1)


def masked(detector: Detector, subject: Subject, name: str, args: argparse.Namespace) -> tuple[MaskedRun, Tensor]:
    """All passes of a photo with one fill: the run with its sums, and the weights (similarities · M, N)."""
    low, high = image_range(detector)
    weighing = Weighing(detector, subject)
    options = MaskingOptions(
        n_masks=args.n_masks,
        grid=(args.grid, args.grid),
        baselines=low + (high - low) * GREY if name == "grey" else name,
        perturbations_per_eval=args.batch_size,
        generator=torch.Generator().manual_seed(args.seed),
    )
    rows = len(SIMILARITIES) * len(subject.targets)
    run = MaskedRun(subject.image, weighing, rows, options, detector.model, (low, high))
    start = time.perf_counter()
    for done in run.steps(EVERY):
        seconds = time.perf_counter() - start
        print(f"{subject.name}, {name}: {done:,} of {args.n_masks:,} masks, {seconds:.0f} s", flush=True)
    return run, weighing.weights


def shuffled(run: MaskedRun, weights: Tensor, seed: int) -> Tensor:
    """Maps of the run's own masks with weights (M, N) that belong to other masks, (M, SHUFFLES, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(weights.shape[1], generator=generator) for _ in range(SHUFFLES)])
    mixed = weights[:, orders.to(weights.device)].flatten(0, 1)  # (M · SHUFFLES, N)
    sums = MaskSums(len(mixed), run.masks.size, run.options.keep_probability, weights.device)
    for start in range(0, weights.shape[1], BLOCK):
        stop = min(start + BLOCK, weights.shape[1])
        sums.add(run.masks.build(start, stop), mixed[:, start:stop])
    return sums.maps("mean").unflatten(0, (len(weights), SHUFFLES))


def centred_gaussian(size: tuple[int, int]) -> Tensor:
    """(H, W), 1 in the middle, with a sigma of a quarter of each side: where photographers put things.

    Example:
        >>> centred_gaussian((3, 5))[1, 2]
        tensor(1.)
    """

    def along(count: int) -> Tensor:
        middle = (count - 1) / 2
        return torch.exp(-0.5 * ((torch.arange(count) - middle) / (count / 4)) ** 2)

    return along(size[0])[:, None] * along(size[1])[None]


def choices(subject: Subject, name: str) -> list[tuple[str, Normalize]]:
    """The class similarities and normalisations that are looked at with a fill; with the default one, all."""
    similarity, normalize = DEFAULT["class_similarity"], DEFAULT["normalize"]
    if name != DEFAULT["fill"] or subject.everything:
        return [(similarity, normalize)]
    others = [(other, normalize) for other in SIMILARITIES if other != similarity]
    return [(similarity, one) for one in get_args(Normalize)] + others


def settings(detector: Detector, subject: Subject, name: str, args: argparse.Namespace) -> Iterator[Setting]:
    """The maps of a photo with one fill, and with the default one the controls."""
    m = len(subject.targets)
    run, weights = masked(detector, subject, name, args)
    for similarity, normalize in choices(subject, name):
        first = list(SIMILARITIES).index(similarity) * m
        made = {"map": DEFAULT["map"], "fill": name, "class_similarity": similarity, "normalize": normalize}
        yield Setting(made, [[heat] for heat in run.sums.maps(normalize)[first : first + m]])
    if name == DEFAULT["fill"]:
        mixed = shuffled(run, weights[:m], args.seed + 1)
        yield Setting({"map": CONTROLS[0], "fill": name}, [list(heats) for heats in mixed])
        yield Setting({"map": CONTROLS[1]}, [[centred_gaussian(subject.size)]] * m)


def scores(
    detector: Detector, subject: Subject, number: int, heat: Tensor, fills: dict[str, Tensor], args: argparse.Namespace
) -> dict[str, float]:
    """Every measure of one map of one detection; fills as for `curve_areas`."""
    target, image = subject.targets[number], subject.image
    box, heat = target.boxes[0], heat.to(image.device)
    options = {"steps": args.steps, "batch": args.batch_size or BATCH, "seed": args.seed}
    return {
        "points inside": points_inside(heat, box),
        "energy inside": energy_inside(heat, box),
        "enrichment": enrichment(heat, box),
        "energy inside, above median": energy_inside(above_median(heat), box),
        **curve_areas(lambda x: answers(detector.propose(x), len(x)), target, image[0], heat, fills, **options),
    }


def rows_of(detector: Detector, subject: Subject, name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a photo with one fill: a row for each map of each detection."""
    rows, low_high = [], image_range(detector)
    ends = {"deletion": "mean", "insertion": "blur"}
    fills = {use: fill(subject.image, end, low_high)[0] for use, end in ends.items()}
    for setting in settings(detector, subject, name, args):
        for number, heats in enumerate(setting.maps):
            each = [scores(detector, subject, number, heat, fills, args) for heat in heats]
            box = subject.targets.boxes[number]
            rows.append(
                {
                    "photo": subject.name,
                    "class": subject.labels[number],
                    "score": float(subject.targets.scores[number]),
                    "box": [round(float(v), 1) for v in box],
                    "box share": box_share(box, subject.size),
                    "everything": subject.everything,
                    **dict.fromkeys(DEFAULT),
                    **setting.made,
                    "measured with": name,
                    "maps": len(each),
                    **{measure: fmean(one[measure] for one in each) for measure in each[0]},
                }
            )
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row while it runs."""
    how = ", ".join(str(row[key]) for key in DEFAULT if row[key])
    return (
        f"  {row['photo']} {row['class']:12} {how:34} points {row['points inside']:.2f}  energy "
        f"{row['energy inside']:.2f} of {row['box share']:.2f}  deletion {row['deletion']:.3f}  insertion "
        f"{row['insertion']:.3f}"
    )


def begun(path: Path, where: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the same measurement, where it was interrupted; else none."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    same = found["environment"] == json.loads(json.dumps(where)) | {"complete": False}
    return list(found["rows"]) if same else []


def measure(detector: Detector, chosen: Sequence[Subject], args: argparse.Namespace, where: dict[str, Any]) -> Path:
    """All photos with all fills, written as they come."""
    path = pairs.RESULTS / f"{args.name}.json"
    rows = begun(path, where)
    done = {(row["photo"], row["measured with"]) for row in rows}
    parts = [
        (subject, name)
        for subject in chosen
        for name in (args.fills if not subject.everything else [DEFAULT["fill"]])
        if (subject.name, name) not in done
    ]
    for subject, name in parts:
        rows += rows_of(detector, subject, name, args)
        pairs.write(args.name, where | {"complete": False}, rows)
    return pairs.write(args.name, where | {"complete": True}, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", metavar="PHOTO=CLASS")
    parser.add_argument("--root", type=Path, required=True, help="the folder that the photos are in")
    add_detector_options(parser)
    parser.add_argument("--mosaic", action="store_true", help="also the photos side by side, as one")
    parser.add_argument("--min-score", type=float, default=0.2)
    parser.add_argument("--fills", nargs="+", choices=FILLS, default=list(FILLS))
    parser.add_argument("--n-masks", type=int, default=2000)
    parser.add_argument("--grid", type=int, default=16, help="cells along each side of a mask")
    parser.add_argument("--steps", type=int, default=STEPS, help="of deletion and insertion")
    parser.add_argument("--batch-size", type=int, help="images in a forward pass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="detection_localisation", help="of the results file")
    args = parser.parse_args(arguments)
    detector = load(args)
    chosen = subjects(detector, args.root, args.photos, args.min_score, args.device, args.mosaic)
    where = pairs.environment(args.device, "float32", args.seed) | {
        "detector": detector.name,
        "photos": [*args.photos, *(["mosaic"] if args.mosaic else [])],
        **{key: getattr(args, key) for key in ("min_score", "fills", "n_masks", "grid", "steps", "batch_size")},
    }
    print(measure(detector, chosen, args, where))


if __name__ == "__main__":
    main()
