"""What is decoded of single images, and measured of single maps."""

import io

import numpy as np
import torch
from data_sets import MEAN, SIDE, STD, card
from PIL import Image
from torchvision import transforms

from drnet_captum.data import ModelCard
from drnet_captum.scale.decode import Decoder
from drnet_captum.scale.measures import measured
from drnet_captum.scale.source import Record


class Given:
    """A source of records."""

    def __init__(self, *records):
        self.records = records

    def read(self, start, stop):
        return iter(self.records[start:stop])


def photo(side=SIDE):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "grey").save(buffer, "PNG")
    return buffer.getvalue()


def test_boxes_cover_their_pixels_and_no_others():
    """From the first number up to the second, rounded; at least one pixel, and none of what lies outside."""
    boxes = ((2.0, 3.0, 10.0, 7.0), (20.4, 20.6, 20.5, 22.4), (30.0, 0.0, 99.0, 1.0))
    source = Given(Record(0, "a.png", photo(), None, None, boxes), Record(1, "b.png", photo(), None, None, None))
    batch = Decoder(source, card(), boxes=True)(0, 2)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[3:7, 2:10] = expected[21:22, 20:21] = expected[0:1, 30:] = True
    np.testing.assert_array_equal(batch.inside[0], expected)
    assert not batch.inside[1].any() and batch.boxed.tolist() == [True, False]


def test_transforms_that_give_nan_are_told():
    steps = transforms.Compose([*card().transform.transforms, transforms.Lambda(lambda x: x / 0 * 0)])
    batch = Decoder(
        Given(Record(0, "a.png", photo(), None, None, None)), ModelCard("m", (3, SIDE, SIDE), MEAN, STD, steps)
    )(0, 1)
    assert batch.rows[0].problem == "a.png has NaN or infinite values after the model's transform"
    assert len(batch.pixels) == 0


def test_what_is_inside_is_not_known_without_boxes_or_positive_values():
    maps = torch.stack([torch.eye(4), -torch.eye(4), torch.eye(4)])[:, None]
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:2, :, :] = True
    np.testing.assert_array_equal(measured(maps, masks).inside, [1, np.nan, np.nan])
