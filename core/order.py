"""Orders: permutations that are pure functions of seeds, so that any reader can ask for any batch.

Shuffled twice: within a block when it is harvested (the same at every site), and, in training, chunks among each other and
the rows of neighbouring chunks.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.errors import JumpsuiteError

Rows = npt.NDArray[np.int64]


def _permutation(num: int, *seeds: int) -> Rows:
    # Sorting Philox's raw words gives the same order under every release of NumPy; `Generator.permutation` promises less.
    word = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(num)
    # Words that carry their index are sorted five times faster than indices by their words: the index takes the place of the lowest bits,
    # which matter only where all others are equal.
    bits = np.uint64(max(num - 1, 0).bit_length())
    carrying = np.sort((word >> bits << bits) | np.arange(num, dtype=np.uint64))
    upper = carrying >> bits
    if (upper[1:] == upper[:-1]).any():
        return np.argsort(word, kind="stable")
    order: Rows = (carrying - (upper << bits)).astype(np.int64)
    return order


def block_permutation(seed: int, block: int, num_rows: int) -> Rows:
    """The order of a block's rows, the same for every site."""
    return _permutation(num_rows, seed, 0, block)


class TrainingOrder:
    """Which rows make batch t: a function of (kept rows, seed, t), with no state but what it has already worked out.

    Training takes window after window of the harvest, and begins again with the first after the last; each time it takes one is a turn.
    A turn visits chunks in a random order; neighbours in that order are read together, about `shuffle_rows` rows at a time, and their
    rows permuted. Turns of a harvest that is one window follow each other without a gap. Where there are several, no batch has rows of two,
    so that one may be removed before the next but one is made: the rows that would not fill a turn's last batch are left out of it.

    Args:
        kept: which rows of a window may be used, in store order.
        window_rows: of every window but the last, which may be shorter.
        chunk_rows: rows that the store reads together.
        known_rows: how many rows are kept of the first windows, as far as that is known; of those `kept` is asked only to read them.

    Raises (when a batch is asked for):
        JumpsuiteError: no window has enough rows for a batch.
    """

    def __init__(
        self,
        kept: Callable[[int], npt.NDArray[np.bool_]],
        num_windows: int,
        window_rows: int,
        *,
        batch_rows: int,
        chunk_rows: int,
        shuffle_rows: int,
        seed: int,
        known_rows: Sequence[int] = (),
    ) -> None:
        self._kept, self._num_windows, self._window_rows = kept, num_windows, window_rows
        self.batch_rows, self._chunk_rows, self._seed = batch_rows, chunk_rows, seed
        self._chunks_per_group = max(1, shuffle_rows // chunk_rows)
        self._kept_rows = dict(enumerate(known_rows))
        self._rows_of_chunk = lru_cache(maxsize=2)(self._compute_rows_of_chunk)
        self._chunk_order = lru_cache(maxsize=2)(self._compute_chunk_order)
        self._group_ends = lru_cache(maxsize=2)(self._compute_group_ends)

    def batch(self, t: int, read: Callable[[int, int], Tensor]) -> Tensor:
        """The rows of batch t, taken from `read(turn, group)`, which gives the rows of `self.group(turn, group)` in its order."""
        pieces, row, missing = [], t * self.batch_rows, self.batch_rows
        while missing:
            turn, offset = self._turn_at(row)
            ends = self._group_ends(turn)
            group = int(np.searchsorted(ends, offset, side="right"))
            begin = offset - self._first_row(turn, group)
            take = int(min(missing, ends[group] - offset))
            pieces.append(read(turn, group)[begin : begin + take])
            row, missing = row + take, missing - take
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def group(self, turn: int, group: int) -> tuple[list[int], Rows]:
        """The chunks that a group reads, and its rows (row numbers of the harvest) in training order."""
        window = turn % self._num_windows
        first, rows_of_chunk = group * self._chunks_per_group, self._rows_of_chunk(window)
        chunks = self._chunk_order(turn)[first : first + self._chunks_per_group]
        rows = np.concatenate([rows_of_chunk[chunk] for chunk in chunks])
        in_order = rows[_permutation(len(rows), self._seed, 2, turn, group)]
        before = window * self._window_rows
        return [before // self._chunk_rows + int(chunk) for chunk in chunks], before + in_order

    def group_after(self, turn: int, group: int) -> tuple[int, int]:
        """The group that training reads next, as (turn, group); one without a row that is used is never read."""
        while True:
            turn, group = (turn, group + 1) if group + 1 < len(self._group_ends(turn)) else (turn + 1, 0)
            if min(self._group_ends(turn)[group], self._size(turn)) > self._first_row(turn, group):
                return turn, group

    def group_end(self, turn: int, group: int) -> int:
        """The row of training, counted from its beginning, at which a group ends."""
        return self._rows_before(turn) + min(int(self._group_ends(turn)[group]), self._size(turn))

    def steps(self, turn: int) -> int:
        """Batches up to the end of a turn; of a harvest that is one window, those that it completes."""
        return self._rows_before(turn + 1) // self.batch_rows

    def kept_rows(self, window: int) -> int:
        """Rows of a window that may be used."""
        if window not in self._kept_rows:
            self._kept_rows[window] = sum(map(len, self._rows_of_chunk(window)))
        return self._kept_rows[window]

    def _size(self, turn: int) -> int:
        """Rows that training uses of a turn."""
        rows = self.kept_rows(turn % self._num_windows)
        return rows if self._num_windows == 1 else rows - rows % self.batch_rows

    def _epoch_rows(self) -> int:
        rows = sum(map(self._size, range(self._num_windows)))
        if not rows:
            raise JumpsuiteError(
                f"no window of the harvest has {self.batch_rows:,} rows to train on; expected a batch in one of {self._num_windows}; "
                "raise harvest.window_tokens or training.max_norm, or lower training.batch_rows"
            )
        return rows

    def _turn_at(self, row: int) -> tuple[int, int]:
        """The turn that a row of training falls in, and its place there. Asks for no window beyond it in the first epoch."""
        first_turn = 0
        for _ in range(2):
            for turn in range(first_turn, first_turn + self._num_windows):
                if row < self._size(turn):
                    return turn, row
                row -= self._size(turn)
            epochs, row = divmod(row, self._epoch_rows())
            first_turn = (1 + epochs) * self._num_windows
        raise AssertionError

    def _rows_before(self, turn: int) -> int:
        epochs, window = divmod(turn, self._num_windows)
        return (epochs * self._epoch_rows() if epochs else 0) + sum(map(self._size, range(window)))

    def _first_row(self, turn: int, group: int) -> int:
        """Where a group begins among the rows of its turn."""
        return int(self._group_ends(turn)[group - 1]) if group else 0

    def _compute_rows_of_chunk(self, window: int) -> list[Rows]:
        kept = self._kept(window)
        return [start + np.flatnonzero(kept[start : start + self._chunk_rows]) for start in range(0, len(kept), self._chunk_rows)]

    def _compute_chunk_order(self, turn: int) -> Rows:
        return _permutation(len(self._rows_of_chunk(turn % self._num_windows)), self._seed, 1, turn)

    def _compute_group_ends(self, turn: int) -> Rows:
        rows_of_chunk = self._rows_of_chunk(turn % self._num_windows)
        sizes = np.array([len(rows_of_chunk[chunk]) for chunk in self._chunk_order(turn)])
        firsts = np.arange(0, len(sizes), self._chunks_per_group)
        return np.add.reduceat(sizes, firsts).cumsum()
