"""TopK and Gated SAEs trained with the sums of `core/sparse_step.py`: for them too only active entries carry value or gradient.

A batch for which that does not hold, when latents are dead to TopK or too many gates are open, is a dense one (`core/dense_step.py`).
"""

import numpy as np
import torch
from torch import Tensor

from core import kernels
from core.adam import Adam
from core.baselines import Gated, TopK
from core.dense_step import DenseStep
from core.objective import l1_price
from core.sparse_step import Array, Entries, LatentSums, SparseStep
from core.spec import DictionarySpec
from core.training import Training


class _OrDense(SparseStep):
    """A sparse step whose dense batches are taken by autograd."""

    def __init__(self, dictionary: TopK | Gated, adam: Adam, spec: DictionarySpec, training: Training) -> None:
        super().__init__(dictionary, adam, spec, training)
        self.dense = DenseStep(dictionary, adam, spec, training)

    def _dense(self, x_BD: Tensor, learning_rate: float, warmth: float) -> tuple[float, float]:
        with torch.enable_grad():
            result = self.dense(x_BD, learning_rate, warmth)
        self._copy_encoder()
        return result


class SparseTopKStep(_OrDense):
    """The training step of one TopK SAE on the CPU: JumpReLU's, with the k largest of a row as its entries and no threshold."""

    dictionary: TopK

    def __init__(self, dictionary: TopK, adam: Adam, spec: DictionarySpec, training: Training) -> None:
        # A bfloat16 product cannot tell which of two near values is the larger.
        super().__init__(dictionary, adam, spec, training.model_copy(update={"encoder_product": "float32"}))
        self.half = np.float32(0)
        self._zeros = torch.zeros(len(dictionary.W_enc))

    def _threshold(self) -> Tensor:
        return self._zeros

    def _entries(self, centred_BD: Tensor) -> Entries | None:
        if self.dictionary.dead.any():
            return None
        k = min(self.dictionary.kept, len(self._zeros))
        latent_BK, z_BK = torch.empty(len(centred_BD), k, dtype=torch.int32), torch.empty(len(centred_BD), k)
        for piece, product_BL in self._products(centred_BD, self.dictionary.W_enc.detach()):
            z_BK[piece], latent_BK[piece] = product_BL.add_(self.dictionary.b_enc).topk(k, dim=1, sorted=False)
        return Entries(np.arange(len(z_BK) + 1, dtype=np.int64) * k, latent_BK.flatten().numpy(), z_BK.flatten().numpy())

    def _vector_gradients(self, sums: LatentSums, l0_B: Array, active_L: Array, g_BD: Array, warmth: float) -> dict[str, Tensor]:  # noqa: ARG002
        self.dictionary.note_fired(torch.from_numpy(active_L > 0), len(l0_B))
        return self._bias_gradients(torch.from_numpy(sums.bias), g_BD)


class SparseGatedStep(_OrDense):
    """The training step of one Gated SAE on the CPU: its entries are those whose gate is open.

    With g and h the gradients of the two squared errors in their reconstructions, and u = (x - b_dec) W_enc, at every entry

        dL/dpi_mag = g . d_l where pi_mag > 0,   dL/dpi_gate = h . d_l + lambda / B,   dL/du = exp(r_mag) dL/dpi_mag + dL/dpi_gate.
    """

    dictionary: Gated

    def _entries(self, centred_BD: Tensor) -> Entries | None:
        cut_L = -self.dictionary.b_gate.detach()
        return self._above(centred_BD, cut_L, cut_L.abs())

    def _sparse(self, x_BD: Tensor, centred_BD: Tensor, entries: Entries, learning_rate: float, warmth: float) -> tuple[float, float]:
        self.adam.begin_step()
        d = self.dictionary
        W_dec, b_dec, b_enc, b_gate, scale = (p.detach().numpy() for p in (d.W_dec, d.b_dec, d.b_enc, d.b_gate, d.r_mag.exp()))
        x, latent, u = x_BD.numpy(), entries.latent_E, entries.z_E
        gate, magnitude = u + b_gate[latent], scale[latent] * u + b_enc[latent]
        is_open, is_active = gate > 0, (gate > 0) & (magnitude > 0)
        f, open_E = np.where(is_active, magnitude, np.float32(0)), np.maximum(gate, np.float32(0))

        g_BD, error_B, of_reconstruction = self._error_and_gradient(x, W_dec, b_dec, entries, f)
        _, _, of_frozen = self._error_and_gradient(x, W_dec, b_dec, entries, open_E)
        price = np.float32(warmth * l1_price(d, self.spec) / len(x))
        to_magnitude = np.where(is_active, of_reconstruction, np.float32(0))
        to_gate = np.where(is_open, of_frozen + price, np.float32(0))
        to_product = scale[latent] * to_magnitude + to_gate

        def by_latent(values: Array) -> Tensor:
            return torch.from_numpy(np.bincount(latent, values, len(W_dec)).astype(np.float32))

        # The frozen decoder and its bias take nothing of the second error; the encoder's input takes all of dL/du.
        vectors = {
            "b_enc": by_latent(to_magnitude),
            "b_gate": by_latent(to_gate),
            "r_mag": by_latent(to_magnitude * u) * torch.from_numpy(scale),
            "b_dec": self._pre_encoder_bias_gradient(by_latent(to_product), g_BD),
        }
        row = np.repeat(np.arange(len(x), dtype=np.int32), np.diff(entries.start_B))
        sorted_E = np.flatnonzero(is_open)[np.argsort(latent[is_open], kind="stable")]
        start_L = np.concatenate([[0], np.bincount(latent[is_open], minlength=len(W_dec)).cumsum()])
        self._move((start_L, row[sorted_E], f[sorted_E], to_product[sorted_E], centred_BD.numpy(), g_BD), vectors, learning_rate)
        return float(error_B.mean()), float(is_active.sum()) / len(x)

    def _error_and_gradient(self, x: Array, W_dec: Array, b_dec: Array, entries: Entries, f_E: Array) -> tuple[Array, Array, Array]:
        """The gradient of a squared error in its reconstruction, the error by row, and its gradient in f at every entry."""
        g_BD, error_B, gradient_E = np.empty_like(x), np.empty(len(x), np.float32), np.empty_like(f_E)
        rows = entries.start_B, entries.latent_E
        kernels.reconstruct(x, W_dec, b_dec, np.zeros(len(W_dec), np.float32), *rows, f_E, g_BD, error_B, gradient_E)
        return g_BD, error_B, gradient_E
