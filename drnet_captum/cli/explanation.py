"""One photo explained: its likeliest classes, and a map of each by every method."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from drnet_captum.data.card import ModelCard
from drnet_captum.engine.targets import check_output
from drnet_captum.explanation import explain
from drnet_captum.registry import methods as registry
from drnet_captum.viz import panel

from .outputs import write


@dataclass(frozen=True)
class Explanation:
    """What is written of one photo.

    Attributes:
        photo: (H, W, 3) in [0, 1], the crop that the model saw.
        classes: the K likeliest classes, likeliest first.
        labels: their names.
        probabilities: (K,), by softmax over all classes.
        maps: method name → (K, C or 1, H, W) float32, raw.
        notes: why a method was left out, and other warnings.
    """

    photo: npt.NDArray[np.float32]
    classes: list[int]
    labels: list[str]
    probabilities: npt.NDArray[np.float32]
    maps: dict[str, npt.NDArray[np.float32]]
    notes: list[str]

    @property
    def answers(self) -> list[str]:
        """The classes with their probabilities, e.g. "tabby 23%"."""
        return [f"{label} {percent(float(p))}" for label, p in zip(self.labels, self.probabilities, strict=True)]

    def picture(self, title: str) -> Image.Image:
        """The panel: the photo, then methods × classes.

        Of the CAM family and RISE the positive part is drawn over the photo, as in the papers; maps of gradients at
        input size keep their signs.
        """
        titles = method_titles(list(self.maps))
        known = registry()
        masked = [name for name in self.maps if known[name].needs == "forward passes"]
        return panel(
            self.photo,
            {titles[name]: maps for name, maps in self.maps.items()},
            self.answers,
            title=title,
            signed={
                titles[name]: known[name].signed and known[name].output == "input" and name not in masked
                for name in self.maps
            },
            style={titles[name]: "heat" for name in masked},
        )

    def save(self, folder: Path, name: str, title: str) -> list[Path]:
        """Write ``name.png``, the panel, and ``name.npz``: the maps, ``classes``, ``labels`` and ``probabilities``."""
        image = self.picture(title)
        arrays: dict[str, npt.NDArray[Any]] = {
            **self.maps,
            "classes": np.array(self.classes, dtype=np.int64),
            "labels": np.array(self.labels),
            "probabilities": self.probabilities,
        }
        paths = [folder / f"{name}.png", folder / f"{name}.npz"]
        write(paths[0], lambda file: image.save(file, format="PNG"))
        write(paths[1], lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
        return paths


def explain_photo(
    model: nn.Module,
    card: ModelCard,
    photo: Image.Image,
    *,
    methods: str | list[str] | None = None,
    layer: str | None = None,
    top_k: int = 3,
    progress: Callable[[str], None] | None = None,
) -> Explanation:
    """Explain a model's ``top_k`` likeliest answers on a photo, on the device and in the dtype of the model.

    Args:
        model: a classifier, scores (N, C).
        card: its preprocessing and class names.
        photo: RGB.
        methods, layer, progress: as in :func:`drnet_captum.explain`.
        top_k: how many classes; all of them if the model has fewer.

    Raises:
        ValueError: scores of another shape or not finite, no memory left on the device, and as ``explain``.
    """
    parameter = next(model.parameters())
    x = card.transform(photo)[None].to(parameter.device, parameter.dtype)
    try:
        with torch.no_grad():
            scores = check_output(model(x))
        if scores.dim() != 2:
            raise ValueError(
                f"expected a classifier with scores of shape (1, C), got {tuple(scores.shape)}: "
                "explain other models from Python, with explain(model, inputs, target=…)"
            )
        if not torch.isfinite(scores).all():
            raise ValueError(f"the model's scores are not finite in {parameter.dtype}: try another --dtype")
        likely = scores[0].double().softmax(0).cpu().topk(min(top_k, scores.shape[1]))
        classes = likely.indices.tolist()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            maps = explain(model, x, classes=classes, methods=methods, layer=layer, progress=progress)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"no memory left on {parameter.device}: try fewer methods, --top-k 1 or --device cpu"
        ) from error
    return Explanation(
        photo=card.photo(x[0]),
        classes=classes,
        labels=[card.label(c) for c in classes],
        probabilities=likely.values.float().numpy(),
        maps={name: m[:, 0].detach().float().cpu().numpy() for name, m in maps.items()},
        notes=list(dict.fromkeys(str(warning.message) for warning in caught)),
    )


def method_titles(names: list[str]) -> dict[str, str]:
    """Method name → title; the name itself where two methods have one title."""
    known = registry()
    titles: dict[str, str] = {}
    for name in names:
        title = known[name].title
        titles[name] = name if title in titles.values() else title
    return titles


def percent(probability: float) -> str:
    """A probability as people read it: "42%", "<1%"."""
    return "<1%" if 0 < probability < 0.01 else f"{probability:.0%}"
