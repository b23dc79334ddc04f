"""Harvest: text to tokens to the activations of every site."""

from prefect import flow
from prefect.states import State

from core.suite import Suite
from flows.outcome import outcome
from storage.catalogue import Catalogue
from tasks.harvest import harvest_blocks
from tasks.tokenise import tokenise


@flow(name="harvest", flow_run_name="harvest {suite.name}")
def harvest_flow(suite: Suite, store: str = "runs", only: str = "*") -> State:
    """Leave the suite's harvest complete in the store. Runs that make the same one share its blocks."""
    with outcome() as result:
        catalogue = Catalogue(suite, store, only)
        tokenise(catalogue)
        harvest_blocks(catalogue)
    return result.state
