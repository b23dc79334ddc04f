"""Child flows on workers: each is a run of its own deployment, which can be watched, cancelled and retried alone.

The suite starts them, and waits for all to end. A run of the same that is on its way already, as when the suite itself was killed and
started again, is waited for instead. One that crashed is given time to be taken up again, which an automation of the server sees to.
"""

import time
from collections.abc import Hashable
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter, FlowRunFilterId, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as OfType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelling, Completed, State
from prefect.types._datetime import now

from core.errors import ConfigError
from core.site import Site
from storage.catalogue import Catalogue
from tasks.status import harvested_blocks, is_complete

LOOK_SECONDS = 2.0
PATIENCE = timedelta(seconds=150)
"""A run that crashed and is not taken up again in this time has ended."""
PAGE = 200
"""Runs that the server gives at once."""
ON_THE_WAY = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CRASHED]
"""Or, when it crashed just now, soon again."""

K = TypeVar("K", bound=Hashable)


def on_workers() -> bool:
    """Whether this flow run was started by a worker, so that its children are to be as well."""
    return deployment.id is not None


class OnWorkers:
    """The children of a suite's run through the deployments `harvest`, `site` and `release`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.common = {"suite": catalogue.suite.model_dump(mode="json"), "store": catalogue.store.address}

    def harvest(self, only: str) -> State:
        blocks = harvested_blocks(self.catalogue)
        if blocks and blocks[0] == blocks[1]:
            return Completed()
        return self._run("harvest", {only: f"harvest {self.catalogue.suite.name}"}, "only")[only]

    def sites(self, sites: list[Site]) -> dict[Site, State]:
        wanted = {site: f"site {site}" for site in sites if not is_complete(self.catalogue, site)}
        return self._run("site", wanted, "site")

    def release(self) -> State:
        return self._run("release", {None: f"release {self.catalogue.suite.name}"}, "to")[None]

    def _run(self, name: str, wanted: dict[K, str], parameter: str) -> dict[K, State]:
        """Run a deployment once for each key, whose value names the run, and which is given as the parameter."""
        with get_client(sync_client=True) as client:
            found, runs = _on_the_way(client, name), {}
            for key, run_name in wanted.items():
                parameters = self.common | {parameter: key and str(key)}
                runs[key] = _same(found, parameters) or self._start(name, parameters, run_name)
            return _wait(client, {key: run.id for key, run in runs.items()})

    def _start(self, name: str, parameters: dict[str, Any], run_name: str) -> FlowRun:
        run = run_deployment(f"{name}/{name}", parameters=parameters, flow_run_name=run_name, timeout=0, tags=[self.catalogue.suite.name])
        assert isinstance(run, FlowRun)  # a coroutine is given where one awaits
        return run


def _on_the_way(client: SyncPrefectClient, name: str) -> list[FlowRun]:
    """Runs of a deployment that have not ended.

    Raises:
        ConfigError: there is no such deployment.
    """
    try:
        wanted = client.read_deployment_by_name(f"{name}/{name}")
    except ObjectNotFound:
        raise ConfigError(f"the Prefect server has no deployment {name}/{name}; expected those of Jumpsuite; run jumpsuite deploy") from None
    of, unfinished = DeploymentFilter(id=DeploymentFilterId(any_=[wanted.id])), FlowRunFilter(state=FlowRunFilterState(type=OfType(any_=ON_THE_WAY)))
    runs: list[FlowRun] = []
    while len(page := client.read_flow_runs(deployment_filter=of, flow_run_filter=unfinished, limit=PAGE, offset=len(runs))):
        runs += page
    return [run for run in runs if run.state and not _has_ended(run.state)]


def _same(runs: list[FlowRun], parameters: dict[str, Any]) -> FlowRun | None:
    return next((run for run in runs if parameters.items() <= run.parameters.items()), None)


def _wait(client: SyncPrefectClient, ids: dict[K, UUID]) -> dict[K, State]:
    """The states in which all of the runs have ended. When this flow's run is cancelled, so are they."""
    try:
        while True:
            runs = {run.id: run for run in _read(client, list(ids.values()))}
            states = {key: run.state for key, identity in ids.items() if (run := runs.get(identity)) and run.state}
            if len(states) == len(ids) and all(map(_has_ended, states.values())):
                return states
            time.sleep(LOOK_SECONDS)
    except BaseException:
        me = client.read_flow_run(UUID(flow_run.id)) if flow_run.id else None
        if me and me.state and me.state.is_cancelling():
            for run in _read(client, list(ids.values())):
                if run.state and not run.state.is_final():
                    client.set_flow_run_state(run.id, Cancelling(message="its suite was cancelled"))
        raise


def _read(client: SyncPrefectClient, ids: list[UUID]) -> list[FlowRun]:
    pages = [ids[first : first + PAGE] for first in range(0, len(ids), PAGE)]
    return [run for page in pages for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=page)), limit=PAGE)]


def _has_ended(state: State) -> bool:
    return state.is_final() and not (state.is_crashed() and now("UTC") - state.timestamp < PATIENCE)
