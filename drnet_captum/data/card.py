"""A model's card: how it sees a photo, and what its classes are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import timm.data
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights

_TIMM: Any = timm.data  # by way of Any: it types some of its functions and re-exports none by name
IMAGENET_1K: tuple[str, ...] = tuple(SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"])


@dataclass(frozen=True)
class ModelCard:
    """What a picture of an explanation needs to know of a model.

    Args:
        name: the model's name, for titles.
        input_size: (3, H, W) of the model's input in pixels.
        mean: per-channel mean that the transform subtracts, photo values in [0, 1].
        std: per-channel divisor of the transform.
        transform: RGB photo -> (3, H, W) model input.
        categories: class names in the order of the logits; None where they are not known.

    Raises:
        ValueError: ``input_size``, ``mean`` or ``std`` are not those of an RGB model.

    Example:
        >>> import torch
        >>> from drnet_captum.data import ModelCard
        >>> card = ModelCard("mine", (3, 8, 8), (0.5,) * 3, (0.25,) * 3, lambda photo: torch.zeros(3, 8, 8))
        >>> card.photo(torch.zeros(3, 8, 8)).max(), card.label(12)
        (np.float32(0.5), 'class 12')
    """

    name: str
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: Callable[[Image.Image], Tensor]
    categories: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.input_size) != 3 or self.input_size[0] != 3:
            raise ValueError(
                f"a card is for models of RGB photos: expected input_size (3, H, W), got {self.input_size}: "
                "prepare the inputs of other models yourself"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(f"expected three means and three positive stds, got mean={self.mean}, std={self.std}")

    def label(self, index: int) -> str:
        """The name of class ``index``, or "class 12" where there is none."""
        if self.categories is not None and 0 <= index < len(self.categories):
            return self.categories[index]
        return f"class {index}"

    def photo(self, model_input: Tensor) -> npt.NDArray[np.float32]:
        """The photo that the model saw, x · std + mean, as (H, W, 3) in [0, 1]: overlays belong on this crop.

        Args:
            model_input: (3, H, W), one result of ``transform``, on any device.

        Raises:
            ValueError: not of shape (3, H, W).
        """
        if model_input.ndim != 3 or model_input.shape[0] != 3:
            raise ValueError(
                f"expected one model input of shape (3, H, W), got {tuple(model_input.shape)}: "
                "take one image out of a batch, e.g. x[0]"
            )
        x = model_input.detach().to("cpu", torch.float32)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        photo: npt.NDArray[np.float32] = (
            (x * std[:, None, None] + mean[:, None, None]).clamp(0, 1).permute(1, 2, 0).numpy()
        )
        return photo


# By identity and weakly: a card neither changes its model nor keeps it alive.
_CARDS: WeakKeyDictionary[nn.Module, ModelCard] = WeakKeyDictionary()


def keep_card(model: nn.Module, card: ModelCard) -> None:
    """Make ``card`` the answer of `model_card` for this very model object (not for its copies)."""
    _CARDS[model] = card


def model_card(model: nn.Module) -> ModelCard:
    """The card of a model made by `load_model`, or of any timm model.

    A timm model's transform is timm's own for evaluation; its class names are known where its number
    of classes is that of an ImageNet.

    Raises:
        ValueError: a model that neither `load_model` nor timm made.

    Example:
        >>> from drnet_captum.data import load_model, model_card
        >>> model_card(load_model("embedded")).label(967)
        'espresso'
    """
    card = _CARDS.get(model)
    if card is not None:
        return card
    if not isinstance(getattr(model, "pretrained_cfg", None), dict):
        raise ValueError(
            f"expected a model made by load_model() or by timm, got {type(model).__name__}, which does not "
            "say how it sees a photo: write its card yourself, ModelCard(name=…, input_size=(3, H, W), "
            "mean=…, std=…, transform=…, categories=…)"
        )
    return timm_card(model)


def timm_card(model: Any) -> ModelCard:
    """The card of a timm model, from its own ``pretrained_cfg``."""
    config = _TIMM.resolve_model_data_config(model)
    statement = model.pretrained_cfg
    name = ".".join(part for part in (statement.get("architecture"), statement.get("tag")) if part)
    return ModelCard(
        name=name or type(model).__name__,
        input_size=tuple(config["input_size"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        transform=_TIMM.create_transform(**config, is_training=False),
        categories=_timm_categories(model),
    )


def _timm_categories(model: Any) -> tuple[str, ...] | None:
    classes = getattr(model, "num_classes", None)
    stated = model.pretrained_cfg.get("label_names")
    if stated and len(stated) == classes:
        described = model.pretrained_cfg.get("label_descriptions") or {}
        return tuple(str(described.get(name, name)) for name in stated)
    if classes == len(IMAGENET_1K):
        return IMAGENET_1K
    subset = _TIMM.infer_imagenet_subset(model)
    if subset is None:
        return None
    info = _TIMM.ImageNetInfo(subset)
    if info.num_classes() != classes:
        return None
    return tuple(info.index_to_description(index) for index in range(classes))
