"""Fidelity: how well a dictionary stands in for its site. Definitions of Gemma Scope (arXiv:2408.05147, section 4.1).

B rows, D dimensions, L latents.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.anatomy import Anatomy
from core.dictionary import Dictionary
from core.site import Site
from core.statistics import Moments

FREQUENCY_EDGES = tuple(-5 + 0.5 * i for i in range(11))
"""Bins of the firing-frequency histogram, in log10; rarer latents that fired count in the first."""


@dataclass(frozen=True)
class RowFidelity:
    """What rows alone tell."""

    rows: int
    l0: float
    """Mean number of active latents."""
    fvu: float
    """Fraction of variance unexplained: squared error over that of always predicting the mean of the same rows."""
    frequencies: Tensor
    """L: share of rows on which each latent fires."""

    @property
    def dead(self) -> float:
        """Share of latents that fired on none of the rows."""
        return float((self.frequencies == 0).double().mean())

    def frequency_histogram(self) -> list[int]:
        """Latents in each bin of FREQUENCY_EDGES; dead ones in none."""
        fired = self.frequencies[self.frequencies > 0].log10().clamp(min=FREQUENCY_EDGES[0]).double().numpy()
        return [int(count) for count in np.histogram(fired, FREQUENCY_EDGES)[0]]


@torch.no_grad()
def row_fidelity(dictionary: Dictionary, rows: Iterable[Tensor]) -> RowFidelity:
    """Score a dictionary on raw activations, given as batches B x D."""
    squared_error, fired_L = 0.0, torch.zeros(len(dictionary.b_enc), dtype=torch.float64)
    moments: Moments | None = None
    for batch in rows:
        x_BD = batch.to(dictionary.b_dec.device).float()
        f_BL = dictionary.encode(x_BD)
        squared_error += float((dictionary.decode(f_BL) - x_BD).double().square().sum())
        fired_L += (f_BL > 0).sum(0).cpu()
        moments = Moments.of(x_BD) if moments is None else moments + Moments.of(x_BD)
    assert moments is not None
    return RowFidelity(
        rows=moments.rows,
        l0=float(fired_L.sum()) / moments.rows,
        fvu=squared_error / (moments.rows * moments.variance),
        frequencies=fired_L / moments.rows,
    )


@torch.inference_mode()
def language_model_loss(anatomy: Anatomy, tokens: Tensor, scored: Tensor, logits_at_once: int = 256) -> Tensor:
    """Mean next-token cross-entropy of each sequence, in nats.

    Args:
        tokens: sequences x context. scored: the same shape; whether the token at a position is one whose prediction counts.
        logits_at_once: positions whose logits are held at a time; vocabularies are too large for all of them.
    """
    model: Any = anatomy.model
    hidden = anatomy.trunk(tokens, use_cache=False).last_hidden_state[:, :-1]
    targets, counts = tokens[:, 1:], scored[:, 1:]
    head, softcap = model.get_output_embeddings(), getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    losses = []
    for h, target, count in zip(hidden, targets, counts, strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for h_slice, target_slice in zip(h[count].split(logits_at_once), target[count].split(logits_at_once), strict=True):
            logits = head(h_slice).float()
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            total += nn.functional.cross_entropy(logits, target_slice, reduction="sum").double().cpu()
        losses.append(total / count.sum().clamp(min=1).cpu())
    return torch.stack(losses)


def spliced_loss(anatomy: Anatomy, site: Site, replacement: Callable[[Tensor], Tensor] | None, tokens: Tensor, is_text: Tensor) -> Tensor:
    """The loss of each sequence with a site's activations replaced, at text tokens only: special tokens keep theirs.

    Args:
        replacement: rows B x D, float32, to rows of the same shape; None leaves the model as it is.
        tokens, is_text: sequences x context.
    """
    if replacement is None:
        return language_model_loss(anatomy, tokens, is_text)

    def replace(x: Tensor) -> Tensor:
        changed = x.clone()
        changed[is_text] = replacement(x[is_text].float()).to(x.dtype)
        return changed

    with anatomy.splice(site, replace):
        return language_model_loss(anatomy, tokens, is_text)
