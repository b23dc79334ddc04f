"""The JumpReLU sparse autoencoder, as in "Jumping Ahead" (arXiv:2407.14435, "JR") and Gemma Scope (arXiv:2408.05147, "GS").

Shapes, in suffixes: B rows (token positions), D dimensions of the activation, L latents.
Not here: what is minimised (`core/objective.py`) and how (`core/trainer.py`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from core.dictionary import Dictionary, TrainingDictionary, firing_levels
from core.forms import with_unit_rows
from core.statistics import Normaliser


def near(z_BL: Tensor, threshold_L: Tensor, bandwidth: float) -> Tensor:
    """The rectangle kernel K((z - theta) / epsilon): one within half a bandwidth of the threshold, else zero (JR, section 3)."""
    return (z_BL - threshold_L).abs_().lt_(bandwidth / 2)


class JumpReLU(torch.autograd.Function):
    """JumpReLU_theta(z) = z H(z - theta), with the pseudo-derivative of JR, section 3, in theta.

    d/dz is exact: H(z - theta). d/dtheta is -(theta / epsilon) K((z - theta) / epsilon), for which the batch mean of the
    loss's gradient is a kernel density estimate of the gradient of the expected loss.
    """

    @staticmethod
    def forward(ctx: Any, z_BL: Tensor, threshold_L: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z_BL, threshold_L)
        ctx.bandwidth = bandwidth
        return z_BL * (z_BL > threshold_L)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient_BL,) = gradients
        z_BL, threshold_L = ctx.saved_tensors
        at_edge_L = (gradient_BL * near(z_BL, threshold_L, ctx.bandwidth)).sum(0)
        return gradient_BL * (z_BL > threshold_L), -threshold_L / ctx.bandwidth * at_edge_L, None


class Step(torch.autograd.Function):
    """H(z - theta), whose sum over latents is the L0 norm, with the pseudo-derivative -(1 / epsilon) K((z - theta) / epsilon) in theta.

    Nothing flows to z: the L0 penalty trains thresholds alone (JR, section 3; giving z a gradient was tried there, and
    led to dead latents).
    """

    @staticmethod
    def forward(ctx: Any, z_BL: Tensor, threshold_L: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z_BL, threshold_L)
        ctx.bandwidth = bandwidth
        return (z_BL > threshold_L).to(z_BL.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (gradient_BL,) = gradients
        z_BL, threshold_L = ctx.saved_tensors
        at_edge_L = (gradient_BL * near(z_BL, threshold_L, ctx.bandwidth)).sum(0)
        return None, -at_edge_L / ctx.bandwidth, None


def jumprelu(z_BL: Tensor, threshold_L: Tensor, bandwidth: float) -> Tensor:
    return JumpReLU.apply(z_BL, threshold_L, bandwidth)  # type: ignore[no-untyped-call, no-any-return]


def step(z_BL: Tensor, threshold_L: Tensor, bandwidth: float) -> Tensor:
    return Step.apply(z_BL, threshold_L, bandwidth)  # type: ignore[no-untyped-call, no-any-return]


class JumpReLUDictionary(TrainingDictionary):
    """A JumpReLU SAE in training.

    Args:
        dimensions: D. width: L. seed: of the decoder's initialisation.
        threshold_init: theta at the start. log_threshold: whether the parameter is log(theta), as in JR's pseudo-code.
        start_share: share of the first batch on which thresholds let each latent fire, or None to leave them at threshold_init.
    """

    def __init__(
        self, dimensions: int, width: int, *, seed: int, threshold_init: float, log_threshold: bool, start_share: float | None = None
    ) -> None:
        super().__init__(dimensions, width, seed=seed)
        self.log_threshold = log_threshold
        self.start_share = start_share
        start = torch.full((width,), threshold_init)
        self.threshold_parameter = nn.Parameter(start.log() if log_threshold else start)

    @property
    def threshold(self) -> Tensor:
        """theta, L."""
        return self.threshold_parameter.exp() if self.log_threshold else self.threshold_parameter

    @torch.no_grad()
    def start(self, x_BD: Tensor) -> None:
        if self.start_share is not None:
            self.start_thresholds(x_BD, self.start_share)

    @torch.no_grad()
    def begin_from(self, trained: Dictionary, normaliser: Normaliser) -> None:
        """Take the weights of a trained dictionary in place of a random start: `fold` undone, so that folding gives it again.

        A latent whose decoder row is zero does nothing there; it keeps its random row, as a unit row it must have.
        """
        trained, C, mu = with_unit_rows(trained), normaliser.scale, normaliser.mean.double().cpu()
        W_enc, b_dec = trained.W_enc.double(), trained.b_dec.double()
        theta_L = (trained.threshold.double() / C).clamp(min=1e-6)
        self.W_enc.copy_(W_enc.T)
        some_L = trained.W_dec.norm(dim=1) > 0
        self.W_dec[some_L] = trained.W_dec[some_L].to(self.W_dec)
        self.b_dec.copy_((b_dec - mu) / C)
        self.b_enc.copy_((trained.b_enc.double() + b_dec @ W_enc) / C)
        self.threshold_parameter.copy_(theta_L.log() if self.log_threshold else theta_L)
        self.start_share = None

    @torch.no_grad()
    def start_thresholds(self, x_BD: Tensor, share: float) -> None:
        """Put every latent's threshold where it fires on this share of these rows, at least on one of them, but above zero."""
        theta_L = firing_levels(self, x_BD, share).clamp(min=1e-3)
        self.threshold_parameter.copy_(theta_L.log() if self.log_threshold else theta_L)

    @torch.no_grad()
    def restore_vectors(self) -> None:
        """A threshold stays positive."""
        if not self.log_threshold:
            self.threshold_parameter.clamp_(min=1e-6)

    @torch.no_grad()
    def as_jumprelu(self) -> dict[str, Tensor]:
        return super().as_jumprelu() | {"threshold": self.threshold.double().cpu()}
