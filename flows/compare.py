"""Compare: other people's dictionaries, site by site, by the evaluation of a suite."""

from pathlib import Path

from prefect import flow
from prefect.states import Completed, State

from core.suite import Suite
from flows.outcome import outcome
from storage.catalogue import Catalogue
from tasks.compare import by_site, compare_site, compared
from tasks.tables import grid


@flow(name="compare", flow_run_name="compare {suite.name}")
def compare_flow(suite: Suite, folder: Path, store: str = "runs", only: str = "*") -> State:
    """Measure the dictionaries below a folder that belong to the suite's sites. The state's message is the table."""
    with outcome() as result:
        catalogue = Catalogue(suite, store, only)
        theirs = {site: compare_site(catalogue, site, found) for site, found in by_site(catalogue, folder).items()}
        result.state = Completed(message=grid(compared(catalogue, theirs)))
    return result.state
