"""Packing: documents into fixed-length sequences of tokens, and a held-out part that shares no document with training."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that mark structure rather than carry text."""

    begin: int
    """BOS, or EOS for tokenizers without one: begins each sequence and each document."""
    excluded: tuple[int, ...]
    """BOS, EOS and PAD: their activations are neither trained nor scored on (GS, section 3.2)."""


def is_held_out(document: str, share: float, seed: int) -> bool:
    """Whether a document belongs to the held-out part: by a hash of its text, so that copies fall on the same side."""
    digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") < share * 2**64


class Packer:
    """Makes sequences of `context` tokens: BOS, then documents end to end with a BOS before each. A remainder is dropped."""

    def __init__(self, special: SpecialTokens, context: int) -> None:
        self._begin = special.begin
        self._context = context
        self._sequence = [special.begin]

    def add(self, document: list[int]) -> Iterator[Tokens]:
        """The sequences that this document completes."""
        if self._sequence[-1] != self._begin:
            self._sequence.append(self._begin)
        taken = 0
        while taken < len(document):
            room = self._context - len(self._sequence)
            self._sequence.extend(document[taken : taken + room])
            taken += room
            if len(self._sequence) == self._context:
                # Begun anew before it is given away: who takes sequences may stop at any of them.
                full, self._sequence = self._sequence, [self._begin]
                taken += document[taken : taken + 1] == [self._begin]
                yield np.array(full, dtype=np.int32)


def is_text(tokens: Tokens, special: SpecialTokens) -> npt.NDArray[np.bool_]:
    """Which tokens are text, not special."""
    return ~np.isin(tokens, special.excluded)
