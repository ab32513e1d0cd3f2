"""Quantile sketches against numpy's exact quantiles, in chunks, merged, saved, and where values are void."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from drnet_captum.dissect.quantiles import LEAST, MOST, QuantileSketch

QS = (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.995, 0.999, 1.0)


def drawn(name: str, count: int = 40_000) -> Tensor:
    """(count, 3) values of one kind, at three scales."""
    rng = np.random.default_rng(0)
    kinds = {
        "relu": lambda: np.maximum(rng.normal(size=(count, 3)), 0),
        "rarely active": lambda: np.maximum(rng.normal(size=(count, 3)) - 2.4, 0),
        "lognormal": lambda: rng.lognormal(0, 2, size=(count, 3)),
        "negative": lambda: -rng.lognormal(0, 1, size=(count, 3)),
        "gaussian": lambda: rng.normal(size=(count, 3)),
        "mixture": lambda: np.where(rng.random((count, 3)) < 0.99, rng.normal(-1, 0.1, (count, 3)), 40 + rng.random()),
        "two values": lambda: rng.integers(0, 2, size=(count, 3)) * 6.0,
        "zeros": lambda: np.zeros((count, 3)),
        "constant": lambda: np.full((count, 3), -0.37),
    }
    return torch.from_numpy(kinds[name]() * np.array([1e-2, 1.0, 1e3])).float()


def sketched(*values: Tensor, alpha: float = 0.005) -> QuantileSketch:
    sketch = QuantileSketch(values[0].shape[1], alpha)
    for part in values:
        sketch.update(part)
    return sketch


def assert_same(left: QuantileSketch, right: QuantileSketch) -> None:
    ours, theirs = left.to_tensors(), right.to_tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("alpha", [0.005, 0.05])
@pytest.mark.parametrize(
    "name",
    ["relu", "rarely active", "lognormal", "negative", "gaussian", "mixture", "two values", "zeros", "constant"],
)
def test_quantiles_are_numpys_within_alpha(name: str, alpha: float) -> None:
    values = drawn(name)
    sketch = sketched(values, alpha=alpha)
    assert sketch.count == len(values)
    for q in QS:
        exact = np.quantile(values.numpy(), q, axis=0, method="lower")
        np.testing.assert_allclose(sketch.quantile(q), exact, rtol=alpha * 1.001, atol=LEAST, err_msg=f"{name} {q}")


def test_the_top_quantile_is_within_one_percent_of_the_interpolated_one() -> None:
    for name in ("relu", "lognormal", "gaussian"):
        values = drawn(name)
        exact = np.quantile(values.numpy(), 0.995, axis=0)
        np.testing.assert_allclose(sketched(values).quantile(0.995), exact, rtol=0.01)


def test_extremes_and_constants_are_exact() -> None:
    values = torch.tensor([[1.234, -5.678, 0.0, 7.0], [9.87, -0.321, 0.0, 7.0], [3.0, -1.0, 0.0, 7.0]])
    sketch = sketched(values)
    assert torch.equal(sketch.quantile(0), values.amin(0))
    assert torch.equal(sketch.quantile(1), values.amax(0))
    assert torch.equal(sketch.quantile(0.5)[2:], torch.tensor([0.0, 7.0]))


def test_what_saturates_is_not_exceeded() -> None:
    values = torch.full((1000, 1), 6.0)  # a ReLU6 at its ceiling
    values[:500] = 0
    assert sketched(values).quantile(0.995) <= 6


def test_a_bin_in_numbers() -> None:
    alpha = 0.1  # gamma = 1.1 / 0.9
    gamma = 1.1 / 0.9
    values = torch.tensor([[-50.0], [-2.0], [0.0], [3.0], [50.0]])
    k = {v: math.ceil(math.log(abs(v)) / math.log(gamma)) for v in (-2.0, 3.0)}
    sketch = sketched(values, alpha=alpha)
    for q, v in ((0.25, -2.0), (0.75, 3.0)):
        expected = math.copysign(2 * gamma ** k[v] / (gamma + 1), v)
        torch.testing.assert_close(sketch.quantile(q), torch.tensor([expected]))
    assert sketch.quantile(0.5) == 0


def test_positions_of_any_number_count_alike() -> None:
    values = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    flat = values.movedim(1, -1).reshape(-1, 3)
    assert_same(sketched(values), sketched(flat))
    assert_same(sketched(values.flatten(2)), sketched(flat))
    assert sketched(values).count == 120


@pytest.mark.parametrize("name", ["gaussian", "relu", "lognormal"])
@pytest.mark.parametrize("sizes", [(40_000,), (1, 39_999), (7, 13, 30_000, 9_980), (10_000,) * 4])
def test_chunks_and_merges_equal_the_whole(name: str, sizes: tuple[int, ...]) -> None:
    values = drawn(name)
    values = values[values.abs().amax(1).argsort()]  # so that the range grows from chunk to chunk
    whole = sketched(values)
    parts = [sketched(part) for part in values.split(list(sizes))]
    assert_same(sketched(*values.split(list(sizes))), whole)
    merged = QuantileSketch(3)
    for part in reversed(parts):
        merged = merged + part
    assert_same(merged, whole)


def test_merging_leaves_the_parts() -> None:
    left, right = sketched(torch.ones(2, 1)), sketched(-torch.ones(3, 1))
    before = left.to_tensors(), right.to_tensors()
    merged = left + right
    merged.update(torch.full((1, 1), 9.0))
    for sketch, tensors in zip((left, right), before, strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in sketch.to_tensors().items())
    alone = left + QuantileSketch(1)
    alone.update(torch.full((1, 1), 1.0))
    assert (left.count, right.count, merged.count, alone.count) == (2, 3, 6, 3)


def test_to_tensors_and_back() -> None:
    sketch = sketched(drawn("mixture"), alpha=0.02)
    tensors = sketch.to_tensors()
    loaded = QuantileSketch.from_tensors(tensors)
    assert_same(loaded, sketch)
    assert_same(QuantileSketch.from_tensors(QuantileSketch(2).to_tensors()), QuantileSketch(2))
    loaded.update(torch.ones(5, 3))
    assert_same(QuantileSketch.from_tensors(tensors), sketch)
    read = QuantileSketch.from_tensors(tensors)
    tensors["counts"].zero_()  # the sketches keep their own
    assert_same(read, sketch)
    with pytest.raises(ValueError, match="alpha, first missing"):
        QuantileSketch.from_tensors({k: v for k, v in tensors.items() if k not in ("alpha", "first")})


def test_beyond_the_range() -> None:
    values = torch.tensor([[-1e9], [-LEAST / 2], [0.0], [LEAST / 2], [3 * MOST], [1e9]])
    sketch = sketched(values)
    assert sketch.to_tensors()["counts"].shape[1] == 5529  # the most there are
    assert sketch.quantile(0.2) == sketch.quantile(0.4) == sketch.quantile(0.6) == 0
    assert (sketch.quantile(0), sketch.quantile(1)) == (-1e9, 1e9)
    torch.testing.assert_close(sketch.quantile(0.8), torch.tensor([MOST]), rtol=0.005, atol=0)
    edge = sketched(torch.tensor([[LEAST], [-LEAST], [0.0]]))
    assert edge.to_tensors()["counts"].tolist() == [[1, 1, 1]]


def test_counts_hold_more_than_32_bits() -> None:
    sketch = sketched(torch.arange(8.0)[:, None])
    for _ in range(31):
        sketch = sketch + sketch
    assert sketch.count == 2**34
    torch.testing.assert_close(sketch.quantile(0.5), torch.tensor([3.0]), rtol=0.005, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    values = drawn("relu", 500)[:, :2].to(dtype)
    before = values.clone()
    assert_same(sketched(values.requires_grad_()), sketched(before.float()))
    assert torch.equal(values, before)


def test_errors() -> None:
    sketch = QuantileSketch(2)
    with pytest.raises(ValueError, match="seen no values"):
        sketch.quantile(0.5)
    for void in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            sketch.update(torch.tensor([[0.0, 1.0], [void, 1.0]]))
    for shape in ((3, 4), (2,), (2, 3, 2)):
        with pytest.raises(ValueError, match=r"expected activations of shape \(N, 2, \.\.\.\)"):
            sketch.update(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"floating point activations, got torch\.int64"):
        sketch.update(torch.zeros(1, 2, dtype=torch.int64))
    sketch.update(torch.zeros(0, 2))
    sketch.update(torch.zeros(3, 2, 0))
    assert sketch.count == 0
    sketch.update(torch.zeros(1, 2))
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"quantile in \[0, 1\]"):
            sketch.quantile(q)
    with pytest.raises(ValueError, match="at least one unit"):
        QuantileSketch(0)
    for alpha in (0.0, 0.5, math.nan):
        with pytest.raises(ValueError, match=r"alpha in \(0, 0\.5\)"):
            QuantileSketch(1, alpha)
    for other in (QuantileSketch(3), QuantileSketch(2, 0.01)):
        with pytest.raises(ValueError, match="cannot merge"):
            sketch + other
    with pytest.raises(TypeError):
        sketch + 1  # type: ignore[operator]
