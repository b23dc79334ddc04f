"""Harvest: text to tokens to the activations of every site."""

from prefect import flow
from prefect.states import State

from core.errors import ConfigError
from core.suite import Suite
from flows.outcome import outcome
from flows.slots import own_gpus
from storage.catalogue import Catalogue
from tasks.harvest import harvest_blocks
from tasks.tokenise import grow, tokenise


@flow(name="harvest", flow_run_name="harvest {suite.name}")
def harvest_flow(suite: Suite, store: str = "runs", only: str = "*") -> State:
    """Leave the suite's harvest complete in the store. Runs that make the same one share its blocks."""
    with outcome() as result, own_gpus():
        catalogue = Catalogue(suite, store, only)
        if catalogue.grows:
            grow(catalogue)
            catalogue = Catalogue(suite, store, only)
        if catalogue.rolls:
            raise ConfigError(
                f"harvest.quota is {suite.harvest.quota:,} bytes, less than the whole harvest; expected training beside it, which removes what it "
                "has used; use jumpsuite run, or leave harvest.quota out"
            )
        tokenise(catalogue)
        harvest_blocks(catalogue)
    return result.state
