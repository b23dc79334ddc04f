"""Suites on workers: a real Prefect server on PostgreSQL, real workers, and the bytes that a run in one process leaves."""

import itertools
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from command import jumpsuite, results, write_suite
from conftest import tiny_documents, tiny_fields, write_tiny_model
from prefect_server import Postgres, PrefectServer, Worker
from test_growing import DAY, add, trained

SITES = [f"L{layer:02d}.{kind}" for layer in (0, 1) for kind in ("resid_post", "mlp_out")]
SLOTS = ("gpu-0", "gpu-1")


@dataclass
class Cluster:
    server: PrefectServer
    workers: dict[str, Worker]

    def __call__(self, *arguments: str | Path) -> str:
        """What a command says that works with this server."""
        done = jumpsuite(*arguments, PREFECT_API_URL=self.server.address)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    def client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.server.address)

    def start(self, deployment: str, **parameters: Any) -> Any:
        """A run of a deployment, as of one who presses Run in the UI; gives its identity."""
        with self.client() as client:
            there = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(there.id, parameters=parameters).id

    def run(self, identity: Any) -> Any:
        with self.client() as client:
            return client.read_flow_run(identity)

    def runs(self, store: Path, flow: str) -> list[Any]:
        """All runs of a flow in a store, in the order in which they began."""
        from prefect.client.schemas.filters import FlowFilter, FlowFilterName

        with self.client() as client:
            found = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))
        here = [run for run in found if run.parameters.get("store") == str(store)]
        return sorted(here, key=lambda run: run.start_time or run.expected_start_time)

    def log(self, identity: Any) -> str:
        """What a run's page shows of its log."""
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

        with self.client() as client:
            return "\n".join(line.message for line in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[identity]))))

    def ended(self, identity: Any) -> Any:
        """A run's state when it has ended."""
        until(lambda: self.run(identity).state.is_final())
        return self.run(identity).state


def until(true: Callable[[], bool], minutes: float = 15) -> None:
    for _ in range(int(minutes * 60)):
        if true():
            return
        time.sleep(1)
    raise TimeoutError(f"not so after {minutes} minutes")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server, a worker for suites, and one for each of two slots."""
    folder = tmp_path_factory.mktemp("cluster")
    postgres = Postgres()
    server = PrefectServer(folder / "home", PREFECT_API_DATABASE_CONNECTION_URL=postgres.address)
    server.start()
    cluster = Cluster(server, {})
    cluster("deploy", "--store", folder / "runs")  # a pool is there before its worker would make one of its own kind
    cluster.workers["light"] = Worker(server, "jumpsuite", "light")
    for name in SLOTS:
        cluster.workers[name] = Worker(server, "jumpsuite-gpu", name, limit=1)
    yield cluster
    for worker in cluster.workers.values():
        worker.kill()
    server.stop()
    postgres.stop()


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = tiny_fields(tiny_model, tiny_text)
    fields["harvest"]["block_sequences"] = 64
    fields["sites"]["kinds"] = ["resid_post", "mlp_out"]
    fields["explanations"] = {"latents": 6, "least_contexts": 3}
    return write_suite(fields, tmp_path_factory)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the suite leaves when it is run in one process."""
    store = tmp_path_factory.mktemp("alone") / "runs"
    cluster("run", suite_file, "--store", store)
    return results(store)


