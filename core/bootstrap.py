"""Bootstrap: how far a mean would vary with another sample (Efron, Annals of Statistics 7, 1979)."""

from typing import Any

import numpy as np
import numpy.typing as npt

AT_ONCE = 2**22
"""Members drawn at a time: what that takes of memory is the same for every sample."""


def interval(values: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None, share: float = 0.95, draws: int = 2_000) -> tuple[float, float]:
    """Of a mean, or of a ratio of sums: the middle `share` of what samples drawn anew with repetition give.

    Args:
        values: S, at least one: what is summed of each member of the sample. weights: S, what their sum is divided by, of which most are not zero;
            by default one each.
    """
    chance, means, some = np.random.default_rng(0), np.empty(draws), max(1, AT_ONCE // len(values))
    for first in range(0, draws, some):
        drawn = chance.integers(len(values), size=(min(some, draws - first), len(values)))
        below = len(values) if weights is None else weights[drawn].sum(1)
        means[first : first + len(drawn)] = values[drawn].sum(1) / below
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
