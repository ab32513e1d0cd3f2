"""Rendered stimuli, each showing one visual concept and little else, to ask units what they detect."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Split = Literal["labelling", "held-out"]
Fineness = Literal["fine", "medium", "coarse"]
FloatArray = npt.NDArray[np.float64]
RGB = tuple[float, float, float]
Ink = Callable[["Canvas"], FloatArray]  # (H, W) in [0, 1]: how much a pixel has of the second of two colours
Paint = Callable[["Canvas"], tuple[FloatArray, FloatArray]]  # a stimulus's two variants, (H, W) grey or (3, H, W)

LEAST_SIZE = 32
# By number of the instance.
CONTRASTS = (0.90, 0.82, 0.74, 0.66, 0.58)
RADII = (0.16, 0.18, 0.15, 0.19, 0.17)  # of the disc whose area a shape has, in parts of the shorter side
ORIENTATIONS = {"horizontal {}": 0.0, "diagonal {} (45°)": 45.0, "vertical {}": 90.0, "diagonal {} (135°)": 135.0}
COLOURS: dict[str, RGB] = {
    "red": (0.90, 0.07, 0.07),
    "orange": (0.92, 0.50, 0.05),
    "yellow": (0.95, 0.90, 0.10),
    "green": (0.10, 0.72, 0.12),
    "cyan": (0.10, 0.85, 0.90),
    "blue": (0.08, 0.15, 0.88),
    "purple": (0.55, 0.12, 0.75),
    "pink": (0.97, 0.55, 0.75),
    "brown": (0.45, 0.27, 0.10),
    "white": (0.95, 0.95, 0.95),
    "black": (0.05, 0.05, 0.05),
}
# Two colours of about one luma, so that an edge filter of luminance sees nothing.
OPPONENTS: dict[str, tuple[RGB, RGB]] = {
    "red-green edges": ((0.90, 0.20, 0.25), (0.10, 0.60, 0.25)),
    "blue-orange edges": ((0.20, 0.55, 1.00), (0.90, 0.40, 0.05)),
}


@dataclass(frozen=True)
class StimulusBank:
    """Rendered stimuli and what each shows.

    Args:
        images: (n, 3, H, W) float32 RGB in [0, 1], before any model's normalisation.
        names: the concept of every image.
        families: the concept's family: "colours", "edges", "gratings", "corners", "curves", "textures" or "shapes".
        instances: the number of the concept's instance. The two images of one number are variants of which the one
            that excites a unit more counts: dark and light exchanged, or a colour that fills the picture and one that
            fades to grey. Instances of one number have one contrast in all concepts.
    """

    images: Tensor
    names: tuple[str, ...]
    families: tuple[str, ...]
    instances: tuple[int, ...]


def stimulus_bank(size: tuple[int, int], *, split: Split = "labelling", seed: int = 0) -> StimulusBank:
    """Pictures of edges, gratings, colours, textures, corners, curves and shapes: ten of each of 43 concepts.

    Phases, positions, scales, rotations and shades are drawn anew for every instance, and no draw is shared between
    splits, seeds or concepts, but for contrast and size: these the concepts share, number by number, so that they can
    be compared. Angles run anticlockwise from the horizontal: 45° rises to the right. Sizes follow the picture; only
    fine stripes and fine noise follow the pixel grid.

    Args:
        size: (H, W) in pixels, the model's input size, each at least 32.
        split: "labelling", or "held-out" for instances that labels were not taken from.
        seed: for another bank of the same concepts.

    Returns:
        430 images.

    Raises:
        ValueError: a smaller size, an unknown split, or a negative seed (from NumPy).

    Example:
        >>> bank = stimulus_bank((32, 32))
        >>> bank.images.shape, bank.names[0], bank.families[0]
        (torch.Size([430, 3, 32, 32]), 'horizontal edges', 'edges')
    """
    if len(size) != 2 or min(size) < LEAST_SIZE:
        raise ValueError(f"expected a size (H, W) of at least {LEAST_SIZE} pixels each, got {tuple(size)}")
    if split not in get_args(Split):
        raise ValueError(f"expected split 'labelling' or 'held-out', got {split!r}")
    rows = []
    for number, (contrast, radius) in enumerate(zip(CONTRASTS, RADII, strict=True)):
        source = [seed, get_args(Split).index(split), number]
        shared = np.random.default_rng(source)
        look = contrast + shared.uniform(-0.04, 0.04), radius + shared.uniform(-0.005, 0.005)
        for name, (family, paint) in CONCEPTS.items():
            canvas = Canvas(size, *look, np.random.default_rng([*source, zlib.crc32(name.encode())]))
            for image in paint(canvas):
                pixels = np.broadcast_to(image.clip(0, 1), (3, *size)).astype(np.float32)
                rows.append((pixels, name, family, number))
    images, names, families, instances = zip(*rows, strict=True)
    return StimulusBank(torch.from_numpy(np.stack(images)), names, families, instances)


class Canvas:
    """The coordinates of a picture's pixels around its centre, y upwards, and the random draws of one stimulus."""

    def __init__(self, size: tuple[int, int], contrast: float, radius: float, rng: np.random.Generator) -> None:
        height, width = size
        self.size = size
        self.rng = rng
        self.unit = float(min(size))
        self.contrast = contrast
        self.radius = radius * self.unit
        self.x = np.broadcast_to(np.arange(width) - (width - 1) / 2, size)
        self.y = np.broadcast_to((height - 1) / 2 - np.arange(height)[:, None], size)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def near_centre(self, reach: float = 0.08) -> tuple[float, float]:
        return self.uniform(-reach, reach) * self.unit, self.uniform(-reach, reach) * self.unit

    def frame(self, degrees: float, centre: tuple[float, float] = (0.0, 0.0)) -> tuple[FloatArray, FloatArray]:
        """Coordinates along a direction and across it (to its left), anticlockwise from the horizontal."""
        angle = np.deg2rad(degrees)
        x, y = self.x - centre[0], self.y - centre[1]
        return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)

    def distance(self) -> FloatArray:
        """To a place near the centre."""
        return np.asarray(np.hypot(*self.frame(0, self.near_centre())))

    def period(self, fineness: Fineness) -> float:
        """Of a grating in pixels: fine for the pixel grid, coarse for the picture, medium between them."""
        fine, coarse = 5.0, max(self.unit / 6, 10.0)
        return self.uniform(0.87, 1.15) * {"fine": fine, "medium": math.sqrt(fine * coarse), "coarse": coarse}[fineness]


