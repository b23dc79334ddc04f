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


def destination(catalogue: Catalogue, to: str | None) -> tuple[Path, Store | None]:
    """The folder that a release is made in, and the bucket that it is then put into, if that is where it is to lie."""
    place = to or catalogue.store.where(f"{catalogue.suite.name}/release")
    if "://" not in place:
        return Path(place), None
    bucket = Store(place)
    return bucket.local("release"), bucket


@flow(name="release", flow_run_name="release {suite.name}")
def release_flow(suite: Suite, store: str = "runs", to: str | None = None) -> State:
    """Leave a verified release of the suite, beside its report or in the folder or bucket `to`."""
    with outcome() as result:
        catalogue = Catalogue(suite, store)
        folder, bucket = destination(catalogue, to)
        package_release(catalogue, folder)
        list(verify_release(folder))
        if bucket:
            publish(folder, bucket)
    return result.state
