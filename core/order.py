"""Orders: permutations that are pure functions of seeds, so that any reader can ask for any batch.

Shuffled twice: within a block when it is harvested (the same at every site), and, in training, chunks among each other and
the rows of neighbouring chunks.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows = npt.NDArray[np.int64]


def _permutation(num: int, *seeds: int) -> Rows:
    # Sorting Philox's raw words gives the same order under every release of NumPy; `Generator.permutation` promises less.
    return np.argsort(np.random.Philox(np.random.SeedSequence(seeds)).random_raw(num), kind="stable")


def block_permutation(seed: int, block: int, num_rows: int) -> Rows:
    """The order of a block's rows, the same for every site."""
    return _permutation(num_rows, seed, 0, block)


class TrainingOrder:
    """Which rows make batch t: a function of (kept rows, seed, t), with no state but what it has already worked out.

    An epoch visits chunks in a random order; neighbours in that order are read together, about `shuffle_rows` rows at a
    time, and their rows permuted. Epochs follow each other without a gap.

    Args:
        kept: which rows of the harvest may be used, in store order.
        chunk_rows: rows that the store reads together.
    """

    def __init__(self, kept: npt.NDArray[np.bool_], *, chunk_rows: int, shuffle_rows: int, seed: int) -> None:
        starts = range(0, len(kept), chunk_rows)
        self._rows_of_chunk = [start + np.flatnonzero(kept[start : start + chunk_rows]) for start in starts]
        self._chunks_per_group = max(1, shuffle_rows // chunk_rows)
        self._seed = seed
        self._chunk_order = lru_cache(maxsize=2)(self._compute_chunk_order)
        self._group_ends = lru_cache(maxsize=2)(self._compute_group_ends)
        self.epoch_rows = int(kept.sum())
        """Rows of one epoch."""

    def batch(self, t: int, batch_rows: int, read: Callable[[int, int], Tensor]) -> Tensor:
        """The rows of batch t, taken from `read(epoch, group)`, which gives the rows of `self.group(epoch, group)` in its order."""
        pieces, row, missing = [], t * batch_rows, batch_rows
        while missing:
            epoch, offset = divmod(row, self.epoch_rows)
            ends = self._group_ends(epoch)
            group = int(np.searchsorted(ends, offset, side="right"))
            begin = offset - self._first_row(epoch, group)
            take = int(min(missing, ends[group] - offset))
            pieces.append(read(epoch, group)[begin : begin + take])
            row, missing = row + take, missing - take
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def group(self, epoch: int, group: int) -> tuple[list[int], Rows]:
        """The chunks that a group reads, and its rows (row numbers of the harvest) in training order."""
        first = group * self._chunks_per_group
        chunks = self._chunk_order(epoch)[first : first + self._chunks_per_group]
        rows = np.concatenate([self._rows_of_chunk[chunk] for chunk in chunks])
        return [int(chunk) for chunk in chunks], rows[_permutation(len(rows), self._seed, 2, epoch, group)]

    def group_after(self, epoch: int, group: int) -> tuple[int, int]:
        """The group that training reads next, as (epoch, group); one without a row is never read."""
        while True:
            epoch, group = (epoch, group + 1) if group + 1 < len(self._group_ends(epoch)) else (epoch + 1, 0)
            if self._group_ends(epoch)[group] > self._first_row(epoch, group):
                return epoch, group

    def group_start(self, epoch: int, group: int) -> int:
        """The row of training, counted from its beginning, at which a group begins."""
        return epoch * self.epoch_rows + self._first_row(epoch, group)

    def _first_row(self, epoch: int, group: int) -> int:
        """Where a group begins among the rows of its epoch."""
        return int(self._group_ends(epoch)[group - 1]) if group else 0

    def _compute_chunk_order(self, epoch: int) -> Rows:
        return _permutation(len(self._rows_of_chunk), self._seed, 1, epoch)

    def _compute_group_ends(self, epoch: int) -> Rows:
        sizes = np.array([len(self._rows_of_chunk[chunk]) for chunk in self._chunk_order(epoch)])
        firsts = np.arange(0, len(sizes), self._chunks_per_group)
        return np.add.reduceat(sizes, firsts).cumsum()
