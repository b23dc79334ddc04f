"""What is minimised: squared error plus a price for active latents.

JR is arXiv:2407.14435, GS2 the Gemma Scope 2 technical paper. B rows, L latents.
"""

from typing import NamedTuple

from torch import Tensor

from core.jumprelu import TrainingDictionary, jumprelu, step
from core.spec import DictionarySpec
from core.training import Training


def squared_error(x_BD: Tensor, reconstruction_BD: Tensor) -> Tensor:
    """||x - x_hat||^2, summed over dimensions, mean over the batch (JR, Eq. 9)."""
    return (x_BD - reconstruction_BD).square().sum(1).mean()


def linear_penalty(l0_B: Tensor, coefficient: float) -> Tensor:
    """lambda ||f||_0 (JR, Eq. 9)."""
    return coefficient * l0_B.mean()


def target_penalty_per_token(l0_B: Tensor, target: float, coefficient: float) -> Tensor:
    """lambda (2 / L0*) (||f||_0 - L0*)^2 of every token (GS2, Eq. 5): each token is pulled to the target."""
    return coefficient * 2 / target * (l0_B - target).square().mean()


def target_penalty_batch_mean(l0_B: Tensor, target: float, coefficient: float) -> Tensor:
    """The same of the batch's mean L0, so that tokens may differ; dictionary_learning reads JR's appendix F so."""
    return coefficient * 2 / target * (l0_B.mean() - target).square()


def sparsity_penalty(l0_B: Tensor, spec: DictionarySpec, training: Training) -> Tensor:
    if spec.target_l0 is None:
        assert spec.l0_coefficient is not None
        return linear_penalty(l0_B, spec.l0_coefficient)
    penalty = {"per-token": target_penalty_per_token, "batch-mean": target_penalty_batch_mean}[training.target_l0_objective]
    return penalty(l0_B, spec.target_l0, training.target_l0_coefficient)


class PenaltySlope(NamedTuple):
    """d penalty / d L0 of a row, which all penalties here have as constant + per_l0 * L0."""

    constant: float
    per_l0: float

    def times(self, factor: float) -> "PenaltySlope":
        return PenaltySlope(factor * self.constant, factor * self.per_l0)


def penalty_slope(l0_B: Tensor, spec: DictionarySpec, training: Training) -> PenaltySlope:
    """The derivative of `sparsity_penalty`, where no autograd is at hand."""
    B = len(l0_B)
    if spec.target_l0 is None:
        assert spec.l0_coefficient is not None
        return PenaltySlope(spec.l0_coefficient / B, 0.0)
    steepness = training.target_l0_coefficient * 4 / spec.target_l0 / B
    if training.target_l0_objective == "batch-mean":
        return PenaltySlope(steepness * (float(l0_B.mean()) - spec.target_l0), 0.0)
    return PenaltySlope(-steepness * spec.target_l0, steepness)


def loss(dictionary: TrainingDictionary, x_BD: Tensor, spec: DictionarySpec, training: Training, warmth: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (scalar), its squared error (scalar), and which latents fired (B x L of zeros and ones).

    Args:
        x_BD: normalised activations. warmth: share of the sparsity penalty that is switched on, from 0 to 1.
    """
    z_BL, threshold_L = dictionary.pre_activations(x_BD), dictionary.threshold
    reconstruction_BD = dictionary.decode(jumprelu(z_BL, threshold_L, training.bandwidth))
    active_BL = step(z_BL, threshold_L, training.bandwidth)
    error = squared_error(x_BD, reconstruction_BD)
    return error + warmth * sparsity_penalty(active_BL.sum(1), spec, training), error.detach(), active_BL.detach()
