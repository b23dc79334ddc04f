"""Spliced: what a model predicts of held-out text with each dictionary of a site in the site's place."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.anatomy import Anatomy, device_of
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
            # On the device while it is used: all of a site's may be more than it holds beside the model.
            replacements[name] = partial(_stand_in, dictionary)
        total = len(replacements) * len(predicted(is_text_SC))
        with borrowed_anatomy(catalogue) as anatomy, Progress(f"evaluate {site}", total, "predictions") as progress:
            batches = []
            for tokens, text in zip(*(torch.split(each, suite.harvest.batch_sequences) for each in (tokens_SC, is_text_SC)), strict=True):
                intact, others = spliced_predictions(anatomy, site, replacements, tokens, text, advance=progress.advance)
                batches.append({"intact": intact, **others})
            sequence_R, x_RD, gradient_RD = _effects(anatomy, site, tokens_SC, is_text_SC)
        self._loss = {name: torch.cat([batch[name].loss_P for batch in batches]).double().numpy() for name in batches[0]}
        self._divergence = {name: torch.cat([batch[name].divergence_P for batch in batches]).double().numpy() for name in batches[0]}
        self._uniformity = {name: uniformity(one.to(device), x_RD, gradient_RD).cpu().numpy() for name, one in dictionaries.items()}
        self._of_rows = sequence_R.cpu().numpy()
        self._where = Positions(*predicted(is_text_SC).T.cpu().numpy())
        self._begins = doubling(tokens_SC.shape[1])

    def scores(self, name: str, sample: int) -> dict[str, Any]:
        """What a dictionary changes, and as its scale what the site's mean, and zeros, would.

        Args:
            sample: sequences from the first on, of which it is noted apart.
        """
        intact = self._loss["intact"]
        delta, divergence = self._loss[name] - intact, self._divergence[name]
        of_sample = delta[self._where.sequence_E < sample]
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
            "sample": {"predictions": len(of_sample), "delta": float(of_sample.mean()) if len(of_sample) else None},
            "by_position": {"begins": self._begins, "delta": self._where.means(self._begins, delta)},
        }

    def uniformity(self, name: str) -> dict[str, Any]:
        """How evenly a row's active latents share their effect on the next token, over rows on which some has one."""
        some = np.isfinite(self._uniformity[name])
        values, where = self._uniformity[name][some], Positions(self._of_rows[some], self._of_rows[some])
        return {"rows": len(values), "mean": float(values.mean()) if len(values) else None, "interval": where.interval(values)}


def _stand_in(dictionary: Dictionary, x_BD: Tensor) -> Tensor:
    return dictionary.to(x_BD.device).reconstruct(x_BD)


def _effects(anatomy: Anatomy, site: Site, tokens_SC: Tensor, is_text_SC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the site at text tokens drawn at random: of which sequences, the rows, and the gradients there (`core.uniformity.effects`)."""
    S, C = UNIFORMITY[0], min(UNIFORMITY[1], tokens_SC.shape[1])
    R = max(1, min(UNIFORMITY[2], C // 4))
    tokens_SC, can_be_SC = tokens_SC[:S, :C], is_text_SC[:S, : C - 1] & is_text_SC[:S, 1:C]
    sequence_S = (can_be_SC.sum(1) >= R).nonzero()[:, 0]
    if not len(sequence_S):
        nothing = torch.zeros(0, anatomy.shape.width_of(site), device=tokens_SC.device)
        return sequence_S, nothing, nothing
    drawn_SC = torch.rand(can_be_SC.shape, generator=torch.Generator().manual_seed(0)).to(tokens_SC.device).masked_fill(~can_be_SC, -1)
    return sequence_S.repeat(R), *effects(anatomy, site, tokens_SC[sequence_S], drawn_SC[sequence_S].topk(R, dim=1).indices)