@pytest.fixture(scope="module")
def deployed(cluster: Cluster, suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A store in which the suite was run by its own deployment, and the state in which that ended."""
    store = tmp_path_factory.mktemp("deployed") / "runs"
    assert "suite/tiny" in cluster("deploy", suite_file, "--store", store).splitlines()
    return store, cluster.ended(cluster.start("suite/tiny"))


def test_a_deployed_suite_ends_in_a_verified_release_of_the_same_bytes(deployed: tuple[Path, Any], undisturbed: dict[str, str]) -> None:
    store, state = deployed
    assert state.is_completed(), state.message
    assert results(store) == undisturbed
    assert jumpsuite("verify", store / "tiny/release").returncode == 0


def test_every_site_is_a_run_of_its_own_named_by_what_it_does(deployed: tuple[Path, Any], cluster: Cluster) -> None:
    sites = cluster.runs(deployed[0], "site")
    assert sorted(run.name for run in sites) == sorted(f"site {site}" for site in SITES)
    assert all(run.deployment_id and {"jumpsuite", "tiny"} <= set(run.tags) for run in sites)
    assert [run.name for run in cluster.runs(deployed[0], "harvest")] == ["harvest tiny"]
    assert [run.name for run in cluster.runs(deployed[0], "release")] == ["release tiny"]


def test_a_slot_has_one_site_at_a_time(deployed: tuple[Path, Any], cluster: Cluster) -> None:
    _assert_one_at_a_time(cluster.runs(deployed[0], "site"))


def _assert_one_at_a_time(sites: list[Any]) -> None:
    by_slot: dict[str, list[tuple[datetime, datetime]]] = {name: [] for name in SLOTS}
    for run in sites:
        by_slot[run.labels["prefect.worker.name"]].append((run.start_time, run.end_time))
    assert all(by_slot.values())
    for times in by_slot.values():
        times.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


def test_a_suite_goes_on_from_the_command_line_where_workers_left_it_and_back(
    deployed: tuple[Path, Any], cluster: Cluster, suite_file: Path, undisturbed: dict[str, str]
) -> None:
    store, sites = deployed[0], len(cluster.runs(deployed[0], "site"))
    said = cluster("run", suite_file, "--store", store)
    assert not [line for line in said.splitlines() if line.startswith(("train ", "harvest "))]
    assert cluster.ended(cluster.start("suite/tiny")).is_completed()
    assert results(store) == undisturbed
    again = cluster.runs(store, "site")
    assert len([run for run in again if run.deployment_id]) == sites


@contextmanager
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """An address, and what is posted to it."""
    posted: list[Any] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """It is a test's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", posted
    server.shutdown()
    server.server_close()


@contextmanager
def browser(cluster: Cluster) -> Iterator[Any]:
    """A page of headless Chromium, on the server's site."""
    from playwright.sync_api import sync_playwright

    offline = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=offline)
        page = chromium.new_page(base_url=cluster.server.address.removesuffix("/api"), viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        yield page
        chromium.close()


def test_a_failed_site_is_told_found_in_the_browser_and_all_that_its_retry_runs(
    cluster: Cluster, suite_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    store, sick = tmp_path / "runs", "L01.mlp_out"
    cluster("harvest", suite_file, "--store", store)
    (store / "dictionaries").mkdir(exist_ok=True)
    (store / "dictionaries" / sick).write_text("a file where a folder must be: nothing can be written below it")
    with webhook() as (address, posted):
        cluster("deploy", suite_file, "--store", store, "--notify", address)
        suite = cluster.start("suite/tiny", store=str(store))
        state = cluster.ended(suite)
        until(lambda: len(posted) == 2)
    assert state.is_failed()
    assert sorted(post["text"].partition(" failed: ")[0] for post in posted) == [f"site {sick}", "suite tiny"]
    assert all("cannot be written" in post["text"] for post in posted)
    assert state.message.startswith(f"{sick}: ")
    assert "\n" not in state.message
    before = {run.name: run for run in cluster.runs(store, "site")}
    assert {name for name, run in before.items() if not run.state.is_completed()} == {f"site {sick}"}
    assert "Traceback" not in cluster.log(suite) + cluster.log(before[f"site {sick}"].id)

    (store / "dictionaries" / sick).unlink()
    with browser(cluster) as page:
        page.goto(f"/runs/flow-run/{suite}")
        page.get_by_text("Subflow Runs").click()
        page.goto(page.get_by_role("link", name=f"site {sick}").first.get_attribute("href"))
        _retry(page)
        until(lambda: cluster.run(before[f"site {sick}"].id).state.is_completed())
        after = {run.name: run for run in cluster.runs(store, "site")}
        assert {name: run.run_count for name, run in after.items()} == {name: 1 + (name == f"site {sick}") for name in before}
        page.goto(f"/runs/flow-run/{suite}")
        _retry(page)
        until(lambda: cluster.run(suite).state.is_completed())
        assert len(cluster.runs(store, "site")) == len(SITES)
        assert results(store) == undisturbed
        page.goto("/artifacts")
        page.get_by_text("tiny-summary").click()
        page.locator("a[href*='/artifacts/artifact/']").first.click()
        picture = page.get_by_role("img", name="L0 against fraction of variance unexplained")
        picture.wait_for()
        assert picture.evaluate("image => image.naturalWidth") > 1_000
        assert page.get_by_role("cell", name=sick).is_visible()


def _retry(page: Any) -> None:
    page.get_by_role("button", name="Retry").click()
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()


@pytest.mark.long
@pytest.mark.usefixtures("deployed")
def test_a_site_whose_machine_vanishes_is_taken_up_again_by_itself(
    cluster: Cluster, suite_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "runs"
    suite = cluster.start("suite/tiny", store=str(store))
    until(lambda: any(run.state.is_running() for run in cluster.runs(store, "site")))
    running = next(run for run in cluster.runs(store, "site") if run.state.is_running())
    worker = cluster.workers[running.labels["prefect.worker.name"]]
    worker.kill()
    worker.start()
    assert cluster.ended(suite).is_completed()
    assert cluster.run(running.id).run_count == 2
    assert results(store) == undisturbed


@pytest.mark.usefixtures("deployed")
def test_a_suite_that_is_asked_for_while_it_runs_runs_once(cluster: Cluster, suite_file: Path, tmp_path: Path) -> None:
    first = cluster.start("suite/tiny", store=str(tmp_path / "runs"), only=SITES[0])
    until(lambda: cluster.run(first).state.is_running())
    second = cluster.start("suite/tiny", store=str(tmp_path / "runs"), only=SITES[0])
    assert cluster.ended(second).is_cancelled()
    assert cluster.ended(first).is_completed()
    assert len(cluster.runs(tmp_path / "runs", "site")) == 1


def test_deploying_again_changes_nothing_and_keeps_schedules(cluster: Cluster, suite_file: Path, tmp_path: Path) -> None:
    def there() -> tuple[Any, ...]:
        with cluster.client() as client:
            deployments = sorted((str(d.id), d.name, [s.schedule.cron for s in d.schedules]) for d in client.read_deployments())
            automations = sorted(str(automation.id) for automation in client.read_automations())
            pools = sorted((pool.name, pool.type) for pool in client.read_work_pools())
        return deployments, automations, pools

    command = ("deploy", suite_file, "--store", tmp_path / "runs", "--cron", "0 2 * * *")
    cluster(*command)
    before = there()
    cluster(*command)
    assert there() == before
    assert any(schedules == ["0 2 * * *"] for _, name, schedules in before[0] if name == "tiny")


@pytest.mark.long
def test_a_schedule_that_fires_every_minute_of_a_suite_of_eight_sites_makes_one_run(
    cluster: Cluster, tiny_text: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, fields = tmp_path / "runs", tiny_fields(write_tiny_model(tmp_path / "model", layers=4), tiny_text)
    fields |= {"name": "nightly", "sites": {"layers": "0-3", "kinds": ["resid_post", "mlp_out"]}, "dictionaries": [{"widths": 64, "target_l0s": 8}]}
    for name in SLOTS:
        cluster.workers[name].kill()  # so that the run lasts for as long as the schedule is to fire
    cluster("deploy", write_suite(fields, tmp_path_factory), "--store", store, "--cron", "* * * * *")

    def begun() -> list[Any]:
        return [run for run in cluster.runs(store, "suite") if run.start_time or run.state.is_final()]

    until(lambda: sum(run.state.is_cancelled() for run in begun()) >= 2)
    for name in SLOTS:
        cluster.workers[name].start()
    until(lambda: any(run.state.is_completed() for run in begun()))
    with cluster.client() as client:
        client.pause_deployment(client.read_deployment_by_name("suite/nightly").id)
    done, *others = sorted(begun(), key=lambda run: not run.state.is_completed())
    meanwhile = [run for run in others if run.expected_start_time < done.end_time]
    print(f"fired {len(meanwhile)} times in the {(done.end_time - done.start_time).total_seconds():.0f} s of the run")
    assert len(meanwhile) >= 2
    assert all(run.state.is_cancelled() for run in meanwhile)
    sites = cluster.runs(store, "site")
    assert len(sites) == 8
    _assert_one_at_a_time(sites)


@pytest.mark.long
def test_each_night_of_a_growing_text_makes_on_workers_what_is_new(
    cluster: Cluster, tiny_model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    days, store = tmp_path / "days", tmp_path / "runs"
    add(days, 0, tiny_documents(400))
    fields = tiny_fields(tiny_model, days) | {"name": "growing", "dictionaries": [{"widths": 64, "target_l0s": 8}]}
    fields["text"]["grows"] = True
    fields["sites"] = {"layers": [1], "kinds": ["resid_post", "mlp_out"]}
    suite = write_suite(fields, tmp_path_factory)
    cluster("deploy", suite, "--store", store)

    def night() -> dict[str, str]:
        state = cluster.ended(cluster.start("suite/growing"))
        assert state.is_completed(), state.message
        return results(store, "growing")

    first = night()
    assert night() == first, "a night without new text"
    assert len(cluster.runs(store, "site")) == 2
    add(days, 1, tiny_documents(DAY, seed=1))
    second = night()
    assert len(cluster.runs(store, "site")) == 4
    cluster("run", suite, "--store", tmp_path / "at once")
    assert trained(results(tmp_path / "at once", "growing")).items() <= second.items()
    dictionaries = {name: digest for name, digest in first.items() if name.startswith("dictionaries/")}
    assert dictionaries.items() <= second.items()


@pytest.mark.slow
@pytest.mark.usefixtures("deployed")
def test_workers_killed_at_ten_random_moments_and_a_server_that_restarts_leave_the_same_bytes(
    cluster: Cluster, suite_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    chance, store, kills = random.Random(5), tmp_path / "runs", 0  # noqa: S311
    suite = cluster.start("suite/tiny", store=str(store))
    slots = [cluster.workers[name] for name in SLOTS]

    def is_done() -> bool:
        return bool(cluster.run(suite).state.is_completed())

    while True:
        until(lambda: any(slot.is_busy for slot in slots) or is_done(), minutes=40)
        time.sleep(chance.uniform(0, 20))
        if is_done():
            break
        if kills < 10 and (busy := [worker for worker in cluster.workers.values() if worker.is_busy]):
            worker, kills = chance.choice(busy), kills + 1
            print(f"kill {kills}: {worker.name}, {[f'{run.name} {run.state_name}' for run in cluster.runs(store, 'site')]}")
            worker.kill()
            worker.start()
            if kills == 5:
                cluster.server.stop(signal.SIGKILL)
                time.sleep(10)
                cluster.server.start()
    assert kills == 10, "it takes longer than that"
    assert results(store) == undisturbed
