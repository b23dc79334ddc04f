"""Rating: a page on which people say of latents whether they mean something, not knowing whose they are; and what their answers come to.

The page has latents of all explained dictionaries, and of random directions beside them, shuffled, each under a name that tells nothing. Which name
is whose is kept in the store, apart from the pages (`SUITE/rating.json`).
"""

import json
from collections import defaultdict
from typing import Any

import numpy as np

from core.errors import ConfigError
from core.key import key_of
from core.ratings import ANSWERS, agreement, wilson
from storage.catalogue import Catalogue
from storage.explanations import ExplanationFolder
from tasks.tables import grid

RATED = 20
"""Latents of each dictionary."""


def chosen_latents(explanations: ExplanationFolder, subject: str, seed: int) -> list[int]:
    """Some of the latents that were drawn to be explained."""
    latents = [row["latent"] for row in explanations.explained(subject)]
    return sorted(np.random.default_rng(seed).permutation(latents)[:RATED].tolist())


def name_of(explanations: ExplanationFolder, subject: str, latent: int) -> str:
    """A name that tells nothing of whose latent it is; names are in no order of latents, so to sort by them is to shuffle."""
    return key_of("rating", explanations.prefix, subject, latent)


def save_owners(catalogue: Catalogue, owners: dict[str, tuple[str, str]]) -> None:
    """Keep whose latents the names are: a dictionary, and whether it is the trained one or its control."""
    catalogue.store.put_record(_key(catalogue), {"owners": {name: list(owner) for name, owner in owners.items()}})


def _key(catalogue: Catalogue) -> str:
    return f"{catalogue.suite.name}/rating.json"


def joined(catalogue: Catalogue, files: dict[str, str]) -> str:
    """What people's answers come to: the shares for each dictionary and its control, and how far they agree.

    Args:
        files: what the page exported, by name.

    Raises:
        ConfigError: no page was written, or a file is not of it.
    """
    record = catalogue.store.get_record(_key(catalogue))
    if record is None:
        raise ConfigError(
            f"{catalogue.suite.name} has no rating page; expected one that jumpsuite report wrote; run jumpsuite explain and report first"
        )
    owners = {name: (str(dictionary), str(subject)) for name, (dictionary, subject) in record["owners"].items()}
    by_item: dict[str, list[int]] = defaultdict(list)
    for file, text in files.items():
        for name, answer in _ratings(file, text, owners).items():
            by_item[name].append(ANSWERS.index(answer))
    by_owner: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name, answers in by_item.items():
        by_owner[owners[name]] += answers
    lines: list[tuple[str, ...]] = [("dictionary", "latents of", "answers", "yes", "95%", "maybe", "no")]
    for dictionary, subject in dict.fromkeys(owners.values()):
        answers = by_owner[dictionary, subject]
        if answers:
            yes, maybe, no = (answers.count(ANSWERS.index(answer)) for answer in ("yes", "maybe", "no"))
            low, high = wilson(yes, len(answers))
            shares = [f"{100 * times / len(answers):.0f}%" for times in (yes, maybe, no)]
            whose = "the dictionary" if subject == "trained" else "random directions"
            lines.append((dictionary, whose, str(len(answers)), shares[0], f"{100 * low:.0f}–{100 * high:.0f}%", *shares[1:]))
    alpha = agreement(by_item.values())
    agreed = (
        f"Raters' agreement (Krippendorff's alpha, ordinal): {alpha:.2f}." if alpha is not None else "No two raters answered differently of the same."
    )
    return f"{grid(lines)}\n\n{len(files)} raters, {len(by_item)} of {len(owners)} latents. {agreed}"


def _ratings(file: str, text: str, owners: dict[str, Any]) -> dict[str, str]:
    try:
        ratings = json.loads(text)["ratings"]
        fits = all(answer in ANSWERS for answer in ratings.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"{file} is not what the rating page exports; expected its JSON; export it again") from None
    if not fits:
        raise ConfigError(f"{file} has answers other than {', '.join(ANSWERS)}; expected those alone; export it again")
    if unknown := [name for name in ratings if name not in owners]:
        raise ConfigError(
            f"{file} rates {unknown[0]}, which is not on this suite's page; expected ratings of the page as it is now; see which suite it is of"
        )
    return dict(ratings)
