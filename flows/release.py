"""Release: package what is finished, and verify it."""

from pathlib import Path

from prefect import flow
from prefect.states import State

from core.suite import Suite
from flows.outcome import outcome
from storage.catalogue import Catalogue
from storage.objects import Store
from storage.release import publish
from tasks.release import package_release
from tasks.verify import verify_release


def destination(catalogue: Catalogue, to: str | None) -> tuple[Path, tuple[Store, str] | None]:
    """The folder that a release is made in, and where in a bucket it is then put, if that is where it is to lie."""
    if to is None:
        name = f"{catalogue.suite.name}/release"
        return catalogue.store.local(name), None if catalogue.store.is_folder else (catalogue.store, name)
    if "://" not in to:
        return Path(to), None
    base, _, name = to.rstrip("/").rpartition("/")
    store = Store(base)
    return store.local(name), (store, name)


@flow(name="release", flow_run_name="release {suite.name}")
def release_flow(suite: Suite, store: str = "runs", to: str | None = None) -> State:
    """Leave a verified release of the suite, beside its report or in the folder or bucket `to`."""
    with outcome() as result:
        catalogue = Catalogue(suite, store)
        folder, upload = destination(catalogue, to)
        package_release(catalogue, folder)
        list(verify_release(folder))
        if upload:
            publish(folder, *upload)
    return result.state
