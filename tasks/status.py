"""Status: where each site and dictionary of a suite stands, read from the store alone."""

from core.site import Site
from core.spec import DictionarySpec
from storage.catalogue import Catalogue


def describe(catalogue: Catalogue) -> tuple[str, bool]:
    """A line for the harvest and each dictionary, and whether all of them are done."""
    lines, complete = [f"harvest  {_harvest(catalogue)}"], True
    for site, specs in catalogue.sites.items():
        for spec in specs:
            text, done = _dictionary(catalogue, site, spec)
            complete &= done
            lines.append(f"{site!s:<16} {spec.name:<24} {text}")
    return "\n".join(lines), complete


def is_complete(catalogue: Catalogue, site: Site) -> bool:
    """Whether every dictionary of a site is trained and scored, and explained where the suite says so."""
    return all(_dictionary(catalogue, site, spec)[1] for spec in catalogue.sites[site])


def harvested_blocks(catalogue: Catalogue) -> tuple[int, int] | None:
    """How many blocks have the suite's sites, and of how many; None before there are tokens."""
    if not catalogue.harvest.has_tokens:
        return None
    parts = [catalogue.harvest.part("train"), catalogue.harvest.part("held_out")]
    total = sum(part.num_blocks for part in parts)
    return total - sum(len(part.missing(list(catalogue.sites))) for part in parts), total


def _harvest(catalogue: Catalogue) -> str:
    blocks = harvested_blocks(catalogue)
    if not blocks:
        return "absent"
    done, total = blocks
    if catalogue.rolls:
        return f"rolls, {done} of {total} blocks are here now"
    return f"done, {total} blocks" if done == total else f"running, {done} of {total} blocks"


def _dictionary(catalogue: Catalogue, site: Site, spec: DictionarySpec) -> tuple[str, bool]:
    folder = catalogue.folder(spec)
    if scorecard := folder.scorecard(catalogue.scorecard_key(spec)):
        scores = f"L0 {scorecard['l0']:.1f}  FVU {scorecard['fvu']:.3f}  delta loss {scorecard['loss']['delta']:.3f}  dead {scorecard['dead']:.1%}"
        if not catalogue.suite.explanations:
            return f"done     {scores}", True
        if summary := catalogue.explanations(spec).summary():
            return f"done     {scores}  explained {summary['trained']['explained']:,}", True
        reason = catalogue.failure(site)
        return (f"failed   {reason}" if reason else f"scored   {scores}  not yet explained"), False
    if folder.failure:
        return f"failed   {folder.failure}", False
    if reason := catalogue.failure(site):
        return f"failed   {reason}", False
    if folder.done:
        return "trained  not yet scored", False
    steps = catalogue.suite.training.num_steps(spec.tokens)
    return (f"running  checkpoint at step {folder.progress:,} of {steps:,}" if folder.progress else "absent"), False
