"""README's picture of D-RISE: photos with what a detector found in them, and a map for each.

    python -m benchmarks.detection_picture --detector SPEC [--photos astronaut coffee] [--mosaic] [--n-masks 2000]

writes docs/detection.jpg. The embedded photos are free to show.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.detection_subjects import EVERYTHING, add_detector_options, image_range, load, mosaic, read, subject
from drnet_captum.attr.drise import DRISE
from drnet_captum.data import embedded_photos
from drnet_captum.detect import Detector
from drnet_captum.viz import detection_panel

PATH = Path(__file__).parents[1] / "docs" / "detection.jpg"


def panel(detector: Detector, name: str, image: Tensor, args: argparse.Namespace) -> Image.Image:
    """One photo (1, 3, H, W), its detections and their maps."""
    shown = subject(detector, name, image, [EVERYTHING], args.min_score)
    targets = shown.targets[: args.max_detections]
    (maps,) = DRISE(detector).attribute_detections(
        image, targets, n_masks=args.n_masks, generator=torch.Generator().manual_seed(args.seed)
    )
    low, high = image_range(detector)
    photo = ((image[0] - low) / (high - low)).permute(1, 2, 0)
    labels = [f"{label} {float(score):.0%}" for label, score in zip(shown.labels, targets.scores, strict=False)]
    return detection_panel(photo.cpu(), targets.boxes.cpu(), labels, maps.cpu(), title=name)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, each in the middle of white.

    Example:
        >>> stacked([Image.new("RGB", (4, 2)), Image.new("RGB", (2, 3))]).size
        (4, 5)
    """
    width = max(picture.width for picture in pictures)
    page = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        page.paste(picture, ((width - picture.width) // 2, top))
        top += picture.height
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_detector_options(parser)
    parser.add_argument("--photos", nargs="+", choices=sorted(embedded_photos()), default=["astronaut", "coffee"])
    parser.add_argument("--mosaic", action="store_true", help="the photos side by side, as one")
    parser.add_argument("--min-score", type=float, default=0.3)
    parser.add_argument("--max-detections", type=int, default=2)
    parser.add_argument("--n-masks", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PATH)
    args = parser.parse_args(arguments)
    detector = load(args)
    images = {name: read(embedded_photos()[name], detector, args.device) for name in args.photos}
    if args.mosaic:
        low, high = image_range(detector)
        images = {", ".join(images): mosaic(images, (low + high) / 2)}
    stacked([panel(detector, name, image, args) for name, image in images.items()]).save(args.out, quality=82)
    print(args.out)


if __name__ == "__main__":
    main()
