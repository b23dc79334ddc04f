"""What a latent's decoder direction tells without any text: which tokens it makes likelier, and which other latents write almost the same.

Shapes, in suffixes: L latents, D dimensions of the activation, V tokens of the vocabulary, K kept of each.
"""

import torch
from torch import Tensor

from core.anatomy import Anatomy
from core.site import Site
from core.slices import slices

COLUMNS_AT_ONCE = 16_384
"""Tokens, or latents, that all are compared with at a time."""


class Highest:
    """The K highest of many numbered values of each latent, highest first."""

    def __init__(self, num_latents: int, k: int, device: torch.device) -> None:
        self._k = k
        self.values_LK = torch.zeros(num_latents, 0, device=device)
        self.numbers_LK = torch.zeros(num_latents, 0, dtype=torch.int64, device=device)

    def offer(self, values_LV: Tensor, first: int) -> None:
        """Take more values into account, which are numbered from `first` on."""
        best = values_LV.topk(min(self._k, values_LV.shape[1]))
        values, numbers = torch.cat([self.values_LK, best.values], 1), torch.cat([self.numbers_LK, best.indices + first], 1)
        self.values_LK, places = values.topk(min(self._k, values.shape[1]))
        self.numbers_LK = numbers.gather(1, places)


@torch.no_grad()
def nearest(W_dec: Tensor, latents: slice, k: int) -> Highest:
    """The latents whose decoder directions have the highest cosine with those of some, themselves left out.

    Args:
        W_dec: of all latents, with unit rows.
    """
    own = torch.arange(len(W_dec), device=W_dec.device)[latents]
    found = Highest(len(own), min(k, len(W_dec) - 1), W_dec.device)
    for columns in slices(len(W_dec), COLUMNS_AT_ONCE):
        cosines = W_dec[latents] @ W_dec[columns].T
        numbers = torch.arange(columns.start, columns.stop, device=W_dec.device)
        found.offer(cosines.masked_fill(own[:, None] == numbers, -2), columns.start)
    return found


@torch.inference_mode()
def token_effects(anatomy: Anatomy, site: Site, directions_LD: Tensor, k: int) -> tuple[Highest, Highest]:
    """The tokens whose logits a direction raises most, and those whose it lowers most (with their values negated), if nothing else were there.

    Through the attention's output projection where the site is before it, the final norm, the unembedding. A logit is given less the mean over the
    vocabulary, in units of their standard deviation: what the final norm makes of a single direction has no other scale.
    """
    W_VD = anatomy.unembedding.weight
    x_LD = directions_LD.to(W_VD.dtype)
    if site.kind == "attn_z":
        projection = anatomy.place(site).module
        x_LD = projection(x_LD) - projection(torch.zeros_like(x_LD[:1]))
    x_LD = anatomy.final_norm(x_LD)
    mean_L = (x_LD @ W_VD.mean(0)).float()
    raised, lowered = (Highest(len(x_LD), k, x_LD.device) for _ in range(2))
    square_L = torch.zeros_like(mean_L)
    for columns in slices(len(W_VD), COLUMNS_AT_ONCE):
        effect_LV = (x_LD @ W_VD[columns].T).float() - mean_L[:, None]
        square_L += effect_LV.square().sum(1)
        raised.offer(effect_LV, columns.start)
        lowered.offer(-effect_LV, columns.start)
    deviation_L = (square_L / len(W_VD)).sqrt().clamp(min=1e-12)
    for found in (raised, lowered):
        found.values_LK /= deviation_L[:, None]
    return raised, lowered
