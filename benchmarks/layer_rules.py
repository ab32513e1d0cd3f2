"""Rules that choose the layer of a model at which its answer is looked at: ours, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

import drnet_captum as dc

Rule = Callable[[nn.Module, Tensor], str | None]


def last_convolution(model: nn.Module, x: Tensor) -> str | None:
    """The last two-dimensional convolution in the order of the modules."""
    return next((name for name, m in reversed(list(model.named_modules())) if isinstance(m, nn.Conv2d)), None)


def feature_info(model: nn.Module, x: Tensor) -> str | None:
    """The last of the modules that timm extracts features from."""
    info = getattr(model, "feature_info", None)
    if not info:
        return None
    name = str(info[-1]["module"])
    return name if name in dict(model.named_modules()) else None


def torchcam(model: nn.Module, x: Tensor) -> str | None:
    """The layer that torchcam takes when it is given none."""
    from torchcam.methods._utils import locate_candidate_layer

    return locate_candidate_layer(model, tuple(x.shape[1:]))


def torchxai(model: nn.Module, x: Tensor) -> str | None:
    """The layer that torchxai-explain takes when it is given none."""
    from torchxai.models import detect_architecture, resolve_target_layer

    found = resolve_target_layer(model, detect_architecture(model))
    return next((name for name, m in model.named_modules() if m is found), None)


def ours(model: nn.Module, x: Tensor) -> str | None:
    """The layer that this library takes when it is given none."""
    return dc.find_target_layer(model).name


RULES: dict[str, Rule] = {
    "the last `nn.Conv2d`": last_convolution,
    "torchxai's `resolve_target_layer`": torchxai,
    "torchcam's `locate_candidate_layer`": torchcam,
    "timm's `feature_info[-1]`": feature_info,
    "`drnet_captum.find_target_layer`": ours,
}
