"""What hidden parts show."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms.v2.functional import gaussian_blur

from drnet_captum.masking.fill import PHOTO_MEAN, fill

X = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [None, "mean"])
def test_the_mean_colour_in_the_images_range(name):
    colour = torch.tensor(PHOTO_MEAN).view(1, 3, 1, 1)
    assert_close(fill(X, name, (0, 1)), colour.expand_as(X))
    assert_close(fill(X, name, (-1, 1)), (2 * colour - 1).expand_as(X))
    assert_close(fill(X[:, :1], name, (0, 255)), torch.full_like(X[:, :1], 255 * sum(PHOTO_MEAN) / 3))
    assert_close(fill(X, name, None), torch.zeros_like(X))  # of normalised images


def test_black_is_the_least_value():
    assert_close(fill(X, "black", (-1, 1)), torch.full_like(X, -1))


def test_numbers_and_tensors_in_captum_s_forms():
    assert_close(fill(X, 0.5, None), torch.full_like(X, 0.5))
    assert_close(fill(X, X[:1] / 2, (0, 1)), (X[:1] / 2).expand_as(X))
    assert_close(fill(X, (X / 2,), (0, 1)), X / 2)
    assert_close(fill(X.double(), torch.ones(3, 1, 1), (0, 1)), torch.ones_like(X.double()))


def test_blur_keeps_the_mean_and_takes_the_detail():
    blurred = fill(X, "blur", (0, 1))
    assert blurred.shape == X.shape and float(blurred.std()) < float(X.std()) / 4
    assert_close(blurred.mean((2, 3)), X.mean((2, 3)), rtol=0.05, atol=0)
    flat = torch.full((1, 3, 5, 4), 0.25)
    assert_close(fill(flat, "blur", (0, 1)), flat)


def test_blur_is_the_gaussian_of_a_twentieth_of_the_longer_side():
    assert_close(fill(X, "blur", (0, 1)), gaussian_blur(X, [9, 9], [1.5, 1.5]))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 200)])
def test_blur_of_images_smaller_than_its_kernel(size):
    assert fill(torch.rand(1, 3, *size), "blur", (0, 1)).isfinite().all()


def test_blur_is_for_images():
    with pytest.raises(ValueError, match="is for images"):
        fill(torch.rand(1, 3, 9), "blur", None)
