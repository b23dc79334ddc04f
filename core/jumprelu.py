"""The JumpReLU sparse autoencoder, as in "Jumping Ahead" (arXiv:2407.14435, "JR") and Gemma Scope (arXiv:2408.05147, "GS").

Shapes, in suffixes: B rows (token positions), D dimensions of the activation, L latents.
Not here: what is minimised (`core/objective.py`) and how (`core/trainer.py`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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


@dataclass(frozen=True)
class Dictionary:
    """A trained SAE for use: it takes raw activations, for normalisation and pre-encoder bias are folded in.

    f(x) = JumpReLU_theta(x W_enc + b_enc),  x_hat = f W_dec + b_dec  (JR, Eqs. 1-4).
    """

    W_enc: Tensor
    """D x L, float32."""
    b_enc: Tensor
    """L"""
    W_dec: Tensor
    """L x D, unit rows."""
    b_dec: Tensor
    """D"""
    threshold: Tensor
    """L, positive."""

    def encode(self, x_BD: Tensor) -> Tensor:
        """The latents f(x), B x L, of raw activations."""
        z_BL = x_BD @ self.W_enc + self.b_enc
        return z_BL * (z_BL > self.threshold)

    def decode(self, f_BL: Tensor) -> Tensor:
        """The reconstruction, B x D, in raw units."""
        return f_BL @ self.W_dec + self.b_dec

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}

    def to(self, device: torch.device) -> "Dictionary":
        return Dictionary(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


class TrainingDictionary(nn.Module):
    """An SAE in training: normalised inputs, a pre-encoder bias, and the threshold's own parameter (GS, section 3.2).

    Both matrices have one row a latent, L x D: a latent's weights lie together, and are read and moved together.

    Args:
        dimensions: D. width: L. seed: of the decoder's initialisation.
        threshold_init: theta at the start. log_threshold: whether the parameter is log(theta), as in JR's pseudo-code.
    """

    def __init__(self, dimensions: int, width: int, *, seed: int, threshold_init: float, log_threshold: bool) -> None:
        super().__init__()
        self.W_dec = nn.Parameter(torch.empty(width, dimensions))
        self.W_enc = nn.Parameter(torch.empty(width, dimensions))
        self.draw(seed)
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.b_dec = nn.Parameter(torch.zeros(dimensions))
        self.log_threshold = log_threshold
        start = torch.full((width,), threshold_init)
        self.threshold_parameter = nn.Parameter(start.log() if log_threshold else start)

    @torch.no_grad()
    def draw(self, seed: int, first: int = 0) -> None:
        """The start (GS): decoder rows He-uniform, then of unit norm; the encoder as its transpose; biases at zero.

        Args:
            first: latents that come before these, where these are a shard of a wider dictionary.
        """
        generator = torch.Generator().manual_seed(seed)
        for _ in range(first):
            torch.rand(self.W_dec.shape[1], generator=generator)
        self.W_dec.copy_(nn.functional.normalize(torch.rand(self.W_dec.shape, generator=generator) * 2 - 1))
        self.W_enc.copy_(self.W_dec)

    @property
    def threshold(self) -> Tensor:
        """theta, L."""
        return self.threshold_parameter.exp() if self.log_threshold else self.threshold_parameter

    @torch.no_grad()
    def start_thresholds(self, x_BD: Tensor, l0: float) -> None:
        """Put every latent's threshold where it fires on a share l0 / L of these rows, at least on one of them, but above zero."""
        width = len(self.W_enc)
        firing = max(1, round(len(x_BD) * min(1.0, l0 / width)))
        for first in range(0, width, 4_096):  # a few latents at a time: all of z may not fit
            piece = slice(first, first + 4_096)
            z_BL = torch.addmm(self.b_enc[piece], x_BD - self.b_dec, self.W_enc[piece].T)
            theta_L = z_BL.kthvalue(max(1, len(x_BD) - firing), dim=0).values.clamp(min=1e-3)
            self.threshold_parameter[piece] = theta_L.log() if self.log_threshold else theta_L

    def pre_activations(self, x_BD: Tensor) -> Tensor:
        """z = (x - b_dec) W_enc + b_enc, B x L."""
        return torch.addmm(self.b_enc, x_BD - self.b_dec, self.W_enc.T)

    def decode(self, f_BL: Tensor) -> Tensor:
        return torch.addmm(self.b_dec, f_BL, self.W_dec)

    @torch.no_grad()
    def restore_constraints(self) -> None:
        """Unit decoder rows after every update (GS, section 3.2), and a threshold that stays positive."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
        self.keep_threshold_positive()

    @torch.no_grad()
    def keep_threshold_positive(self) -> None:
        if not self.log_threshold:
            self.threshold_parameter.clamp_(min=1e-6)

    @torch.no_grad()
    def fold(self, normaliser: Normaliser) -> Dictionary:
        """The same function on raw activations x, where training saw (x - mu) / C (GS, appendix A; there mu = 0).

        b_enc' = C b_enc - (mu + C b_dec) W_enc,  b_dec' = mu + C b_dec,  theta' = C theta; latents are C times larger.
        Computed in float64: the mean can be many times the rest.
        """
        C, mu = normaliser.scale, normaliser.mean.double().cpu()
        W_enc, W_dec = self.W_enc.T.double().cpu(), self.W_dec.double().cpu()
        b_dec = mu + C * self.b_dec.double().cpu()
        folded = {
            "W_enc": W_enc,
            "b_enc": C * self.b_enc.double().cpu() - b_dec @ W_enc,
            "W_dec": W_dec,
            "b_dec": b_dec,
            "threshold": C * self.threshold.double().cpu(),
        }
        return Dictionary(**{name: tensor.float().contiguous() for name, tensor in folded.items()})
