"""The whole dissection in one call: importance, exemplars and labels of all units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from drnet_captum.attr.score import Score
from drnet_captum.data.card import ModelCard, model_card
from drnet_captum.dissect.dissection import Dissection
from drnet_captum.dissect.dissector import Dissector
from drnet_captum.dissect.exemplars import content_key
from drnet_captum.dissect.labelling import Labels, Step, label_with_masks, label_with_stimuli, unit_maps
from drnet_captum.dissect.labels import UNLABELLED
from drnet_captum.dissect.photos import PhotoFolder, check_batch
from drnet_captum.dissect.similarity import TextConcepts
from drnet_captum.engine.naming import Layer
from drnet_captum.engine.state import kept
from drnet_captum.layers.discovery import example_inputs

Source = Literal["label", "predicted"]


def dissect(
    model: nn.Module,
    data: Iterable[Any] | str | Path | None = None,
    *,
    layers: Sequence[Layer] | None = None,
    target: Source = "label",
    score: Score = "logit",
    exemplars: int = 4,
    stimuli: bool | None = None,
    masks: Iterable[tuple[Tensor, Tensor]] | None = None,
    mask_names: Sequence[str] = (),
    similarity: Callable[[Tensor], Tensor] | None = None,
    concepts: Sequence[str] = (),
    card: ModelCard | None = None,
    contrasts: Sequence[int] = (),
    batch_size: int = 32,
    progress: Step | None = None,
) -> Dissection:
    """What every unit of a model detects, whom it serves, and where it fires most.

    One forward and one backward pass for each batch of data give the importance of all units of all layers for the
    images' classes. Labels come from rendered stimuli (no data needed), from masks, and from texts.

    Args:
        model: the model; it is run as it is (call ``eval()`` first), on its own device.
        data: a ``DataLoader`` or any iterable of (images, labels); a folder of photos, one subfolder a class or flat
            (then the model's answers stand for labels); None: stimuli only.
        layers: modules or dotted names. None: every convolution that has a grid, and the layers that DRNet reconstructs
            from.
        target: whose evidence is summed up: the "label" of each image, or the class "predicted" for it.
        score: of that class the "logit", or the "log_prob".
        exemplars: how many images are kept for each unit.
        stimuli: label the units by rendered stimuli. None: where the model's card says how it sees a photo.
        masks: batches of (images, masks) for Network Dissection, gone through twice; see
            :class:`drnet_captum.dissect.concepts.MaskConcepts`.
        mask_names: the concepts that the masks number.
        similarity: images (as the model takes them) → (N, T), for CLIP-Dissect; taken over ``data``.
        concepts: the T texts.
        card: how the model sees a photo and what its classes are called. None: the model's own, where it has one.
        contrasts: classes to set against each other, such as those of a sub-network. Of an image of one of them, c, and
            every other one, u, it is also summed up what a unit adds to the logit of c more than to that of u
            (``LayerUnits.contrasts``). For K classes that takes K backward passes a batch instead of one, one where no
            image is of these classes, and memory for K² sums a unit.
        batch_size: of photos in a folder, and of stimuli.
        progress: told what is done, how much of it, and of how much (0: not known).

    Raises:
        ValueError: labels outside the model's classes, a loader without batches, masks of another size, a folder whose
            subfolders are not the model's classes, layers that share a module; stimuli for a model without a card;
            contrasts of one class, of a class twice, of none of the model's, of log-probabilities, or without data.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_resnet", num_classes=3).eval()
        >>> batches = [(torch.rand(2, 3, 64, 64), torch.tensor([0, 2]))]
        >>> dissection = dissect(model, batches, stimuli=False)
        >>> dissection["layer1"].importance.signed.shape
        torch.Size([2, 32])
    """
    if target not in ("label", "predicted"):
        raise ValueError(f"expected target to be 'label' or 'predicted', got {target!r}")
    check_pair("masks", masks is not None, "mask_names", mask_names)
    check_pair("similarity", similarity is not None, "concepts", concepts)
    if similarity is not None and data is None:
        raise ValueError("texts are compared with the images of data: pass data= with similarity=")
    if data is None and len(contrasts):
        raise ValueError("contrasts are summed up over the images of data: pass data= with contrasts=")
    card = card if card is not None else known_card(model)
    if stimuli and card is None:
        raise ValueError("expected card= with stimuli=True: how the model sees a photo is not known")
    like = example_parameter(model)
    dissector = Dissector(model, layers=layers, score=score, exemplars=exemplars, card=card, contrasts=contrasts)
    texts: dict[str, TextConcepts] = {}
    done = 0
    for images, labels in batches(data, model, card, batch_size):
        images = images.to(like) if images.is_floating_point() else images.to(like.device)
        sites = dissector.begin(images)
        dissector.update(images, None if target == "predicted" else labels)
        if similarity is not None:
            # Against the mean of one unit nothing stands out.
            several = [s for s in sites if s.layer.channels > 1]
            texts = texts or {s.layer.name: TextConcepts(concepts, s.layer.channels) for s in several}
            keys = [content_key(dissector.picture(image)) for image in images]
            compared = similarity(images)
            for name, pooled in unit_maps(model, several, images, lambda maps: maps.flatten(2).mean(2)).items():
                texts[name].update(pooled, compared, keys)
        done += len(images)
        if progress is not None:
            progress("dissecting images", done, 0)
    if data is not None and not done:
        raise ValueError("expected at least one batch of images, got none: is the loader empty, or used up?")
    if data is None:
        dissector.begin(example_inputs(model, card.input_size if card is not None else None)[0])
    dissection, sites = dissector.result(), dissector.sites
    if card is not None and stimuli is not False:
        found = label_with_stimuli(
            model, sites, card.input_size[1:], normalizer(card, model), batch_size=batch_size, step=progress
        )
        dissection = labelled(dissection, found.labels)
    if masks is not None:
        named = label_with_masks(model, sites, masks, mask_names, step=progress)
        dissection = labelled(dissection, named, "masks")
    if texts:
        named = {s.layer.name: (UNLABELLED,) * s.layer.channels for s in sites}
        dissection = labelled(dissection, named | {name: text.labels() for name, text in texts.items()}, "text")
    return dissection


def labelled(dissection: Dissection, labels: Labels, source: str | None = None) -> Dissection:
    """The same dissection with labels; with those of a ``source`` beside the others."""
    layers = []
    for units in dissection.layers:
        found = labels[units.layer.name]
        concepts: Mapping[str, Any] = units.concepts if source is None else {**units.concepts, source: found}
        layers.append(replace(units, labels=found if source is None else units.labels, concepts=concepts))
    return replace(dissection, layers=tuple(layers))


def batches(
    data: Iterable[Any] | str | Path | None, model: nn.Module, card: ModelCard | None, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(images, labels) from whatever ``dissect`` takes."""
    if data is None:
        return
    if isinstance(data, (str, Path)):
        if card is None:
            raise ValueError("expected card= with a folder of photos: how the model sees a photo is not known")
        data = PhotoFolder(data, card, class_count(model, card)).batches(batch_size)
    for batch in data:
        yield check_batch(batch)


def class_count(model: nn.Module, card: ModelCard) -> int:
    """How many classes a model scores."""
    if card.categories is not None:
        return len(card.categories)
    with torch.no_grad(), kept(model, ()):
        return int(model(example_inputs(model, card.input_size)[0]).shape[1])


def known_card(model: nn.Module) -> ModelCard | None:
    """The model's card, where it has one."""
    try:
        return model_card(model)
    except ValueError:
        return None


def normalizer(card: ModelCard, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """RGB in [0, 1] → what the model takes, by its card, on its device and in its dtype."""
    like = example_parameter(model)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.mean, card.std))
    return lambda images: ((images - mean) / std).to(like)


def example_parameter(model: nn.Module) -> Tensor:
    """A parameter of the model: what its inputs have to be like."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))


def check_pair(what: str, is_given: bool, names: str, values: Sequence[str]) -> None:
    if is_given != bool(values):
        alone, missing = (what, names) if is_given else (names, what)
        raise ValueError(f"expected {what}= and {names}= together, got {alone}= alone: pass {missing}= too")
