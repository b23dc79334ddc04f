"""Meaning: of a study's architectures, whose latents are well simulated from their explanations (arXiv:2407.14435, section 5.4)."""

import math
from collections.abc import Iterator

import numpy as np

from core.odds import odds_ratios
from core.ratings import wilson
from storage.catalogue import Catalogue
from tasks.explain import WELL_SIMULATED
from tasks.tables import Scored


def sentences(catalogue: Catalogue, scored: Scored) -> Iterator[str]:
    """What the explanations say of the architectures; nothing where none is explained."""
    architecture, site, width = list[str](), list[str](), list[str]()
    log_l0, well = list[float](), list[bool]()
    for spec, card in scored:
        explanations = catalogue.explanations(spec)
        if not explanations.summary():
            continue
        for row in explanations.explained("trained"):
            if row["pearson"] is not None:
                architecture.append(spec.architecture)
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
    for other, odds in odds_ratios(happened, architecture, "jumprelu", controls).items():
        verdict = "level with" if odds.low <= 1 <= odds.high else "above" if odds.ratio > 1 else "below"
        yield (
            f"JumpReLU's odds of a well simulated latent are {odds.ratio:.2f} times {other}'s (95% {odds.low:.2f}–{odds.high:.2f}: {verdict} it), "
            "by logistic regression with site, width and log L0 as controls."
        )
