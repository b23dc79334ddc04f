"""Uniformity: whether a few of a row's active latents do the work, or all do (Gemma Scope, arXiv:2408.05147, appendix C.3).

S sequences, C positions of each, R rows, D dimensions, L latents.
"""

import torch
from torch import Tensor

from core.anatomy import Anatomy
from core.dictionary import Dictionary
from core.site import Site


@torch.enable_grad()
def effects(anatomy: Anatomy, site: Site, tokens_SC: Tensor, position_SR: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a site, and the gradient of the mean-centred logit of the correct next token with respect to each: S R x D both, float32.

    Before the softcap, where a model has one, for the mean over the vocabulary is then known without a logit for each token. The layers from the site
    on are passed back once for each of R, with a row of every sequence: so no gradient is of another row's prediction too.

    Args:
        tokens_SC: S sequences. position_SR: R rows of each, none the sequence's last.
    """
    kept: list[Tensor] = []

    def keep(x_SCD: Tensor) -> Tensor:
        kept.append(x_SCD.detach().requires_grad_())
        return kept[0]

    with anatomy.splice(site, keep):
        hidden_SCD = anatomy.trunk(tokens_SC, use_cache=False).last_hidden_state
    weight, sequence_S = anatomy.unembedding.weight.detach(), torch.arange(len(tokens_SC), device=tokens_SC.device)
    mean_D = weight.mean(0, dtype=torch.float32)
    rows, gradients = [], []
    for position_S in position_SR.T:
        here = sequence_S, position_S
        towards_SD = weight[tokens_SC[sequence_S, position_S + 1]].float() - mean_D
        (gradient_SCD,) = torch.autograd.grad((hidden_SCD[here].float() * towards_SD).sum(), kept, retain_graph=True)
        rows.append(kept[0].detach()[here].float())
        gradients.append(gradient_SCD[here].float())
    return torch.cat(rows), torch.cat(gradients) * anatomy.logit_scale


@torch.no_grad()
def uniformity(dictionary: Dictionary, x_RD: Tensor, gradient_RD: Tensor) -> Tensor:
    """r_L0 = exp(S(p)) / ||y||_0 of each row, float64; NaN where no latent has an effect.

    With y = f(x) * (W_dec gradient), p = |y| / sum |y|, and S the entropy: one where all active latents have the same effect, 1 / ||y||_0 where one
    has all of it.
    """
    y_RL = (dictionary.encode(x_RD) * (gradient_RD @ dictionary.W_dec.T)).double().abs()
    p_RL = y_RL / y_RL.sum(1, keepdim=True)
    entropy_R: Tensor = torch.special.entr(p_RL).sum(1)
    return entropy_R.exp() / (y_RL > 0).sum(1)
