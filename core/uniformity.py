"""Uniformity: whether a few of a row's active latents do the work, or all do (Gemma Scope, arXiv:2408.05147, appendix C.3).

R rows, D dimensions, L latents.
"""

import torch
from torch import Tensor

from core.anatomy import Anatomy
from core.dictionary import Dictionary
from core.site import Site


@torch.enable_grad()
def effects(anatomy: Anatomy, site: Site, tokens_RC: Tensor, position_R: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a site, and the gradient of the mean-centred logit of the correct next token with respect to each: R x D both, float32.

    Before the softcap, where a model has one, for the mean over the vocabulary is then known without a logit for each token.

    Args:
        tokens_RC: a sequence for each row, so that no gradient is of another row's prediction. position_R: where the row is, before the last.
    """
    kept: list[Tensor] = []

    def keep(x_RCD: Tensor) -> Tensor:
        kept.append(x_RCD.detach().requires_grad_())
        return kept[0]

    row_R = torch.arange(len(tokens_RC), device=tokens_RC.device)
    with anatomy.splice(site, keep):
        hidden = anatomy.trunk(tokens_RC, use_cache=False).last_hidden_state[row_R, position_R].float()
    weight = anatomy.unembedding.weight.detach()
    towards = weight[tokens_RC[row_R, position_R + 1]].float() - weight.mean(0, dtype=torch.float32)
    (gradient_RCD,) = torch.autograd.grad((hidden * towards).sum(), kept)
    return kept[0].detach()[row_R, position_R].float(), gradient_RCD[row_R, position_R].float()


@torch.no_grad()
def uniformity(dictionary: Dictionary, x_RD: Tensor, gradient_RD: Tensor) -> Tensor:
    """r_L0 = exp(S(p)) / ||y||_0 of each row on which some latent has an effect, float64.

    With y = f(x) * (W_dec gradient), p = |y| / sum |y|, and S the entropy: one where all active latents have the same effect, 1 / ||y||_0 where one
    has all of it.
    """
    y_RL = (dictionary.encode(x_RD) * (gradient_RD @ dictionary.W_dec.T)).double().abs()
    y_RL = y_RL[y_RL.any(1)]
    p_RL = y_RL / y_RL.sum(1, keepdim=True)
    entropy_R: Tensor = torch.special.entr(p_RL).sum(1)
    return entropy_R.exp() / (y_RL > 0).sum(1)
