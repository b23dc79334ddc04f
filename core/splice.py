"""Splices: what a model predicts with something else in a site's place, for many replacements at once.

Delta loss is Gemma Scope's (arXiv:2408.05147, section 4.1): the increase of the loss when a reconstruction is spliced in. For all replacements of a
site, the blocks below it run once; only those above run again for each. Vocabularies are large, so logits are never there as a whole: they are made
tile by tile for all replacements together, and nothing but sums is kept of them.

Shapes, in suffixes: S sequences, C positions of a sequence, D dimensions of the activation, P predictions that count, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.anatomy import Anatomy
from core.site import Site
from core.slices import slices

TILES = {"cpu": (512, 2_048), "cuda": (1_024, 16_384)}
"""Positions, and tokens of the vocabulary, whose logits are held at a time, of all cases: what a CPU's caches hold, and what keeps a GPU at work."""

Replacement = Callable[[Tensor], Tensor]
"""Rows B x D, float32, to rows of the same shape."""


@dataclass(frozen=True)
class Predictions:
    """What the model predicts of the tokens that count."""

    loss_P: Tensor
    """Cross-entropy of the token that comes, in nats, float32."""
    divergence_P: Tensor
    """KL divergence from the intact model's prediction to this, in nats, float32; zero for the intact model."""


def predicted(is_text_SC: Tensor) -> Tensor:
    """The predictions that count, those of text tokens: P pairs of a sequence and the position that predicts, in order."""
    return is_text_SC[:, 1:].nonzero()


@torch.inference_mode()
def spliced_predictions(
    anatomy: Anatomy,
    site: Site,
    replacements: Mapping[str, Replacement],
    tokens_SC: Tensor,
    is_text_SC: Tensor,
    tile: tuple[int, int] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Predictions, dict[str, Predictions]]:
    """The intact model's predictions, and those with each replacement in the site's place; at special tokens the site keeps its own.

    Args:
        tokens_SC: int64. is_text_SC: which are text, not special tokens; the predictions that count are those of `predicted`.
        tile: positions, and tokens of the vocabulary, whose logits are held at a time; by default the device's of TILES.
        advance: told how many predictions with replacements were made, time after time.
    """
    counts_SC = is_text_SC[:, 1:]
    targets_P = tokens_SC[:, 1:][counts_SC]
    own_SCD, below, hidden = _intact(anatomy, site, tokens_SC)

    def predicting(hidden: Tensor) -> Tensor:
        return hidden[:, :-1][counts_SC]

    rows = {"": predicting(hidden)}
    for name, replace in replacements.items():
        changed_SCD = own_SCD.clone()
        changed_SCD[is_text_SC] = replace(own_SCD[is_text_SC].float()).to(own_SCD.dtype)
        with _resumed(anatomy, site, below, changed_SCD):
            rows[name] = predicting(_hidden(anatomy, tokens_SC))
    made = _predictions(anatomy, rows, targets_P, tile or TILES.get(tokens_SC.device.type, TILES["cpu"]), advance)
    return made.pop(""), made


def _intact(anatomy: Anatomy, site: Site, tokens_SC: Tensor) -> tuple[Tensor, Any, Tensor]:
    """The site's activations, S x C x D; what the block that feeds the site's block gives, or a `resid_post`'s own; the last hidden state."""
    own: list[Tensor] = []
    outputs: list[Any] = []
    with anatomy.capture([site], lambda _, x: own.append(x)):
        handle = anatomy.blocks[max(_last_known(site), 0)].register_forward_hook(lambda *now: outputs.append(now[-1]))
        try:
            hidden = _hidden(anatomy, tokens_SC)
        finally:
            handle.remove()
    return own[0], outputs[0], hidden


def _last_known(site: Site) -> int:
    """The last block that need not run again: it ends where the site is, or feeds the block that has it."""
    return site.layer if site.kind == "resid_post" else site.layer - 1


def _hidden(anatomy: Anatomy, tokens_SC: Tensor) -> Tensor:
    states: Tensor = anatomy.trunk(tokens_SC, use_cache=False).last_hidden_state
    return states


@contextmanager
def _resumed(anatomy: Anatomy, site: Site, below: Any, changed_SCD: Tensor) -> Iterator[None]:
    """While open, the site has other activations, and the blocks before it do not run: they give what is known of them."""
    blocks, last = list(anatomy.blocks), _last_known(site)
    try:
        for layer in range(last + 1):
            anatomy.blocks[layer] = _Known(blocks[layer], below)
        with anatomy.splice(site, lambda _: changed_SCD):
            yield
    finally:
        for layer in range(last + 1):
            anatomy.blocks[layer] = blocks[layer]


