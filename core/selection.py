"""Selection: which dictionaries of a suite are released, and which of a site and width stands for the others."""

from collections.abc import Iterable
from typing import Any

from core.spec import DictionarySpec
from core.suite import Rules


def off_target(spec: DictionarySpec, card: dict[str, Any]) -> float:
    """How far the measured L0 is off its target, as a share of it; zero where there is none."""
    return abs(card["l0"] / spec.target_l0 - 1) if spec.target_l0 is not None else 0.0


def broken_rule(rules: Rules, spec: DictionarySpec, card: dict[str, Any]) -> str | None:
    """Why a dictionary is not released, by its scorecard; None where it is."""
    if rules.l0_within is not None and not off_target(spec, card) <= rules.l0_within:
        return f"its L0 is {card['l0']:.1f}; within {rules.l0_within:.0%} of the target of {spec.target_l0:g} was asked for"
    limits = {
        "share of dead latents": (card["dead"], rules.max_dead),
        "share of dense latents": (card["dense"]["0.1"], rules.max_dense),
        "FVU": (card["fvu"], rules.max_fvu),
        "delta loss": (card["loss"]["delta"], rules.max_delta_loss),
    }
    for what, (value, limit) in limits.items():
        if limit is not None and not value <= limit:  # what is not a number keeps no rule
            return f"its {what} is {value:.3g}; at most {limit:g} was asked for"
    return None


def canonical(scored: Iterable[tuple[DictionarySpec, dict[str, Any]]], l0: float) -> set[DictionarySpec]:
    """Of each site and width the one whose L0 is nearest (of two as near the sparser). JumpReLU dictionaries go before others, as GS's all are."""
    nearest: dict[Any, tuple[Any, DictionarySpec]] = {}
    for spec, card in scored:
        place = (spec.site, spec.width)
        rank = (spec.architecture != "jumprelu", abs(card["l0"] - l0), card["l0"], spec.name)
        if place not in nearest or rank < nearest[place][0]:
            nearest[place] = rank, spec
    return {spec for _, spec in nearest.values()}
