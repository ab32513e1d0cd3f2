"""The model of a run: described once, built once on every worker."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from drnet_captum.data.card import ModelCard, model_card
from drnet_captum.data.models import load_model
from drnet_captum.dissect.fingerprint import fingerprint
from drnet_captum.dissect.run import class_count


@dataclass(frozen=True)
class WorkerModel:
    """A model by its name, or the model itself.

    Attributes:
        model: "embedded", "timm:NAME" or "torchvision:NAME", or a model, which is then sent to the workers.
        checkpoint: weights for one by its name.
        card: how it sees a photo. None: its own.
        device: where it runs.
    """

    model: str | nn.Module
    checkpoint: str | Path | None = None
    card: ModelCard | None = None
    device: str = "cpu"

    def build(self) -> tuple[nn.Module, ModelCard]:
        """The model on its device, and its card.

        Raises:
            ValueError: an unknown name; a model without a card, that came without one.
            OSError: weights that are out of reach.
        """
        model = load_model(self.model, checkpoint=self.checkpoint) if isinstance(self.model, str) else self.model
        card = self.card if self.card is not None else model_card(model)
        if isinstance(self.model, str):
            return model.to(self.device), card
        mine, asked = torch.device(own_device(model)), torch.device(self.device)
        is_there = mine.type == asked.type and asked.index in (None, mine.index)
        return model if is_there else deepcopy(model).to(asked), card

    def described(self, model: nn.Module, card: ModelCard) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "name": card.name,
            "spec": self.model if isinstance(self.model, str) else None,
            "fingerprint": fingerprint(model),
            "classes": class_count(model, card),
            "categories": None if card.categories is None else list(card.categories),
            "input_size": list(card.input_size),
            "mean": list(card.mean),
            "std": list(card.std),
            "transform": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(card.transform)),
            "training": model.training,
        }

    def sendable(self) -> WorkerModel:
        """The same for other machines: a model on the CPU, a checkpoint by its whole path."""
        model = self.model
        if isinstance(model, nn.Module) and own_device(model) != "cpu":
            model = deepcopy(model).cpu()
        checkpoint = None if self.checkpoint is None else Path(self.checkpoint).absolute()
        return replace(self, model=model, checkpoint=checkpoint)


def own_device(model: nn.Module) -> str:
    """Where a model's parameters are.

    Example:
        >>> own_device(nn.Linear(1, 1))
        'cpu'
    """
    return str(next((p.device for p in model.parameters()), torch.device("cpu")))
