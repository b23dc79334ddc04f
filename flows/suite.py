"""Suite: harvest, then every site on its own, then the release. The parent of all runs."""

import logging

from prefect import flow
from prefect.states import Completed, Failed, State

from core.site import Site
from core.suite import Suite
from flows.harvest import harvest_flow
from flows.outcome import DAMAGED, outcome
from flows.release import release_flow
from flows.rolling import roll
from flows.site import site_flow
from storage.catalogue import Catalogue
from tasks.report import write_report

log = logging.getLogger(__name__)


@flow(name="suite", flow_run_name="suite {suite.name}")
def suite_flow(suite: Suite, store: str = "runs", only: str = "*") -> State:
    """Do what of the suite is missing. A failed site leaves the others running, and the suite Failed with its name."""
    failure = train_and_score(suite, store, only)
    if failure:
        return failure
    if only != "*":
        return Completed(message="Done; a release needs every site, so run without --only to make one")
    released = release_flow(suite, store, return_state=True)
    return released if released.is_completed() else Failed(message=f"release: {released.message}")


def train_and_score(suite: Suite, store: str, only: str) -> State | None:
    """Leave every dictionary of the sites scored, and a report; or give the Failed state that says what went wrong."""
    ended: dict[Site, State] = {}
    with outcome() as harvested:
        catalogue = Catalogue(suite, store, only)
        if catalogue.rolls:
            roll(catalogue, ended)
        else:
            state = harvest_flow(suite, store, only, return_state=True)
            if not state.is_completed():
                return Failed(message=f"harvest: {state.message}", name=state.name)
            for site in catalogue.sites:
                ended[site] = _site(suite, str(site), store)
    failed = [f"{site}: {state.message}" for site, state in ended.items() if not state.is_completed()]
    if harvested.reason:
        return Failed(message="\n".join([f"harvest: {harvested.reason}", *failed]), name=harvested.name)
    write_report(catalogue)
    return Failed(message="\n".join(failed)) if failed else None


def _site(suite: Suite, site: str, store: str) -> State:
    """How a site ends. Blocks that it finds damaged are harvested again, each once."""
    found: set[str] = set()
    while True:
        state = site_flow(suite, site, store, return_state=True)
        reason = state.message or ""
        if state.name != DAMAGED or reason in found:
            return state
        found.add(reason)
        log.warning("%s; harvesting it again", reason.partition("; run again")[0])
        harvest_flow(suite, store, site, return_state=True)
