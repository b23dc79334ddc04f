"""Release: package what is finished, verify it, and publish it where that is asked for."""

import logging
from pathlib import Path

from prefect import flow
from prefect.states import State

from core.errors import ConfigError
from core.suite import Suite
from flows.outcome import outcome
from storage import publishing
from storage.catalogue import Catalogue
from storage.objects import Store
from tasks.release import package_release

log = logging.getLogger(__name__)


def _staging(catalogue: Catalogue, place: str) -> Path:
    """The folder that a release is made in: the place itself if it is one, else the one it would be without a word of places, or a cache's."""
    if not publishing.is_elsewhere(place):
        return Path(place)
    if place.startswith(publishing.HUB):
        return catalogue.store.local(f"{catalogue.suite.name}/release")
    return Store(place).local("release")


@flow(name="release", flow_run_name="release {suite.name}")
def release_flow(suite: Suite, store: str = "runs", to: str | None = None, dry_run: bool = False) -> State:
    """Leave a verified release of the suite, beside its report or in the folder, bucket or hub's repository `to`.

    Args:
        dry_run: whether it is only made and verified, and told what would be sent.
    """
    with outcome() as result:
        catalogue = Catalogue(suite, store)
        place = to or catalogue.store.where(f"{suite.name}/release")
        if dry_run and not publishing.is_elsewhere(place):
            raise ConfigError(f"--dry-run is for a bucket or the hub, and --to is {place!r}; expected such a place; leave it out for a folder")
        folder = _staging(catalogue, place)
        package_release(catalogue, folder)
        if publishing.is_elsewhere(place):
            if dry_run:
                log.info("%s: %s", place, publishing.changes(folder, place))
            else:
                for line in publishing.publish(folder, place, f"{suite.release.title or suite.name}, by Jumpsuite"):
                    log.info("%s: %s", place, line)
    return result.state
