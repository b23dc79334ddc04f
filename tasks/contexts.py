"""Contexts: the held-out text of a site, cut into pieces of some neighbouring tokens, with the site's activations there."""

from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.anatomy import device_of
from core.site import Site
from storage.catalogue import Catalogue
from tasks.train import rows_within

NO_TOKEN = -1
CONTEXTS_AT_ONCE = 64


class HeldOutText:
    """The contexts of W tokens of the held-out text, numbered from its beginning; no context is of two sequences.

    Args:
        limit: the norm above which a row does not count, as in training and on the scorecard.
    """

    def __init__(self, catalogue: Catalogue, site: Site, limit: float | None) -> None:
        self._part, self._site, self._source = catalogue.harvest.part("held_out"), site, catalogue.source
        self._device = catalogue.suite.device
        W = min(catalogue.suite.explaining.context, catalogue.suite.text.context)
        tokens_SC = self._part.first_tokens(self._part.num_sequences)
        self._of_sequence = -(-tokens_SC.shape[1] // W)
        padded_SC = np.pad(tokens_SC, ((0, 0), (0, self._of_sequence * W - tokens_SC.shape[1])), constant_values=NO_TOKEN)
        within, is_text_SC = rows_within(self._part, site, limit), np.zeros(padded_SC.shape, bool)
        self._order = []
        """Of each block, its rows that count, in the order of the text."""
        for block in self._part.blocks:
            sequence, position = self._part.rows(block).T
            begin = block * self._part.block_rows
            rows = np.flatnonzero(within[begin : begin + len(sequence)])
            is_text_SC[sequence[rows], position[rows]] = True
            self._order.append(begin + rows[np.lexsort((position[rows], sequence[rows]))])
        self.tokens_XW: npt.NDArray[np.int32] = padded_SC.reshape(-1, W)
        """Of every context; NO_TOKEN where its sequence has ended."""
        self.is_text_XW: npt.NDArray[np.bool_] = is_text_SC.reshape(-1, W)
        """Positions whose rows count."""

    @cached_property
    def device(self) -> torch.device:
        """Where rows are looked at. Raises ConfigError where this machine has none such; who only reads the text needs none."""
        return device_of(self._device)

    @property
    def num_rows(self) -> int:
        return int(self.is_text_XW.sum())

    @cached_property
    def spell(self) -> Callable[[int], str]:
        """Gives a token's text."""
        tokenizer = self._source.load_tokenizer()
        return lru_cache(maxsize=None)(lambda token: str(tokenizer.decode([token])))

    def pieces(self, context: int) -> list[str]:
        """The texts of a context's tokens; nothing where its sequence has ended."""
        return ["" if token == NO_TOKEN else self.spell(token) for token in self.tokens_XW[context].tolist()]

    def in_sequence(self, contexts: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Of places in contexts the sequence, and the position there."""
        return contexts // self._of_sequence, contexts % self._of_sequence * self.tokens_XW.shape[1] + places

    def is_shown(self, contexts: Tensor) -> Tensor:
        """Which contexts are shown to who explains: those of every other sequence. In the others explanations are put to the test."""
        return contexts // self._of_sequence % 2 == 0

    def rows(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A few contexts at a time: their numbers, which positions count (X x W), and the rows there, in order, float32."""
        of_block = self._part.block_sequences * self._of_sequence
        for block, order in enumerate(self._order):
            chunks = range(block * self._part.block_rows // self._part.chunk_rows, (block + 1) * self._part.block_rows // self._part.chunk_rows)
            x_BD = self._part.read(self._site, chunks, order)
            begin = 0
            for first in range(block * of_block, min((block + 1) * of_block, len(self.is_text_XW)), CONTEXTS_AT_ONCE):
                is_text_XW = torch.from_numpy(self.is_text_XW[first : min(first + CONTEXTS_AT_ONCE, (block + 1) * of_block)])
                end = begin + int(is_text_XW.sum())
                contexts_X = torch.arange(first, first + len(is_text_XW), device=self.device)
                yield contexts_X, is_text_XW.to(self.device), x_BD[begin:end].to(self.device).float()
                begin = end
