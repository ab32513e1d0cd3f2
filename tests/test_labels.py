"""Units whose weights say what they detect, and the label rule in numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from drnet_captum.dissect.labels import UNLABELLED, LabelAccuracy, UnitLabel, label_accuracy, label_units, pooled
from drnet_captum.dissect.stimuli import StimulusBank, stimulus_bank

SIZE = (96, 96)
LUMA = torch.tensor([0.299, 0.587, 0.114])


def plane(half: int) -> tuple[Tensor, Tensor]:
    x = torch.arange(-half, half + 1.0).expand(2 * half + 1, 2 * half + 1)
    return x, -x.T  # y upwards


X, Y = plane(6)


def bell(sigma: float) -> Tensor:
    return torch.exp(-(X**2 + Y**2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)


def sobel(degrees: float) -> Tensor:
    """Luminance's derivative across lines of an angle, blurred."""
    angle = math.radians(degrees)
    return (Y * math.cos(angle) - X * math.sin(angle)) * bell(1.5)


def gabor(degrees: float, period: float) -> Tensor:
    angle = math.radians(degrees)
    envelope = bell(period / 2)
    wave = torch.cos(2 * math.pi * (Y * math.cos(angle) - X * math.sin(angle)) / period) * envelope
    return wave - envelope * wave.sum() / envelope.sum()


def disc() -> Tensor:
    """The matched filter of a disc of radius 16, less the mean of the ring around it."""
    x, y = plane(22)
    distance = (x**2 + y**2).sqrt()
    inside, around = (distance <= 16).float(), ((distance > 16) & (distance <= 22)).float()
    return inside / inside.sum() - around / around.sum()


def colour(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue])[:, None, None] * bell(1.5)


def grey(kernel: Tensor) -> Tensor:
    return LUMA[:, None, None] * kernel


KNOWN = {
    "vertical edges": grey(sobel(90)),
    "horizontal edges": grey(sobel(0)),
    "diagonal edges (45°)": grey(sobel(45)),
    "diagonal edges (135°)": grey(sobel(135)),
    "medium vertical stripes": grey(gabor(90, 9)),
    "medium diagonal stripes (45°)": grey(gabor(45, 9)),
    "red": colour(1, -0.5, -0.5),
    "green": colour(-0.5, 1, -0.5),
    "blue": colour(-0.5, -0.5, 1),
    "yellow": colour(0.5, 0.5, -1),
    "white": colour(1, 1, 1),
    "red-green edges": torch.tensor([0.587, -0.299, 0.0])[:, None, None] * sobel(70),
}


@pytest.fixture(scope="module")
def banks() -> tuple[StimulusBank, StimulusBank]:
    return stimulus_bank(SIZE), stimulus_bank(SIZE, split="held-out")


