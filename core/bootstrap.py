"""Bootstrap: how far a mean would vary with another sample (Efron, Annals of Statistics 7, 1979)."""

from typing import Any

import numpy as np
import numpy.typing as npt


def interval(values: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None, share: float = 0.95, draws: int = 2_000) -> tuple[float, float]:
    """Of a mean, or of a ratio of sums: the middle `share` of what samples drawn anew with repetition give.

    Args:
        values: S, at least one: what is summed of each member of the sample. weights: S, what their sum is divided by, of which most are not zero;
            by default one each.
    """
    drawn = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    below = len(values) if weights is None else weights[drawn].sum(1)
    low, high = np.quantile(values[drawn].sum(1) / below, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
