"""CAM: exact on the heads it is defined for, an error on all others."""

from __future__ import annotations

import pytest
import torch
from models import conv_pool, conv_relu_pool, flatten_linear, images, max_pool_linear, pool_linear, seeded
from torch import nn
from torch.testing import assert_close

import drnet_captum as dc

# The head, the layer (None: found), the module whose bias is not in the map.
HEADS = [
    (pool_linear, "1", 4),
    (pool_linear, None, 4),
    (conv_pool, "1", 2),
    (conv_pool, None, 2),
    (conv_pool, "2", None),
    (conv_relu_pool, "3", None),
    (conv_relu_pool, None, None),
]


@pytest.mark.parametrize(("head", "layer", "classifier"), HEADS)
def test_cam_is_exact_for_the_heads_it_is_defined_for(head, layer, classifier):
    """mean(map) + b = y. From what the classifier's convolution puts out, bias and all: mean(map) = y."""
    model, x = seeded(head).double(), images(2, dtype=torch.float64)
    maps = dc.CAM(model, layer).attribute(x, target=[1, 3])
    bias = model[classifier].bias[[1, 3]] if classifier else 0
    assert_close(maps.mean((1, 2, 3)) + bias, model(x)[[0, 1], [1, 3]])


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (lambda: pool_linear(nn.BatchNorm1d(6)), "[Nn]orm"),
        (lambda: pool_linear(nn.LayerNorm(6)), "[Nn]orm"),
        (lambda: pool_linear(nn.ReLU()), "activation"),
        (lambda: pool_linear(nn.Sigmoid()), "[Ss]igmoid|activation"),
        (lambda: pool_linear(nn.Linear(6, 6), nn.GELU()), "activation"),
        (max_pool_linear, "[Mm]ax"),
        (flatten_linear, "average over all positions"),
    ],
)
def test_cam_raises_for_other_heads(head, said):
    model = seeded(head)
    with pytest.raises(ValueError, match=f"CAM is defined for(.|\n)*({said})(.|\n)*GradCAM"):
        dc.CAM(model, "1").attribute(images(2), target=1)


@pytest.mark.parametrize("between", [[nn.Dropout()], [nn.Identity()], [nn.Linear(6, 6)]])
def test_cam_allows_what_is_affine(between):
    model, x = seeded(pool_linear, *between).double(), images(2, dtype=torch.float64)
    maps = dc.CAM(model).attribute(x, target=1)
    at_zero = model[3:](torch.zeros(1, 6, dtype=torch.float64))[0, 1]
    assert_close(maps.mean((1, 2, 3)) + at_zero, model(x)[:, 1])


def test_cam_is_hires_cam_times_the_number_of_positions():
    """∂y/∂A = w / (h·w) at every position of a pool → linear head (Draelos & Carin 2020, section 3.3)."""
    model, x = seeded(pool_linear), images(2)
    assert_close(dc.CAM(model).attribute(x, target=1), 120 * dc.HiResCAM(model).attribute(x, target=1))
    assert_close(dc.CAM(model).attribute(x, target=1), 120 * dc.GradCAM(model).attribute(x, target=1))
