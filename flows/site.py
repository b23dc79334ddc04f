"""Site: train every dictionary of one site, score it, and explain its latents where the suite says so.

Its own flow, so that one site can be retried alone.
"""

from prefect import flow
from prefect.states import State

from core.site import Site
from core.suite import Suite
from flows.outcome import outcome
from flows.slots import own_gpus
from storage.catalogue import Catalogue
from tasks.artifacts import show_scorecards
from tasks.asking import asking
from tasks.evaluate import evaluate_site, scorecards
from tasks.explain import explain_site, to_explain
from tasks.train import train_site


@flow(name="site", flow_run_name="site {site}")
def site_flow(suite: Suite, site: str, store: str = "runs", until: int | None = None) -> State:
    """Leave one site's dictionaries trained, scored and explained. When one falls sick the others are scored all the same.

    Args:
        until: of a rolling harvest, the turn after which to leave off.
    """
    with outcome() as result, own_gpus():
        catalogue, where = Catalogue(suite, store, only=site), Site.parse(site)
        with catalogue.store.lock(f"dictionaries/{where}"):
            catalogue.set_failure(where, None)
            trained = train_site(catalogue, where, until, return_state=True)
            evaluate_site(catalogue, where)
            show_scorecards(catalogue, where, list(scorecards(catalogue)))
            trained.result()
            if to_explain(catalogue, where):
                with asking(catalogue) as asker, catalogue.store.lock(f"explanations/{where}"):
                    explain_site(catalogue, where, asker)
    if result.reason:
        Catalogue(suite, store, only=site).set_failure(Site.parse(site), result.reason)
    return result.state
