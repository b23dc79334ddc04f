"""Orders are pure functions of seeds, and an epoch reads every kept row once."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import JumpsuiteError
from core.order import TrainingOrder, block_permutation

# The permutation of a block


@pytest.mark.parametrize("num_rows", [0, 1, 2, 1_000])
def test_the_order_of_a_block_is_a_permutation(num_rows):
    assert sorted(block_permutation(3, 5, num_rows).tolist()) == list(range(num_rows))


def test_the_order_of_a_block_is_the_same_whenever_it_is_asked_for():
    first = block_permutation(3, 5, 500).tolist()
    block_permutation(9, 9, 500)
    assert block_permutation(3, 5, 500).tolist() == first


def test_orders_differ_between_blocks_and_between_seeds():
    orders = {tuple(block_permutation(seed, block, 500)) for seed in range(5) for block in range(20)}
    assert len(orders) == 100


def test_the_order_of_a_block_is_the_one_that_stored_harvests_have():
    """A change here would tear the rows of old harvests from their tokens."""
    assert block_permutation(0, 0, 12).tolist() == [0, 8, 9, 3, 7, 5, 1, 11, 2, 10, 6, 4]


def test_every_row_of_a_block_is_as_likely_in_every_place():
    """Chi-square of which of 8 rows lands in which of 8 places, over 4,000 blocks: 49 degrees of freedom."""
    counts = np.zeros((8, 8))
    for block in range(4_000):
        counts[np.arange(8), block_permutation(1, block, 8)] += 1
    expected = 4_000 / 8
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert 49 - 4.5 * 98**0.5 < statistic < 49 + 4.5 * 98**0.5


# The order of training


def order_of(kept: np.ndarray, batch_rows: int = 10, **options: int) -> TrainingOrder:
    """The order of a harvest that is one window."""
    return TrainingOrder(lambda _: kept, 1, len(kept), batch_rows=batch_rows, **options)


def batch_of(order: TrainingOrder, t: int) -> list[int]:
    return order.batch(t, lambda turn, group: torch.from_numpy(order.group(turn, group)[1])).tolist()


def rows_of(order: TrainingOrder, batch_rows: int, num_rows: int) -> list[int]:
    """The first rows of training."""
    batches = [batch_of(order, t) for t in range(-(-num_rows // batch_rows))]
    assert all(len(batch) == batch_rows for batch in batches)
    return list(itertools.chain.from_iterable(batches))[:num_rows]


@st.composite
def harvests(draw):
    """Which rows are kept, with runs of none at all, and how they are read."""
    chunk_rows = draw(st.integers(1, 9))
    chunks = draw(st.lists(st.sampled_from(["all", "none", "some"]), min_size=1, max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    kept = np.concatenate([{"all": np.ones, "none": np.zeros}.get(kind, rng.random)(chunk_rows) > 0.5 for kind in chunks])
    kept = kept[: len(kept) - draw(st.integers(0, chunk_rows - 1))]  # the last chunk may be short
    kept[draw(st.integers(0, len(kept) - 1))] = True
    return kept, {"chunk_rows": chunk_rows, "shuffle_rows": draw(st.integers(1, 40)), "seed": draw(st.integers(0, 1_000))}


@given(harvest=harvests(), batch_rows=st.integers(1, 40))
def test_each_epoch_reads_every_kept_row_once_and_no_other_and_epochs_follow_without_a_gap(harvest, batch_rows):
    kept, options = harvest
    order = order_of(kept, batch_rows, **options)
    num = int(kept.sum())
    rows = rows_of(order, batch_rows, 3 * num)
    for epoch in range(3):
        assert sorted(rows[epoch * num : (epoch + 1) * num]) == np.flatnonzero(kept).tolist()


@given(harvest=harvests(), batch_rows=st.integers(1, 40), steps=st.permutations(range(8)))
def test_a_batch_is_a_pure_function_whatever_was_asked_before_and_of_whom(harvest, batch_rows, steps):
    kept, options = harvest
    order = order_of(kept, batch_rows, **options)
    in_turn = [batch_of(order, t) for t in range(8)]
    other = order_of(~kept | kept[::-1], batch_rows, **options)  # asked between, to disturb what is remembered
    asked = order_of(kept.copy(), batch_rows, **options)
    for t in steps:
        batch_of(other, t)
        assert batch_of(asked, t) == in_turn[t]
        assert batch_of(order_of(kept, batch_rows, **options), t) == in_turn[t]


@given(harvest=harvests())
def test_a_group_reads_the_chunks_it_names_and_no_chunk_is_read_twice_in_an_epoch(harvest):
    kept, options = harvest
    order = order_of(kept, **options)
    num_chunks = -(-len(kept) // options["chunk_rows"])
    seen: list[int] = []
    while len(seen) < num_chunks:
        chunks, rows = order.group(1, group=len(seen) // max(1, options["shuffle_rows"] // options["chunk_rows"]))
        of_chunks = {row for chunk in chunks for row in range(chunk * options["chunk_rows"], (chunk + 1) * options["chunk_rows"])}
        assert set(rows.tolist()) == of_chunks & set(np.flatnonzero(kept).tolist())
        seen += chunks
    assert sorted(seen) == list(range(num_chunks))


@given(harvest=harvests())
def test_groups_follow_each_other_from_epoch_to_epoch_each_where_the_last_one_ended(harvest):
    kept, options = harvest
    order = order_of(kept, **options)
    at, row = (0, 0), 0
    while at[0] < 2:
        row += len(order.group(*at)[1])
        assert order.group_end(*at) == row
        at = order.group_after(*at)
        assert len(order.group(*at)[1]), "a group without a kept row is passed over"
    assert at[0] == 2
    assert row == 2 * kept.sum()


def test_epochs_and_seeds_order_rows_differently():
    kept = np.ones(400, dtype=bool)
    orders = [order_of(kept, 400, chunk_rows=20, shuffle_rows=60, seed=seed) for seed in (0, 1)]
    epochs = {tuple(batch_of(order, t)) for order in orders for t in range(3)}
    assert len(epochs) == 6


def test_each_epoch_visits_chunks_in_an_order_of_its_own():
    order = order_of(np.ones(400, dtype=bool), chunk_rows=20, shuffle_rows=20, seed=0)
    assert len({tuple(order.group(epoch, group)[0][0] for group in range(20)) for epoch in range(5)}) == 5


def test_rows_of_neighbouring_chunks_are_mixed():
    """With five chunks at a time, the first fifth of a group holds rows of all five, as good as surely."""
    order = order_of(np.ones(1_000, dtype=bool), 40, chunk_rows=40, shuffle_rows=200, seed=0)
    assert len({row // 40 for row in batch_of(order, 0)}) == 5


def test_a_chunk_without_a_kept_row_is_passed_over():
    kept = np.zeros(50, dtype=bool)
    kept[20:30] = True  # one chunk of five has rows, so that four groups of one chunk have none
    order = order_of(kept, 7, chunk_rows=10, shuffle_rows=10, seed=0)
    rows = rows_of(order, 7, 30)
    for epoch in range(3):
        assert sorted(rows[10 * epoch : 10 * epoch + 10]) == list(range(20, 30))


def test_fewer_shuffled_rows_than_a_chunk_holds_means_one_chunk_at_a_time():
    order = order_of(np.ones(30, dtype=bool), chunk_rows=10, shuffle_rows=3, seed=0)
    rows = rows_of(order, 10, 30)
    assert all(len({row // 10 for row in rows[begin : begin + 10]}) == 1 for begin in (0, 10, 20))
    assert sorted(rows) == list(range(30))


def test_a_batch_may_be_larger_than_an_epoch():
    order = order_of(np.array([True, False, True]), 9, chunk_rows=2, shuffle_rows=2, seed=0)
    batch = batch_of(order, 0)
    assert len(batch) == 9
    assert sorted(batch[:8]) == [0, 0, 0, 0, 2, 2, 2, 2]
    assert all(set(batch[begin : begin + 2]) == {0, 2} for begin in range(0, 8, 2))


def test_far_batches_need_no_nearer_ones():
    order = order_of(np.ones(100, dtype=bool), chunk_rows=10, shuffle_rows=30, seed=0)
    t = 10**9
    asked: list[tuple[int, int]] = []

    def read(epoch: int, group: int) -> torch.Tensor:
        asked.append((epoch, group))
        return torch.from_numpy(order.group(epoch, group)[1])

    assert len(order.batch(t, read)) == 10
    assert {epoch for epoch, _ in asked} == {t * 10 // 100}
    assert len(asked) <= 2


# Several windows


@given(data=st.data(), num_windows=st.integers(2, 4), batch_rows=st.integers(1, 12))
def test_a_turn_reads_rows_of_its_window_alone_each_once_and_leaves_out_less_than_a_batch(data, num_windows, batch_rows):
    chunk_rows, chunks = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    window_rows, last = chunk_rows * chunks, chunk_rows * data.draw(st.integers(1, chunks))
    chance = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    kept = [chance.random(window_rows if window < num_windows - 1 else last) > 0.3 for window in range(num_windows)]
    kept[0] = np.ones(window_rows, dtype=bool)
    sizes = [int(window.sum()) // batch_rows for window in kept]
    asked: set[int] = set()

    def of(window: int) -> np.ndarray:
        asked.add(window)
        return kept[window]

    options = {"batch_rows": batch_rows, "chunk_rows": chunk_rows, "shuffle_rows": data.draw(st.integers(1, 20)), "seed": 0}
    order = TrainingOrder(of, num_windows, window_rows, **options)
    if not sum(sizes):
        with pytest.raises(JumpsuiteError, match=r"no window of the harvest has .* rows to train on; expected a batch in one of"):
            batch_of(order, 0)
        return
    t = 0
    for turn in range(2 * num_windows + 1):
        window = turn % num_windows
        batches = [batch_of(order, t + n) for n in range(sizes[window])]
        assert turn >= num_windows or asked <= set(range(window + 1)), "a window was asked for before its turn"
        t += len(batches)
        assert order.steps(turn) == t
        rows = list(itertools.chain.from_iterable(batches))
        assert len(rows) == len(set(rows)) == sizes[window] * batch_rows
        assert set(rows) <= {window * window_rows + int(row) for row in np.flatnonzero(kept[window])}
    again = TrainingOrder(of, num_windows, window_rows, **options)
    assert batch_of(again, t - 1) == batch_of(order, t - 1)
    asked.clear()
    told = TrainingOrder(of, num_windows, window_rows, **options, known_rows=[int(window.sum()) for window in kept])
    assert told.steps(2 * num_windows) == t
    assert not asked, "what is known of a window was asked for"
    assert batch_of(told, t - 1) == batch_of(order, t - 1)


def test_a_group_names_the_chunks_that_its_rows_lie_in_whatever_its_window():
    order = TrainingOrder(lambda _: np.ones(40, dtype=bool), 3, 40, batch_rows=10, chunk_rows=10, shuffle_rows=20, seed=3)
    for turn in range(6):
        for group in range(2):
            chunks, rows = order.group(turn, group)
            assert {row // 10 for row in rows.tolist()} == set(chunks)
            assert all(4 * (turn % 3) <= chunk < 4 * (turn % 3) + 4 for chunk in chunks)


def test_windows_of_one_text_are_what_one_window_would_not_be():
    """A harvest that is one window mixes all of its rows; one of two keeps to the first until it is used up."""
    whole = order_of(np.ones(80, dtype=bool), chunk_rows=10, shuffle_rows=80, seed=0)
    halves = TrainingOrder(lambda _: np.ones(40, dtype=bool), 2, 40, batch_rows=10, chunk_rows=10, shuffle_rows=80, seed=0)
    assert max(itertools.chain.from_iterable(batch_of(whole, t) for t in range(4))) >= 40
    assert max(itertools.chain.from_iterable(batch_of(halves, t) for t in range(4))) < 40
