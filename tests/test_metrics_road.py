"""ROAD: its imputation against a dense solve, the order of removal by hand, noise and chunks."""

from __future__ import annotations

import pytest
import torch
from models import ConvNet, images, seeded
from torch.testing import assert_close

from drnet_captum.metrics import imputation, impute, road


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_impute(image, removed):
    """One image (C, H, W): the system of the paper, equation by equation, and a dense solve."""
    _, height, width = image.shape
    holes = [(i, j) for i in range(height) for j in range(width) if removed[i, j]]
    number = {hole: k for k, hole in enumerate(holes)}
    a = torch.zeros(len(holes), len(holes), dtype=torch.float64)
    b = torch.zeros(len(holes), len(image), dtype=torch.float64)
    for (i, j), k in number.items():
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                near = i + di, j + dj
                if (di, dj) == (0, 0) or not (0 <= near[0] < height and 0 <= near[1] < width):
                    continue
                weight = 1 / 6 if di == 0 or dj == 0 else 1 / 12
                a[k, k] += weight
                if near in number:
                    a[k, number[near]] -= weight
                else:
                    b[k] += weight * image[:, near[0], near[1]]
    filled = image.clone()
    for k, values in enumerate(torch.linalg.solve(a, b)):
        filled[:, holes[k][0], holes[k][1]] = values
    return filled


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.97])
@pytest.mark.parametrize("kind", ["scattered", "a blob"])
def test_imputation_equals_a_dense_solve(kind, share):
    x = images(3, dtype=torch.float64, size=(17, 14)) + torch.tensor([0.0, 5.0, -40.0]).view(3, 1, 1, 1)
    order = torch.rand(3, 17, 14, generator=generator())
    if kind == "a blob":
        order = (torch.arange(17)[:, None] ** 2 + torch.arange(14)[None] ** 2).expand(3, -1, -1)
    removed = order.flatten(1).argsort(1).argsort(1).view(3, 17, 14) < share * 17 * 14
    found = impute(x, removed, tolerance=1e-12)
    for i in range(3):
        assert_close(found[i], slow_impute(x[i], removed[i]), rtol=0, atol=1e-9)
    assert torch.equal(found[~removed[:, None].expand_as(x)], x[~removed[:, None].expand_as(x)])


def test_float32_is_accurate_to_a_thousandth_of_the_range_in_a_few_rounds(monkeypatch):
    x = images(1, size=(96, 96))
    x = torch.nn.functional.avg_pool2d(x, 9, 1, 4)
    down, along = torch.arange(96)[:, None] - 40, torch.arange(96)[None] - 50
    for removed in (down**2 + along**2 < 40**2, torch.rand(96, 96, generator=generator()) < 0.9):
        monkeypatch.setattr(imputation, "ROUNDS", 40)
        exact = impute(x.double(), removed[None], tolerance=1e-12)
        monkeypatch.setattr(imputation, "ROUNDS", 15)
        assert float((impute(x, removed[None]) - exact).abs().max()) < 1e-3 * float(x.max() - x.min())
    half = impute(x.half(), removed[None])
    assert half.dtype == torch.float16
    assert_close(half.double(), exact, rtol=1e-2, atol=1e-2)


def test_grids_are_joined_bilinearly_and_by_the_transpose():
    coarse, fine = images(2, dtype=torch.float64, size=(5, 6)), images(2, dtype=torch.float64, size=(9, 12), seed=2)
    up = imputation._up(coarse, fine)
    whole = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    assert_close(up[..., 1:, 1:-1], whole[..., 1:9, 1:-1])
    assert float((up * fine).sum()) == pytest.approx(float((coarse * imputation._down(fine)).sum()))


def test_each_image_is_solved_by_itself():
    x, removed = images(4, size=(20, 20)), torch.rand(4, 20, 20, generator=generator()) < 0.5
    removed[1], removed[2] = False, True
    removed[2, 3, 3] = False
    together = impute(x, removed)
    assert_close(together, torch.cat([impute(x[i : i + 1], removed[i : i + 1]) for i in range(4)]), rtol=0, atol=0)
    assert torch.equal(together[1], x[1])
    assert_close(together[2], x[2, :, 3, 3, None, None].expand(3, 20, 20))


def test_imputation_errors(monkeypatch):
    x = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"removed as bool of shape \(2, 4, 4\), got torch\.float32 \(2, 4, 4\)"):
        impute(x, torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="at least one pixel of each image to be kept"):
        impute(x, torch.ones(2, 4, 4, dtype=torch.bool))
    removed = torch.zeros(2, 4, 4, dtype=torch.bool)
    removed[:, 1:3] = True
    with pytest.raises(ValueError, match="a tolerance above 0, got 0"):
        impute(x, removed, tolerance=0.0)
    monkeypatch.setattr(imputation, "ROUNDS", 0)
    with pytest.raises(ValueError, match=r"a tolerance of 0\.01 was not reached in 0 rounds: pass a larger one"):
        impute(x, removed, tolerance=0.01)


