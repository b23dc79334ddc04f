"""Positions: of values measured along a text, the mean at each distance from a sequence's beginning, and intervals over sequences."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.bootstrap import interval

Floats = npt.NDArray[Any]


def doubling(context: int) -> list[int]:
    """Where groups of positions of a sequence begin, each twice as far from its beginning as the one before: 1, 2, 4, … below `context`."""
    return [2**power for power in range((context - 1).bit_length())]


@dataclass(frozen=True)
class Positions:
    """Where in the text each of E values was measured."""

    sequence_E: npt.NDArray[Any]
    position_E: npt.NDArray[Any]
    """From zero, at the sequence's beginning."""

    def interval(self, values_E: Floats, weights_E: Floats | None = None) -> list[float] | None:
        """The 95% interval of sum(values) / sum(weights), or of the mean: had there been other sequences. None where there is one only."""
        sequence_E = np.unique(self.sequence_E, return_inverse=True)[1]
        if not len(sequence_E) or not sequence_E.any():
            return None
        values_S, weights_S = (np.bincount(sequence_E, each) for each in (values_E, weights_E))
        return list(interval(values_S, weights_S))

    def means(self, begins: list[int], values_E: Floats, weights_E: Floats | None = None) -> list[float | None]:
        """sum(values) / sum(weights), or the mean, of each group of positions; None where there is no value.

        Args:
            begins: where each group begins, increasing; the last has no end. Positions before the first are in none.
        """
        group_E = np.searchsorted(begins, self.position_E, side="right")
        values, weights = (np.bincount(group_E, each, minlength=len(begins) + 1)[1:] for each in (values_E, weights_E))
        return [float(value / weight) if weight else None for value, weight in zip(values, weights, strict=True)]
