"""Release: the suite's finished dictionaries, packaged for other people's libraries."""

import logging
from pathlib import Path
from typing import Any

import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE

from core.errors import JumpsuiteError
from core.key import key_of
from storage import release
from storage.catalogue import Catalogue
from storage.release import ReleasedDictionary
from tasks.card import model_card
from tasks.evaluate import sample_rows, scorecards
from tasks.provenance import code
from tasks.report import picture
from tasks.tables import Scored, parquet

log = logging.getLogger(__name__)

FORMAT = 1
"""Raise when the same scorecards would now make another release."""


@task(task_run_name="release {catalogue.suite.name}", cache_policy=NO_CACHE)
def package_release(catalogue: Catalogue, folder: Path) -> None:
    """Leave the suite's release in a folder; do nothing if the same one is there.

    Raises:
        JumpsuiteError: a dictionary of the suite is not finished and scored.
    """
    suite, scored = catalogue.suite, list(scorecards(catalogue))
    lacking = {spec for specs in catalogue.sites.values() for spec in specs} - {spec for spec, _ in scored}
    if lacking:
        raise JumpsuiteError(f"{min(lacking)} is not finished and scored; expected every dictionary of the suite; run the suite first")
    key = key_of(FORMAT, suite.model_dump(), [card["dictionary"] for _, card in scored], [card["code"] for _, card in scored], code())
    if release.is_current(folder, key):
        return
    anatomy, description = catalogue.source.skeleton, catalogue.harvest.description
    assert description is not None
    hooks = {str(site): anatomy.path(site) for site in catalogue.sites}
    released = _released(catalogue, scored, description, hooks)
    with release.staged(folder) as stage:
        cards = release.write_dictionaries(stage, released)
        for site, specs in catalogue.sites.items():
            limit = catalogue.folder(specs[0]).facts["inputs"]["norm_limit"]
            release.write_sample(stage, site, sample_rows(catalogue.harvest.part("held_out"), site, limit))
        text = model_card(suite, [(spec, card) for (spec, _), card in zip(scored, cards, strict=True)], description, hooks)
        release.write_file(stage, "README.md", text.encode())
        release.write_file(stage, "suite.yaml", yaml.safe_dump(suite.model_dump(), sort_keys=False).encode())
        release.write_file(stage, "metrics.parquet", parquet(scored))
        release.write_file(stage, "pareto.png", picture(scored, suite.release.title or suite.name))
        release.write_file(stage, release.KEY, key.encode())


def _released(catalogue: Catalogue, scored: Scored, description: dict[str, Any], hooks: dict[str, str]) -> list[ReleasedDictionary]:
    suite = catalogue.suite
    return [
        ReleasedDictionary(
            spec,
            catalogue.folder(spec).load(),
            card,
            {
                "model_name": suite.model.source,
                "model_revision": suite.model.revision,
                "hf_hook_point": hooks[str(spec.site)],
                "dataset_path": suite.text.source,
                "text_fingerprint": description["token_fingerprint"],
                "context_size": suite.text.context,
                "seed": spec.seed,
                "jumpsuite_dictionary": card["dictionary"],
                "jumpsuite_commit": card["code"]["commit"],
            },
        )
        for spec, card in scored
    ]
