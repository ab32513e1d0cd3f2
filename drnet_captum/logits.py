"""Models that answer with more than a tensor: their scores alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class LogitsOf(nn.Module):
    """A model whose ``forward`` returns an object or a dict, as one that returns its scores.

    Hugging Face's classifiers put them in ``.logits``, torchvision's segmentation models in ``["out"]``. The model is
    shared, not copied; its layers' names begin with "model.".

    Args:
        model: the model.
        key: the attribute or the key that holds the scores.

    Raises:
        TypeError: what the model returns has no such field, or no tensor in it.

    Example:
        >>> import torch, torchvision
        >>> net = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None).eval()
        >>> scores = LogitsOf(net, "out")
        >>> scores(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 21, 64, 64])
        >>> from drnet_captum import GradCAM
        >>> GradCAM(scores).attribute(torch.rand(1, 3, 64, 64), target=(12, 30, 30)).shape  # class 12 at pixel (30, 30)
        torch.Size([1, 1, 4, 4])
    """

    def __init__(self, model: nn.Module, key: str = "logits") -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected an nn.Module, got {type(model).__name__}")
        self.model = model
        self.key = key
        self.train(model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.model(*args, **kwargs)
        value = output.get(self.key) if isinstance(output, Mapping) else getattr(output, self.key, None)
        if not isinstance(value, Tensor):
            there = f"the keys {', '.join(map(repr, output))}" if isinstance(output, Mapping) else type(output).__name__
            raise TypeError(f"expected the model to return scores in {self.key!r}, got {there}: pass key=")
        return value
