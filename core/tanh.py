"""JumpReLU SAEs as Anthropic trains them: the update of January 2025 (Conerly et al., "ANT").

The sparsity penalty is a tanh of each activation, through which gradients reach all parameters, and decoder rows are as long as they like.
Constants and the start follow the settings that SAELens and OpenMOSS document for it. Shapes as in `core/dictionary.py`.
"""

from typing import Any

import torch
from torch import Tensor

from core.dictionary import firing_levels
from core.jumprelu import JumpReLUDictionary, near

FIRING_AT_START = 10_000
"""Latents that fire on a row at the start, or all where there are fewer."""


class JumpReLUOfLog(torch.autograd.Function):
    """z H(z - exp(t)), with ANT's derivative in t: -(exp(t) / epsilon) K((z - exp(t)) / epsilon).

    That is 1 / theta times what the chain rule makes of `core.jumprelu.JumpReLU`'s.
    """

    @staticmethod
    def forward(ctx: Any, z_BL: Tensor, log_threshold_L: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z_BL, log_threshold_L)
        ctx.bandwidth = bandwidth
        return z_BL * (z_BL > log_threshold_L.exp())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient_BL,) = gradients
        z_BL, log_threshold_L = ctx.saved_tensors
        threshold_L = log_threshold_L.exp()
        at_edge_L = (gradient_BL * near(z_BL, threshold_L, ctx.bandwidth)).sum(0)
        return gradient_BL * (z_BL > threshold_L), -threshold_L / ctx.bandwidth * at_edge_L, None


class TanhDictionary(JumpReLUDictionary):
    """A JumpReLU SAE in training whose decoder rows have any length; folding makes them unit rows."""

    unit_decoder = False

    def __init__(self, dimensions: int, width: int, *, seed: int, threshold_init: float) -> None:
        super().__init__(dimensions, width, seed=seed, threshold_init=threshold_init, log_threshold=True)

    @torch.no_grad()
    def draw(self, seed: int, first: int = 0) -> None:
        """Decoder entries uniform between -1 / sqrt(D) and 1 / sqrt(D); the encoder D / L of its transpose."""
        assert not first, "these are not sharded"
        (L, D), generator = self.W_dec.shape, torch.Generator().manual_seed(seed)
        self.W_dec.copy_(torch.rand(L, D, generator=generator).mul_(2).sub_(1).mul_(D**-0.5))
        self.W_enc.copy_(self.W_dec * (D / L))

    @torch.no_grad()
    def start(self, x_BD: Tensor) -> None:
        self.b_enc.add_(self.threshold - firing_levels(self, x_BD, FIRING_AT_START / len(self.W_enc)))

    @torch.no_grad()
    def as_jumprelu(self) -> dict[str, Tensor]:
        own = super().as_jumprelu()
        norm_L = own["W_dec"].norm(dim=1)
        return {
            "W_enc": own["W_enc"] * norm_L[:, None],
            "b_enc": own["b_enc"] * norm_L,
            "W_dec": own["W_dec"] / norm_L[:, None],
            "threshold": own["threshold"] * norm_L,
        }


def tanh_penalty(f_BL: Tensor, W_dec: Tensor, scale: float) -> Tensor:
    """sum_l tanh(c |f_l| ||d_l||), mean over the batch: near L0 where c f is large."""
    penalty: Tensor = torch.tanh(scale * f_BL.abs() * W_dec.norm(dim=1)).sum(1).mean()
    return penalty


def pre_activation_penalty(z_BL: Tensor, threshold_L: Tensor, W_dec: Tensor) -> Tensor:
    """sum_l ReLU(theta_l - z_l) ||d_l||, mean over the batch: it brings latents that never fire back."""
    penalty: Tensor = ((threshold_L - z_BL).relu() * W_dec.norm(dim=1)).sum(1).mean()
    return penalty


def activate(dictionary: TanhDictionary, x_BD: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """z and f, B x L."""
    z_BL = dictionary.pre_activations(x_BD)
    f_BL: Tensor = JumpReLUOfLog.apply(z_BL, dictionary.threshold_parameter, bandwidth)  # type: ignore[no-untyped-call]
    return z_BL, f_BL
