"""Statistics of a site's activations: sums per block, merged in block order, and what training makes of them.

Blocks are summed in float64 and merged in their order, so that harvests made in parallel agree to the bit.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Normaliser:
    """x -> (x - mean) / scale, fixed for a site."""

    mean: Tensor
    """D, float32; zeros where inputs are only scaled."""
    scale: float
    """C, so that the normalised rows have a mean squared norm of one (GS, section 3.2), or of D."""

    def __call__(self, x_BD: Tensor) -> Tensor:
        return (x_BD.float() - self.mean) / self.scale

    def to(self, device: torch.device) -> "Normaliser":
        return Normaliser(self.mean.to(device), self.scale)


@dataclass(frozen=True)
class Moments:
    """Sums over rows of one block, or of many."""

    rows: int
    total: npt.NDArray[np.float64]
    """D: the sum of the rows."""
    total_square: float
    """The sum of the squared norms of the rows."""

    @classmethod
    def of(cls, x_BD: Tensor) -> "Moments":
        # NumPy adds in one thread, and so in one order; torch in as many as it has.
        x = x_BD.double().cpu().numpy()
        return cls(len(x), x.sum(0), float(np.square(x).sum()))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.rows + other.rows, self.total + other.total, self.total_square + other.total_square)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        return self.total / self.rows

    @property
    def mean_square(self) -> float:
        """E||x||^2."""
        return self.total_square / self.rows

    @property
    def variance(self) -> float:
        """E||x - E x||^2, what FVU is a fraction of."""
        return self.mean_square - float(self.mean @ self.mean)

    def normaliser(self, inputs: Literal["scaled", "centred", "scaled-to-d"]) -> Normaliser:
        D = len(self.total)
        if inputs != "centred":
            return Normaliser(torch.zeros(D), float(np.sqrt(self.mean_square / (D if inputs == "scaled-to-d" else 1))))
        return Normaliser(torch.from_numpy(self.mean).float(), float(np.sqrt(self.variance)))


def norm_limit(norms: npt.NDArray[np.float32], max_norm: float) -> float:
    """The norm above which rows are left out: a multiple of the median of a site's training rows."""
    return float(max_norm * np.median(norms))
