"""The control of every study of interpretability: a dictionary that was never trained (as in arXiv:2408.05147, Fig. 7)."""

import torch
from torch import Tensor, nn

from core.dictionary import Dictionary


@torch.no_grad()
def random_directions(dictionary: Dictionary, x_BD: Tensor, seed: int) -> Dictionary:
    """A JumpReLU SAE as wide as another, and as sparse on these rows, whose latents look in random directions from the rows' mean.

    All have one threshold, so those in whose direction the rows vary more fire more often, as in a trained one.
    """
    W_dec = nn.functional.normalize(torch.randn(dictionary.W_dec.shape, generator=torch.Generator().manual_seed(seed))).to(x_BD.device)
    mean = x_BD.mean(0)
    z_BL = (x_BD - mean) @ W_dec.T
    active = int((dictionary.encode(x_BD) > 0).sum())
    # The least of those that may fire, and a little less, for a latent fires above its threshold alone.
    threshold = z_BL.flatten().topk(max(1, active)).values[-1].clamp(min=0) * (1 - 1e-6)
    return Dictionary(
        W_enc=W_dec.T.contiguous(),
        b_enc=-(W_dec @ mean),
        W_dec=W_dec,
        b_dec=mean,
        threshold=torch.full_like(mean[:1], float(threshold)).expand(len(W_dec)),
    )
