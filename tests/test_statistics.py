"""Moments and normalisers, against NumPy in float64 over all rows at once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.statistics import Moments, Normaliser, norm_limit


def rows_with_a_large_mean(seed: int, num: int = 200, dimensions: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 100 + 0.5 * torch.randn(num, dimensions, generator=generator)


def merged(pieces: list[torch.Tensor]) -> Moments:
    blocks = [Moments.of(piece) for piece in pieces]
    return sum(blocks[1:], start=blocks[0])


@given(seed=st.integers(0, 1_000), cuts=st.lists(st.integers(1, 199), max_size=6, unique=True))
def test_moments_merged_over_any_split_are_those_of_all_rows(seed, cuts):
    x = rows_with_a_large_mean(seed)
    moments = merged(list(x.tensor_split(sorted(cuts))))
    x64 = x.numpy().astype(np.float64)
    assert moments.rows == 200
    np.testing.assert_allclose(moments.mean, x64.mean(0), rtol=1e-13)
    assert moments.mean_square == pytest.approx((x64**2).sum(1).mean(), rel=1e-13)
    assert moments.variance == pytest.approx(x64.var(0).sum(), rel=1e-8)  # 100^2 / 0.5^2 of its digits cancel


def test_merging_an_empty_block_changes_nothing():
    x = rows_with_a_large_mean(0)
    moments = merged([x[:0], x, x[:0]])
    whole = Moments.of(x)
    assert (moments.rows, moments.total.tolist(), moments.total_square) == (whole.rows, whole.total.tolist(), whole.total_square)


def test_blocks_summed_in_any_order_and_merged_in_theirs_agree_to_the_bit():
    blocks = list(rows_with_a_large_mean(1).split(30))
    summed = {index: Moments.of(blocks[index]) for index in reversed(range(len(blocks)))}
    again = merged(blocks)
    moments = sum((summed[index] for index in range(1, len(blocks))), start=summed[0])
    assert np.array_equal(moments.total, again.total)
    assert moments.total_square == again.total_square


def test_sums_are_exact_where_float32_would_lose_rows():
    """2^24 + 1 is no float32: adding ones to it one at a time in float32 would stay where it is."""
    x = torch.ones(1_001, 1)
    x[0] = 2**24
    moments = Moments.of(x)
    assert moments.total.tolist() == [2**24 + 1_000]
    assert moments.total_square == 2**48 + 1_000


def test_moments_of_bfloat16_rows_are_those_of_the_same_numbers_in_float64():
    x = rows_with_a_large_mean(2).bfloat16()
    assert Moments.of(x).total.tolist() == Moments.of(x.double()).total.tolist()
    assert Moments.of(x).total_square == Moments.of(x.double()).total_square


@pytest.mark.parametrize("inputs", ["scaled", "centred"])
def test_normalised_rows_have_a_mean_squared_norm_of_one(inputs):
    x = rows_with_a_large_mean(3)
    normaliser = Moments.of(x).normaliser(inputs)
    assert normaliser(x).dtype == torch.float32
    assert normaliser(x).square().sum(1).mean().item() == pytest.approx(1, rel=1e-4)


def test_centred_rows_have_a_mean_of_zero():
    x = rows_with_a_large_mean(4)
    normaliser = Moments.of(x).normaliser("centred")
    # float32 knows a mean of 100 to 4e-6, a share of the scale.
    assert normaliser(x).mean(0).abs().max().item() < 2 * 4e-6 / normaliser.scale + 1e-6


def test_scaling_alone_is_one_number_and_moves_nothing():
    x = rows_with_a_large_mean(5)
    normaliser = Moments.of(x).normaliser("scaled")
    assert not normaliser.mean.any()
    assert normaliser.scale == pytest.approx(math.sqrt((x.numpy().astype(np.float64) ** 2).sum(1).mean()), rel=1e-13)
    torch.testing.assert_close(normaliser(x), x / normaliser.scale)


def test_a_normaliser_reads_bfloat16_rows_in_float32():
    x = torch.tensor([[1.0, 2.0]]).bfloat16()
    normalised = Normaliser(torch.tensor([1 / 3, 0.0]), 3.0)(x)
    torch.testing.assert_close(normalised, torch.tensor([[2 / 9, 2 / 3]]))


def test_the_norm_limit_is_a_multiple_of_the_median_that_few_massive_rows_do_not_move():
    norms = np.linspace(1, 3, 1_001, dtype=np.float32)
    assert norm_limit(norms, 10) == pytest.approx(20)
    massive = norms.copy()
    massive[-10:] = 1e6
    assert norm_limit(massive, 10) == norm_limit(norms, 10)
