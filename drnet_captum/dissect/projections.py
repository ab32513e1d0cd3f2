"""What excited a unit in its strongest image, led back to the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from drnet_captum.attr.backprop import DeconvNet
from drnet_captum.data.card import ModelCard
from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.exemplars import Exemplar, Pixels, crop, read_jpeg
from drnet_captum.layers.layout import to_map
from drnet_captum.layers.units import find_units

Unit = tuple[str, int]  # layer, channel


def project(model: nn.Module, dissection: Dissection, units: Sequence[Unit], card: ModelCard) -> dict[Unit, Pixels]:
    """DeconvNet projections of units at the strongest position of their strongest image, cut to the receptive field.

    The units of a layer take one forward and one backward pass together.

    Args:
        model: the model that was dissected.
        dissection: with exemplars.
        units: (layer, channel) pairs. Units that never fired have no projection.
        card: how the model sees a photo.

    Returns:
        unit → (h, w, 3) uint8, zero in the middle of the grey scale.

    Source: Zeiler & Fergus 2013, arXiv 1311.2901, figure 2.
    """
    found: dict[Unit, Pixels] = {}
    for layer, group in groupby(sorted(set(units)), key=lambda unit: unit[0]):
        exemplars = dissection[layer].exemplars
        firing = [(channel, exemplars.of(channel)[0]) for _, channel in group if exemplars.of(channel)]
        if not firing:
            continue
        pictures = [read_jpeg(dissection.images[exemplar.key]) for _, exemplar in firing]
        inputs = torch.stack([model_input(picture, card, model) for picture in pictures])
        maps = projections(model, layer, inputs, firing)
        field = dissection[layer].layer.field
        for (channel, at), values in zip(firing, maps, strict=True):
            whole = values.permute(1, 2, 0).cpu().numpy()
            window = field.box(at.y, at.x, whole.shape[:2])
            found[layer, channel] = crop(around_grey(whole), window)
    return found


def projections(model: nn.Module, layer: str, inputs: Tensor, firing: Sequence[tuple[int, Exemplar]]) -> Tensor:
    """(N, C, H, W): of every input the projection of its own unit at its own position."""
    (site,) = find_units(model, (inputs,), (), [layer])

    def own_units(activation: Tensor) -> Tensor:
        maps = to_map(activation, site.placement)
        return torch.stack([maps[row, channel, at.y, at.x] for row, (channel, at) in enumerate(firing)])

    found: Tensor = DeconvNet(model, layer=layer).attribute(inputs, neuron_selector=own_units)
    return found


def model_input(picture: Pixels, card: ModelCard, model: nn.Module) -> Tensor:
    """A kept picture as the model takes it: (3, H, W)."""
    parameter = next(model.parameters())
    values = torch.from_numpy(np.array(picture, dtype=np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (card.mean, card.std))
    return ((values - mean) / std).to(parameter.device, parameter.dtype)


def around_grey(values: np.ndarray) -> Pixels:
    """Values (H, W, 3) of both signs as a picture: 0 is mid-grey, the largest magnitude black or white."""
    largest = max(float(np.abs(values).max()), 1e-12)
    pixels: Pixels = np.rint((values / largest + 1) * 127.5).astype(np.uint8)
    return pixels
