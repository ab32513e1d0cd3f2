"""The stimuli measured: what each picture says it shows is what gradients, spectra, areas and colours find in it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from drnet_captum.dissect.stimuli import COLOURS, OPPONENTS, StimulusBank, stimulus_bank

SIZE = (96, 96)
FAMILIES = {"colours": 11, "edges": 6, "gratings": 12, "corners": 1, "curves": 1, "textures": 6, "shapes": 6}
LUMA = torch.tensor([0.299, 0.587, 0.114])
ANGLES = {"horizontal": 0, "(45°)": 45, "vertical": 90, "(135°)": 135}


@pytest.fixture(scope="module")
def bank() -> StimulusBank:
    return stimulus_bank(SIZE)


def of(bank: StimulusBank, name: str) -> Tensor:
    """The ten images of a concept (10, 3, H, W), in the order of the numbers, variants in a row."""
    rows = [row for row, other in enumerate(bank.names) if other == name]
    assert [bank.instances[row] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    return bank.images[rows]


def ink(pair: Tensor) -> npt.NDArray[np.float64]:
    """How much of its second grey a pixel has (H, W), of the two polarities of a stimulus (2, 3, H, W)."""
    half = (pair[0, 0].double() - pair[1, 0].double()).numpy()
    return (half - half.min()) / (half.max() - half.min())


def line_angle(image: Tensor) -> float:
    """The direction of edges in degrees in [0, 180), anticlockwise, from the structure tensor."""
    down, right = np.gradient(image[0].double().numpy())
    double = math.atan2(2 * (right * -down).sum(), (right**2 - down**2).sum())
    return math.degrees(double / 2 + math.pi / 2) % 180


def expected_angle(name: str) -> int:
    return next(angle for word, angle in ANGLES.items() if word in name)


def period(image: Tensor) -> float:
    """Pixels, from the strongest frequency."""
    grey = image[0].double().numpy()
    window = np.hanning(grey.shape[0])[:, None] * np.hanning(grey.shape[1])[None, :]
    size = 1024
    spectrum = np.abs(np.fft.rfft2((grey - grey.mean()) * window, s=(size, size)))
    row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
    return size / math.hypot(min(row, size - row), column)


def test_ten_images_of_every_concept(bank: StimulusBank) -> None:
    assert bank.images.shape == (430, 3, *SIZE)
    assert bank.images.dtype == torch.float32
    assert bank.images.min() >= 0
    assert bank.images.max() <= 1
    assert set(Counter(bank.names).values()) == {10}
    assert len(set(zip(bank.names, bank.families, strict=True))) == 43  # one family a concept
    assert {family: count // 10 for family, count in Counter(bank.families).items()} == FAMILIES
    for name in bank.names:
        of(bank, name)


def test_the_same_bank_again_whatever_the_global_generators(bank: StimulusBank) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    again = stimulus_bank(SIZE)
    assert torch.equal(again.images, bank.images)
    assert (again.names, again.families, again.instances) == (bank.names, bank.families, bank.instances)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("other", [{"split": "held-out"}, {"seed": 1}])
def test_no_image_is_shared(bank: StimulusBank, other: dict[str, object]) -> None:
    drawn = stimulus_bank(SIZE, **other)  # type: ignore[arg-type]
    assert drawn.names == bank.names
    pictures = [{image.numpy().tobytes() for image in images} for images in (bank.images, drawn.images)]
    assert len(pictures[0] | pictures[1]) == 860


def test_grey_stimuli_come_in_both_polarities_at_one_contrast(bank: StimulusBank) -> None:
    grey = [name for name, family in zip(bank.names, bank.families, strict=True) if family != "colours"]
    contrasts = []
    for name in sorted(set(grey) - set(OPPONENTS)):
        images = of(bank, name)
        assert torch.equal(images[:, 0], images[:, 1])
        assert torch.equal(images[:, 0], images[:, 2])
        if "noise" in name:  # clipped where it is extreme
            continue
        totals = images[0::2] + images[1::2]
        torch.testing.assert_close(totals, totals[:, :1, :1, :1].expand_as(totals), atol=1e-6, rtol=0)
        contrasts.append(images[0::2].amax((1, 2, 3)) - images[0::2].amin((1, 2, 3)))
    spread = torch.stack(contrasts)  # smooth inks may miss their extremes by a little between pixels
    assert (spread.amax(0) - spread.amin(0)).max() < 0.06
    assert (spread.amax(0).diff() < 0).all()


@pytest.mark.parametrize(
    "name",
    [
        f"{a} edges{b}"
        for a, b in [("horizontal", ""), ("vertical", ""), ("diagonal", " (45°)"), ("diagonal", " (135°)")]
    ],
)
def test_edges_run_as_named(bank: StimulusBank, name: str) -> None:
    for image in of(bank, name):
        off = (line_angle(image) - expected_angle(name) + 90) % 180 - 90
        assert abs(off) < 6
        assert (image > image.min() + 1e-4).logical_and(image < image.max() - 1e-4).any()  # anti-aliased


def test_45_degrees_rise_to_the_right(bank: StimulusBank) -> None:
    for image in of(bank, "diagonal edges (45°)")[:, 0]:
        assert abs(image[10, 10] - image[-10, -10]) > 0.4  # from one side of the line to the other
        torch.testing.assert_close(image[5, 85], image[20, 70])


def test_gratings_run_as_named_at_three_scales(bank: StimulusBank) -> None:
    middles = {"fine": 5.0, "medium": math.sqrt(5 * 16), "coarse": 16.0}
    gratings = {name for name, family in zip(bank.names, bank.families, strict=True) if family == "gratings"}
    for name in gratings:
        for image in of(bank, name):
            off = (line_angle(image) - expected_angle(name) + 90) % 180 - 90
            assert abs(off) < 6
            assert 0.84 < period(image) / middles[name.split()[0]] < 1.19


def test_coarse_follows_the_picture_and_fine_the_pixels() -> None:
    large = stimulus_bank((192, 256))
    assert large.images.shape == (430, 3, 192, 256)
    for name, middle in (("fine vertical stripes", 5), ("coarse vertical stripes", 32)):
        for image in of(large, name)[:, :, :, :192]:
            assert 0.84 < period(image) / middle < 1.19


def test_shapes_of_a_number_have_one_area(bank: StimulusBank) -> None:
    for number in range(5):
        areas = {
            name: ink(of(bank, name)[2 * number : 2 * number + 2]).sum() for name in ("discs", "squares", "triangles")
        }
        np.testing.assert_allclose(areas["squares"], areas["discs"], rtol=0.01)
        np.testing.assert_allclose(areas["triangles"], areas["discs"], rtol=0.01)
        radius = math.sqrt(areas["discs"] / math.pi) / 96
        assert 0.14 < radius < 0.2
    # perimeter² / area tells the shapes apart: 4π, 16 and 12√3
    for name, ratio in (("discs", 4 * math.pi), ("squares", 16), ("triangles", 12 * math.sqrt(3))):
        for start in range(0, 10, 2):
            shape = ink(of(bank, name)[start : start + 2])
            perimeter = np.hypot(*np.gradient(shape)).sum()
            np.testing.assert_allclose(perimeter**2 / shape.sum(), ratio, rtol=0.08)


def test_rings_are_hollow_and_crosses_are_not(bank: StimulusBank) -> None:
    for name, hollow in (("rings", True), ("crosses", False), ("discs", False)):
        for start in range(0, 10, 2):
            shape = ink(of(bank, name)[start : start + 2])
            rows, columns = np.nonzero(shape > 0.5)
            centre = shape[round(rows.mean()), round(columns.mean())]
            assert centre == (0 if hollow else 1)


def test_colours_are_what_they_are_called(bank: StimulusBank) -> None:
    palette = torch.tensor(list(COLOURS.values()))
    for row, name in enumerate(COLOURS):
        full, fading = of(bank, name)[0::2], of(bank, name)[1::2]
        torch.testing.assert_close(full, full[:, :, :1, :1].expand_as(full))
        assert (torch.cdist(full[:, :, 0, 0], palette).argmin(1) == row).all()
        torch.testing.assert_close(fading[:, :, 0, 0], torch.full((5, 3), 0.5), atol=0.02, rtol=0)
        # No edge: neighbouring pixels hardly differ, and less so in a larger picture.
        assert fading.diff(dim=-1).abs().max() < 0.04


def test_edges_between_colours_are_no_edges_of_luminance(bank: StimulusBank) -> None:
    for name in OPPONENTS:
        images = of(bank, name)
        luma = (images * LUMA[:, None, None]).sum(1)
        assert luma.amax((1, 2)).sub(luma.amin((1, 2))).max() < 0.03
        assert (images.amax((2, 3)) - images.amin((2, 3))).amax(1).min() > 0.3


def test_textures_fill_the_picture_and_are_no_stripes(bank: StimulusBank) -> None:
    textures = {name for name, family in zip(bank.names, bank.families, strict=True) if family == "textures"}
    assert len(textures) == 6
    for name in textures:
        quarters = of(bank, name)[:, 0].unfold(1, 48, 48).unfold(2, 48, 48)  # (10, 2, 2, 48, 48)
        assert quarters.std((3, 4)).min() > 0.05
    fine, coarse = (of(bank, f"{grain} noise")[:, 0].diff(dim=1).abs().mean() for grain in ("fine", "coarse"))
    assert fine > 2 * coarse


def test_the_smallest_picture() -> None:
    assert stimulus_bank((32, 40)).images.shape == (430, 3, 32, 40)


@pytest.mark.parametrize("size", [(31, 64), (64, 0), (64, 64, 64)])
def test_a_size_too_small(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 32 pixels"):
        stimulus_bank(size)


def test_an_unknown_split_and_seed() -> None:
    with pytest.raises(ValueError, match="'labelling' or 'held-out', got 'test'"):
        stimulus_bank(SIZE, split="test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="non-negative"):
        stimulus_bank(SIZE, seed=-1)
