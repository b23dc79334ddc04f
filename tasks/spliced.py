"""Spliced: what a model predicts of held-out text with each dictionary of a site in the site's place."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.anatomy import Anatomy, device_of
from core.bootstrap import interval
from core.dictionary import Dictionary
from core.packing import SpecialTokens, is_text
from core.positions import Positions, doubling
from core.site import Site
from core.splice import Replacement, predicted, spliced_predictions
from core.uniformity import effects, uniformity
from storage.catalogue import Catalogue
from tasks.progress import Progress
from tasks.resources import borrowed_anatomy

UNIFORMITY = (8, 64, 8)
"""Sequences, the length of their beginnings, and rows of each whose latents' effects are measured: each row takes a pass back of its own."""


class Spliced:
    """Measures the first held-out sequences, once for all dictionaries of a site.

    A dictionary stands in for all text, also for rows whose norm training left out. Losses are in nats a predicted token.
    """

    def __init__(self, catalogue: Catalogue, site: Site, dictionaries: dict[str, Dictionary]) -> None:
        suite, harvest = catalogue.suite, catalogue.harvest
        description, device = harvest.description, device_of(suite.device)
        assert description is not None
        special = SpecialTokens(description["bos_token"], tuple(description["excluded_tokens"]))
        first = harvest.part("held_out").first_tokens(suite.evaluation.loss_sequences)
        tokens_SC, is_text_SC = torch.from_numpy(first).long().to(device), torch.from_numpy(is_text(first, special)).to(device)
        # The mean of the first window of training, which stays what it is when a harvest grows.
        mean_D = torch.from_numpy(harvest.part("train").moments(site, suite.window(0)).mean).float().to(device)
        replacements: dict[str, Replacement] = {"zero": torch.zeros_like, "mean": lambda x: mean_D.expand_as(x)}
        for name, dictionary in dictionaries.items():
            replacements[name] = dictionary.reconstruct
        total = len(replacements) * len(predicted(is_text_SC))
        with borrowed_anatomy(catalogue) as anatomy, Progress(f"evaluate {site}", total, "predictions") as progress:
            batches = []
            for tokens, text in zip(*(torch.split(each, suite.harvest.batch_sequences) for each in (tokens_SC, is_text_SC)), strict=True):
                intact, others = spliced_predictions(anatomy, site, replacements, tokens, text, advance=progress.advance)
                batches.append({"intact": intact, **others})
            x_RD, gradient_RD = _effects(anatomy, site, tokens_SC, is_text_SC)
        self._loss = {name: torch.cat([batch[name].loss_P for batch in batches]).double().numpy() for name in batches[0]}
        self._divergence = {name: torch.cat([batch[name].divergence_P for batch in batches]).double().numpy() for name in batches[0]}
        self._uniformity = {name: uniformity(dictionary, x_RD, gradient_RD).cpu().numpy() for name, dictionary in dictionaries.items()}
        self._where = Positions(*predicted(is_text_SC).T.cpu().numpy())
        self._begins = doubling(tokens_SC.shape[1])

    def scores(self, name: str) -> dict[str, Any]:
        """What a dictionary changes, and as its scale what the site's mean, and zeros, would."""
        intact = self._loss["intact"]
        delta, divergence = self._loss[name] - intact, self._divergence[name]
        return {
            "sequences": len(np.unique(self._where.sequence_E)),
            "predictions": len(intact),
            "intact": float(intact.mean()),
            "delta": float(delta.mean()),
            "delta_interval": self._where.interval(delta),
            "delta_zero": float((self._loss["zero"] - intact).mean()),
            "delta_mean": float((self._loss["mean"] - intact).mean()),
            "divergence": float(divergence.mean()),
            "divergence_interval": self._where.interval(divergence),
            "divergence_zero": float(self._divergence["zero"].mean()),
            "divergence_mean": float(self._divergence["mean"].mean()),
            "by_position": {"begins": self._begins, "delta": self._where.means(self._begins, delta)},
        }

    def uniformity(self, name: str) -> dict[str, Any]:
        """How evenly a row's active latents share their effect on the next token, over rows on which some has one."""
        values = self._uniformity[name]
        known = {"mean": float(values.mean()), "interval": list(interval(values))} if len(values) else {"mean": None, "interval": None}
        return {"rows": len(values), **known}


def _effects(anatomy: Anatomy, site: Site, tokens_SC: Tensor, is_text_SC: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the site at text tokens drawn at random, and the gradients there (`core.uniformity.effects`)."""
    S, C, R = UNIFORMITY
    tokens_SC, can_be_SC = tokens_SC[:S, :C], is_text_SC[:S, : C - 1] & is_text_SC[:S, 1:C]
    enough_S = can_be_SC.sum(1) >= R
    if not enough_S.any():
        return (torch.zeros(0, anatomy.shape.width_of(site), device=tokens_SC.device),) * 2
    drawn_SC = torch.rand(can_be_SC.shape, generator=torch.Generator().manual_seed(0)).to(tokens_SC.device).masked_fill(~can_be_SC, -1)
    return effects(anatomy, site, tokens_SC[enough_S], drawn_SC[enough_S].topk(R, dim=1).indices)
