"""Explain: what the latents of a suite's dictionaries mean, site by site."""

from prefect import flow
from prefect.states import Completed, Failed, State

from core.suite import Suite
from flows.outcome import MISCONFIGURED, outcome
from flows.slots import own_gpus
from storage.catalogue import Catalogue
from tasks.asking import asking
from tasks.explain import explain_site, need_trained


@flow(name="explain", flow_run_name="explain {suite.name}")
def explain_flow(suite: Suite, store: str = "runs", only: str = "*") -> State:
    """Leave the latents of every site explained and scored. A site that fails leaves the others to go on, and the flow Failed with its name."""
    failed = []
    with outcome() as result, own_gpus():
        catalogue = Catalogue(suite, store, only)
        with asking(catalogue) as asker:
            for site in catalogue.sites:
                with outcome() as of_site, catalogue.store.lock(f"explanations/{site}"):
                    need_trained(catalogue, site)
                    explain_site(catalogue, site, asker)
                if of_site.name == MISCONFIGURED:
                    return of_site.state
                if of_site.reason:
                    failed.append(f"{site}: {of_site.reason}")
    if result.reason:
        return result.state
    return Failed(message="\n".join(failed)) if failed else Completed()
