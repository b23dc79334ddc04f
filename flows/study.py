"""Study: harvest, then every site on its own, then the comparison of its architectures."""

from prefect import flow
from prefect.states import Completed, State

from core.suite import Suite
from flows.suite import train_and_score
from storage.catalogue import Catalogue
from tasks.study import write_study


@flow(name="study", flow_run_name="study {suite.name}")
def study_flow(suite: Suite, store: str = "runs", only: str = "*") -> State:
    """Do what of the suite is missing, and write down what it says of its architectures. Nothing is released."""
    failure = train_and_score(suite, store, only)
    if failure:
        return failure
    found = write_study(Catalogue(suite, store, only))
    return Completed(message="\n".join(found.sentences) if found else "nothing is scored")
