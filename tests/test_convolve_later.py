"""Convolutions that are worked out when they are read: their shapes, when that is worth it, what they hold."""

import weakref

import pytest
import torch

from drnet_captum.engine import lean, waiting
from drnet_captum.engine.waiting import Waiting

pytestmark = pytest.mark.usefixtures("every_node_lean")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride, padding, dilation", [((1, 1), (0, 0), (1, 1)), ((2, 3), (2, 1), (2, 3))])
def test_its_shape_is_known_before_its_values(stride, padding, dilation, memory_format):
    x, weight = torch.randn(2, 3, 15, 14).contiguous(memory_format=memory_format), torch.randn(5, 3, 4, 3)
    geometry = stride, padding, dilation, 1
    later, now = (form(x, weight, None, *geometry) for form in (lean.convolve_later, lean.convolve))
    assert isinstance(later, Waiting)
    assert (later.shape, later.stride(), later.dtype, later.device) == (now.shape, now.stride(), now.dtype, now.device)
    torch.testing.assert_close(later.values(), now)


def test_strides_make_outputs_small(monkeypatch):
    x, weight = torch.randn(1, 3, 16, 16), torch.randn(4, 3, 3, 3)
    monkeypatch.setattr(waiting, "LARGE", 4 * 16 * 16)
    assert waiting.may_be_worth_it(x, weight)
    assert isinstance(lean.convolve_later(x, weight, None, (1, 1), (1, 1), (1, 1), 1), Waiting)
    assert not isinstance(lean.convolve_later(x, weight, None, (2, 2), (1, 1), (1, 1), 1), Waiting)


def test_it_lets_go_of_what_it_has_read():
    x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    later, kept = lean.convolve_later(x, weight, None, (1, 1), (1, 1), (1, 1), 1), weakref.ref(x)
    later.values()
    del x
    assert kept() is None
