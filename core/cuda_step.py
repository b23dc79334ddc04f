"""A training step with one product of the encoder's size, on CUDA: the sums of `core/sparse_step.py`, taken by `core/triton_kernels.py`.

The entries, those above their threshold or within half a bandwidth of it, are listed row by row for what belongs to rows (the
reconstruction, its gradient g_b, and dL/df_bl = g_b . d_l), and then sorted by latent for what belongs to latents, whose gradients go into
their Adam step where they are summed. The host waits for the device once a step, to learn how many entries there are; error and L0 stay on
the device until they are asked for. Where too many entries are active, at the start of some recipes, the step is `core/dense_step.py`'s,
which is also what this must equal.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from core import triton_kernels as kernels
from core.adam import Adam
from core.dense_step import DenseStep
from core.jumprelu import JumpReLUDictionary
from core.objective import sparsity_penalty
from core.spec import DictionarySpec
from core.training import Training

DENSE_ABOVE = 1 / 32
"""Share of entries found from which a dense batch should be quicker: an entry moves some 50 kB at D = 2,304, of which a cache holds part,
and a dense one multiplies 12 D numbers. An estimate, not yet measured."""
CHUNK_ENTRIES = 1 << 27
"""Entries of z that are computed together, 512 MB in float32: many enough for the product's full speed, and a bound on memory."""


@dataclass(frozen=True)
class _Entries:
    """The entries of a batch, row after row: row b has those from start_B[b] to start_B[b + 1]. Behind all, with latent -1, are none."""

    start_B: Tensor
    row_E: Tensor
    latent_E: Tensor
    z_E: Tensor