def fill(distance: FloatArray) -> FloatArray:
    """The inside of a signed distance in pixels (negative inside), its rim one pixel soft."""
    return np.clip(0.5 - distance, 0, 1)


def edge(c: Canvas, degrees: float) -> FloatArray:
    return fill(c.frame(degrees + c.uniform(-4, 4), c.near_centre())[1])


def grating(c: Canvas, degrees: float, fineness: Fineness) -> FloatArray:
    across = c.frame(degrees + c.uniform(-4, 4))[1]
    return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * (across / c.period(fineness) + c.uniform(0, 1))))


def checkerboard(c: Canvas) -> FloatArray:
    along, across = c.frame(c.uniform(-10, 10), c.near_centre())
    period = c.period("medium") * c.uniform(0.9, 2.5)
    waves = np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period)
    return fill(waves * period / (2 * np.pi))


def crosshatch(c: Canvas) -> FloatArray:
    degrees, period = c.uniform(35, 55), c.period("medium") * c.uniform(0.8, 1.6)
    phases = [c.frame(angle)[1] / period for angle in (degrees, -degrees)]
    return np.maximum(*(fill(period * (np.abs(phase % 1 - 0.5) - 0.11)) for phase in phases))


def dots(c: Canvas) -> FloatArray:
    period = c.period("medium") * c.uniform(1.1, 2.0)
    along, across = c.frame(c.uniform(0, 90), c.near_centre())
    # Every second row moves by half a period: rows and columns would read as stripes.
    shift = 0.5 * (np.floor(across / period) % 2)
    u, v = (along / period + shift) % 1 - 0.5, across / period % 1 - 0.5
    return fill(period * (np.hypot(u, v) - c.uniform(0.2, 0.28)))


def noise(c: Canvas, fineness: Literal["fine", "coarse"]) -> FloatArray:
    """White noise blurred by a Gaussian, around 0.5 with a standard deviation of 0.2."""
    sigma = c.uniform(0.8, 1.2) * (0.7 if fineness == "fine" else 0.0286 * c.unit)
    fy, fx = np.fft.fftfreq(c.size[0])[:, None], np.fft.fftfreq(c.size[1])[None, :]
    blur = np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2))
    smooth = np.fft.ifft2(np.fft.fft2(c.rng.standard_normal(c.size)) * blur).real
    return np.asarray(0.5 + 0.2 * (smooth - smooth.mean()) / smooth.std())


def concentric_rings(c: Canvas) -> FloatArray:
    period = c.period("medium") * c.uniform(0.9, 1.8)
    return np.asarray(0.5 + 0.5 * np.cos(2 * np.pi * (c.distance() / period + c.uniform(0, 1))))


def quarters(c: Canvas) -> list[tuple[FloatArray, FloatArray]]:
    """Frames at four places around the centre, turned by quarter turns, so that every picture has all directions."""
    first, frames = c.uniform(0, 90), []
    for turn, (right, up) in zip(c.rng.permutation(4), ((-1, -1), (-1, 1), (1, -1), (1, 1)), strict=True):
        dx, dy = c.near_centre(0.03)
        frames.append(c.frame(first + 90.0 * turn, (0.2 * right * c.unit + dx, 0.2 * up * c.unit + dy)))
    return frames


def beam(along: FloatArray, across: FloatArray, start: float, end: float, width: float) -> FloatArray:
    """The distance to a bar that runs from ``start`` to ``end``."""
    return np.maximum(np.abs(along - (start + end) / 2) - (end - start) / 2, np.abs(across) - width / 2)


