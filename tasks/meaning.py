"""Meaning: of a study's architectures, whose latents are well simulated from their explanations (arXiv:2407.14435, section 5.4)."""

import math
from collections.abc import Iterator

import numpy as np

from core.odds import odds_ratios
from core.ratings import wilson
from storage.catalogue import Catalogue
from tasks.explain import WELL_SIMULATED
from tasks.tables import Scored

ENOUGH = 10
"""Dictionaries of an architecture from which the interval of its odds is to be believed."""


def sentences(catalogue: Catalogue, scored: Scored) -> Iterator[str]:
    """What the explanations say of the architectures; nothing where none is explained."""
    architecture, site, width = list[str](), list[str](), list[str]()
    dictionary, log_l0, well = list[str](), list[float](), list[bool]()
    for spec, card in scored:
        explanations = catalogue.explanations(spec)
        if not explanations.summary():
            continue
        for row in explanations.explained("trained"):
            if row["pearson"] is not None:
                architecture.append(spec.architecture)
                dictionary.append(str(spec))
                site.append(str(spec.site))
                width.append(str(spec.width))
                log_l0.append(math.log(max(card["l0"], 1e-9)))
                well.append(row["pearson"] > WELL_SIMULATED)
    if not well:
        return
    happened = np.array(well)
    shares = []
    for name in dict.fromkeys(architecture):
        own = happened[np.equal(architecture, name)]
        low, high = wilson(int(own.sum()), len(own))
        shares.append(f"{name} {own.mean():.1%} ({low:.1%}–{high:.1%} of {len(own):,})")
    yield f"Latents simulated with a correlation above {WELL_SIMULATED:g}: {', '.join(shares)}."
    controls: dict[str, list[str] | list[float]] = {"site": site, "width": width, "log L0": log_l0}
    of_each = {name: len({one for one, whose in zip(dictionary, architecture, strict=True) if whose == name}) for name in set(architecture)}
    for other, odds in odds_ratios(happened, architecture, "jumprelu", controls, dictionary).items():
        least = min(of_each["jumprelu"], of_each[other])
        verdict = "level with it" if odds.low <= 1 <= odds.high else "above it" if odds.ratio > 1 else "below it"
        if least < ENOUGH:
            verdict = f"too narrow, for of one there are {least} dictionaries"
        yield (
            f"JumpReLU's odds of a well simulated latent are {odds.ratio:.2f} times {other}'s (95% {odds.low:.2f}–{odds.high:.2f}: {verdict}), "
            "by logistic regression with site, width and log L0 as controls, in clusters of dictionaries."
        )