class _Known(nn.Module):
    """A block whose output is known. Of everything else it is that block, which a model may ask for its kind of attention."""

    def __init__(self, block: nn.Module, output: Any) -> None:
        super().__init__()
        # Past nn.Module, which would make the block a child.
        self.__dict__.update(block=block, output=output)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


def _predictions(
    anatomy: Anatomy, rows: dict[str, Tensor], targets_P: Tensor, tile: tuple[int, int], advance: Callable[[int], None]
) -> dict[str, Predictions]:
    """Of the last hidden state in each case, P x d_model; the first is the intact model's."""
    losses, divergences = [torch.zeros(len(rows), 0)], [torch.zeros(len(rows), 0)]
    for begin in range(0, len(targets_P), tile[0]):
        here = slice(begin, begin + tile[0])
        loss_KP, divergence_KP = _compared(anatomy, torch.stack([hidden[here] for hidden in rows.values()]), targets_P[here], tile[1])
        losses.append(loss_KP.cpu())
        divergences.append(divergence_KP.cpu())
        advance(loss_KP[1:].numel())
    return {name: Predictions(*pair) for name, *pair in zip(rows, torch.cat(losses, 1), torch.cat(divergences, 1), strict=True)}


def _compared(anatomy: Anatomy, hidden_KPD: Tensor, targets_P: Tensor, tokens_at_once: int) -> tuple[Tensor, Tensor]:
    """Losses and divergences of K cases, the intact one first: K x P both.

    The vocabulary is gone through once for all cases. What is kept of what was passed are sums relative to the highest logit so far: of e^z, which
    the normaliser is made of, and of e^a (a - z), with a the intact model's logits, which the divergence is made of. Every case is computed by
    itself, so that to the bit it makes no difference which others are beside it.
    """
    K, P, _ = hidden_KPD.shape
    highest_KP = hidden_KPD.new_full((K, P), float("-inf"), dtype=torch.float32)
    exponentials_KP, differences_KP, of_target_KP = (torch.zeros_like(highest_KP) for _ in range(3))
    for tokens in slices(anatomy.unembedding.weight.shape[0], tokens_at_once):
        here = (tokens.start <= targets_P) & (targets_P < tokens.stop)
        intact_PV = e_intact_PV = scale_intact_P = torch.zeros(0)
        for k, hidden_PD in enumerate(hidden_KPD):
            logits_PV = _logits(anatomy, hidden_PD, tokens)
            of_target_KP[k, here] = logits_PV[here, targets_P[here] - tokens.start]
            highest_P = torch.maximum(highest_KP[k], logits_PV.amax(-1))
            scale_P, e_PV = (highest_KP[k] - highest_P).exp(), (logits_PV - highest_P[:, None]).exp_()
            highest_KP[k], exponentials_KP[k] = highest_P, exponentials_KP[k] * scale_P + e_PV.sum(-1)
            if k == 0:
                intact_PV, e_intact_PV, scale_intact_P = logits_PV, e_PV, scale_P
            else:
                # The difference of the logits is taken first: it is small where the predictions are alike.
                difference_PV = torch.sub(intact_PV, logits_PV, out=logits_PV)
                differences_KP[k] = differences_KP[k] * scale_intact_P + (e_intact_PV[:, None] @ difference_PV[:, :, None])[:, 0, 0]
    normaliser_KP = highest_KP + exponentials_KP.log()
    divergence_KP = differences_KP / exponentials_KP[0] - (normaliser_KP[0] - normaliser_KP)
    return normaliser_KP - of_target_KP, divergence_KP


def _logits(anatomy: Anatomy, hidden_PD: Tensor, tokens: slice) -> Tensor:
    """Of some tokens, float32, as the model's own forward pass makes them."""
    head = anatomy.unembedding
    logits_PV = nn.functional.linear(hidden_PD, head.weight[tokens], None if head.bias is None else head.bias[tokens]).float()
    if anatomy.logit_scale != 1:
        logits_PV *= anatomy.logit_scale
    return logits_PV.div_(anatomy.softcap).tanh_().mul_(anatomy.softcap) if anatomy.softcap else logits_PV
