"""Sums over masks: numbers by hand, standard errors against the spread of repeated runs, nothing lost to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from drnet_captum.masking.estimate import relative_error
from drnet_captum.masking.sums import MaskSums, check_normalize

CPU = torch.device("cpu")
NORMALIZATIONS = ("mean", "coverage", "expectation", "none")
MASKS = torch.tensor([[[1.0, 0.0]], [[0.0, 0.5]], [[0.5, 0.5]]])
WEIGHTS = torch.tensor([[0.6, 0.0, 0.3], [2.0, 2.0, 2.0]])


def sums(masks: Tensor, weights: Tensor, errors: bool = False, chunk: int = 2) -> MaskSums:
    found = MaskSums(len(weights), tuple(masks.shape[1:]), 0.5, CPU, errors)
    for start in range(0, len(masks), chunk):
        found.add(masks[start : start + chunk].clone(), weights[:, start : start + chunk])
    return found


def test_by_hand():
    found = sums(MASKS, WEIGHTS)
    assert_close(found.maps("none").float(), torch.tensor([[[0.75, 0.15]], [[3.0, 2.0]]]))
    assert_close(found.maps("expectation").float(), torch.tensor([[[0.5, 0.1]], [[2.0, 4 / 3]]]))
    assert_close(found.maps("coverage").float(), torch.tensor([[[0.5, 0.15]], [[2.0, 2.0]]]))
    assert_close(found.maps("mean").float(), torch.tensor([[[0.3, -0.15]], [[0.0, 0.0]]]))


def test_a_pixel_that_no_mask_shows_gets_the_mean_weight():
    found = sums(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]), torch.tensor([[0.2, 0.6]]), errors=True)
    assert_close(found.maps("coverage").float(), torch.tensor([[[0.4, 0.4]]]))
    assert found.standard_errors("coverage").isfinite().all()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_the_chunk_does_not_matter(normalize):
    generator = torch.Generator().manual_seed(0)
    masks, weights = torch.rand(50, 4, 5, generator=generator), torch.rand(3, 50, generator=generator)
    whole = sums(masks, weights, True, 50)
    for chunk in (1, 7, 16):
        parts = sums(masks, weights, True, chunk)
        assert_close(parts.maps(normalize), whole.maps(normalize), rtol=1e-6, atol=1e-6)
        assert_close(parts.standard_errors(normalize), whole.standard_errors(normalize), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_standard_errors_are_the_spread_of_repeated_runs(normalize):
    """200 runs of 400 masks: the mean of their standard errors, against the deviation between their maps."""
    generator = torch.Generator().manual_seed(0)
    maps, errors = [], []
    for _ in range(200):
        masks = (torch.rand(400, 2, 3, generator=generator, dtype=torch.float64) < 0.5).double()
        weights = (0.4 + 0.3 * masks[:, 0, 0] + 0.2 * torch.rand(400, generator=generator, dtype=torch.float64))[None]
        run = sums(masks, weights, True, 400)
        maps.append(run.maps(normalize))
        errors.append(run.standard_errors(normalize))
    assert_close(torch.stack(errors).mean(0), torch.stack(maps).std(0), rtol=0.2, atol=0)


def test_small_differences_between_large_weights_survive_float32():
    """Scores of 1,000 ± 0.001, as logits may be: what counts are the differences."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(500, 3, 4, generator=generator)
    weights = 1000 + 1e-3 * torch.rand(1, 500, generator=generator, dtype=torch.float64)
    exact = ((weights - weights.mean()) @ masks.double().flatten(1)).view(1, 3, 4)
    assert_close(sums(masks, weights).maps("mean"), exact, rtol=1e-4, atol=1e-6)


def test_the_relative_error_is_the_median_s_over_the_range_and_of_the_worst_target():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(50, 3, 5, generator=generator)
    found = sums(masks, torch.rand(2, 50, generator=generator) * torch.tensor([[1.0], [0.01]]) + masks[:, 0, 0], True)
    maps, errors = found.maps("mean").flatten(1), found.standard_errors("mean").flatten(1)
    assert float(maps.min()) < 0
    expected = [float(e.median() / (m.max() - m.min())) for m, e in zip(maps, errors, strict=True)]
    assert relative_error(found, "mean") == pytest.approx(max(expected)) != pytest.approx(min(expected))


def test_what_is_not_there():
    with pytest.raises(RuntimeError, match="no masks"):
        MaskSums(1, (2, 2), 0.5, CPU).maps("mean")
    with pytest.raises(RuntimeError, match="errors=True"):
        sums(MASKS, WEIGHTS).standard_errors("mean")
    with pytest.raises(ValueError, match="one of mean, coverage, expectation, none, got 'paper'"):
        check_normalize("paper")


def test_one_mask_has_no_finite_standard_error():
    assert sums(MASKS[:1], WEIGHTS[:, :1], True).standard_errors("mean").isinf().all()
