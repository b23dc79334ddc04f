"""Release: package what is finished, and verify it."""

from pathlib import Path

from prefect import flow
from prefect.states import State

from core.suite import Suite
from flows.outcome import outcome
from storage.catalogue import Catalogue
from tasks.release import package_release
from tasks.verify import verify_release


@flow(name="release", flow_run_name="release {suite.name}")
def release_flow(suite: Suite, store: str = "runs", to: str | None = None) -> State:
    """Leave a verified release of the suite, beside its report or in the folder `to`."""
    with outcome() as result:
        catalogue = Catalogue(suite, store)
        folder = Path(to) if to else catalogue.folder_of_suite / "release"
        package_release(catalogue, folder)
        list(verify_release(folder))
    return result.state
