"""Forms: the same function written otherwise, for libraries that know another form of it.

J is arXiv:2407.14435, G is the Gated SAE (arXiv:2404.16014). Shapes, in suffixes: D dimensions of the activation, L latents.
"""

from dataclasses import replace

import torch
from torch import Tensor

from core.dictionary import Dictionary


def gated(dictionary: Dictionary) -> dict[str, Tensor]:
    """The tensors of a Gated SAE with tied weights that computes what a JumpReLU SAE does (J, section 2: the gate is open where z > theta).

    r_mag = 0,  b_mag = b_enc,  b_gate = b_enc - theta (G, Eqs. 3-7).

    Raises:
        ValueError: the dictionary keeps the k largest of a row, which no gate does.
    """
    if dictionary.k is not None:
        raise ValueError("a TopK SAE has no Gated form")
    return {
        "W_enc": dictionary.W_enc,
        "b_gate": dictionary.b_enc - dictionary.threshold,
        "b_mag": dictionary.b_enc,
        "r_mag": torch.zeros_like(dictionary.b_enc),
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }


def from_gated(W_enc: Tensor, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor, W_dec: Tensor, b_dec: Tensor) -> Dictionary:
    """The JumpReLU SAE that a Gated SAE with tied weights is (J, section 2).

    With z = e^r_mag (x W_enc) + b_mag the gate is open where z > b_mag - e^r_mag b_gate, and the magnitude is relu(z).
    """
    magnitude = r_mag.exp()
    return Dictionary(W_enc * magnitude, b_mag, W_dec, b_dec, (b_mag - magnitude * b_gate).clamp(min=0))


def without_pre_bias(dictionary: Dictionary) -> Dictionary:
    """The same function, of an encoder that was given x - b_dec, when it is given x."""
    return replace(dictionary, b_enc=dictionary.b_enc - dictionary.b_dec @ dictionary.W_enc)


def with_unit_rows(dictionary: Dictionary) -> Dictionary:
    """The same function with decoder rows of unit norm: latents are as many times larger. A row of zeros stays."""
    norm_L = dictionary.W_dec.norm(dim=1)
    norm_L = torch.where(norm_L > 0, norm_L, torch.ones_like(norm_L))
    return replace(
        dictionary,
        W_enc=dictionary.W_enc * norm_L,
        b_enc=dictionary.b_enc * norm_L,
        W_dec=dictionary.W_dec / norm_L[:, None],
        threshold=dictionary.threshold * norm_L,
    )
