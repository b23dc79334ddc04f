"""Splices: what a model predicts with something else in a site's place, for many replacements at once.

Delta loss is Gemma Scope's (arXiv:2408.05147, section 4.1): the increase of the loss when a reconstruction is spliced in. For all replacements of a
site, the blocks below it run once; only those above run again for each. Logits are made a few positions at a time, for vocabularies are large, and
those of the intact model once.

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

LOGITS_AT_ONCE = 2**27
"""Half a gigabyte, four times over while they are worked with: enough for the product to be at its quickest."""

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
    at_once: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Predictions, dict[str, Predictions]]:
    """The intact model's predictions, and those with each replacement in the site's place; at special tokens the site keeps its own.

    Args:
        tokens_SC: int64. is_text_SC: which are text, not special tokens; the predictions that count are those of `predicted`.
        at_once: positions whose logits are held at a time, of the intact model and of one replacement; by default LOGITS_AT_ONCE over V.
        advance: told how many predictions of a replacement were made, time after time.
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
    made = _predictions(anatomy, rows, targets_P, at_once or max(1, LOGITS_AT_ONCE // anatomy.unembedding.weight.shape[0]), advance)
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
    anatomy: Anatomy, rows: dict[str, Tensor], targets_P: Tensor, at_once: int, advance: Callable[[int], None]
) -> dict[str, Predictions]:
    """Of the last hidden state in each case, P x d_model; the first is the intact model's."""
    none = torch.zeros(0)
    pieces = {name: [(none, none)] for name in rows}
    intact, *others = rows
    for begin in range(0, len(targets_P), at_once):
        here = slice(begin, begin + at_once)
        target_P1 = targets_P[here, None]
        intact_PV = _logits(anatomy, rows[intact][here])
        normaliser_P = intact_PV.logsumexp(-1)
        loss_P = normaliser_P - intact_PV.gather(1, target_P1)[:, 0]
        pieces[intact].append((loss_P.cpu(), torch.zeros(len(loss_P))))
        p_PV = (intact_PV - normaliser_P[:, None]).exp_()
        for name in others:
            logits_PV = _logits(anatomy, rows[name][here])
            its_P = logits_PV.logsumexp(-1)
            loss_P = its_P - logits_PV.gather(1, target_P1)[:, 0]
            # sum p (log p - log q). The difference of the logits is taken first: it is small where the predictions are alike.
            divergence_P = (p_PV[:, None] @ torch.sub(intact_PV, logits_PV, out=logits_PV)[:, :, None])[:, 0, 0] - (normaliser_P - its_P)
            pieces[name].append((loss_P.cpu(), divergence_P.cpu()))
            advance(len(loss_P))
    return {name: Predictions(*(torch.cat(parts) for parts in zip(*of_case, strict=True))) for name, of_case in pieces.items()}


def _logits(anatomy: Anatomy, hidden: Tensor) -> Tensor:
    """float32, as the model's own forward pass makes them."""
    logits: Tensor = anatomy.unembedding(hidden).float()
    softcap = anatomy.softcap
    return softcap * torch.tanh(logits / softcap) if softcap else logits
