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


def grown(suite: Suite, store: str, only: str) -> Catalogue:
    """The catalogue of a suite, after what is new of a text that grows has been read."""
    catalogue = Catalogue(suite, store, only)
    if not catalogue.grows:
        return catalogue
    grow(catalogue)
    return Catalogue(suite, store, only)


@flow(name="harvest", flow_run_name="harvest {suite.name}")
def harvest_flow(suite: Suite, store: str = "runs", only: str = "*") -> State:
    """Leave the suite's harvest complete in the store. Runs that make the same one share its blocks."""
    with outcome() as result, own_gpus():
        catalogue = grown(suite, store, only)
        if catalogue.rolls:
            raise ConfigError(
                f"harvest.quota is {suite.harvest.quota:,} bytes, less than the whole harvest; expected training beside it, which removes what it "
                "has used; use jumpsuite run, or leave harvest.quota out"
            )
        tokenise(catalogue)
        harvest_blocks(catalogue)
    return result.state
