"""What is minimised: squared error plus, where an architecture is not sparse by itself, a price for being active.

JR is arXiv:2407.14435, GS2 the Gemma Scope 2 technical paper, GDM2 the progress update of Google DeepMind's interpretability team of
March 2025. B rows, D dimensions, L latents.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from core import tanh
from core.baselines import Gated, ReLU, TopK
from core.control import L1_PRICE
from core.dictionary import TrainingDictionary, keep_largest
from core.jumprelu import JumpReLUDictionary, jumprelu, step
from core.spec import DictionarySpec
from core.training import Training


class Loss(NamedTuple):
    total: Tensor
    """Scalar, with its graph."""
    error: Tensor
    """Scalar: the squared error alone."""
    f_BL: Tensor
    """The activations."""


def loss(dictionary: TrainingDictionary, x_BD: Tensor, spec: DictionarySpec, training: Training, warmth: float) -> Loss:
    """The loss of a batch.

    Args:
        x_BD: normalised activations. warmth: share of the sparsity penalty that is switched on, from 0 to 1.
    """
    match dictionary:
        case tanh.TanhDictionary():
            return tanh_loss(dictionary, x_BD, warmth * l1_price(dictionary, spec), training)
        case JumpReLUDictionary():
            return jumprelu_loss(dictionary, x_BD, spec, training, warmth)
        case ReLU():
            return relu_l1_loss(dictionary, x_BD, warmth * l1_price(dictionary, spec))
        case Gated():
            return gated_loss(dictionary, x_BD, warmth * l1_price(dictionary, spec))
        case TopK():
            return topk_loss(dictionary, x_BD)
    raise TypeError(f"{type(dictionary).__name__} has no loss")


def squared_error(x_BD: Tensor, reconstruction_BD: Tensor) -> Tensor:
    """||x - x_hat||^2, summed over dimensions, mean over the batch (JR, Eq. 9)."""
    return (x_BD - reconstruction_BD).square().sum(1).mean()


# JumpReLU


def linear_penalty(l0_B: Tensor, coefficient: float) -> Tensor:
    """lambda ||f||_0 (JR, Eq. 9)."""
    return coefficient * l0_B.mean()


def target_penalty_per_token(l0_B: Tensor, target: float, coefficient: float) -> Tensor:
    """lambda (2 / L0*) (||f||_0 - L0*)^2 of every token (GS2, Eq. 5): each token is pulled to the target."""
    return coefficient * 2 / target * (l0_B - target).square().mean()


def target_penalty_batch_mean(l0_B: Tensor, target: float, coefficient: float) -> Tensor:
    """The same of the batch's mean L0, so that tokens may differ; dictionary_learning reads JR's appendix F so."""
    return coefficient * 2 / target * (l0_B.mean() - target).square()


def sparsity_penalty(l0_B: Tensor, price: float, spec: DictionarySpec, training: Training) -> Tensor:
    """The penalty on L0 that the spec asks for; `price` adds to the slope of one with a target, in units of its slope at twice the target."""
    if spec.target_l0 is None:
        assert spec.l0_coefficient is not None
        return linear_penalty(l0_B, spec.l0_coefficient)
    penalty = {"per-token": target_penalty_per_token, "batch-mean": target_penalty_batch_mean}[training.target_l0_objective]
    return penalty(l0_B, spec.target_l0, training.target_l0_coefficient) + 4 * training.target_l0_coefficient * price * l0_B.mean()


def frequency_penalty(active_BL: Tensor, training: Training) -> Tensor:
    """lambda sum_l p_l^2 / omega, p_l the share of the batch on which a latent fires.

    What GDM2 adds to lambda sum_l p_l, the L0 penalty, and GS2 to its quadratic one; GS2 does not give its form.
    """
    return training.frequency_coefficient / training.frequency_scale * active_BL.mean(0).square().sum()


class PenaltySlope(NamedTuple):
    """d penalty / d (z is active) of an entry (b, l): constant + per_l0 * L0 of its row + of_latent[l]."""

    constant: float
    per_l0: float
    of_latent: Tensor | None = None

    def times(self, factor: float) -> "PenaltySlope":
        return PenaltySlope(factor * self.constant, factor * self.per_l0, None if self.of_latent is None else factor * self.of_latent)


def penalty_slope(l0_B: Tensor, active_L: Tensor, price: float, spec: DictionarySpec, training: Training) -> PenaltySlope:
    """The derivative of all of JumpReLU's penalties, where no autograd is at hand.

    Args:
        active_L: on how many rows of the batch each latent fires. price: as in `jumprelu_loss`.
    """
    B = len(l0_B)
    of_latent = None
    if training.frequency_coefficient:
        of_latent = 2 * training.frequency_coefficient / training.frequency_scale / B**2 * active_L
    if spec.target_l0 is None:
        assert spec.l0_coefficient is not None
        return PenaltySlope(spec.l0_coefficient / B, 0.0, of_latent)
    integral = 4 * training.target_l0_coefficient * price / B
    steepness = training.target_l0_coefficient * 4 / spec.target_l0 / B
    if training.target_l0_objective == "batch-mean":
        return PenaltySlope(steepness * (float(l0_B.mean()) - spec.target_l0) + integral, 0.0, of_latent)
    return PenaltySlope(integral - steepness * spec.target_l0, steepness, of_latent)


def jumprelu_loss(dictionary: JumpReLUDictionary, x_BD: Tensor, spec: DictionarySpec, training: Training, warmth: float) -> Loss:
    """Squared error, of Matryoshka prefixes too where asked, plus the penalties on L0."""
    z_BL, threshold_L = dictionary.pre_activations(x_BD), dictionary.threshold
    f_BL = jumprelu(z_BL, threshold_L, training.bandwidth)
    active_BL = step(z_BL, threshold_L, training.bandwidth)
    l0_B = active_BL.sum(1)
    error = squared_error(x_BD, dictionary.decode(f_BL))
    penalty = sparsity_penalty(l0_B, dictionary.price, spec, training)
    if training.frequency_coefficient:
        penalty = penalty + frequency_penalty(active_BL, training)
    total = matryoshka_error(dictionary, x_BD, f_BL, error, training.matryoshka_prefixes) + warmth * penalty
    return Loss(total, error.detach(), f_BL.detach())


def matryoshka_error(dictionary: TrainingDictionary, x_BD: Tensor, f_BL: Tensor, error: Tensor, prefixes: list[float]) -> Tensor:
    """The mean of the squared errors of reconstructions from the first latents alone, and from all of them (arXiv:2503.17547).

    Args:
        error: that of all latents. prefixes: shares of the width, rising.
    """
    reconstruction_BD: Tensor = dictionary.b_dec
    first, errors = 0, [error]
    for share in prefixes:
        last = math.ceil(share * f_BL.shape[1])
        reconstruction_BD = reconstruction_BD + f_BL[:, first:last] @ dictionary.W_dec[first:last]
        errors.append(squared_error(x_BD, reconstruction_BD))
        first = last
    return torch.stack(errors).mean()


def tanh_loss(dictionary: tanh.TanhDictionary, x_BD: Tensor, price: float, training: Training) -> Loss:
    """||x - x_hat||^2 + lambda_S sum tanh(c f ||d||) + lambda_P sum ReLU(theta - z) ||d|| (Anthropic's update of January 2025)."""
    z_BL, f_BL = tanh.activate(dictionary, x_BD, training.bandwidth)
    error = squared_error(x_BD, dictionary.decode(f_BL))
    sparse = price * tanh.tanh_penalty(f_BL, dictionary.W_dec, training.tanh_scale)
    alive = training.pre_activation_coefficient * tanh.pre_activation_penalty(z_BL, dictionary.threshold, dictionary.W_dec)
    return Loss(error + sparse + alive, error.detach(), f_BL.detach())


# The others


def l1_price(dictionary: TrainingDictionary, spec: DictionarySpec) -> float:
    """lambda: the one given, or what control has made of a first guess."""
    return spec.l0_coefficient if spec.l0_coefficient is not None else L1_PRICE * math.exp(dictionary.price)


def relu_l1_loss(dictionary: ReLU, x_BD: Tensor, price: float) -> Loss:
    """||x - x_hat||^2 + lambda ||f||_1 (arXiv:2309.08600, section 2; here with unit decoder rows)."""
    f_BL = dictionary.pre_activations(x_BD).relu()
    error = squared_error(x_BD, dictionary.decode(f_BL))
    return Loss(error + price * f_BL.sum(1).mean(), error.detach(), f_BL.detach())


def gated_loss(dictionary: Gated, x_BD: Tensor, price: float) -> Loss:
    """||x - x_hat||^2 + lambda ||ReLU(pi_gate)||_1 + ||x - x_hat_frozen(ReLU(pi_gate))||^2 (arXiv:2404.16014, Eq. 8).

    The last term, through a decoder that it does not move, is what trains the gate to tell which latents are needed.
    """
    gate_BL, magnitude_BL = dictionary.gate_and_magnitude(x_BD)
    f_BL, open_BL = (gate_BL > 0) * magnitude_BL.relu(), gate_BL.relu()
    error = squared_error(x_BD, dictionary.decode(f_BL))
    frozen = squared_error(x_BD, torch.addmm(dictionary.b_dec.detach(), open_BL, dictionary.W_dec.detach()))
    return Loss(error + frozen + price * open_BL.sum(1).mean(), error.detach(), f_BL.detach())


AUXILIARY_SHARE = 1 / 32
"""alpha of arXiv:2406.04093, appendix A.2."""


def topk_loss(dictionary: TopK, x_BD: Tensor) -> Loss:
    """||x - x_hat||^2, and the auxiliary loss while latents are dead (arXiv:2406.04093, appendix A.2). BatchTopK's is the same."""
    z_BL = dictionary.pre_activations(x_BD)
    f_BL = dictionary.activate(z_BL)
    reconstruction_BD = dictionary.decode(f_BL)
    error = squared_error(x_BD, reconstruction_BD)
    variance = squared_error(x_BD, x_BD.mean(0, keepdim=True))
    total = error + AUXILIARY_SHARE * variance * auxiliary_loss(dictionary, z_BL, (x_BD - reconstruction_BD).detach())
    return Loss(total, error.detach(), f_BL.detach())


def auxiliary_loss(dictionary: TopK, z_BL: Tensor, residual_BD: Tensor) -> Tensor:
    """||e - e_hat||^2 over the variance of e: e what is left, e_hat what the D / 2 strongest dead latents make of it; zero without any.

    Normalised as in OpenAI's code, which its paper does not say; there the main error is so too, so here this counts times the variance of x.
    """
    dead_L = dictionary.dead
    num_dead, spread = int(dead_L.sum()), squared_error(residual_BD, residual_BD.mean(0, keepdim=True))
    if not num_dead or not spread:
        return z_BL.new_zeros(())
    strongest = keep_largest(z_BL.relu().masked_fill(~dead_L, 0), min(residual_BD.shape[1] // 2, num_dead))
    return squared_error(residual_BD, strongest @ dictionary.W_dec) / spread
