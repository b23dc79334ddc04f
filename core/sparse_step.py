"""A training step with one product of the encoder's size, on the CPU.

After z = (x - b_dec) W_enc + b_enc only few entries of z matter: those above their threshold carry value and gradient, those within
half a bandwidth of it carry the thresholds' gradient, and all others neither. They are found while z is still in the cache, a few
rows at a time, and everything after is a sum over them:

    g_b         = 2 (x_hat_b - x_b) / B                          the loss's gradient in x_hat, by row
    dL/df_bl    = g_b . d_l                                      at entries alone
    dL/dd_l     = sum_b f_bl g_b,  dL/dw_l = sum_b dL/df_bl (x_b - b_dec)      over active entries, by latent
    dL/dtheta_l = -1/epsilon sum_b (theta_l dL/df_bl + c_b)      over entries near the threshold (JR, section 3)

with c_b the penalty's slope in the row's L0. A latent's gradients go into its Adam step where they are summed, and are never stored.
The dense implementation that this must equal is `core/objective.py`; where too many entries are active, at the start of some
recipes, the same sums are taken densely.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core import kernels
from core.adam import Adam, clipping, squared_norm
from core.dense_step import project_rows
from core.dictionary import TrainingDictionary
from core.jumprelu import JumpReLUDictionary
from core.objective import PenaltySlope, penalty_slope
from core.spec import DictionarySpec
from core.training import Training

Array = npt.NDArray[Any]

DENSE_ABOVE = 1 / 8
"""Share of entries found from which a dense batch is quicker: tests/bench/crossing.py measures where the two cross."""
CHUNK_ENTRIES = 1 << 22
"""Entries of z that are looked at together: 16 MB, which a cache holds."""

_LOCK = threading.Lock()


@contextmanager
def _kernels_to_itself() -> Iterator[None]:
    """As many threads for the kernels as torch has; one caller at a time, for Numba's simplest threads serve no more."""
    with _LOCK:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        yield


class _Constants(NamedTuple):
    """What the compiled Adam is told."""

    step: int
    clip: np.float32
    rate: np.float32
    beta1: np.float32
    beta2: np.float32
    epsilon: np.float32
    correction: np.float32


@dataclass
class Entries:
    """The entries of a batch, row after row: row b has those from start_B[b] to start_B[b + 1]."""

    start_B: Array
    latent_E: Array
    z_E: Array


class LatentSums:
    """What a batch leaves of each latent, in sums over its rows (`kernels.by_latent`)."""

    def __init__(self, width: int) -> None:
        self.bias, self.edge, self.near = (np.zeros(width, np.float32) for _ in range(3))
        self.near_l0 = np.zeros(width)

    def all(self) -> tuple[Array, ...]:
        return self.bias, self.edge, self.near, self.near_l0

    def threshold_gradient(self, threshold_L: Tensor, slope: PenaltySlope, bandwidth: float) -> Tensor:
        edge, near = torch.from_numpy(self.edge), torch.from_numpy(self.near)
        penalty = slope.constant * near + slope.per_l0 * torch.from_numpy(self.near_l0).float()
        if slope.of_latent is not None:
            penalty += slope.of_latent * near
        return -(threshold_L * edge + penalty) / bandwidth


