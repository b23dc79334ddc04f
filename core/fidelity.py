"""Fidelity: how well a dictionary reconstructs the rows of its site. Definitions of Gemma Scope (arXiv:2408.05147, section 4.1), unless said.

B rows, D dimensions, L latents.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core.dictionary import Dictionary

FREQUENCY_EDGES = tuple(-5 + 0.5 * i for i in range(11))
"""Bins of the firing-frequency histogram, in log10; rarer latents that fired count in the first."""

PerRow = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RowFidelity:
    """What rows alone tell: of each row, so that they can be summed by sequence and by position, and of all."""

    l0_B: PerRow
    """Active latents."""
    error_B: PerRow
    """||x_hat - x||^2."""
    deviation_B: PerRow
    """||x - mean||^2: the error of always predicting the mean."""
    square_B: PerRow
    """||x||^2."""
    square_out_B: PerRow
    """||x_hat||^2."""
    product_B: PerRow
    """x . x_hat."""
    frequencies_L: Tensor
    """Share of rows on which each latent fires, float64."""

    @property
    def rows(self) -> int:
        return len(self.l0_B)

    @property
    def l0(self) -> float:
        """Mean number of active latents."""
        return _sum(self.l0_B) / self.rows

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained: squared error over that of always predicting the mean."""
        return _sum(self.error_B) / _sum(self.deviation_B)

    @property
    def cosine(self) -> float:
        """Mean cosine of a row and its reconstruction."""
        return float((self.product_B / np.sqrt(self.square_B * self.square_out_B).clip(_TINY)).mean(dtype=np.float64))

    @property
    def relative_norm(self) -> float:
        """Mean of ||x_hat|| / ||x||: below one, the reconstruction shrinks."""
        return float(np.sqrt(self.square_out_B / self.square_B.clip(_TINY)).mean(dtype=np.float64))

    @property
    def relative_bias(self) -> float:
        """E||x_hat||^2 / E[x . x_hat]: one where no scaling of the reconstruction would be better (arXiv:2404.16014, Eq. 10)."""
        return _sum(self.square_out_B) / (_sum(self.product_B) or 1.0)

    @property
    def dead(self) -> float:
        """Share of latents that fired on none of the rows."""
        return float((self.frequencies_L == 0).double().mean())

    def dense(self, frequency: float) -> float:
        """Share of latents that fire on more than that share of the rows."""
        return float((self.frequencies_L > frequency).double().mean())

    def frequency_histogram(self) -> list[int]:
        """Latents in each bin of FREQUENCY_EDGES; dead ones in none."""
        fired = self.frequencies_L[self.frequencies_L > 0].log10().clamp(min=FREQUENCY_EDGES[0]).double().numpy()
        return [int(count) for count in np.histogram(fired, FREQUENCY_EDGES)[0]]


@dataclass(frozen=True)
class InBfloat16(Dictionary):
    """What a dictionary computes in bfloat16: products summed in float32 and then rounded, as units for it do, also on machines without any."""

    @classmethod
    def of(cls, dictionary: Dictionary) -> "InBfloat16":
        return cls(**{name: _rounded(tensor) for name, tensor in dictionary.tensors().items()}, k=dictionary.k)

    def encode(self, x_BD: Tensor) -> Tensor:
        return self.activate(_rounded(_rounded(_rounded(x_BD) @ self.W_enc) + self.b_enc))

    def decode(self, f_BL: Tensor) -> Tensor:
        return _rounded(_rounded(f_BL @ self.W_dec) + self.b_dec)


def _rounded(values: Tensor) -> Tensor:
    return values.bfloat16().float()


_TINY = np.float32(1e-30)


def _sum(values_B: PerRow) -> float:
    return float(values_B.sum(dtype=np.float64))


@torch.no_grad()
def row_fidelity(dictionary: Dictionary, rows: Iterable[Tensor], mean: npt.NDArray[Any]) -> RowFidelity:
    """Score a dictionary on raw activations.

    Args:
        rows: batches B x D, at least one. mean: D, of the same rows: what FVU compares with.
    """
    device = dictionary.b_dec.device
    mean_D, fired_L = torch.from_numpy(mean).float().to(device), torch.zeros(len(dictionary.b_enc), dtype=torch.float64)
    measured = []
    for batch in rows:
        x_BD = batch.to(device).float()
        f_BL = dictionary.encode(x_BD)
        out_BD, fired_BL = dictionary.decode(f_BL), f_BL > 0
        fired_L += fired_BL.sum(0).cpu()
        each = (fired_BL.sum(1), _square(out_BD - x_BD), _square(x_BD - mean_D), _square(x_BD), _square(out_BD), (x_BD * out_BD).sum(1))
        measured.append(torch.stack([values.float() for values in each]).cpu())
    l0_B, error_B, deviation_B, square_B, square_out_B, product_B = torch.cat(measured, 1).numpy()
    return RowFidelity(l0_B, error_B, deviation_B, square_B, square_out_B, product_B, fired_L / len(l0_B))


def _square(x_BD: Tensor) -> Tensor:
    return x_BD.square().sum(1)
