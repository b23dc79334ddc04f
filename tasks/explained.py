"""Explained: what `tasks/explain.py` found, for a terminal."""

from typing import Any

from core.spec import DictionarySpec
from storage.catalogue import Catalogue
from tasks.tables import grid

COLUMNS = ("site", "dictionary", "explained", "simulation", "control", "> 0.9 %", "control", "detection", "control", "fuzzing", "control")
_LEGEND = (
    "Of latents drawn at random among those that fire often enough, explained by half of the held-out text and scored on the other: the mean.\n"
    "Simulation: correlation of predicted with true activations (± half of the 95% interval); > 0.9: the share of latents with more.\n"
    "Detection, fuzzing: how often it tells a context, or a token, that fires from one that does not; 0.5 is chance.\n"
    "Control: the same of random directions, as many and as sparse. "
)
EXAMPLES = 3


def table(catalogue: Catalogue) -> str:
    """A line a dictionary that is explained; nothing where there is none."""
    lines = [_line(spec, summary) for spec, summary in _summaries(catalogue)]
    return grid([COLUMNS, *lines]) if lines else ""


def legend(catalogue: Catalogue) -> str:
    """What the table says, and who explained."""
    endpoint = catalogue.suite.explaining.endpoint
    by = f"Explained and judged by {endpoint.model}." if endpoint else "Explanations are rules about tokens; no language model was asked."
    return f"{_LEGEND}{by}"


def _summaries(catalogue: Catalogue) -> list[tuple[DictionarySpec, dict[str, Any]]]:
    found = [(spec, catalogue.explanations(spec).summary()) for specs in catalogue.sites.values() for spec in specs]
    return [(spec, summary) for spec, summary in found if summary]


def _line(spec: DictionarySpec, summary: dict[str, Any]) -> tuple[str, ...]:
    both = [summary["trained"], summary.get("control")]
    explained = f"{both[0]['explained']:,} of {both[0]['able']:,}"
    return (
        str(spec.site),
        spec.name,
        explained,
        *(_score(subject, "pearson", with_interval=True) for subject in both),
        *(f"{100 * subject['well_simulated']:.0f}" if subject and subject["well_simulated"] is not None else "–" for subject in both),
        *(_score(subject, score) for score in ("detection", "fuzzing") for subject in both),
    )


def _score(subject: dict[str, Any] | None, name: str, with_interval: bool = False) -> str:
    score = subject[name] if subject else None
    if not score:
        return "–"
    return f"{score['mean']:.2f}" + (f" ± {(score['high'] - score['low']) / 2:.2f}" if with_interval else "")


def examples(catalogue: Catalogue) -> str:
    """A few explanations of each dictionary; not the best ones."""
    lines = []
    for spec, _ in _summaries(catalogue):
        lines.append(str(spec))
        rows = [row for row in catalogue.explanations(spec).explained("trained") if row["explanation"]]
        for row in rows[:: max(1, len(rows) // EXAMPLES)][:EXAMPLES]:
            said = row["explanation"] if len(row["explanation"]) <= 120 else f"{row['explanation'][:119]}…"
            score = "–" if row["pearson"] is None else f"{row['pearson']:.2f}"
            lines.append(f"  {row['latent']:>7}  {score:>5}  {said}")
    return "\n".join(lines)
