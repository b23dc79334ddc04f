"""Deploy: bring a Prefect server to where suites can run on workers. What is there already is brought up to date."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from core.errors import ConfigError, JumpsuiteError
from core.suite import Suite

HERE = Path(__file__).parents[1] / "deployments"
NO_OVERLAP = {"limit": 1, "collision_strategy": "CANCEL_NEW"}
"""A schedule that fires while the last run is still going starts nothing."""


def deploy(store: str, infrastructure: str, suites: list[Suite], cron: str | None = None, notify: str | None = None) -> list[str]:
    """Make work pools, deployments and automations on the Prefect server that is configured.

    Args:
        store: where runs keep everything, unless they are told otherwise.
        infrastructure: the type of the work pools: process, docker or kubernetes.
        suites: each gets a deployment of its own, `suite/<name>`, that needs no parameters.
        cron: when these run by themselves.
        notify: an address that is sent a JSON `{"text": ...}` of each run that fails.

    Returns:
        The names of the deployments.

    Raises:
        ConfigError: a work pool is there and of another type.
        JumpsuiteError: Prefect refuses the deployments.
    """
    wanted = yaml.safe_load((HERE / "prefect.yaml").read_text())
    wanted["deployments"] = _with_suites(wanted["deployments"], store, suites, cron)
    with get_client(sync_client=True) as client:
        for name in sorted({deployment["work_pool"]["name"] for deployment in wanted["deployments"]}):
            _pool(client, name, infrastructure)
        _prefect_deploy(wanted)
        for automation in yaml.safe_load((HERE / "automations.yaml").read_text()):
            if (call := automation["actions"][0])["type"] == "call-webhook":
                if not notify:
                    continue
                call["block_document_id"] = Webhook(method="POST", url=notify).save("jumpsuite-failures", overwrite=True)
            _automation(client, AutomationCore.model_validate(automation))
    return [f"{_flow_name(deployment)}/{deployment['name']}" for deployment in wanted["deployments"]]


def _with_suites(deployments: list[dict[str, Any]], store: str, suites: list[Suite], cron: str | None) -> list[dict[str, Any]]:
    general = next(deployment for deployment in deployments if deployment["name"] == "suite")
    schedules = [{"cron": cron}] if cron else []
    own = [
        general
        | {
            "name": suite.name,
            "tags": [*general["tags"], suite.name],
            "parameters": {"suite": suite.model_dump(mode="json")},
            "concurrency_limit": NO_OVERLAP,
            "schedules": schedules,
        }
        for suite in suites
    ]
    return [deployment | {"parameters": deployment.get("parameters", {}) | {"store": store}} for deployment in [*deployments, *own]]


def _flow_name(deployment: dict[str, Any]) -> str:
    return str(deployment["entrypoint"].split(".")[1])


def _pool(client: SyncPrefectClient, name: str, infrastructure: str) -> None:
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(name=name, type=infrastructure, base_job_template=job_template(client.read_worker_metadata(), infrastructure, name))
        )
        return
    if there.type != infrastructure:
        raise ConfigError(
            f"--type is {infrastructure!r}, but the work pool {name} is there with type {there.type!r}; expected one type; "
            f"give --type {there.type}, or delete the pool with prefect work-pool delete {name}"
        )


def job_template(known: dict[str, Any], infrastructure: str, pool: str) -> dict[str, Any]:
    """What a pool's jobs are made from: Prefect's own template, with what our file of this infrastructure puts in place of its parts.

    Args:
        known: Prefect's metadata of workers.
    """
    kinds = {kind: about for package in known.values() for kind, about in package.items()}
    template: dict[str, Any] = kinds[infrastructure]["default_base_job_configuration"]
    properties = template["variables"]["properties"]
    if infrastructure == "process":  # what a suite file names relative to the checkout is to be found
        properties["working_dir"]["default"] = str(Path.cwd())
        return template
    ours = yaml.safe_load((HERE / "pools" / f"{infrastructure}.yaml").read_text())[pool]
    template["job_configuration"] |= ours.get("job_configuration", {})
    for name, about in ours["variables"].items():
        properties[name] = properties.get(name, {}) | about
    return template


def _prefect_deploy(wanted: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(wanted))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        raise JumpsuiteError(f"prefect deploy failed; expected it to take deployments/prefect.yaml; it said: {said.stdout}{said.stderr}")


def _automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    there = client.read_automations_by_name(automation.name)
    if there:
        client.update_automation(there[0].id, automation)
    else:
        client.create_automation(automation)
