"""Evaluate: a scorecard for every finished dictionary of a site, on text that training never saw."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from core.anatomy import device_of
from core.dictionary import Dictionary
from core.fidelity import FREQUENCY_EDGES, InBfloat16, row_fidelity
from core.positions import Positions, doubling
from core.site import Site
from core.spec import DictionarySpec
from core.statistics import Moments
from storage.catalogue import Catalogue
from storage.harvest import Part
from tasks.provenance import code
from tasks.spliced import Spliced
from tasks.train import moments_of, rows_within

SAMPLE_ROWS = 512
"""Held-out rows a site whose fidelity is noted apart, and which a release carries, so that anyone can verify it without the model."""
SAMPLE_SEQUENCES = 4
"""Held-out sequences whose delta loss is noted apart, and which a release carries, so that anyone with the model can verify it."""
DENSE = (0.01, 0.1)
"""Latents that fire on more than that share of the rows are counted as dense."""


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
    dictionaries = {spec.name: catalogue.folder(spec).load() for spec in waiting}
    inputs = catalogue.folder(waiting[0]).facts["inputs"]
    measured = measure(catalogue, site, dictionaries, inputs["norm_limit"])
    for spec, (_, scores) in zip(waiting, measured, strict=True):
        folder = catalogue.folder(spec)
        of = {"spec": spec.identity(), "dictionary": folder.key, "trained_by": folder.facts["code"], "inputs": inputs}
        folder.save_scorecard(catalogue.scorecard_key(spec), of | scores)


def measure(catalogue: Catalogue, site: Site, dictionaries: dict[str, Dictionary], limit: float | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The scores of dictionaries of a site, one after another.

    Args:
        limit: the norm above which rows do not count, as in training.
    """
    device, spliced = device_of(catalogue.suite.device), Spliced(catalogue, site, dictionaries)
    for name, dictionary in dictionaries.items():
        yield (
            name,
            {
                "harvest": catalogue.harvest.key,
                "code": code(),
                **row_scores(catalogue, site, dictionary.to(device), limit),
                "uniformity": spliced.uniformity(name),
                "loss": spliced.scores(name, SAMPLE_SEQUENCES),
            },
        )


def sample_rows(part: Part, site: Site, limit: float | None) -> Tensor:
    """The first held-out rows of a site within the norm limit, SAMPLE_ROWS x D, float32."""
    kept = rows_within(part, site, limit)
    sample = np.zeros_like(kept)
    sample[np.flatnonzero(kept)[:SAMPLE_ROWS]] = True
    return torch.cat(list(part.batches(site, sample))).float()


def row_scores(catalogue: Catalogue, site: Site, dictionary: Dictionary, limit: float | None) -> dict[str, Any]:
    """What the held-out rows tell of a dictionary.

    Args:
        limit: the norm above which rows do not count, as in training.
    """
    part, begins = catalogue.harvest.part("held_out"), doubling(catalogue.suite.text.context)
    valid, kept, every = part.valid(), rows_within(part, site, limit), part.moments(site)
    within = moments_of(part, site, kept, every)
    scored = row_fidelity(dictionary, part.batches(site, kept), within.mean)
    error = float(scored.error_B.sum(dtype=np.float64))
    if within.rows < every.rows:
        error += float(row_fidelity(dictionary, part.batches(site, valid & ~kept), every.mean).error_B.sum(dtype=np.float64))
    where = Positions(*np.concatenate([part.rows(block) for block in part.blocks])[kept[valid]].T)
    sample = sample_rows(part, site, limit)
    in_float32, in_bfloat16 = (_of_sample(each, sample) for each in (dictionary, InBfloat16.of(dictionary)))
    return {
        "rows": scored.rows,
        "rows_left_out": every.rows - scored.rows,
        "l0": scored.l0,
        "l0_interval": where.interval(scored.l0_B),
        "fvu": scored.fvu,
        "fvu_interval": where.interval(scored.error_B, scored.deviation_B),
        "fvu_by_position": {"begins": begins, "fvu": where.means(begins, scored.error_B, scored.deviation_B)},
        "fvu_all_rows": error / (every.rows * every.variance),
        "cosine": scored.cosine,
        "relative_norm": scored.relative_norm,
        "relative_bias": scored.relative_bias,
        "dead": scored.dead,
        "dense": {str(frequency): scored.dense(frequency) for frequency in DENSE},
        "frequency_histogram": {"log10_edges": list(FREQUENCY_EDGES), "latents": scored.frequency_histogram()},
        "sample": in_float32,
        "sample_in_bfloat16": in_bfloat16,
    }


def _of_sample(dictionary: Dictionary, rows: Tensor) -> dict[str, Any]:
    scored = row_fidelity(dictionary, [rows], Moments.of(rows).mean)
    return {"rows": scored.rows, "l0": scored.l0, "fvu": scored.fvu}


def scorecards(catalogue: Catalogue) -> Iterator[tuple[DictionarySpec, dict[str, Any]]]:
    """Every scorecard of the suite that is there, in order of sites."""
    for spec in itertools.chain.from_iterable(catalogue.sites.values()):
        if scorecard := catalogue.folder(spec).scorecard(catalogue.scorecard_key(spec)):
            yield spec, scorecard
