"""Class importance and channel moments: numbers by hand, halves against the whole, what is refused."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from drnet_captum.dissect.importance import ClassImportance
from drnet_captum.dissect.moments import ChannelMoments


def batch(seed: int, images: int = 20, channels: int = 5, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(images, channels, generator=generator)
    return s, torch.randint(classes, (images,), generator=generator) * 7


def importance_of(*batches: tuple[Tensor, Tensor], channels: int = 5) -> ClassImportance:
    importance = ClassImportance(channels)
    for s, labels in batches:
        importance.update(s, labels)
    return importance


def moments_of(*batches: Tensor) -> ChannelMoments:
    moments = ChannelMoments(batches[0].shape[1])
    for pooled in batches:
        moments.update(pooled)
    return moments


def assert_same_state(
    a: ClassImportance | ChannelMoments, b: ClassImportance | ChannelMoments, **tolerance: float
) -> None:
    assert a.state().keys() == b.state().keys()
    for name, value in a.state().items():
        torch.testing.assert_close(value, b.state()[name], **tolerance)


# Importance


def test_importance_by_hand() -> None:
    importance = ClassImportance(2)
    importance.update(torch.tensor([[4.0, 1.0], [1.0, -3.0]]), torch.tensor([9, 2]))
    importance.update(torch.tensor([[-2.0, 3.0]]), torch.tensor([9], dtype=torch.int32))
    assert importance.classes.tolist() == [2, 9]
    assert importance.counts.tolist() == [1, 2]
    assert importance.signed.tolist() == [[1.0, -3.0], [1.0, 2.0]]
    assert importance.absolute.tolist() == [[1.0, 3.0], [3.0, 2.0]]
    signed, absolute = importance.of(9)
    assert (signed.tolist(), absolute.tolist()) == ([1.0, 2.0], [3.0, 2.0])
    assert importance.top(9, 1) == [(1, 2.0)]
    assert importance.top(2, 5) == [(0, 1.0), (1, -3.0)]
    # Both classes are served equally by unit 0: the lower comes first. Unit 1 takes from class 2.
    assert importance.served(5) == [[(2, 1.0), (9, 1.0)], [(9, 2.0)]]
    assert importance.served(1) == [[(2, 1.0)], [(9, 2.0)]]
    assert repr(importance) == "ClassImportance(2 units, 2 classes, 3 images)"


def test_importance_of_a_unit_that_does_nothing_serves_no_class() -> None:
    importance = importance_of((torch.zeros(3, 2), torch.tensor([0, 1, 2])), channels=2)
    assert importance.served(3) == [[], []]


def test_importance_equals_a_loop_over_images_in_float64() -> None:
    batches = [batch(seed) for seed in range(6)]
    importance = importance_of(*batches)
    rows: dict[int, list[np.ndarray]] = {}
    for s, labels in batches:
        for row, label in zip(s.double().numpy(), labels.tolist(), strict=True):
            rows.setdefault(label, []).append(row)
    assert importance.classes.tolist() == sorted(rows)
    for i, c in enumerate(sorted(rows)):
        assert importance.counts[i] == len(rows[c])
        np.testing.assert_allclose(importance.signed[i], np.mean(rows[c], axis=0), rtol=1e-12)
        np.testing.assert_allclose(importance.absolute[i], np.mean(np.abs(rows[c]), axis=0), rtol=1e-12)


def test_importance_in_parts_in_any_order() -> None:
    # The parts have different classes, and come in another order than the classes' numbers.
    parts = [batch(0), (batch(1)[0], batch(1)[1] + 100), (batch(2)[0], 50 - batch(2)[1])]
    whole = importance_of(*parts)
    for order in permutations(parts):
        a, b, c = (importance_of(part) for part in order)
        assert_same_state((a + b) + c, whole, rtol=1e-13, atol=1e-13)
        assert_same_state(a + (b + c), whole, rtol=1e-13, atol=1e-13)
    alone = importance_of(parts[0])
    assert_same_state(alone + ClassImportance(5), alone, rtol=0, atol=0)


def test_importance_sums_change_no_summand_and_no_batch() -> None:
    s, labels = batch(0)
    kept = s.clone(), labels.clone()
    a, b = importance_of((s, labels)), importance_of(batch(1))
    before = a.state()
    total = a + b
    total.update(s, labels)
    assert_same_state(a, importance_of((s, labels)), rtol=0, atol=0)
    assert all(torch.equal(before[name], value) for name, value in a.state().items())
    assert torch.equal(s, kept[0])
    assert torch.equal(labels, kept[1])


def test_importance_keeps_small_shares_beside_large_sums() -> None:
    importance = ClassImportance(1)
    importance.update(torch.tensor([[1e8]]), torch.tensor([0]))
    for _ in range(8):
        importance.update(torch.tensor([[1.0]]), torch.tensor([0]))  # float32 would lose each of them
    assert importance.signed.item() * 9 == pytest.approx(1e8 + 8, abs=1e-6)
    tiny = importance_of((torch.tensor([[1 + 1e-12]], dtype=torch.float64), torch.tensor([0])), channels=1)
    assert tiny.signed.item() == 1 + 1e-12


def test_importance_does_not_grow_with_images_but_holds_many_classes() -> None:
    def stored(importance: ClassImportance) -> int:
        return sum(value.numel() for value in vars(importance).values() if isinstance(value, Tensor))

    few, many = (importance_of(*(batch(seed) for seed in range(n))) for n in (10, 1000))
    assert stored(few) == stored(many)
    large = ClassImportance(2048)
    for start in range(0, 1000, 50):
        large.update(torch.ones(50, 2048), torch.arange(start, start + 50))
    assert large.signed.shape == (1000, 2048)
    assert stored(large) < 2 * 2 * 1000 * 2048 + 2000


def test_importance_state_there_and_back() -> None:
    importance = importance_of(batch(0), batch(1))
    loaded = ClassImportance.from_state(importance.state())
    assert_same_state(loaded, importance, rtol=0, atol=0)
    loaded.update(*batch(2))
    assert_same_state(loaded, importance_of(*map(batch, range(3))), rtol=1e-13, atol=1e-13)
    assert_same_state(ClassImportance.from_state(ClassImportance(3).state()), ClassImportance(3))


def test_importance_refuses() -> None:
    importance = importance_of((torch.ones(20, 2), torch.arange(20)), channels=2)
    with pytest.raises(ValueError, match=r"no image of class 20 was seen; .* are: 0, 1, 2, .*, 11, … 8 more"):
        importance.of(20)
    with pytest.raises(ValueError, match="none yet"):
        ClassImportance(2).top(0, 1)
    with pytest.raises(ValueError, match=r"shape \(N, 2\), got \(4, 3\)"):
        importance.update(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"one label for each of 4 images, got shape \(3,\)"):
        importance.update(torch.ones(4, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"integer labels, got torch\.float32"):
        importance.update(torch.ones(4, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="labels of at least 0, got -1"):
        importance.update(torch.ones(2, 2), torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        importance.update(torch.tensor([[1.0, float("inf")]]), torch.tensor([0]))
    assert importance.counts.tolist() == [1] * 20  # nothing of these was added
    with pytest.raises(ValueError, match="got 2 and 3 units"):
        importance + ClassImportance(3)
    with pytest.raises(ValueError, match="channels=0"):
        ClassImportance(0)
    with pytest.raises(TypeError):
        importance + 1  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", torch.tensor([3, 3])),
        ("classes", torch.tensor([-1, 3])),
        ("counts", torch.tensor([1, 0])),
        ("counts", torch.tensor([1])),
        ("signed", torch.ones(2)),
        ("absolute", torch.ones(2, 4)),
    ],
)
def test_importance_state_that_does_not_belong_together(name: str, value: Tensor) -> None:
    state = importance_of((torch.ones(2, 3), torch.tensor([1, 3])), channels=3).state()
    with pytest.raises(ValueError, match="expected"):
        ClassImportance.from_state(state | {name: value})


# Moments


def test_moments_by_hand_and_as_numpy() -> None:
    pooled = torch.tensor([[0.0, 1.0, 5.0], [2.0, 1.0, 1.0], [4.0, 4.0, 3.0]])
    moments = moments_of(pooled[:1], pooled[1:], pooled[:0])
    assert moments.count == 3
    moments.mean().zero_()
    assert moments.mean().tolist() == [2.0, 2.0, 3.0]
    torch.testing.assert_close(moments.covariance()[0], torch.tensor([4.0, 3.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(moments.correlation()[0, 2].item(), -0.5)
    random = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    moments = moments_of(*random.split(7))
    np.testing.assert_allclose(moments.covariance(), np.cov(random.double().numpy().T), rtol=1e-12)
    np.testing.assert_allclose(moments.correlation(), np.corrcoef(random.double().numpy().T), rtol=1e-12)


def test_moments_in_parts_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 4, generator=generator) + n for n in (3, 11, 30)]
    whole = moments_of(torch.cat(parts))
    for order in permutations(parts):
        a, b, c = map(moments_of, order)
        kept = a.state()
        assert_same_state((a + b) + c, whole, rtol=1e-12, atol=1e-12)
        assert_same_state(a + (b + c), whole, rtol=1e-12, atol=1e-12)
        assert all(torch.equal(kept[name], value) for name, value in a.state().items())
    assert_same_state(whole + ChannelMoments(4), whole, rtol=0, atol=0)


def test_moments_keep_what_varies_little_beside_a_large_mean() -> None:
    pooled = 1e6 + torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(moments_of(*pooled.split(9)).covariance(), np.cov(pooled.numpy().T), rtol=1e-8)


def test_moments_of_constant_channels() -> None:
    pooled = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    pooled[:, 1] = 0.1
    pooled[:, 2] = 1 + (pooled[:, 0] > 0) * torch.finfo(torch.float32).eps  # the last bit of a float32
    pooled[:, 3] = pooled[:, 0] * 1e-9  # small, but of its own scale
    correlation = moments_of(*pooled.split(7)).correlation()
    torch.testing.assert_close(correlation[0, 3].item(), 1.0)
    torch.testing.assert_close(correlation[1:3], torch.eye(4, dtype=torch.float64)[1:3])
    assert correlation.abs().max() <= 1


def test_moments_do_not_grow() -> None:
    few, many = (moments_of(*(torch.rand(8, 3) for _ in range(n))) for n in (10, 1000))
    assert {n: v.shape for n, v in few.state().items()} == {n: v.shape for n, v in many.state().items()}
    assert all(not isinstance(value, (list, dict)) for value in vars(many).values())


def test_moments_state_there_and_back_and_what_they_refuse() -> None:
    moments = moments_of(torch.rand(5, 3))
    assert_same_state(ChannelMoments.from_state(moments.state()), moments, rtol=0, atol=0)
    for name, value in (("count", torch.tensor([1])), ("mean", torch.ones(2)), ("scatter", torch.ones(3))):
        with pytest.raises(ValueError, match=r"shapes \(\), \(C,\), \(C, C\)"):
            ChannelMoments.from_state(moments.state() | {name: value})
    with pytest.raises(ValueError, match=r"shape \(N, 3\), got \(2, 3, 1\)"):
        moments.update(torch.ones(2, 3, 1))
    with pytest.raises(ValueError, match="NaN or infinite"):
        moments.update(torch.tensor([[0.0, 0.0, float("nan")]]))
    assert moments.count == 5
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        moments_of(torch.ones(1, 3)).correlation()
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        ChannelMoments(3).mean()
    with pytest.raises(ValueError, match="got 3 and 2 units"):
        moments + ChannelMoments(2)
    with pytest.raises(ValueError, match="channels=0"):
        ChannelMoments(0)
