"""Examples: of every latent, the contexts that excite it most, a fair sample of those that excite it, and one of those that do not.

A context is W neighbouring positions of a text, and its peak the highest activation that a latent has in it. Every context has a key for every
latent, and the K contexts with the highest keys are kept: for the first kind the key is the peak, for the two others a random number that is
a function of (seed, latent, context). So it makes no difference in which order contexts come, or in how many parts: what is kept of the whole
is what is kept of what was kept of its parts (a bottom-k sketch: Cohen and Kaplan, PODC 2007). Memory is fixed by K.

Shapes, in suffixes: X contexts, W positions of a context, L latents, K kept.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["top", "sample", "quiet"]

LARGEST_CONTEXT = 2**32 - 1
NONE = -1
"""The key of a place where nothing is kept yet."""
NOT_OFFERED = -2
"""Below that of an empty place, so that such a context takes none."""


class Kept:
    """The K contexts with the highest keys of each latent."""

    def __init__(self, num_latents: int, num_kept: int, positions: int, device: torch.device | None = None) -> None:
        self.keys_LK = torch.full((num_latents, num_kept), NONE, dtype=torch.int64, device=device)
        self.activations_LKW = torch.zeros(num_latents, num_kept, positions, device=device)

    def offer(self, keys_LX: Tensor, activations_LXW: Tensor) -> None:
        """Keep those of X contexts that belong to the highest so far, and drop as many."""
        num_kept = self.keys_LK.shape[1]
        both = torch.cat([self.keys_LK, keys_LX], dim=1)
        stays = torch.zeros_like(both, dtype=torch.bool).scatter_(1, both.topk(num_kept, dim=1, sorted=False).indices, value=True)
        # Each latent drops as many as it takes, and both lists are in the order of latents: they match one to one.
        latent, place = (~stays[:, :num_kept]).nonzero(as_tuple=True)
        taker, context = stays[:, num_kept:].nonzero(as_tuple=True)
        self.keys_LK[latent, place] = keys_LX[taker, context]
        self.activations_LKW[latent, place] = activations_LXW[taker, context]

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """All E that are kept, latent by latent and highest key first: latents, counted from the first of these; contexts; activations, E x W."""
        keys_LK, place_LK = self.keys_LK.sort(dim=1, descending=True)
        latents_E, rank_E = (keys_LK != NONE).nonzero(as_tuple=True)
        contexts_E = LARGEST_CONTEXT - (keys_LK[latents_E, rank_E] & LARGEST_CONTEXT)
        return latents_E, contexts_E, self.activations_LKW[latents_E, place_LK[latents_E, rank_E]]


@dataclass(frozen=True)
class Number:
    """How many contexts of each kind are kept of a latent."""

    top: int
    """Those with the highest peak; of equal ones those that come first in the text."""
    sample: int
    """Of those in which it fires, each as likely as any other."""
    quiet: int
    """Of those in which it does not."""


class Examples:
    """What is kept of the contexts of a text, for some latents.

    Args:
        first_latent, num_latents: of a dictionary; a large one is done a part at a time.
        positions: of a context.
    """

    def __init__(
        self, num_latents: int, positions: int, number: Number, *, first_latent: int = 0, seed: int = 0, device: torch.device | None = None
    ) -> None:
        self._latents_L = torch.arange(first_latent, first_latent + num_latents, device=device)
        self._seed = seed
        self.kept: dict[Kind, Kept] = {kind: Kept(num_latents, getattr(number, kind), positions, device) for kind in get_args(Kind)}
        self.rows = 0
        """Positions seen."""
        self.fired_L = torch.zeros(num_latents, dtype=torch.int64, device=device)
        """Of these, those on which each latent fired."""

    def offer(self, contexts_X: Tensor, f_XWL: Tensor, is_text_XW: Tensor) -> None:
        """Take some contexts into account, each of which is offered once.

        Args:
            contexts_X: their numbers in the text, below 2^32.
            f_XWL: activations; at positions that are no text they do not count.
            is_text_XW: which positions are text, not special tokens.
        """
        f_XWL = f_XWL * is_text_XW[:, :, None]
        self.rows += int(is_text_XW.sum())
        self.fired_L += (f_XWL > 0).sum((0, 1))
        f_LXW = f_XWL.permute(2, 0, 1)
        peak_LX = f_LXW.amax(2)
        fires_LX = peak_LX > 0
        chance_LX = _hash(self._seed, self._latents_L[:, None], contexts_X)
        # A float that is not negative is ordered as the integer of its bits.
        self._offer("top", contexts_X, fires_LX, peak_LX.float().contiguous().view(torch.int32).long(), f_LXW)
        self._offer("sample", contexts_X, fires_LX, chance_LX, f_LXW)
        self._offer("quiet", contexts_X, ~fires_LX & is_text_XW.any(1), chance_LX, f_LXW)

    def _offer(self, kind: Kind, contexts_X: Tensor, may_LX: Tensor, rank_LX: Tensor, f_LXW: Tensor) -> None:
        keys_LX = (rank_LX << 32) | (LARGEST_CONTEXT - contexts_X)
        self.kept[kind].offer(keys_LX.masked_fill(~may_LX, NOT_OFFERED), f_LXW)

    def merge(self, other: "Examples") -> None:
        """Take what others kept of other contexts for the same latents."""
        for kind, kept in self.kept.items():
            kept.offer(other.kept[kind].keys_LK.masked_fill(other.kept[kind].keys_LK == NONE, NOT_OFFERED), other.kept[kind].activations_LKW)
        self.rows += other.rows
        self.fired_L += other.fired_L


def _hash(seed: int, latents: Tensor, contexts: Tensor) -> Tensor:
    """31 random bits that are a function of their arguments: SplitMix64's output (Steele et al., OOPSLA 2014), on integers that wrap."""
    z = (latents * 0x632BE59BD9B4E019) ^ (contexts * _signed(0x9E3779B97F4A7C15)) ^ _signed((seed * 0xD1342543DE82EF95) % 2**64)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(z ^ _shifted(z, 31), 33)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A shift to the right that brings in zeros; that of an int64 brings in its sign."""
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(word: int) -> int:
    """The 64-bit integer with these bits."""
    return word - 2**64 if word >= 2**63 else word
