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

Replacement = Callable[[Tensor], Tensor]
"""Rows B x D, float32, to rows of the same shape."""


@dataclass(frozen=True)
class Predictions:
    """What the model predicts of the tokens that count."""

    loss_P: Tensor
    """Cross-entropy of the token that comes, in nats, float32."""
    divergence_P: Tensor
    """KL divergence from the intact model's prediction to this, in nats, float32; zero for the intact model."""


@torch.inference_mode()
def spliced_predictions(
    anatomy: Anatomy, site: Site, replacements: Mapping[str, Replacement], tokens_SC: Tensor, is_text_SC: Tensor, at_once: int = 256
) -> tuple[Predictions, dict[str, Predictions]]:
    """The intact model's predictions, and those with each replacement in the site's place; at special tokens the site keeps its own.

    Args:
        tokens_SC: int64. is_text_SC: which are text, not special tokens; the predictions that count are those of text, P in all, in their order.
        at_once: positions whose logits are held at a time, for two replacements.
    """
    counts_SC = is_text_SC[:, 1:]
    targets_P = tokens_SC[:, 1:][counts_SC]
    own, below, hidden = _intact(anatomy, site, tokens_SC)

    def predicting(hidden: Tensor) -> Tensor:
        return hidden[:, :-1][counts_SC]

    rows = {"": predicting(hidden)}
    for name, replace in replacements.items():
        changed = own.clone()
        changed[is_text_SC] = replace(own[is_text_SC].float()).to(own.dtype)
        with _resumed(anatomy, below), anatomy.splice(site, lambda _, changed=changed: changed):
            rows[name] = predicting(_hidden(anatomy, tokens_SC))
    made = _predictions(anatomy.model, rows, targets_P, at_once)
    return made.pop(""), made


@dataclass(frozen=True)
class _Below:
    """The block below a site's, and what it gave."""

    layer: int
    output: Any


def _intact(anatomy: Anatomy, site: Site, tokens_SC: Tensor) -> tuple[Tensor, _Below, Tensor]:
    """The site's activations, S x C x D; what the block below it gives; the last hidden state."""
    own: list[Tensor] = []
    outputs: list[Any] = []
    below = site.layer - 1
    with anatomy.capture([site], lambda _, x: own.append(x)):
        handle = anatomy.blocks[max(below, 0)].register_forward_hook(lambda *now: outputs.append(now[-1]))
        try:
            hidden = _hidden(anatomy, tokens_SC)
        finally:
            handle.remove()
    return own[0], _Below(below, outputs[0]), hidden


def _hidden(anatomy: Anatomy, tokens_SC: Tensor) -> Tensor:
    states: Tensor = anatomy.trunk(tokens_SC, use_cache=False).last_hidden_state
    return states


@contextmanager
def _resumed(anatomy: Anatomy, below: _Below) -> Iterator[None]:
    """While open, the blocks up to `below` do not run: they give what it gave."""
    blocks = list(anatomy.blocks)
    try:
        for layer in range(below.layer + 1):
            anatomy.blocks[layer] = _Known(blocks[layer], below.output)
        yield
    finally:
        for layer in range(below.layer + 1):
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


def _predictions(model: Any, rows: dict[str, Tensor], targets_P: Tensor, at_once: int) -> dict[str, Predictions]:
    """Of the last hidden state in each case, P x d_model; the first is the intact model's."""
    none = torch.zeros(0)
    pieces = {name: [(none, none)] for name in rows}
    for begin in range(0, len(targets_P), at_once):
        here = slice(begin, begin + at_once)
        intact_PV: Tensor | None = None
        for name, hidden in rows.items():
            log_p_PV = _logits(model, hidden[here]).log_softmax(-1)
            intact_PV = log_p_PV if intact_PV is None else intact_PV
            divergence = nn.functional.kl_div(log_p_PV, intact_PV, log_target=True, reduction="none").sum(-1)
            pieces[name].append((nn.functional.nll_loss(log_p_PV, targets_P[here], reduction="none").cpu(), divergence.cpu()))
    return {name: Predictions(*(torch.cat(parts) for parts in zip(*of_case, strict=True))) for name, of_case in pieces.items()}


def _logits(model: Any, hidden: Tensor) -> Tensor:
    """float32, as the model's own forward pass makes them."""
    logits: Tensor = model.get_output_embeddings()(hidden).float()
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return softcap * torch.tanh(logits / softcap) if softcap else logits
