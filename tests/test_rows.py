"""Rows moved and summed, held against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.rows import bits_of, move, sums


@given(rows=st.integers(0, 20), width=st.integers(1, 40), bfloat16=st.booleans(), seed=st.integers(0, 100))
def test_sums_are_those_of_float64(rows: int, width: int, bfloat16: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=generator) * 100 + 7).to(torch.bfloat16 if bfloat16 else torch.float32)
    total, norms = np.full(width, np.nan), np.full(rows, np.nan, np.float32)
    square = sums(bits_of(x), total, norms)
    exact = x.double().numpy()
    np.testing.assert_allclose(total, exact.sum(0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(square, (exact**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(norms, np.linalg.norm(exact, axis=1), rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 7, 8, 12])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_square_is_finite_only_if_every_number_is(value: float, place: int, dtype: torch.dtype) -> None:
    x = torch.full((3, 13), 3e38).to(dtype)
    assert np.isfinite(sums(bits_of(x), np.empty(13), np.empty(3, np.float32)))
    x[1, place] = value
    assert not np.isfinite(sums(bits_of(x), np.empty(13), np.empty(3, np.float32)))


@given(
    width=st.sampled_from([1, 9, 16, 32, 33, 64, 640]),
    bfloat16=st.booleans(),
    first=st.integers(0, 3),
    source_first=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_rows_are_moved_as_an_index_moves_them(width: int, bfloat16: bool, first: int, source_first: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    # Memory that begins anywhere, in the middle of a cache line too.
    x = torch.randn(50 * width + source_first, generator=generator).to(dtype)[source_first:].view(50, width)
    y = torch.zeros(30 * width + first, dtype=dtype)[first:].view(30, width)
    source, target = torch.randint(50, (20,), generator=generator), torch.randperm(30, generator=generator)[:20]
    expected = y.clone()
    expected[target] = x[source]
    move(bits_of(x), source.numpy(), bits_of(y), target.numpy())
    assert torch.equal(y, expected)


@given(numbers=st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_float32_is_rounded_on_the_way_as_torch_rounds_it(numbers: list[float]) -> None:
    x, y = torch.tensor([numbers]), torch.zeros(2, len(numbers), dtype=torch.bfloat16)
    move(bits_of(x), np.array([0]), bits_of(y), np.array([1]))
    torch.testing.assert_close(y[1], x[0].bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert not y[0].any()
