"""CLIP-Dissect against a slow transcription, in chunks, merged, and on units whose concept is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from drnet_captum.dissect.labels import UNLABELLED
from drnet_captum.dissect.similarity import TextConcepts

Array = npt.NDArray[np.float64]
WORDS = ("cat", "cup", "fog", "hat", "owl")


def slow_soft_wpmi(activations: Tensor, similarity: Tensor, top: int) -> Array:
    """Oikarinen & Weng 2023 by the letter: the product runs over all images, most of which are not in B_k."""
    values, scaled = activations.double().numpy(), 10 * similarity.double().numpy()
    given = np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)  # p(t|x)
    images, units = values.shape
    likelihood = np.zeros((units, given.shape[1]))
    for k in range(units):
        ranked = sorted(range(images), key=lambda n: (-values[n, k], f"{n:03}"))
        member = dict.fromkeys(range(images), 0.0)
        member |= {n: 0.998 - rank / top * (0.998 - 0.97) for rank, n in enumerate(ranked[:top])}
        for t in range(given.shape[1]):
            likelihood[k, t] = np.prod([1 + member[n] * (given[n, t] - 1) for n in range(images)])
    return np.log(likelihood) - np.log(likelihood.mean(0))


def shown(count: int = 60, units: int = 4) -> tuple[Tensor, Tensor, list[str]]:
    """Activations with ties and equal images in all batches, cosines, keys."""
    generator = torch.Generator().manual_seed(0)
    activations = (4 * torch.randn(count, units, generator=generator)).round().clamp(min=0)
    return activations, 0.3 * torch.rand(count, 5, generator=generator), [f"{n:03}" for n in range(count)]


def texts(*batches: tuple[Tensor, Tensor, list[str]], top: int = 7) -> TextConcepts:
    found = TextConcepts(WORDS, batches[0][0].shape[1], top)
    for batch in batches:
        found.update(*batch)
    return found


def part(rows: list[int]) -> tuple[Tensor, Tensor, list[str]]:
    activations, similarity, keys = shown()
    return activations[rows], similarity[rows], [keys[n] for n in rows]


@pytest.mark.parametrize("top", [1, 7, 60])
def test_soft_wpmi_is_the_papers(top: int) -> None:
    activations, similarity, keys = shown()
    slow = torch.from_numpy(slow_soft_wpmi(activations, similarity, top))
    scores = texts((activations, similarity, keys), top=top).scores()
    torch.testing.assert_close(scores, slow, rtol=1e-5, atol=1e-5)
    assert slow.max() <= np.log(4)


@pytest.mark.parametrize("size", [1, 7, 59])
def test_streams_and_merges_equal_the_whole(size: int) -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(size)).tolist()
    parts = [part(order[i : i + size]) for i in range(0, 60, size)]
    whole = texts(shown()).scores()
    assert torch.equal(texts(*parts).scores(), whole)
    merged = TextConcepts(WORDS, 4, 7)
    for each in parts:
        merged = texts(each) + merged
    assert torch.equal(merged.scores(), whole)
    assert merged.labels() == texts(shown()).labels()
    # Images that come again, in a batch, in a later one, in a part to be merged, count once.
    again = part([*order[:20], *order[:20]])
    assert torch.equal(texts(*parts, again).scores(), whole)
    assert torch.equal((texts(again, again) + texts(*parts)).scores(), whole)


def test_memory_does_not_grow_with_the_images() -> None:
    activations, similarity, _ = shown(400, 2)
    found = TextConcepts(WORDS, 2, top=3)
    for n in range(50):
        found.update(activations[8 * n : 8 * n + 8], similarity[8 * n : 8 * n + 8], [f"{n} {i}" for i in range(8)])
        assert len(found._rows) <= 6
        assert all(row.untyped_storage().nbytes() == 5 * 4 for row in found._rows.values())


def test_units_are_called_after_what_they_respond_to() -> None:
    generator = torch.Generator().manual_seed(0)
    subject = torch.arange(200) % 5
    cosines = 0.2 + 0.03 * torch.randn(200, 5, generator=generator)
    cosines[torch.arange(200), subject] += 0.1
    responds = torch.tensor([3, 0, 4, 1, 2])
    activations = (subject[:, None] == responds) + 0.5 * torch.rand(200, 5, generator=generator)
    activations = torch.cat([activations, torch.zeros(200, 1)], 1)  # and a dead unit
    found = texts((activations, cosines, [str(n) for n in range(200)]), top=20)
    labels = found.labels()
    assert [label.name for label in labels] == [*(WORDS[t] for t in responds), "unlabelled"]
    assert {label.family for label in labels[:5]} == {"text"}
    scores = found.scores().amax(1) / np.log(6)
    assert [label.score for label in labels[:5]] == pytest.approx(scores[:5].tolist())
    assert 0.5 < min(scores[:5]) < max(scores[:5]) <= 1
    assert found.labels(minimum=1.0)[-1] == UNLABELLED


def test_errors_of_text_concepts() -> None:
    activations, similarity, keys = shown()
    found = TextConcepts(WORDS, 4, top=10)
    for wrong in ((activations[:, :3], similarity, keys), (activations, similarity[:5], keys)):
        with pytest.raises(ValueError, match=r"expected (activations|similarity) of shape \(60, [45]\) for 60 keys"):
            found.update(*wrong)
    for void in (np.nan, np.inf):
        with pytest.raises(ValueError, match="expected finite similarity"):
            found.update(activations, torch.full_like(similarity, void), keys)
    with pytest.raises(TypeError, match="floating point activations"):
        found.update(activations.long(), similarity, keys)
    with pytest.raises(TypeError, match="got the string 'a'"):
        found.update(activations[:1], similarity[:1], "a")
    found.update(activations[:0], similarity[:0], [])
    with pytest.raises(ValueError, match="expected images to compare with the texts, got none"):
        found.labels()
    found.update(*part([1, 2, 2, 2]))  # of fewer than the top, all
    assert torch.isfinite(found.scores()).all()
    with pytest.raises(ValueError, match=r"minimum in \[0, 1\]"):
        found.labels(minimum=3)
    for arguments, message in (
        (([], 2), "at least one concept"),
        ((["a", "a"], 2), "each once"),
        ((["a"], 1), "at least two units"),
        ((["a"], 2, 0), "at least one top image"),
    ):
        with pytest.raises(ValueError, match=message):
            TextConcepts(*arguments)
    for other in (TextConcepts(WORDS[::-1], 4, 10), TextConcepts(WORDS, 3, 10), TextConcepts(WORDS, 4, 9)):
        with pytest.raises(ValueError, match="cannot merge"):
            found + other
    with pytest.raises(TypeError):
        found + 1  # type: ignore[operator]
