"""CLIP-Dissect: which words suit the images that a unit fires at, by a model that compares images with text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import torch
from torch import Tensor

from drnet_captum.dissect.labels import UNLABELLED, UnitLabel

#: a, the factor on the similarities.
_SHARPNESS = 10.0
#: p(x ∈ B_k) of the strongest image, and where it would be after the last of the top.
_MEMBERSHIP = (0.998, 0.97)


class TextConcepts:
    r"""CLIP-Dissect: the concept that suits the top images of a unit, by SoftWPMI.

    .. math:: \mathrm{wpmi}(t, k) = \log p(t \mid B_k) - \log p(t), \qquad
              \log p(t \mid B_k) = \sum_x \log\bigl(1 + p(x \in B_k)\,(p(t \mid x) - 1)\bigr)

    p(t|x) is the softmax over the concepts of 10 times the similarity of image and text (cosines of CLIP embeddings in
    the paper; scale others before). B_k, the images typical of unit k, are the ``top`` at which its pooled activation
    is highest: p(x ∈ B_k) falls evenly by rank from 0.998 to 0.97, and is 0 for the others. p(t) is the mean of
    p(t|B_k) over the units. These, and the factor λ = 1 before log p(t), are the defaults of the authors' code. Its
    1e-7 inside the logarithm is left out: the bracket is never below 0.002.

    Kept are the top images of every unit and their p(t|x), so that memory does not grow with the data (at worst
    C × ``top`` × T numbers, where no two units share an image). An image counts once, at its highest activation,
    however often it is shown. Equal activations are ordered by key. So neither the order of the images nor how they are
    cut into batches matters, and ``a + b`` is exactly one pass over the images of both.

    Args:
        concepts: T words or phrases.
        units: C, at least 2: against the mean of one unit nothing stands out.
        top: how many images are typical of a unit.

    Raises:
        ValueError: no or repeated concepts, fewer than 2 units, ``top`` below 1.

    Source: Oikarinen & Weng 2023, "CLIP-Dissect", arXiv 2204.10965, section 3 (SoftWPMI), and its published code.

    Example:
        >>> import torch
        >>> texts = TextConcepts(["cat", "cup"], units=2, top=1)
        >>> cosines = torch.tensor([[0.3, 0.1], [0.1, 0.3]])
        >>> texts.update(torch.tensor([[0.0, 5.0], [2.0, 1.0]]), cosines, ["a.jpg", "b.jpg"])
        >>> [label.name for label in texts.labels()]
        ['cup', 'cat']
    """

    def __init__(self, concepts: Sequence[str], units: int, top: int = 100) -> None:
        self.concepts = tuple(concepts)
        if not self.concepts or len(set(self.concepts)) < len(self.concepts):
            raise ValueError(f"expected at least one concept, each once, got {len(self.concepts)} with repetitions")
        if units < 2:
            raise ValueError(
                f"expected at least two units, got {units}: a concept is compared with its mean over units"
            )
        if top < 1:
            raise ValueError(f"expected at least one top image, got {top}")
        self.units = units
        self.top = top
        self._rows: dict[str, Tensor] = {}  # p(t|x) by key, sorted by it: an id is a place in here
        self._values = torch.full((units, top), -torch.inf)  # strongest first
        self._ids = torch.full((units, top), -1)
        self._lowest = torch.full((units,), torch.inf)

    def update(self, activations: Tensor, similarity: Tensor, keys: Sequence[str]) -> None:
        """Take in a batch.

        Args:
            activations: (N, C), pooled over positions (the paper averages).
            similarity: (N, T) of the images and the concepts' texts.
            keys: N, one an image, the same whenever it is shown.

        Raises:
            TypeError: tensors that are not floating point, one string for keys.
            ValueError: shapes that do not belong together, NaN or infinite values.
        """
        if isinstance(keys, str):
            raise TypeError(f"expected one key for each image, got the string {keys!r}: pass a list")
        expected = ((len(keys), self.units), (len(keys), len(self.concepts)))
        for name, value, shape in zip(("activations", "similarity"), (activations, similarity), expected, strict=True):
            if not value.is_floating_point():
                raise TypeError(f"expected floating point {name}, got {value.dtype}")
            if tuple(value.shape) != shape:
                raise ValueError(f"expected {name} of shape {shape} for {len(keys)} keys, got {tuple(value.shape)}")
            if not bool(value.isfinite().all()):
                raise ValueError(f"expected finite {name}, got NaN or infinite values: run the model in float32")
        if len(keys) == 0:
            return
        activations, similarity = (value.detach().cpu().float() for value in (activations, similarity))
        rows = dict(zip(keys, (_SHARPNESS * similarity).softmax(1), strict=True))
        ids = torch.arange(len(keys)).expand(self.units, -1)
        self._lowest = torch.minimum(self._lowest, activations.amin(0))
        self._absorb(activations.T, ids, keys, rows)

    def scores(self) -> Tensor:
        """SoftWPMI in nats: (C, T) float64, at most log C; 0 where a concept suits a unit as it suits the mean one.

        Of fewer than ``top`` images all are taken, by rank.

        Raises:
            ValueError: no images.
        """
        top = int((self._ids[0] >= 0).sum())
        if not top:
            raise ValueError("expected images to compare with the texts, got none")
        start, end = _MEMBERSHIP
        membership = torch.linspace(start, end, top + 1)[:-1, None]  # p(x ∈ B_k), strongest first
        rows = list(self._rows.values())
        likelihood = torch.empty(self.units, len(self.concepts), dtype=torch.float64)  # log p(t|B_k)
        for unit, ids in enumerate(self._ids.tolist()):
            probabilities = torch.stack([rows[i] for i in ids[:top]])  # (top, T)
            likelihood[unit] = torch.log1p(membership * (probabilities - 1)).sum(0, dtype=torch.float64)
        return likelihood - (likelihood.logsumexp(0) - log(self.units))

    def labels(self, minimum: float = 0.0) -> tuple[UnitLabel, ...]:
        """The concept of the highest SoftWPMI for each unit, scored by SoftWPMI ÷ log C, cut to [0, 1].

        The score is 0 where no concept suits the unit better than the mean unit, and 1 where the concept is this unit's
        alone. A unit whose best score is below ``minimum``, or that gave the same for every image, is unlabelled.

        Raises:
            ValueError: no images, ``minimum`` outside [0, 1].
        """
        if not 0 <= minimum <= 1:
            raise ValueError(f"expected minimum in [0, 1], got {minimum}")
        best, concept = self.scores().max(1)
        best = (best / log(self.units)).clamp(0, 1)
        labelled = (best >= minimum) & (self._values[:, 0] > self._lowest)
        return tuple(
            UnitLabel(self.concepts[c], "text", score) if says else UNLABELLED
            for says, c, score in zip(labelled.tolist(), concept.tolist(), best.tolist(), strict=True)
        )

    def __add__(self, other: TextConcepts) -> TextConcepts:
        """What one pass over the images of both would have kept.

        Raises:
            ValueError: other concepts, another number of units or of top images.
        """
        if not isinstance(other, TextConcepts):
            return NotImplemented
        if self.concepts != other.concepts:
            raise ValueError("cannot merge scores of different concepts: use the same list in the same order")
        if (self.units, self.top) != (other.units, other.top):
            raise ValueError(
                f"cannot merge {self.units} units with the top {self.top} images and {other.units} units with the top "
                f"{other.top}"
            )
        merged = TextConcepts(self.concepts, self.units, self.top)
        for part in (self, other):
            merged._absorb(part._values, part._ids, list(part._rows), part._rows)
        merged._lowest = torch.minimum(self._lowest, other._lowest)
        return merged

    def _absorb(self, values: Tensor, ids: Tensor, keys: Sequence[str], rows: Mapping[str, Tensor]) -> None:
        """Keep the strongest of what is kept and of ``values`` (C, M), whose images are ``ids`` into ``keys``."""
        union = sorted({*self._rows, *keys})
        place = {key: i for i, key in enumerate(union)}
        # The last entry is what id −1, no image, becomes.
        new, own = (torch.tensor([*map(place.__getitem__, names), -1]) for names in (keys, self._rows))
        ids = torch.cat([new[ids], own[self._ids]], 1)
        self._values, ids = strongest(torch.cat([values, self._values], 1), ids, self.top)
        used = ids[ids >= 0].unique()
        ids_of = torch.full((len(union) + 1,), -1)
        ids_of[used] = torch.arange(len(used))
        self._ids = ids_of[ids]
        kept = [union[i] for i in used.tolist()]
        # A copy, as a row would keep the tensor of its whole batch alive.
        self._rows = {key: self._rows[key] if key in self._rows else rows[key].clone() for key in kept}


def strongest(values: Tensor, ids: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The ``top`` highest values of each row with their ids, highest first, equal ones by id; an id's highest counts.

    Example:
        >>> import torch
        >>> strongest(torch.tensor([[1.0, 3.0, 2.0, 3.0]]), torch.tensor([[7, 9, 9, 8]]), top=3)
        (tensor([[3., 3., 1.]]), tensor([[8, 9, 7]]))
    """
    values, order = values.sort(dim=1, descending=True, stable=True)
    ids, by_id = ids.gather(1, order).sort(dim=1, stable=True)
    values = values.gather(1, by_id)  # by id, of each id the highest first
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    values, order = values.masked_fill(repeated, -torch.inf).sort(dim=1, descending=True, stable=True)
    ids = ids.masked_fill(repeated, -1).gather(1, order)
    return values[:, :top], ids[:, :top]