def slow_road(model, image, heat, target, shares, filled):
    """One image: the scores when the k first, and the k last pixels of the order are filled in."""
    height, width = heat.shape
    order = sorted(range(height * width), key=lambda i: (-float(heat[i // width, i % width]), i))
    both = []
    for first in (True, False):
        row = []
        for share in shares:
            count = round(share * len(order))
            gone = order[:count] if first else order[len(order) - count :]
            removed = torch.zeros(height, width, dtype=torch.bool)
            for i in gone:
                removed[i // width, i % width] = True
            with torch.no_grad():
                row.append(float(model(filled(image, removed)[None]).softmax(1)[0, target]))
        both.append(row)
    return both


def test_road_against_loops():
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    maps = torch.randn(2, 2, 12, 10, generator=generator(3)).double().round()  # with ties
    shares = (0.1, 0.33, 0.8)  # of 120 pixels: 39.6 are 40
    found = road(model, x, maps, [3, 0], shares=shares, noise=0.0, tolerance=1e-10)
    for i, target in enumerate([3, 0]):
        morf, lerf = slow_road(model, x[i], maps[i].sum(0), target, shares, slow_impute)
        assert_close(found.morf[i], torch.tensor(morf, dtype=torch.float64))
        assert_close(found.lerf[i], torch.tensor(lerf, dtype=torch.float64))
        expected = sum(b - a for a, b in zip(morf, lerf, strict=True)) / 3
        assert float(found.difference[i]) == pytest.approx(expected)


def test_turning_the_map_over_turns_the_answer_over():
    model, x = seeded(ConvNet).double(), images(2, dtype=torch.float64)
    maps = torch.randn(2, 12, 10, generator=generator(3))
    found, other = (road(model, x, m, 1, noise=0.0) for m in (maps, -maps))
    assert_close(found.morf, other.lerf)
    assert_close(found.difference, -other.difference)
    assert found.shares == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Seen(torch.nn.Module):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.images = []

    def forward(self, x):
        self.images.append(x.clone())
        return x.sum((1, 2, 3))


def test_noise_is_of_its_size_and_on_removed_pixels_alone():
    x, model = torch.full((1, 3, 40, 40), 2.0), Seen()
    road(model, x, torch.rand(1, 40, 40, generator=generator()), shares=[0.5], noise=0.2, score="logit")
    seen = torch.cat(model.images)
    assert seen.shape == (2, 3, 40, 40)
    changed = (seen - 2.0).abs() > 1e-5  # a float32 next to 2 is 2e-7 away
    assert changed.flatten(1).sum(1).tolist() == [3 * 800, 3 * 800]
    assert not (changed[0] & changed[1]).any()
    assert float((seen - 2.0)[changed].std()) == pytest.approx(0.2, rel=0.05)
    assert abs(float((seen - 2.0)[changed].mean())) < 0.02


@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_chunks_and_seeds(at_once):
    model, x = seeded(ConvNet).double(), images(3, dtype=torch.float64)
    options = {"shares": (0.2, 0.5, 0.9), "noise": 0.5}
    expected = road(model, x, x, [0, 1, 2], **options)
    state = torch.random.get_rng_state()
    found = road(model, x, x, [0, 1, 2], perturbations_per_eval=at_once, generator=generator(), **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_close(found.morf, expected.morf)
    assert_close(found.lerf, expected.lerf)
    other = road(model, x, x, [0, 1, 2], generator=generator(1), **options)
    assert not torch.allclose(other.morf, expected.morf)


def test_at_least_one_pixel_is_kept():
    x = torch.rand(1, 1, 1, 2, dtype=torch.float64)
    found = road(lambda v: v.sum((1, 2, 3)), x, x, shares=[0.99], noise=0.0, score="logit")
    assert_close(torch.stack([found.morf, found.lerf]).flatten(), 2 * torch.stack([x.min(), x.max()]))


@pytest.mark.parametrize("shares", [[], [0.0], [0.5, 1.0], [-0.1]])
def test_shares_lie_between_none_and_all(shares):
    with pytest.raises(ValueError, match="each above 0 and below 1"):
        road(seeded(ConvNet), images(1), images(1), 0, shares=shares)


def test_negative_noise():
    with pytest.raises(ValueError, match="noise of at least 0, got -1"):
        road(seeded(ConvNet), images(1), images(1), 0, noise=-1)
