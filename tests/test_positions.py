"""Means by position and intervals over sequences, against loops and against what is known of them."""

import numpy as np
import pytest

from core.positions import Positions, doubling


def test_groups_of_positions_begin_at_powers_of_two_within_the_sequence() -> None:
    assert doubling(1_024) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert doubling(9) == [1, 2, 4, 8]
    assert doubling(8) == [1, 2, 4]
    assert doubling(2) == [1]


def test_means_are_those_of_each_group_and_none_where_nothing_was_measured() -> None:
    chance = np.random.default_rng(0)
    position, values, weights = chance.integers(0, 12, 200), chance.normal(size=200), chance.random(200)
    where = Positions(np.zeros(200, int), position)
    means = where.means([1, 2, 4, 8, 64], values, weights)
    for mean, begin, end in zip(means, [1, 2, 4, 8], [2, 4, 8, 64], strict=False):
        here = (position >= begin) & (position < end)
        assert mean == pytest.approx(values[here].sum() / weights[here].sum())
    assert means[-1] is None
    assert where.means([1], values)[0] == pytest.approx(values[position >= 1].mean())


def test_the_interval_is_over_sequences_not_over_their_tokens() -> None:
    """Tokens of a sequence that are all alike are one observation: more of them make nothing surer."""
    chance = np.random.default_rng(0)
    of_sequence = chance.normal(size=30)
    few, many = (Positions(np.arange(30).repeat(tokens), np.zeros(30 * tokens)).interval(of_sequence.repeat(tokens)) for tokens in (1, 500))
    assert few is not None
    assert few == pytest.approx(many)
    assert few[1] - few[0] == pytest.approx(2 * 1.96 * of_sequence.std() / 30**0.5, rel=0.15)


def test_a_single_sequence_has_no_interval() -> None:
    assert Positions(np.full(9, 7), np.arange(9)).interval(np.arange(9.0)) is None
    assert Positions(np.zeros(0, int), np.zeros(0, int)).interval(np.zeros(0)) is None


def test_the_interval_of_a_ratio_holds_the_ratio_as_often_as_it_says() -> None:
    chance, held = np.random.default_rng(1), 0
    for _ in range(300):
        sequence = np.arange(40).repeat(5)
        weights = chance.exponential(size=200)
        low, high = Positions(sequence, sequence).interval(2 * weights + chance.normal(size=200), weights) or (0, 0)
        held += low < 2 < high
    assert 0.88 < held / 300 < 0.98
