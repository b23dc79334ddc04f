"""What every architecture's sparse autoencoder is made of: in training, and for use.

GS is Gemma Scope (arXiv:2408.05147). Shapes, in suffixes: B rows (token positions), D dimensions of the activation, L latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.statistics import Normaliser

TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


@dataclass(frozen=True)
class Dictionary:
    """A trained SAE for use: it takes raw activations, for normalisation and pre-encoder bias are folded in.

    f(x) = JumpReLU_theta(x W_enc + b_enc),  x_hat = f W_dec + b_dec  (arXiv:2407.14435, Eqs. 1-4). Trained ReLU, Gated and BatchTopK SAEs
    have this form too; a TopK SAE keeps the k largest of each row besides.
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
    """L, at least zero."""
    k: int | None = None
    """Latents of a row that are kept, or None for all above their threshold."""

    def encode(self, x_BD: Tensor) -> Tensor:
        """The latents f(x), B x L, of raw activations."""
        return self.activate(x_BD @ self.W_enc + self.b_enc)

    def activate(self, z_BL: Tensor) -> Tensor:
        """The latents of pre-activations."""
        f_BL = z_BL * (z_BL > self.threshold)
        return f_BL if self.k is None else keep_largest(f_BL, self.k)

    def encode_some(self, x_BD: Tensor, latents: slice) -> Tensor:
        """Some of the latents f(x), without the work of the others where that can be; of a TopK SAE all have to be known."""
        if self.k is not None:
            return self.encode(x_BD)[:, latents]
        z_BL = x_BD @ self.W_enc[:, latents] + self.b_enc[latents]
        return z_BL * (z_BL > self.threshold[latents])

    def decode(self, f_BL: Tensor) -> Tensor:
        """The reconstruction, B x D, in raw units."""
        return f_BL @ self.W_dec + self.b_dec

    def reconstruct(self, x_BD: Tensor) -> Tensor:
        """What stands in for activations, B x D, raw."""
        return self.decode(self.encode(x_BD))

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in TENSORS}

    def to(self, device: torch.device) -> "Dictionary":
        return Dictionary(**{name: tensor.to(device) for name, tensor in self.tensors().items()}, k=self.k)


def keep_largest(z_BL: Tensor, k: int) -> Tensor:
    """The k largest of each row, and zeros elsewhere."""
    largest = z_BL.topk(min(k, z_BL.shape[1]), dim=1)
    return torch.zeros_like(z_BL).scatter(1, largest.indices, largest.values)


class TrainingDictionary(nn.Module):
    """An SAE in training: normalised inputs, a pre-encoder bias, unit decoder rows (GS, section 3.2).

    Both matrices have one row a latent, L x D: a latent's weights lie together, and are read and moved together. What differs
    between architectures, the activation and its parameters, is in the classes that inherit.

    Args:
        dimensions: D. width: L. seed: of the decoder's initialisation.
    """

    unit_decoder = True
    """Whether decoder rows are kept at unit norm, and their gradient orthogonal to them."""

    def __init__(self, dimensions: int, width: int, *, seed: int) -> None:
        super().__init__()
        self.W_dec = nn.Parameter(torch.empty(width, dimensions))
        self.W_enc = nn.Parameter(torch.empty(width, dimensions))
        self.draw(seed)
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.b_dec = nn.Parameter(torch.zeros(dimensions))
        self.price = 0.0
        """What the control of L0 has made of the sparsity penalty's coefficient so far (`core/control.py`)."""

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

    @torch.no_grad()
    def start(self, x_BD: Tensor) -> None:
        """What an architecture takes from the first batch, before the first step."""

    @torch.no_grad()
    def observe(self, f_BL: Tensor) -> None:
        """What an architecture remembers of the activations of a step, apart from its parameters."""

    def pre_activations(self, x_BD: Tensor) -> Tensor:
        """z = (x - b_dec) W_enc + b_enc, B x L."""
        return torch.addmm(self.b_enc, x_BD - self.b_dec, self.W_enc.T)

    def decode(self, f_BL: Tensor) -> Tensor:
        return torch.addmm(self.b_dec, f_BL, self.W_dec)

    @torch.no_grad()
    def restore_constraints(self) -> None:
        """Unit decoder rows after every update (GS, section 3.2), and what else must hold."""
        if self.unit_decoder:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
        self.restore_vectors()

    @torch.no_grad()
    def restore_vectors(self) -> None:
        """Constraints of parameters other than the two matrices."""

    @torch.no_grad()
    def as_jumprelu(self) -> dict[str, Tensor]:
        """W_enc (L x D), b_enc, W_dec (L x D) and threshold of the JumpReLU SAE that this is, on normalised inputs, in float64.

        With a threshold of zero it is a ReLU.
        """
        weights = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "threshold": torch.zeros_like(self.b_enc)}
        return {name: tensor.double().cpu() for name, tensor in weights.items()}

    @property
    def k(self) -> int | None:
        """Latents of a row that are kept, where the architecture keeps a number."""
        return None

    @torch.no_grad()
    def fold(self, normaliser: Normaliser) -> Dictionary:
        """The same function on raw activations x, where training saw (x - mu) / C (GS, appendix A; there mu = 0).

        b_enc' = C b_enc - (mu + C b_dec) W_enc,  b_dec' = mu + C b_dec,  theta' = C theta; latents are C times larger.
        Computed in float64: the mean can be many times the rest.
        """
        C, mu = normaliser.scale, normaliser.mean.double().cpu()
        own = self.as_jumprelu()
        W_enc = own["W_enc"].T
        b_dec = mu + C * self.b_dec.double().cpu()
        folded = {
            "W_enc": W_enc,
            "b_enc": C * own["b_enc"] - b_dec @ W_enc,
            "W_dec": own["W_dec"],
            "b_dec": b_dec,
            "threshold": C * own["threshold"],
        }
        return Dictionary(**{name: tensor.float().contiguous() for name, tensor in folded.items()}, k=self.k)


@torch.no_grad()
def firing_levels(dictionary: TrainingDictionary, x_BD: Tensor, share: float) -> Tensor:
    """L: the level which each latent's z exceeds on this share of these rows, at least on one of them."""
    width, pieces = len(dictionary.W_enc), []
    firing = max(1, round(len(x_BD) * min(1.0, share)))
    for first in range(0, width, 4_096):  # a few latents at a time: all of z may not fit
        piece = slice(first, first + 4_096)
        z_BL = torch.addmm(dictionary.b_enc[piece], x_BD - dictionary.b_dec, dictionary.W_enc[piece].T)
        pieces.append(z_BL.kthvalue(max(1, len(x_BD) - firing), dim=0).values)
    return torch.cat(pieces)
