"""Models by name: the embedded one, timm's, torchvision's; with their own weights or a caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import nn

from .assets import asset
from .card import ModelCard, keep_card, timm_card
from .checkpoint import load_checkpoint, other_class_count, read_checkpoint

_ON_HUB = ("hf-hub:", "hf_hub:", "local-dir:")  # timm's prefixes for models that its registry does not list
# They warn where init_weights is left open; and googlenet's published model has no auxiliary heads.
_OPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"init_weights": True, "aux_logits": False},
    "inception_v3": {"init_weights": True},
}


@dataclass(frozen=True)
class _Source:
    """One architecture: built at random (classes None: its own number), or with its weights; and its card."""

    build: Callable[[int | None], nn.Module]
    pretrained: Callable[[], nn.Module]
    card: Callable[[nn.Module], ModelCard]
    classes: Callable[[nn.Module], int]


def load_model(
    spec: str = "embedded", *, checkpoint: str | Path | None = None, pretrained: bool | None = None
) -> nn.Module:
    """A model in eval mode, by name; `model_card` then knows its preprocessing and class names.

    Args:
        spec: "embedded" (SqueezeNet 1.1 on ImageNet-1k, needs no network), "timm:NAME" or "torchvision:NAME".
        checkpoint: a safetensors file, or torch weights (read with ``weights_only=True``), to load instead of
            the published weights. One with another number of classes gets a model with that number.
        pretrained: load the published weights; None means yes, unless there is a checkpoint. False without a
            checkpoint gives random weights.

    Raises:
        ValueError: an unknown name, a name without published weights, a checkpoint that does not fit.
        FileNotFoundError: no file at ``checkpoint``.
        OSError: the published weights could not be fetched.

    Example:
        >>> from drnet_captum.data import embedded_photo, load_model, model_card
        >>> model = load_model("embedded")
        >>> card = model_card(model)
        >>> x = card.transform(embedded_photo("coffee"))
        >>> card.label(int(model(x[None]).argmax()))
        'espresso'
    """
    if checkpoint is not None and pretrained:
        raise ValueError("pretrained=True and checkpoint= exclude each other: pass one of them")
    source = _source(spec)
    if checkpoint is not None:
        state = read_checkpoint(checkpoint)
        model = source.build(None)
        classes = other_class_count(model, state, source.classes(model))
        if classes is not None:
            model = source.build(classes)
        load_checkpoint(model, state, source=f"the checkpoint {checkpoint}")
    elif pretrained is False:
        model = source.build(None)
    else:
        model = source.pretrained()
    keep_card(model, source.card(model))
    return model.eval()


def _source(spec: str) -> _Source:
    kind, _, name = spec.partition(":")
    if spec == "embedded":
        return _embedded()
    if kind == "torchvision" and name:
        return _torchvision(name)
    if kind == "timm" and name:
        return _timm(name)
    names = ["embedded", *_near(f"timm:{spec}", timm.list_models(), "timm:")]
    names += _near(f"torchvision:{spec}", _torchvision_names(), "torchvision:")
    raise ValueError(
        f'unknown model {spec!r}: expected "embedded", "timm:NAME" or "torchvision:NAME", e.g. {", ".join(names)}'
    )


def _embedded() -> _Source:
    source = _torchvision("squeezenet1_1", shown="embedded (SqueezeNet 1.1)")

    def pretrained() -> nn.Module:
        model = source.build(None)
        path = asset("squeezenet1_1_imagenet1k_fp16.safetensors")
        load_checkpoint(model, read_checkpoint(path), source="the embedded weights")
        return model

    return replace(source, pretrained=pretrained)


def _torchvision(name: str, shown: str | None = None) -> _Source:
    names = _torchvision_names()
    if name not in names:
        raise _unknown("torchvision", name, names, "image classifier")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    categories = tuple(weights.meta["categories"])

    def build(number: int | None) -> nn.Module:
        options = _OPTIONS.get(name, {})
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=number or len(categories), **options
        )
        return model

    def pretrained() -> nn.Module:
        try:
            model: nn.Module = torchvision.models.get_model(name, weights=weights)
        except (OSError, RuntimeError) as error:
            raise _unfetched(f"torchvision:{name}", error) from error
        return model

    def classes(model: nn.Module) -> int:
        return int(list(model.parameters())[-1].shape[0])

    def card(model: nn.Module) -> ModelCard:
        transform = weights.transforms()
        return ModelCard(
            name=shown or name,
            input_size=(3, transform.crop_size[0], transform.crop_size[-1]),
            mean=tuple(transform.mean),
            std=tuple(transform.std),
            transform=transform,
            categories=categories if classes(model) == len(categories) else None,
        )

    return _Source(build, pretrained, card, classes)


def _timm(name: str) -> _Source:
    listed = not name.startswith(_ON_HUB)
    names = timm.list_pretrained() if "." in name else timm.list_models()  # "resnet18.a1_in1k" names its weights
    if listed and name not in names:
        raise _unknown("timm", name, names, "model")

    def create(pretrained: bool, number: int | None) -> nn.Module:
        options: dict[str, Any] = {} if number is None else {"num_classes": number}
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
        return model

    def pretrained() -> nn.Module:
        if listed and not timm.models.is_model_pretrained(name):
            raise ValueError(
                f"timm has no published weights for {name!r}: pass pretrained=False for random weights, or checkpoint="
            )
        try:
            return create(True, None)
        except (OSError, RuntimeError) as error:
            raise _unfetched(f"timm:{name}", error) from error

    def classes(model: nn.Module) -> int:
        count: Any = model.num_classes
        return int(count)

    return _Source(lambda number: create(False, number), pretrained, timm_card, classes)


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _near(name: str, names: Iterable[str], prefix: str) -> list[str]:
    return get_close_matches(name, [prefix + known for known in names], n=3)


def _unknown(kind: str, name: str, names: Iterable[str], noun: str) -> ValueError:
    near = get_close_matches(name, list(names), n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(f'{kind}:{n}' for n in near)}?" if near else f"see {kind}'s list_models()"
    return ValueError(f"{kind} has no {noun} called {name!r}: {hint}")


def _unfetched(spec: str, error: Exception) -> OSError:
    return OSError(
        f"the weights of {spec} could not be fetched ({type(error).__name__}: {error}): "
        'without a network, pass checkpoint=FILE, or use the model "embedded"'
    )
