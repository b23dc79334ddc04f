"""Release: the suite's finished dictionaries, packaged for other people's libraries."""

import logging
from pathlib import Path
from typing import Any

import torch
import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE

from core.errors import JumpsuiteError
from core.key import key_of
from core.packing import SpecialTokens, is_text
from core.selection import broken_rule, canonical
from core.spec import DictionarySpec
from storage import release
from storage.catalogue import Catalogue
from storage.formats.released import ReleasedDictionary
from tasks.card import Card
from tasks.evaluate import SAMPLE_SEQUENCES, sample_rows, scorecards
from tasks.provenance import code, provenance
from tasks.report import picture
from tasks.tables import Scored, parquet
from tasks.verify import verify_dictionaries

log = logging.getLogger(__name__)

FORMAT = 2
"""Raise when the same scorecards would now make another release."""


@task(task_run_name="release {catalogue.suite.name}", cache_policy=NO_CACHE)
def package_release(catalogue: Catalogue, folder: Path) -> None:
    """Leave the suite's release in a folder, verified before it takes the place of an older one; if the same one is there, verify that.

    Raises:
        JumpsuiteError: a dictionary of the suite is not finished and scored, and may not be missing; or none keeps the rules.
    """
    suite, everything = catalogue.suite, list(scorecards(catalogue))
    left_out = _left_out(catalogue, everything)
    scored = [(spec, card) for spec, card in everything if spec not in left_out]
    if not scored:
        raise JumpsuiteError(f"release.rules are kept by none of {len(everything)} dictionaries; expected one; loosen the rules, or train longer")
    measured = [(card["dictionary"], card["code"]) for _, card in everything]
    key = key_of(FORMAT, suite.model_dump(), measured, sorted(map(str, left_out)), code())
    if release.is_current(folder, key):  # which has read every checksum
        verify_dictionaries(folder)
        return
    anatomy, description = catalogue.source.skeleton, catalogue.harvest.description
    assert description is not None
    hooks = {site: anatomy.path(site) for site in catalogue.sites}
    chosen, cards = canonical(scored, suite.release.canonical_l0), []
    with release.staged(folder) as stage:
        for spec, card in scored:
            one = _released(catalogue, spec, card, description, hooks[spec.site])
            places = release.write_dictionary(stage, one, list(suite.release.formats), spec in chosen)
            found = {"name": spec.name, "formats": places, "canonical": spec in chosen, "weights": release.digests(one.dictionary, places)}
            card = card | found
            release.write_scorecard(stage, spec, card)
            cards.append((spec, card))
        for site in dict.fromkeys(spec.site for spec, _ in scored):
            limit = catalogue.folder(catalogue.sites[site][0]).facts["inputs"]["norm_limit"]
            release.write_sample(stage, site, sample_rows(catalogue.harvest.part("held_out"), site, limit))
        _write_sequences(stage, catalogue, description)
        text = Card(suite, cards, left_out, description, {str(site): hook for site, hook in hooks.items()}).markdown()
        release.write_file(stage, "README.md", text.encode())
        release.write_file(stage, "suite.yaml", yaml.safe_dump(suite.model_dump(), sort_keys=False).encode())
        release.write_file(stage, "metrics.parquet", parquet(everything, left_out))
        release.write_file(stage, "pareto.png", picture(scored, suite.release.title or suite.name))
        release.write_file(stage, release.PROVENANCE, provenance(catalogue, scored, description))
        release.write_file(stage, release.KEY, key.encode())
        verify_dictionaries(stage)
    if left_out:
        log.info("%s of %s dictionaries are released; the card says why the others are not", len(scored), len(scored) + len(left_out))


def _left_out(catalogue: Catalogue, everything: Scored) -> dict[DictionarySpec, str]:
    """Why dictionaries of the suite are not released."""
    rules, known = catalogue.suite.release.rules, dict(everything)
    left_out = {}
    for spec in (spec for specs in catalogue.sites.values() for spec in specs):
        if spec not in known:
            if not rules.unfinished:
                raise JumpsuiteError(
                    f"{spec} is not finished and scored; expected every dictionary of the suite; run the suite first, or set "
                    "release.rules.unfinished=true to release the others"
                )
            left_out[spec] = catalogue.folder(spec).failure or catalogue.failure(spec.site) or "it is not finished and scored"
        elif reason := broken_rule(rules, spec, known[spec]):
            left_out[spec] = reason
    return left_out


def _write_sequences(stage: Path, catalogue: Catalogue, description: dict[str, Any]) -> None:
    """The held-out sequences on which a release's delta losses can be measured again."""
    number = min(SAMPLE_SEQUENCES, catalogue.suite.evaluation.loss_sequences)
    tokens = catalogue.harvest.part("held_out").first_tokens(number)
    text = is_text(tokens, SpecialTokens(description["bos_token"], tuple(description["excluded_tokens"])))
    release.write_sequences(stage, torch.from_numpy(tokens), torch.from_numpy(text))


def _released(catalogue: Catalogue, spec: DictionarySpec, card: dict[str, Any], description: dict[str, Any], hook: str) -> ReleasedDictionary:
    suite = catalogue.suite
    metadata = {
        "model_revision": suite.model.revision,
        "hf_hook_point": hook,
        "dataset_path": suite.text.source,
        "text_fingerprint": description["token_fingerprint"],
        "seed": spec.seed,
        "jumpsuite_dictionary": card["dictionary"],
        "jumpsuite_commit": card["code"]["commit"],
    }
    return ReleasedDictionary(spec, catalogue.folder(spec).load(), card["l0"], suite.base_model, hook, suite.text.context, metadata)