def responses(filters: list[Tensor], bank: StimulusBank, bias: float = 0.0) -> Tensor:
    """Of a convolution and ReLU; filters of one channel see the luminance."""
    channels, _, size = filters[0].shape
    net = nn.Sequential(nn.Conv2d(channels, len(filters), size, padding=size // 2), nn.ReLU())
    seen = bank.images if channels == 3 else (bank.images * LUMA[:, None, None]).sum(1, keepdim=True)
    with torch.no_grad():
        net[0].weight.copy_(torch.stack(filters))
        net[0].bias.fill_(bias)
        return torch.cat([pooled(net(images)) for images in seen.split(64)])


def test_units_of_known_filters(banks: tuple[StimulusBank, StimulusBank]) -> None:
    found = [torch.cat([responses([*KNOWN.values()], b), responses([disc()[None]], b)], 1) for b in banks]
    labels = label_units(found[0], banks[0])
    assert [label.name for label in labels] == [*KNOWN, "discs"]
    assert [label.name for label in label_units(found[1], banks[1])] == [*KNOWN, "discs"]
    families = ["edges"] * 4 + ["gratings"] * 2 + ["colours"] * 5 + ["edges", "shapes"]
    assert [label.family for label in labels] == families
    assert min(label.score for label in labels) > 0.9
    assert label_accuracy(labels, found[1], banks[1]) == LabelAccuracy(13, 13, 13)


def test_dead_constant_and_indifferent_units(banks: tuple[StimulusBank, StimulusBank]) -> None:
    bank = banks[0]
    for bias in (-1.0, 0.0, 2.0):
        assert label_units(responses([torch.zeros(1, 1, 1)], bank, bias), bank) == [UNLABELLED]
    # Red by a hair over a large constant, and one that takes all but black.
    nearly_constant = responses([KNOWN["red"]], bank) + 100
    but_black = torch.tensor([[float(name != "black")] for name in bank.names])
    assert label_units(torch.cat([nearly_constant, but_black], 1), bank) == [UNLABELLED] * 2


def test_units_of_random_weights_hold_if_labelled(banks: tuple[StimulusBank, StimulusBank]) -> None:
    filters = list(torch.randn(40, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
    found = [responses(filters, bank) for bank in banks]
    assert label_accuracy(label_units(found[0], banks[0]), found[1], banks[1]).accuracy > 0.8


def test_responses_without_reason_are_mostly_unlabelled(banks: tuple[StimulusBank, StimulusBank]) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(430, 300, generator=generator)
    labelled = sum(label != UNLABELLED for label in label_units(noise, banks[0]))
    assert labelled < 0.1 * 300


# The rule, by hand


def small_bank(concepts: dict[str, str], instances: int = 2) -> StimulusBank:
    """Every instance in two variants."""
    rows = [(name, family, number) for name, family in concepts.items() for number in range(instances) for _ in "ab"]
    names, families, numbers = zip(*rows, strict=True)
    return StimulusBank(torch.zeros(len(rows), 3, 1, 1), names, families, numbers)


CONCEPTS = {"red": "colours", "vertical edges": "edges", "stripes": "gratings", "dots": "textures", "discs": "shapes"}


def label_of(*means: float, spread: tuple[float, ...] = (0, 0, 0, 0, 0), **keywords: float) -> UnitLabel:
    """Of a unit with mean responses to CONCEPTS, its two instances ``spread`` above and below."""
    rows = [r for mean, half in zip(means, spread, strict=True) for r in (mean + half, 0.0, 0.0, mean - half)]
    (label,) = label_units(torch.tensor(rows)[:, None], small_bank(CONCEPTS), **keywords)
    return label


def test_the_simplest_concept_that_excites_nearly_as_strongly() -> None:
    assert label_of(0, 0.8, 0.1, 1, 0.2).name == "vertical edges"
    assert label_of(0, 0.7, 0.1, 1, 0.2).name == "dots"
    assert label_of(0.8, 0.1, 0.1, 0.1, 1).name == "red"
    assert label_of(0, 0.3, 0.8, 1, 0.2).name == "stripes"
    # Of the way from the weakest: 0.8 is nearly 1 above 0, not above 0.5.
    assert label_of(0.5, 0.8, 0.5, 1, 0.5).name == "dots"


def test_edges_between_colours_are_not_simpler_than_textures() -> None:
    bank = small_bank({"red-green edges": "edges", "vertical edges": "edges", "dots": "textures", "discs": "shapes"})
    means = torch.tensor([[0.8, 0.1, 1.0, 0.0], [1.0, 0.1, 0.8, 0.0], [1.0, 0.8, 0.1, 0.0]]).T
    labels = label_units(means.repeat_interleave(4, 0), bank)
    assert [label.name for label in labels] == ["dots", "red-green edges", "vertical edges"]


def test_the_score_is_gain_less_loss() -> None:
    # Dots 1.0 ± 0.4 against discs 0.8 ∓ 0.4: differences +1.0 and −0.6, so (1.0 − 0.6) / 1.6.
    spread = (0, 0, 0, 0.4, -0.4)
    assert label_of(0, 0.1, 0.1, 1, 0.8, spread=spread) == UNLABELLED
    label = label_of(0, 0.1, 0.1, 1, 0.8, spread=spread, least_score=0.2)
    assert (label.name, label.family) == ("dots", "textures")
    assert label.score == pytest.approx(0.25)
    assert label_of(0, 0.1, 0.1, 1, 0.9).score == 1.0
    assert label_of(0, 0.1, 0.1, 1, 1, least_score=0.1) == UNLABELLED  # a draw


def test_more_than_half_of_the_peers_nearly_as_strong() -> None:
    bank = small_bank({"red": "colours", "green": "colours", "blue": "colours", "discs": "shapes"})
    means = torch.tensor([[0.8, 0.9, 0.1, 1], [0.1, 0.9, 0.1, 1], [0.1, 0.2, 0.1, 1], [0.8, 0.9, 1, 0.1]])
    labels = label_units(means.T.repeat_interleave(4, 0), bank)
    assert [label.name for label in labels] == ["unlabelled", "green", "discs", "unlabelled"]


def test_the_stronger_variant_counts() -> None:
    bank = small_bank(CONCEPTS)
    rows = torch.zeros(20, 1)
    rows[12], rows[15] = 1.0, 1.0  # dots: the first variant of one instance, the second of the other
    rows[16], rows[17] = 1.0, 1.0  # discs: both variants of one instance
    assert label_units(rows, bank)[0].name == "dots"
    shuffle = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    names, families, numbers = ([column[i] for i in shuffle] for column in (bank.names, bank.families, bank.instances))
    shuffled = StimulusBank(bank.images, tuple(names), tuple(families), tuple(numbers))
    assert label_units(rows[shuffle], shuffled) == label_units(rows, bank)


def test_negative_responses_and_other_dtypes() -> None:
    rows = torch.tensor([0.0, 0, 0, 1, 0]).repeat_interleave(4)[:, None]
    expected = UnitLabel("dots", "textures", 1.0)
    for responses in (rows - 3, rows.half(), rows.bfloat16(), (1e-20 * rows).double(), rows.clone().requires_grad_()):
        assert label_units(responses, small_bank(CONCEPTS)) == [expected]


def test_accuracy_counts_labels_that_hold() -> None:
    bank = small_bank(CONCEPTS)
    edges, dots = UnitLabel("vertical edges", "edges", 1.0), UnitLabel("dots", "textures", 1.0)
    rows = torch.tensor(
        [
            [0, 0.8, 0.1, 1, 0],  # nearly as strong as dots, which are not simpler: the label edges holds
            [0, 0.7, 0.1, 1, 0],  # no longer nearly
            [0.9, 0.8, 0.1, 1, 0],  # red is simpler and stronger
            [0, 0.8, 0.1, 1, 0],  # the label dots: the strongest of all
            [0, 0, 0, 1, 1],  # a draw
            [0, 0, 0, 1, 0],  # unlabelled
        ]
    )
    rows = rows.T.repeat_interleave(4, 0)
    result = label_accuracy([edges, edges, edges, dots, dots, UNLABELLED], rows, bank)
    assert result == LabelAccuracy(units=6, labelled=5, confirmed=2)
    assert (result.accuracy, result.coverage) == (0.4, 5 / 6)
    nothing = label_accuracy([UNLABELLED], rows[:, :1], bank)
    assert math.isnan(nothing.accuracy)
    assert nothing.coverage == 0
    assert math.isnan(label_accuracy([], rows[:, :0], bank).coverage)
    assert label_units(rows[:, :0], bank) == []


def test_pooled_leaves_the_border_out() -> None:
    maps = torch.zeros(2, 3, 14, 6)
    maps[0, 1, 1, 3], maps[0, 1, 2, 3] = 9.0, 5.0  # two of 14 rows are border
    maps[1, 2, 7, 0], maps[1, 2, 11, 4] = 9.0, 4.0  # one of 6 columns
    assert pooled(maps).tolist() == [[0, 5, 0], [0, 0, 4]]
    assert pooled(-torch.ones(1, 1, 3, 3)).tolist() == [[-1]]
    for grid in ((1, 1), (1, 5), (5, 2)):
        tiny = torch.zeros(1, 1, *grid)
        tiny[0, 0, 0, 0] = 1
        assert pooled(tiny).item() == 1
    assert pooled(torch.ones(4, 7)).shape == (4, 7)


def test_what_is_no_map_no_bank_and_no_threshold() -> None:
    bank = small_bank(CONCEPTS)
    good = torch.zeros(20, 2)
    for maps in (torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(2, 3, 0, 4)):
        with pytest.raises(ValueError, match=r"\(n, C, h, w\) or \(n, C\)"):
            pooled(maps)
    for responses in (torch.zeros(19, 2), torch.zeros(20), torch.zeros(20, 2, 1)):
        with pytest.raises(ValueError, match=r"expected responses of shape \(20, C\)"):
            label_units(responses, bank)
    with pytest.raises(ValueError, match="NaN or infinite"):
        label_units(good / 0, bank)
    with pytest.raises(ValueError, match=r"least_score in \[0, 1\], got 2"):
        label_units(good, bank, least_score=2)
    for broken in (small_bank(CONCEPTS, instances=1), StimulusBank(bank.images, ("a",) * 20, ("b",) * 20, (0,) * 20)):
        with pytest.raises(ValueError, match="the same instances, two or more"):
            label_units(torch.zeros(len(broken.names), 1), broken)
    uneven = StimulusBank(bank.images, bank.names, bank.families, (*bank.instances[:-2], 7, 7))
    with pytest.raises(ValueError, match="the same instances"):
        label_units(good, uneven)
    with pytest.raises(ValueError, match="each of 2 units, got 1"):
        label_accuracy([UNLABELLED], good, bank)
    with pytest.raises(ValueError, match="the bank has no 'cats'"):
        label_accuracy([UnitLabel("cats", "shapes", 1.0), UNLABELLED], good, bank)
