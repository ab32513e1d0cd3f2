"""Receptive fields against footprints: where the gradient of one position of a layer by the input is not zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drnet_captum.layers.fields import Field, union
from drnet_captum.layers.units import find_units

IMAGE = (40, 33)


def full(*layers):
    """Positive weights and no activation: what a position could see it does see."""
    model = nn.Sequential(*layers).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.uniform_(0.5, 1.0, generator=generator)
    return model


def conv(n_in, n_out, *rest, **options):
    return nn.Conv2d(n_in, n_out, *rest, **options)


STACKS = {
    "one": lambda: full(conv(1, 2, 3)),
    "padded": lambda: full(conv(1, 2, 5, padding=2)),
    "oblong": lambda: full(conv(1, 2, (3, 5), stride=(2, 1), padding=(0, 2))),
    "dilated": lambda: full(conv(1, 2, 3, dilation=2, padding=2), conv(2, 2, 2)),
    "strided": lambda: full(conv(1, 2, 7, stride=2, padding=3), conv(2, 3, 3, stride=2, padding=1)),
    "average pools": lambda: full(conv(1, 2, 3, padding=1), nn.AvgPool2d(2), conv(2, 2, 3, padding=1), nn.AvgPool2d(2)),
    "overlapping pools": lambda: full(conv(1, 2, 3), nn.AvgPool2d(3, 2, 1), conv(2, 2, (1, 3), padding=(0, 1))),
    "even kernels": lambda: full(conv(1, 2, 4, stride=2, padding=1), conv(2, 2, 2, stride=2), conv(2, 2, 3, padding=1)),
    "no padding at all": lambda: full(conv(1, 2, 5), nn.AvgPool2d(2), conv(2, 2, 5), nn.AvgPool2d(2), conv(2, 2, 3)),
    "padding by modules": lambda: full(nn.ZeroPad2d((1, 2, 2, 0)), conv(1, 2, 3), nn.ZeroPad2d(2), conv(2, 2, 5)),
    "cropping": lambda: full(conv(1, 2, 3, padding=2), nn.ZeroPad2d(-1), conv(2, 2, 3)),
    "same": lambda: full(conv(1, 2, 3, padding="same"), conv(2, 2, 5, padding="same")),
    "grouped": lambda: full(conv(1, 4, 3, padding=1), conv(4, 4, 3, padding=1, groups=4, stride=2), conv(4, 2, 1)),
    "norms": lambda: full(conv(1, 2, 3, padding=1), nn.BatchNorm2d(2), conv(2, 2, 3, stride=3)),
}


def footprint(model, name, image, place, channels=1):
    """Lowest and highest row and column on which one position of a layer depends, in float64."""
    x = torch.rand(
        1, channels, *image, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    out = model[: int(name) + 1](x)
    (gradient,) = torch.autograd.grad(out[(0, slice(None), *place)].sum(), x)
    seen = gradient[0].abs().sum(0).nonzero()
    return seen.amin(0).tolist(), (seen.amax(0) + 1).tolist()


def readable(model):
    """With a head, so that everything is on the way to an answer."""
    channels = next(m.out_channels for m in reversed(model) if isinstance(m, nn.Conv2d))
    return nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 7)).double().eval()


@pytest.mark.parametrize("stack", STACKS)
def test_the_box_is_the_footprint(stack):
    model = readable(STACKS[stack]())
    sites = find_units(model, (torch.rand(1, 1, *IMAGE, dtype=torch.float64),))
    assert len(sites) == sum(isinstance(m, nn.Conv2d) for m in model)
    for site in sites:
        height, width = site.layer.grid
        for place in {(0, 0), (height - 1, width - 1), (height // 2, width // 2), (0, width - 1), (height // 3, 1)}:
            low, high = footprint(model, site.layer.name, IMAGE, place)
            top, left, bottom, right = site.layer.field.box(*place, IMAGE)
            assert top <= low[0] and left <= low[1] and bottom >= high[0] and right >= high[1]
            size = site.layer.field.size
            if stack != "dilated" or (bottom - top, right - left) == size:  # at an edge a hole may come first
                assert (top, left) == tuple(low) and (bottom, right) == tuple(high), (site.layer.name, place)


def test_max_pools_and_activations_keep_it():
    """A footprint through them lies inside the box."""
    layers = (conv(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(4, 4, 3, padding=1), nn.ReLU())
    model = readable(full(*layers))
    site = find_units(model, (torch.rand(1, 1, *IMAGE, dtype=torch.float64),), layers=["3"])[0]
    assert site.layer.field == Field((9, 9), (2.0, 2.0), (-4.0, -4.0))
    top, left, bottom, right = site.layer.field.box(8, 6, IMAGE)
    assert (top, left, bottom, right) == (12, 8, 21, 17)
    low, high = footprint(model, "4", IMAGE, (8, 6))
    assert top <= low[0] and left <= low[1] and bottom >= high[0] and right >= high[1]


@pytest.mark.parametrize("signal", [True, False])
def test_signals_and_volumes(signal):
    kinds = (nn.Conv1d, nn.AvgPool1d, nn.MaxPool1d) if signal else (nn.Conv3d, nn.AvgPool3d, nn.MaxPool3d)
    convolution, average, maximum = kinds
    layers = [convolution(1, 2, 3, padding=1), average(2), convolution(2, 2, 3, stride=2, padding=1), maximum(3, 2)]
    layers += [convolution(2, 2, 2), nn.Flatten(), nn.LazyLinear(2)]
    model, shape = nn.Sequential(*layers), (1, 1, 40) if signal else (1, 1, 28, 28, 28)
    model(torch.rand(shape))
    sites = find_units(model.eval(), (torch.rand(shape),))
    n = 1 if signal else 3
    assert [(s.layer.field.size, s.layer.field.stride, s.layer.field.start) for s in sites] == [
        ((3,) * n, (1.0,) * n, (-1.0,) * n),
        ((8,) * n, (4.0,) * n, (-3.0,) * n),
        ((24,) * n, (8.0,) * n, (-3.0,) * n),  # 8 + 2·4 by the pool, + 1·8
    ]


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv(1, 2, 3, stride=2, padding=1)
        self.narrow, self.wide = conv(2, 2, 1), conv(2, 2, 5, padding=2)
        self.last, self.fc = conv(4, 2, 3, padding=1), nn.Linear(2, 7)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(self.last(torch.cat([self.narrow(x), self.wide(x)], 1)).mean((2, 3)))


def test_of_branches_the_widest_counts():
    model = Inception().eval()
    fields = {s.layer.name: s.layer.field for s in find_units(model, (torch.rand(1, 1, 32, 32),))}
    assert fields["narrow"] == Field((3, 3), (2.0, 2.0), (-1.0, -1.0))
    assert fields["wide"] == Field((11, 11), (2.0, 2.0), (-5.0, -5.0))
    assert fields["last"] == Field((15, 15), (2.0, 2.0), (-7.0, -7.0))


def test_a_union_holds_both():
    """Pixels 0 to 4 and −1 to 1 together are −1 to 4."""
    both = union([Field((5, 5), (1.0, 1.0), (0.0, 0.0)), Field((3, 3), (1.0, 1.0), (-1.0, -1.0))])
    assert both == Field((6, 6), (1.0, 1.0), (-1.0, -1.0))
    one = Field((3, 4), (2.0, 1.0), (-1.0, 0.0))
    assert union([one]) == one == union([one, one])


class Patches(nn.Module):
    """Patches of 4×4 cut by reshaping: no window says so."""

    def __init__(self):
        super().__init__()
        self.embed, self.conv = nn.Conv2d(48, 5, 1), nn.Conv2d(5, 6, 3, padding=1)
        self.fc = nn.Linear(6, 7)

    def forward(self, x):
        return self.fc(self.conv(F.relu(self.embed(F.pixel_unshuffle(x, 4)))).mean((2, 3)))


def test_hidden_strides_are_taken_from_the_grid():
    embed, last = find_units(Patches().eval(), (torch.rand(1, 3, 32, 32),))
    assert embed.layer.field == Field((4, 4), (4.0, 4.0), (0.0, 0.0))
    assert last.layer.field.stride == (4.0, 4.0)
    top, left, bottom, right = last.layer.field.box(3, 3, (32, 32))
    assert top <= 12 and left <= 12 and bottom >= 16 and right >= 16


def test_boxes_are_cut_to_the_image_and_never_empty():
    field = Field((7, 5), (4.0, 4.0), (-3.0, -2.0))
    assert field.box(0, 0, (20, 20)) == (0, 0, 4, 3)
    assert field.box(2, 1, (20, 20)) == (5, 2, 12, 7)
    assert field.box(4, 4, (20, 20)) == (13, 14, 20, 19)
    assert field.box(9, 9, (20, 20)) == (19, 19, 20, 20)  # all in the padding: the nearest pixel
    assert Field((2, 2), (1.0, 1.0), (-9.0, -9.0)).box(0, 0, (20, 20)) == (0, 0, 1, 1)
    with pytest.raises(ValueError, match="argument"):
        field.box(0, 0, (20, 20, 20))