class SparseStep:
    """The training step of one JumpReLU SAE on the CPU; its scratch memory is that of a few rows of z.

    Args:
        dictionary, adam: changed in place by every step.
    """

    def __init__(self, dictionary: TrainingDictionary, adam: Adam, spec: DictionarySpec, training: Training) -> None:
        self.dictionary, self.adam, self.spec, self.training = dictionary, adam, spec, training
        self.half = np.float32(training.bandwidth / 2)
        self.bfloat16 = training.encoder_product == "bfloat16"
        # For a bfloat16 product: a copy of the encoder, and its rows' norms, both kept up to date by the kernels. Else nothing.
        width, dimensions = dictionary.W_enc.shape
        self.copy_LD = torch.empty(width * self.bfloat16, dimensions, dtype=torch.bfloat16)
        self.norm_L = torch.empty(width * self.bfloat16)
        self.refresh()

    def refresh(self) -> None:
        """Take up weights that were changed from outside."""
        with _kernels_to_itself():
            self._copy_encoder()

    @torch.no_grad()
    def _copy_encoder(self) -> None:
        if self.bfloat16:
            kernels.copy_rows(self.dictionary.W_enc.detach().numpy(), self.copy_LD.view(torch.uint16).numpy(), self.norm_L.numpy())

    @torch.no_grad()
    def __call__(self, x_BD: Tensor, learning_rate: float, warmth: float) -> tuple[float, float]:
        """One step on a batch of normalised rows; gives its squared error and its mean L0.

        Args:
            warmth: share of the sparsity penalty that is switched on.
        """
        with _kernels_to_itself():
            centred_BD = x_BD - self.dictionary.b_dec
            entries = self._entries(centred_BD)
            if entries is None:
                return self._dense(x_BD, learning_rate, warmth)
            return self._sparse(x_BD, centred_BD, entries, learning_rate, warmth)

    def _products(self, x_BD: Tensor, W_LD: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """x W_enc without the bias, a few rows at a time, in a buffer that the next product overwrites."""
        batch, width = len(x_BD), len(W_LD)
        rows = min(batch, max(1, CHUNK_ENTRIES // width))
        buffer = torch.empty(rows, width, dtype=W_LD.dtype)
        for first in range(0, batch, rows):
            piece = slice(first, min(first + rows, batch))
            z_BL = buffer[: piece.stop - piece.start]
            torch.mm(x_BD[piece], W_LD.T, out=z_BL)
            yield piece, z_BL

    def _threshold(self) -> Tensor:
        assert isinstance(self.dictionary, JumpReLUDictionary)
        return self.dictionary.threshold

    def _entries(self, centred_BD: Tensor) -> Entries | None:
        """The entries of a batch, or None where they are too many to be treated one by one."""
        threshold, bias = self._threshold().detach(), self.dictionary.b_enc.detach()
        entries = self._above(centred_BD, threshold - float(self.half) - bias, threshold.abs() + bias.abs())
        if entries is not None:
            entries.z_E += bias.numpy()[entries.latent_E]
        return entries

    def _above(self, centred_BD: Tensor, cut_L: Tensor, size_L: Tensor) -> Entries | None:
        """Where x W_enc exceeds the latent's cut, and perhaps where it is a little below; None where that is too often.

        Args:
            size_L: how large the numbers are that the cut is a difference of.
        """
        batch, width = len(centred_BD), len(self.dictionary.W_enc)
        # Rounding must not lose an entry: what is found a little below the cut is looked at again, exactly.
        if self.bfloat16:
            # A bfloat16 is off by at most 2^-8 of itself. So is the product; the errors of the factors add up like noise, with a standard
            # deviation below 0.8 x 2^-8 max|x| ||w||, of which this is five.
            cut_L, slack_L = cut_L - cut_L.abs() / 2**7, self.norm_L
            slack_B = centred_BD.abs().amax(1) / 2**6
        else:
            slack_L, slack_B = size_L * 1e-6, torch.ones(batch)
        cut, slack_of_row, slack_of_latent = cut_L.numpy(), slack_B.numpy(), slack_L.numpy()
        most = DENSE_ABOVE * batch * width
        start_B, found = np.zeros(batch + 1, np.int64), 0
        pieces: list[tuple[Array, Array]] = []
        factors = (centred_BD.bfloat16(), self.copy_LD) if self.bfloat16 else (centred_BD, self.dictionary.W_enc.detach())
        for piece, product_BL in self._products(*factors):
            z_BL = (product_BL.view(torch.uint16) if self.bfloat16 else product_BL).numpy()
            counts = np.empty(len(z_BL), np.int32)
            kernels.count_above(z_BL, cut, slack_of_row[piece], slack_of_latent, counts)
            start = np.concatenate([[0], counts.cumsum()])
            start_B[piece.start + 1 : piece.stop + 1] = found + start[1:]
            found += int(start[-1])
            if found > most:
                return None
            latents, z = np.empty(start[-1], np.int32), np.empty(start[-1], np.float32)
            kernels.list_above(z_BL, cut, slack_of_row[piece], slack_of_latent, start, latents, z)
            pieces.append((latents, z))
        entries = Entries(start_B, np.concatenate([p[0] for p in pieces]), np.concatenate([p[1] for p in pieces]))
        if self.bfloat16:
            W_enc = self.dictionary.W_enc.detach().numpy()
            kernels.exact_products(centred_BD.numpy(), W_enc, entries.start_B, entries.latent_E, entries.z_E)
        return entries

    def _sparse(self, x_BD: Tensor, centred_BD: Tensor, entries: Entries, learning_rate: float, warmth: float) -> tuple[float, float]:
        self.adam.begin_step()
        W_dec, b_dec, threshold = (p.detach().numpy() for p in (self.dictionary.W_dec, self.dictionary.b_dec, self._threshold()))
        rows = entries.start_B, entries.latent_E
        x, centred = x_BD.numpy(), centred_BD.numpy()
        g_BD, error_B, gradient_E = np.empty_like(x), np.empty(len(x), np.float32), np.empty_like(entries.z_E)
        kernels.reconstruct(x, W_dec, b_dec, threshold, *rows, entries.z_E, g_BD, error_B, gradient_E)

        l0_B, active_L = np.zeros(len(x), np.int32), np.zeros(len(W_dec), np.int64)
        kernels.count_active(*rows, entries.z_E, threshold, l0_B, active_L)
        start_L = np.concatenate([[0], active_L.cumsum()])
        row_E, f_E, g_E = np.empty(start_L[-1], np.int32), np.empty(start_L[-1], np.float32), np.empty(start_L[-1], np.float32)
        sums = LatentSums(len(W_dec))
        kernels.by_latent(
            *rows, entries.z_E, gradient_E, threshold, self.half, l0_B, start_L[:-1].copy(), row_E, f_E, g_E, *sums.all()
        )  # fmt: skip
        by_latent = start_L, row_E, f_E, g_E, centred, g_BD

        self._move(by_latent, self._vector_gradients(sums, l0_B, active_L, g_BD, warmth), learning_rate)
        return float(error_B.mean()), float(l0_B.mean())

    def _move(self, by_latent: tuple[Array, ...], vectors: dict[str, Tensor], learning_rate: float) -> None:
        """The optimiser's step: matrices by their active entries, sorted by latent, and all other parameters by their gradients."""
        W_dec = self.dictionary.W_dec.detach().numpy()
        square = 0.0
        if self.training.gradient_clip is not None:
            square_L = np.empty(len(W_dec), np.float32)
            kernels.squared_norms(*by_latent, W_dec, square_L)
            square = float(square_L.sum(dtype=np.float64))
        constants = self._constants(vectors, square, learning_rate)
        kernels.step_sparse(*by_latent, *self._rows(), constants)
        self._finish(vectors, constants, learning_rate)

    def _dense(self, x_BD: Tensor, learning_rate: float, warmth: float) -> tuple[float, float]:
        self.adam.begin_step()
        d = self.dictionary
        W_dec, centred_BD = d.W_dec.detach(), x_BD - d.b_dec
        threshold = self._threshold().detach().numpy()
        gradient = {"W_dec": torch.zeros_like(W_dec), "W_enc": torch.zeros_like(W_dec)}
        g_BD, error_B, l0_B = torch.empty_like(x_BD), torch.empty(len(x_BD)), np.empty(len(x_BD), np.int32)
        active_L = np.zeros(len(W_dec), np.int64)
        sums = LatentSums(len(W_dec))
        for piece, z_BL in self._products(centred_BD, d.W_enc.detach()):
            z_BL.add_(d.b_enc)
            f_BL = torch.empty_like(z_BL)
            kernels.activate(z_BL.numpy(), threshold, f_BL.numpy(), l0_B[piece])
            if self.training.frequency_coefficient:
                active_L += (f_BL > 0).sum(0).numpy()
            r_BD = torch.addmm(d.b_dec, f_BL, W_dec).sub_(x_BD[piece])
            error_B[piece] = r_BD.square().sum(1)
            g_BD[piece] = r_BD.mul_(2 / len(x_BD))
            dz_BL = torch.mm(r_BD, W_dec.T)
            kernels.gate_gradient(z_BL.numpy(), threshold, self.half, l0_B[piece], dz_BL.numpy(), *sums.all())
            gradient["W_dec"].addmm_(f_BL.T, r_BD)
            gradient["W_enc"].addmm_(dz_BL.T, centred_BD[piece])
        project_rows(gradient["W_dec"], W_dec)

        vectors = self._vector_gradients(sums, l0_B, active_L, g_BD.numpy(), warmth)
        square = squared_norm(gradient) if self.training.gradient_clip is not None else 0.0
        constants = self._constants(vectors, square, learning_rate)
        kernels.step_dense(gradient["W_dec"].numpy(), gradient["W_enc"].numpy(), *self._rows(), constants)
        self._finish(vectors, constants, learning_rate)
        return float(error_B.mean()), float(l0_B.mean())

    def _vector_gradients(self, sums: LatentSums, l0_B: Array, active_L: Array, g_BD: Array, warmth: float) -> dict[str, Tensor]:
        """The gradients of everything but the two matrices."""
        d = self.dictionary
        assert isinstance(d, JumpReLUDictionary)
        counts = torch.from_numpy(l0_B).float(), torch.from_numpy(active_L).float()
        slope = penalty_slope(*counts, d.price, self.spec, self.training).times(warmth)
        threshold = self._threshold().detach()
        theta_L = sums.threshold_gradient(threshold, slope, self.training.bandwidth)
        if d.log_threshold:
            theta_L *= threshold
        return self._bias_gradients(torch.from_numpy(sums.bias), g_BD) | {"threshold_parameter": theta_L}

    def _bias_gradients(self, dz_L: Tensor, g_BD: Array) -> dict[str, Tensor]:
        return {"b_enc": dz_L, "b_dec": self._pre_encoder_bias_gradient(dz_L, g_BD)}

    def _pre_encoder_bias_gradient(self, dz_L: Tensor, g_BD: Array) -> Tensor:
        """The pre-encoder bias acts twice: added to the reconstruction, and taken off the encoder's input."""
        through_encoder_D = torch.empty_like(self.dictionary.b_dec)
        kernels.weighted_sum(dz_L.numpy(), self.dictionary.W_enc.detach().numpy(), through_encoder_D.numpy())
        return torch.from_numpy(g_BD).sum(0) - through_encoder_D

    def _constants(self, vectors: dict[str, Tensor], square: float, learning_rate: float) -> _Constants:
        if self.training.gradient_clip is not None:
            square += squared_norm(vectors)
        clip = clipping(square, self.training.gradient_clip)
        a = self.adam
        numbers = (clip, a.rate(learning_rate), a.beta1, a.beta2, a.epsilon, a.correction)
        return _Constants(a.step, *(np.float32(number) for number in numbers))

    def _rows(self) -> tuple[Array, ...]:
        """The matrices and their moments, decoder first, and what is kept beside them."""
        d, a = self.dictionary, self.adam
        nothing = torch.empty(len(d.W_dec), 0)
        first = a.first or {"W_dec": nothing, "W_enc": nothing}
        tensors = (d.W_dec, d.W_enc, first["W_dec"], first["W_enc"], a.second["W_dec"], a.second["W_enc"], a.last_L)
        return *(tensor.detach().numpy() for tensor in tensors), self.copy_LD.view(torch.uint16).numpy(), self.norm_L.numpy()

    def _finish(self, vectors: dict[str, Tensor], constants: _Constants, learning_rate: float) -> None:
        self.adam.update({name: gradient * float(constants.clip) for name, gradient in vectors.items()}, learning_rate)
        self.dictionary.restore_vectors()
