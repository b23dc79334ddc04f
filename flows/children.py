"""Where a suite's child flows run: in its own process, or on workers, each as a run of its own deployment."""

from typing import Protocol

from prefect.states import State

from core.site import Site
from flows.harvest import harvest_flow
from flows.release import release_flow
from flows.site import site_flow
from storage.catalogue import Catalogue


class Children(Protocol):
    """The child flows of one suite in one store; each method gives how they ended."""

    def harvest(self, only: str) -> State: ...

    def sites(self, sites: list[Site]) -> dict[Site, State]: ...

    def release(self) -> State: ...


class InProcess:
    """One after another, here."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.suite, self.store = catalogue.suite, catalogue.store.address

    def harvest(self, only: str) -> State:
        return harvest_flow(self.suite, self.store, only, return_state=True)

    def sites(self, sites: list[Site]) -> dict[Site, State]:
        return {site: site_flow(self.suite, str(site), self.store, return_state=True) for site in sites}

    def release(self) -> State:
        return release_flow(self.suite, self.store, return_state=True)
