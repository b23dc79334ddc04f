"""Evaluate: a scorecard for every finished dictionary of a site, on text that training never saw."""

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from core.anatomy import device_of
from core.dictionary import Dictionary
from core.fidelity import FREQUENCY_EDGES, row_fidelity, spliced_loss
from core.packing import SpecialTokens, is_text
from core.site import Site
from core.spec import DictionarySpec
from storage.catalogue import Catalogue
from storage.harvest import Part
from tasks.progress import Progress
from tasks.provenance import code
from tasks.resources import borrowed_anatomy
from tasks.train import rows_within

log = logging.getLogger(__name__)

SAMPLE_ROWS = 512
"""Held-out rows a site whose fidelity is noted apart, and which a release carries, so that anyone can verify it without the model."""


@task(task_run_name="evaluate {site}", cache_policy=NO_CACHE)
def evaluate_site(catalogue: Catalogue, site: Site) -> None:
    """Leave a scorecard for every finished dictionary of the site; do nothing for those that have one."""
    waiting = [
        spec
        for spec in catalogue.sites[site]
        if catalogue.folder(spec).done and catalogue.folder(spec).scorecard(catalogue.scorecard_key(spec)) is None
    ]
    if not waiting:
        return
    part, sequences = catalogue.harvest.part("held_out"), catalogue.suite.evaluation.loss_sequences
    conditions = 3 + len(waiting)
    with Progress(f"evaluate {site}", conditions * sequences * part.first_tokens(1).size, "tokens") as progress:
        losses = Losses(catalogue, site, progress)
        intact, deleted, mean = losses.intact(), losses.with_zero(), losses.with_mean()
        for spec in waiting:
            folder = catalogue.folder(spec)
            dictionary, inputs = folder.load().to(device_of(catalogue.suite.device)), folder.facts["inputs"]
            scorecard = {
                "spec": spec.identity(),
                "dictionary": folder.key,
                "harvest": catalogue.harvest.key,
                "code": code(),
                "trained_by": folder.facts["code"],
                "inputs": inputs,
                **_row_scores(part, site, dictionary, inputs["norm_limit"]),
                "loss": _loss_scores(intact, losses.with_dictionary(dictionary), deleted, mean),
            }
            folder.save_scorecard(catalogue.scorecard_key(spec), scorecard)


class Losses:
    """Language-model losses of held-out sequences while something is done to a site; those without a dictionary are kept."""

    def __init__(self, catalogue: Catalogue, site: Site, progress: Progress) -> None:
        self._catalogue = catalogue
        self._site = site
        self._progress = progress
        description = catalogue.harvest.description
        assert description is not None
        special = SpecialTokens(description["bos_token"], tuple(description["excluded_tokens"]))
        tokens = catalogue.harvest.part("held_out").first_tokens(catalogue.suite.evaluation.loss_sequences)
        device = device_of(catalogue.suite.device)
        self._tokens = torch.from_numpy(tokens).long().to(device)
        self._is_text = torch.from_numpy(is_text(tokens, special)).to(device)

    def intact(self) -> Tensor:
        return self._kept("intact", lambda: self._measure(None))

    def with_zero(self) -> Tensor:
        """The site deleted: zeros in its place."""
        return self._kept(f"zero-{self._site}", lambda: self._measure(torch.zeros_like))

    def with_mean(self) -> Tensor:
        """The site's mean over the first window of training in its place."""
        first = self._catalogue.suite.window(0)
        mean = torch.from_numpy(self._catalogue.harvest.part("train").moments(self._site, first).mean).float().to(self._tokens.device)
        # Named by the window: a harvest that grows has a larger one, and its mean is another.
        return self._kept(f"mean-{self._site}-of-{len(first)}", lambda: self._measure(lambda x: mean.expand_as(x)))

    def with_dictionary(self, dictionary: Dictionary) -> Tensor:
        """The dictionary's reconstruction in its place, also of rows whose norm training left out."""
        return self._measure(lambda x: dictionary.decode(dictionary.encode(x)))

    def _measure(self, replacement: Callable[[Tensor], Tensor] | None) -> Tensor:
        batch, losses = self._catalogue.suite.harvest.batch_sequences, []
        with borrowed_anatomy(self._catalogue) as anatomy:
            for tokens, text in zip(torch.split(self._tokens, batch), torch.split(self._is_text, batch), strict=True):
                losses.append(spliced_loss(anatomy, self._site, replacement, tokens, text))
                self._progress.advance(tokens.numel())
        return torch.cat(losses)

    def _kept(self, name: str, measure: Callable[[], Tensor]) -> Tensor:
        harvest, name = self._catalogue.harvest, f"{name}-{len(self._tokens)}"
        known = harvest.losses(name)
        if known is None:
            known = [float(loss) for loss in measure()]
            harvest.save_losses(name, known)
        else:
            self._progress.advance(self._tokens.numel())
        return torch.tensor(known, dtype=torch.float64)


def sample_rows(part: Part, site: Site, limit: float | None) -> Tensor:
    """The first held-out rows of a site within the norm limit, SAMPLE_ROWS x D, float32."""
    kept = rows_within(part, site, limit)
    sample = np.zeros_like(kept)
    sample[np.flatnonzero(kept)[:SAMPLE_ROWS]] = True
    return torch.cat(list(part.batches(site, sample))).float()


def _row_scores(part: Part, site: Site, dictionary: Dictionary, limit: float | None) -> dict[str, Any]:
    valid, kept = part.valid(), rows_within(part, site, limit)
    scored, everything = row_fidelity(dictionary, part.batches(site, kept)), None
    if not np.array_equal(kept, valid):
        everything = row_fidelity(dictionary, part.batches(site, valid))
    sample = row_fidelity(dictionary, [sample_rows(part, site, limit)])
    return {
        "rows": scored.rows,
        "rows_left_out": int(valid.sum()) - scored.rows,
        "l0": scored.l0,
        "fvu": scored.fvu,
        "fvu_all_rows": (everything or scored).fvu,
        "dead": scored.dead,
        "frequency_histogram": {"log10_edges": list(FREQUENCY_EDGES), "latents": scored.frequency_histogram()},
        "sample": {"rows": sample.rows, "l0": sample.l0, "fvu": sample.fvu},
    }


def _loss_scores(intact: Tensor, spliced: Tensor, zero: Tensor, mean: Tensor) -> dict[str, Any]:
    delta = spliced - intact
    error = float(delta.std() / len(delta) ** 0.5) if len(delta) > 1 else None
    return {
        "sequences": len(intact),
        "intact": float(intact.mean()),
        "delta": float(delta.mean()),
        "delta_standard_error": error,
        "delta_zero": float((zero - intact).mean()),
        "delta_mean": float((mean - intact).mean()),
    }


def scorecards(catalogue: Catalogue) -> Iterator[tuple[DictionarySpec, dict[str, Any]]]:
    """Every scorecard of the suite that is there, in order of sites."""
    for spec in itertools.chain.from_iterable(catalogue.sites.values()):
        if scorecard := catalogue.folder(spec).scorecard(catalogue.scorecard_key(spec)):
            yield spec, scorecard