@contextmanager
def _exact_products() -> Iterator[None]:
    """float32 products in float32, not TF32, and bfloat16 products summed in float32, whatever the process has set."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
    matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction = "ieee", False
    try:
        yield
    finally:
        matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction = before


class CudaStep:
    """The training step of one dictionary on CUDA; its scratch memory is that of a few rows of z, and of the entries.

    Args:
        dictionary, adam: changed in place by every step.
    """

    def __init__(self, dictionary: JumpReLUDictionary, adam: Adam, spec: DictionarySpec, training: Training) -> None:
        self.dictionary, self.adam, self.spec, self.training = dictionary, adam, spec, training
        self.dense = DenseStep(dictionary, adam, spec, training)
        self.room = 0
        """How many entries the lists have room for; it grows when a batch has more."""
        self.copy: tuple[Tensor, Tensor] | None = None
        """For a bfloat16 product: a copy of the encoder, L x D, and its rows' norms, both kept up to date by the kernels."""
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take up weights that were changed from outside."""
        if self.training.encoder_product == "bfloat16":
            W_enc = self.dictionary.W_enc.detach()
            self.copy = W_enc.bfloat16(), W_enc.norm(dim=1)

    def __call__(self, x_BD: Tensor, learning_rate: float, warmth: float) -> tuple[Tensor | float, Tensor | float]:
        """One step on a batch of normalised rows; gives its squared error and its mean L0, which a host that reads them waits for.

        Args:
            warmth: share of the sparsity penalty that is switched on.
        """
        with torch.cuda.device_of(x_BD), _exact_products():  # type: ignore[no-untyped-call]
            x_BD = x_BD.contiguous()
            centred_BD = x_BD - self.dictionary.b_dec.detach()
            entries = self._entries(centred_BD)
            if entries is not None:
                return self._sparse(x_BD, centred_BD, entries, learning_rate, warmth)
            result = self.dense(x_BD, learning_rate, warmth)
            self.refresh()
            return result

    @torch.no_grad()
    def _entries(self, centred_BD: Tensor) -> _Entries | None:
        """The entries of a batch, or None where they are too many to be treated one by one."""
        d = self.dictionary
        found = self._candidates(centred_BD)
        count = int(found.start_B[-1])  # the one wait for the device
        if count > DENSE_ABOVE * len(centred_BD) * len(d.W_enc):
            return None
        if count > self.room:
            self.room = count + count // 4
            return self._entries(centred_BD)
        start_B, latent_E, z_E = found.start_B, found.latent_E[:count], found.z_E[:count]
        if self.copy:
            z_E = kernels.dots_at_entries(centred_BD, d.W_enc.detach(), start_B, latent_E)
        z_E = z_E + d.b_enc[latent_E]
        theta_E = d.threshold[latent_E]
        is_entry = (z_E > theta_E) | ((z_E - theta_E).abs() < self.training.bandwidth / 2)
        # Candidates that are none go behind all entries: where they stood, they would tell how a row's sums are grouped, and with it their bits.
        start_B = torch.cat([start_B.new_zeros(1), is_entry.cumsum(0)])[start_B]
        entries_E = is_entry.sort(descending=True, stable=True).indices
        return _Entries(start_B, found.row_E[:count][entries_E], latent_E.where(is_entry, -1)[entries_E], z_E[entries_E])

    def _candidates(self, centred_BD: Tensor) -> _Entries:
        """What may be an entry, with z as the product gave it, without the bias; as many as there is room for."""
        batch, width, device = len(centred_BD), len(self.dictionary.W_enc), centred_BD.device
        threshold, bias = self.dictionary.threshold, self.dictionary.b_enc
        cut_L = threshold - self.training.bandwidth / 2 - bias
        # Rounding must not lose an entry: what is found a little below the threshold's window is looked at again, exactly.
        if self.copy:
            # How far off a bfloat16 product may be is told in `core/sparse_step.py`.
            W_LD, slack_L = self.copy
            cut_L, slack_B = cut_L - cut_L.abs() / 2**7, centred_BD.abs().amax(1) / 2**6
        else:
            W_LD, slack_L = self.dictionary.W_enc, (threshold.abs() + bias.abs()) * 1e-6
            slack_B = torch.ones(batch, device=device)
        tiles = -(-width // kernels.TILE_LATENTS)
        start_BT = torch.zeros(batch * tiles + 1, dtype=torch.int64, device=device)
        row_E, latent_E = (torch.empty(self.room, dtype=torch.int32, device=device) for _ in range(2))
        z_E = torch.empty(self.room, device=device)
        for piece, z_BL in self._products(centred_BD.to(W_LD.dtype), W_LD):
            begin, end = piece.start * tiles, piece.stop * tiles
            above = z_BL, cut_L, slack_B[piece], slack_L
            count_BT = kernels.count_above(*above)
            start_BT[begin + 1 : end + 1] = start_BT[begin] + count_BT.flatten().cumsum(0)
            kernels.list_above(*above, start_BT[begin:end], piece.start, row_E, latent_E, z_E)
        return _Entries(start_BT[::tiles].contiguous(), row_E, latent_E, z_E)

    @staticmethod
    def _products(x_BD: Tensor, W_LD: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """x W_enc without the bias, a few rows at a time, in a buffer that the next product overwrites."""
        batch, width = len(x_BD), len(W_LD)
        rows = min(batch, max(1, CHUNK_ENTRIES // width))
        buffer = torch.empty(rows, width, dtype=W_LD.dtype, device=W_LD.device)
        for first in range(0, batch, rows):
            piece = slice(first, min(first + rows, batch))
            z_BL = buffer[: piece.stop - piece.start]
            torch.mm(x_BD[piece], W_LD.T, out=z_BL)
            yield piece, z_BL

    @torch.no_grad()
    def _sparse(self, x_BD: Tensor, centred_BD: Tensor, entries: _Entries, learning_rate: float, warmth: float) -> tuple[Tensor, Tensor]:
        self.adam.begin_step()
        d = self.dictionary
        W_dec, W_enc, theta_L = d.W_dec.detach(), d.W_enc.detach(), d.threshold.detach()
        rows = entries.start_B, entries.latent_E
        g_BD, error_B, l0_B = kernels.reconstruct(x_BD, W_dec, d.b_dec.detach(), theta_L, *rows, entries.z_E)
        gradient_E = kernels.dots_at_entries(g_BD, W_dec, *rows)

        terms = self._terms(entries, gradient_E, theta_L, centred_BD, g_BD)
        slope_B = warmth * self._penalty_slope(l0_B.float())
        bias_L, along_L, edge_L = kernels.sum_by_latent(terms, theta_L, slope_B, self.training.bandwidth)
        theta_gradient_L = -edge_L / self.training.bandwidth
        vectors = {
            "b_enc": bias_L,
            # The pre-encoder bias acts twice: added to the reconstruction, and taken off the encoder's input.
            "b_dec": g_BD.sum(0) - bias_L @ W_enc,
            "threshold_parameter": theta_gradient_L * theta_L if d.log_threshold else theta_gradient_L,
        }
        clip = torch.ones((), device=x_BD.device)
        if self.training.gradient_clip is not None:
            squares = kernels.squared_norms(terms, along_L, W_dec), *(gradient.square() for gradient in vectors.values())
            norm = torch.stack([square.sum(dtype=torch.float64) for square in squares]).sum().sqrt()
            clip = (self.training.gradient_clip / (norm + 1e-6)).clamp(max=1).float()
        kernels.step_latents(terms, along_L, self.adam, self.copy, clip, learning_rate)
        self.adam.update({name: gradient * clip for name, gradient in vectors.items()}, learning_rate)
        d.restore_vectors()
        return error_B.mean(), l0_B.float().mean()

    @staticmethod
    def _terms(entries: _Entries, gradient_E: Tensor, theta_L: Tensor, centred_BD: Tensor, g_BD: Tensor) -> kernels.Terms:
        """The entries sorted by latent; candidates that are none go behind all."""
        width, latent_E, z_E = len(theta_L), entries.latent_E, entries.z_E
        key_E = torch.where(latent_E < 0, 2 * width, 2 * latent_E + (z_E <= theta_L[latent_E]))
        key_E, by_latent_E = key_E.sort(stable=True)
        start_K = torch.searchsorted(key_E, torch.arange(2 * width + 1, dtype=key_E.dtype, device=key_E.device))
        order_L = (start_K[1::2] - start_K[:-1:2]).argsort(descending=True, stable=True)
        return kernels.Terms(start_K, entries.row_E[by_latent_E], z_E[by_latent_E], gradient_E[by_latent_E], centred_BD, g_BD, order_L)

    def _penalty_slope(self, l0_B: Tensor) -> Tensor:
        """d penalty / d L0 of every row, B."""
        with torch.enable_grad():
            penalty = sparsity_penalty(l0_B.requires_grad_(), self.dictionary.price, self.spec, self.training)
            (slope_B,) = torch.autograd.grad(penalty, l0_B)
        return slope_B