def corners(c: Canvas) -> FloatArray:
    arm = 0.16 * c.unit * c.uniform(0.85, 1.15)
    thick = max(arm / 3, 2.0)
    angles = [(u + arm / 3, v + arm / 3) for u, v in quarters(c)]
    bars = [beam(p, q, -thick / 2, arm, thick) for u, v in angles for p, q in ((u, v), (v, u))]
    return fill(np.minimum.reduce(bars))


def curves(c: Canvas) -> FloatArray:
    radius, thick = 0.11 * c.unit * c.uniform(0.85, 1.15), max(0.022 * c.unit, 2.0)
    arcs = [np.maximum(np.abs(np.hypot(u, v) - radius) - thick / 2, -v) for u, v in quarters(c)]
    return fill(np.minimum.reduce(arcs))


def spots(c: Canvas) -> FloatArray:
    return np.asarray(np.exp(-((c.distance() / (c.unit * c.uniform(0.03, 0.1))) ** 2)))


def discs(c: Canvas) -> FloatArray:
    return fill(c.distance() - c.radius)


def round_edge(c: Canvas) -> FloatArray:
    """An edge of every direction, far larger than the discs."""
    return fill(c.distance() - c.unit * c.uniform(0.28, 0.34))


def rings(c: Canvas) -> FloatArray:
    thick = max(c.radius * c.uniform(0.14, 0.22), 2.0)
    return fill(np.abs(c.distance() - c.radius) - thick / 2)


def squares(c: Canvas) -> FloatArray:
    half = c.radius * np.pi**0.5 / 2
    return fill(beam(*c.frame(c.uniform(-12, 12), c.near_centre()), -half, half, 2 * half))


def triangles(c: Canvas) -> FloatArray:
    centre, turn = c.near_centre(), c.uniform(-15, 15)
    sides = [-c.frame(turn + degrees, centre)[1] for degrees in (0, 120, 240)]
    return fill(np.maximum.reduce(sides) - c.radius * (np.pi / 27**0.5) ** 0.5)


def crosses(c: Canvas) -> FloatArray:
    along, across = c.frame(c.uniform(-12, 12), c.near_centre())
    arm = 1.3 * c.radius
    return fill(np.minimum(*(beam(u, v, -arm, arm, arm / 2) for u, v in ((along, across), (across, along)))))


def in_greys(c: Canvas, ink: Ink) -> tuple[FloatArray, FloatArray]:
    relief = c.contrast * (ink(c) - 0.5)
    middle = 0.5 + c.uniform(-0.5, 0.5) * (1 - c.contrast)
    return middle + relief, middle - relief


def in_two_colours(c: Canvas, ink: Ink, colours: tuple[RGB, RGB]) -> tuple[FloatArray, FloatArray]:
    first, second = (np.asarray(colour)[:, None, None] for colour in colours)
    share = 0.5 + c.contrast * (ink(c) - 0.5)
    return first + (second - first) * share, second + (first - second) * share


def in_one_colour(c: Canvas, colour: RGB) -> tuple[FloatArray, FloatArray]:
    """A full picture of a shade, and one that fades to grey too softly to have an edge. White and black stay grey."""
    shift = c.rng.uniform(-0.04, 0.04, 3 if len(set(colour)) > 1 else 1)
    shade = np.clip(np.asarray(colour) + shift, 0, 1)[:, None, None]
    fading = np.exp(-((c.distance() / (c.unit * c.uniform(0.3, 0.4))) ** 4))
    return np.broadcast_to(shade, (3, *c.size)), 0.5 + (shade - 0.5) * fading


def concepts() -> dict[str, tuple[str, Paint]]:
    """Name -> family and how to paint it."""
    inks: list[tuple[str, str, Ink]] = []
    for name, degrees in ORIENTATIONS.items():
        inks.append((name.format("edges"), "edges", partial(edge, degrees=degrees)))
        for fineness in get_args(Fineness):
            ink = partial(grating, degrees=degrees, fineness=fineness)
            inks.append((f"{fineness} {name.format('stripes')}", "gratings", ink))
    inks += [("corners", "corners", corners), ("curves", "curves", curves)]
    inks += [(f"{grain} noise", "textures", partial(noise, fineness=grain)) for grain in ("fine", "coarse")]
    for draw in (checkerboard, crosshatch, dots, concentric_rings):
        inks.append((draw.__name__.replace("_", " "), "textures", draw))
    inks += [(draw.__name__, "shapes", draw) for draw in (spots, discs, rings, squares, triangles, crosses)]
    paints: dict[str, tuple[str, Paint]] = {name: (family, partial(in_greys, ink=ink)) for name, family, ink in inks}
    for name, pair in OPPONENTS.items():
        paints[name] = "edges", partial(in_two_colours, ink=round_edge, colours=pair)
    for name, colour in COLOURS.items():
        paints[name] = "colours", partial(in_one_colour, colour=colour)
    return paints


CONCEPTS = concepts()
