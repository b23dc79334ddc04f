"""The architectures that JumpReLU SAEs are compared with: ReLU, Gated, TopK and BatchTopK.

JR is arXiv:2407.14435. Shapes as in `core/dictionary.py`. Their losses are beside JumpReLU's, in `core/objective.py`.
"""

import torch
from torch import Tensor, nn

from core.dictionary import TrainingDictionary, firing_levels, keep_largest


class ReLU(TrainingDictionary):
    """f = ReLU(z), made sparse by a price on ||f||_1 (arXiv:2309.08600). Decoder rows of unit norm keep it from being paid by scale."""


class Gated(TrainingDictionary):
    """f = H(pi_gate) ReLU(pi_mag), two readings of one encoder product u = (x - b_dec) W_enc (arXiv:2404.16014, section 3.2).

    pi_gate = u + b_gate,  pi_mag = exp(r_mag) u + b_enc.

    Args:
        start_share: share of the first batch on which each gate is open at the start, or None for gates that begin without a bias.
    """

    def __init__(self, dimensions: int, width: int, *, seed: int, start_share: float | None = None) -> None:
        super().__init__(dimensions, width, seed=seed)
        self.start_share = start_share
        self.r_mag = nn.Parameter(torch.zeros(width))
        self.b_gate = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def start(self, x_BD: Tensor) -> None:
        """With b_gate = -theta a gate opens where JumpReLU's latent would fire (JR, section 2); so both can begin alike."""
        if self.start_share is not None:
            self.b_gate.copy_(-firing_levels(self, x_BD, self.start_share))

    def gate_and_magnitude(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """pi_gate and pi_mag, B x L."""
        u_BL = (x_BD - self.b_dec) @ self.W_enc.T
        return u_BL + self.b_gate, self.r_mag.exp() * u_BL + self.b_enc

    @torch.no_grad()
    def as_jumprelu(self) -> dict[str, Tensor]:
        """pi_gate > 0 just where pi_mag > b_enc - exp(r_mag) b_gate, so a Gated SAE is a JumpReLU SAE (JR, section 2)."""
        scale, b_enc = self.r_mag.double().cpu().exp(), self.b_enc.double().cpu()
        return {
            "W_enc": scale[:, None] * self.W_enc.double().cpu(),
            "b_enc": b_enc,
            "W_dec": self.W_dec.double().cpu(),
            "threshold": (b_enc - scale * self.b_gate.double().cpu()).clamp(min=0),
        }


class TopK(TrainingDictionary):
    """The k largest z of each row, where they are positive (arXiv:2406.04093, section 2.3).

    Args:
        k: latents of a row. dead_rows: rows without firing after which a latent counts as dead, for the auxiliary loss.
    """

    rows_idle_L: Tensor

    def __init__(self, dimensions: int, width: int, *, seed: int, k: int, dead_rows: int) -> None:
        super().__init__(dimensions, width, seed=seed)
        self.kept, self.dead_rows = k, dead_rows
        self.register_buffer("rows_idle_L", torch.zeros(width, dtype=torch.int64))

    @property
    def k(self) -> int | None:
        return self.kept

    @property
    def dead(self) -> Tensor:
        """L: which latents have not fired for so long that the auxiliary loss takes them up."""
        return self.rows_idle_L >= self.dead_rows

    def activate(self, z_BL: Tensor) -> Tensor:
        return keep_largest(z_BL.relu(), self.kept)

    @torch.no_grad()
    def observe(self, f_BL: Tensor) -> None:
        self.note_fired((f_BL > 0).any(0), len(f_BL))

    @torch.no_grad()
    def note_fired(self, fired_L: Tensor, rows: int) -> None:
        self.rows_idle_L.add_(rows).masked_fill_(fired_L, 0)


class BatchTopK(TopK):
    """The k B largest z of a batch of B rows; for use a threshold, the running mean of the least that was kept (arXiv:2412.06410)."""

    threshold: Tensor
    MEMORY = 0.99
    """Of the running mean. dictionary_learning has 0.999, which after a thousand steps still remembers the first."""

    def __init__(self, dimensions: int, width: int, *, seed: int, k: int, dead_rows: int) -> None:
        super().__init__(dimensions, width, seed=seed, k=k, dead_rows=dead_rows)
        self.register_buffer("threshold", torch.tensor(-1.0))

    @property
    def k(self) -> int | None:
        return None

    def activate(self, z_BL: Tensor) -> Tensor:
        return keep_largest(z_BL.relu().reshape(1, -1), self.kept * len(z_BL)).reshape(z_BL.shape)

    @torch.no_grad()
    def observe(self, f_BL: Tensor) -> None:
        super().observe(f_BL)
        least = torch.where(f_BL > 0, f_BL, torch.inf).min()
        if least.isfinite():
            self.threshold.copy_(least if self.threshold < 0 else self.MEMORY * self.threshold + (1 - self.MEMORY) * least)

    @torch.no_grad()
    def as_jumprelu(self) -> dict[str, Tensor]:
        return super().as_jumprelu() | {"threshold": self.threshold.clamp(min=0).double().cpu().expand(len(self.b_enc))}
