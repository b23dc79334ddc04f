"""Suite: harvest, then every site on its own, then the release. The parent of all runs."""

import logging

from prefect import flow
from prefect.states import Completed, Failed, State

from core.site import Site
from core.suite import Suite
from flows.children import Children, InProcess
from flows.harvest import grown
from flows.outcome import DAMAGED, outcome
from flows.rolling import roll
from flows.workers import OnWorkers, on_workers
from storage.catalogue import Catalogue
from tasks.artifacts import show_suite
from tasks.browse import write_pages
from tasks.report import write_report

log = logging.getLogger(__name__)


@flow(name="suite", flow_run_name="suite {suite.name}")
def suite_flow(suite: Suite, store: str = "runs", only: str = "*") -> State:
    """Do what of the suite is missing. A failed site leaves the others running, and the suite Failed with its name.

    Args:
        suite: the fields of a suite file.
        store: folder or bucket of all that a run makes.
        only: a glob over sites, such as 'L09.*'. A release needs every site, so with some of them none is made.
    """
    failure = train_and_score(suite, store, only)
    if failure:
        return failure
    if only != "*":
        return Completed(message="Done; a release needs every site, so run without --only to make one")
    with outcome() as result:
        released = children_of(Catalogue(suite, store)).release()
        if not released.is_completed():
            return Failed(message=f"release: {released.message}", name=released.name)
    return result.state


def train_and_score(suite: Suite, store: str, only: str) -> State | None:
    """Leave every dictionary of the sites scored, and explained where the suite says so, and a report; or give the Failed state that says what
    went wrong."""
    ended: dict[Site, State] = {}
    with outcome() as result:
        catalogue = grown(suite, store, only)
        if catalogue.rolls:
            roll(catalogue, ended)
        else:
            children = children_of(catalogue)
            harvested = children.harvest(only)
            if not harvested.is_completed():
                return Failed(message=f"harvest: {harvested.message}", name=harvested.name)
            _sites(catalogue, children, ended)
    failed = [f"{site}: {state.message}" for site, state in ended.items() if not state.is_completed()]
    if result.reason:
        return Failed(message="\n".join([result.reason, *failed]), name=result.name)
    with outcome() as reported:
        show_suite(catalogue, write_report(catalogue), failed)
        if catalogue.suite.explanations:
            write_pages(catalogue)
    failed += [f"report: {reported.reason}"] if reported.reason else []
    return Failed(message="\n".join(failed)) if failed else None


def children_of(catalogue: Catalogue) -> Children:
    return OnWorkers(catalogue) if on_workers() and not catalogue.rolls else InProcess(catalogue)


def _sites(catalogue: Catalogue, children: Children, ended: dict[Site, State]) -> None:
    """Note how each site ends. Blocks that one finds damaged are harvested again, each once."""
    waiting, found = list(catalogue.sites), set[str]()
    while waiting:
        ended |= children.sites(waiting)
        damaged = {site: str(ended[site].message) for site in waiting if site in ended and ended[site].name == DAMAGED}
        waiting = [site for site, reason in damaged.items() if reason not in found]
        found |= set(damaged.values())
        for site in waiting:
            log.warning("%s; harvesting it again", damaged[site].partition("; run again")[0])
            children.harvest(str(site))
