"""The templates of work pools: what a cluster is asked to run is what it takes."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import prefect.server.api
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from flows.deploy import HERE, job_template

KNOWN = Path(prefect.server.api.__file__).parent / "collections_data/views/aggregate-worker-metadata.json"
"""What a server says of workers."""
DEPLOYMENTS = yaml.safe_load((HERE / "prefect.yaml").read_text())["deployments"]


def rendered(configuration: Any, infrastructure: str, deployment: dict[str, Any], **variables: Any) -> Any:
    """The job of a deployment's run, as its worker makes it."""
    pool = deployment["work_pool"]
    template = job_template(json.loads(KNOWN.read_text()), infrastructure, pool["name"])
    values = pool["job_variables"] | variables
    job = asyncio.run(configuration.from_template_and_values(base_job_template=template, values=values))
    job.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="site L09.resid_post"))
    return job


def kubernetes_job(deployment: dict[str, Any], **variables: Any) -> dict[str, Any]:
    job: dict[str, Any] = rendered(KubernetesWorkerJobConfiguration, "kubernetes", deployment, **variables).job_manifest
    misplaced = {"completions", "parallelism"}  # prefect-kubernetes insists on them, and Kubernetes drops them
    job["spec"]["template"]["spec"] = {key: value for key, value in job["spec"]["template"]["spec"].items() if key not in misplaced}
    return job


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
@pytest.mark.parametrize("version", ["1.28", "1.34"])
def test_jobs_of_kubernetes_are_valid_and_ask_for_a_gpu_where_work_needs_one(deployment: dict[str, Any], version: str) -> None:
    job = kubernetes_job(deployment)
    kubernetes_validate.validate(job, version, strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == (1 if deployment["name"] in ("site", "harvest") else 0)
    assert container["envFrom"] == [{"secretRef": {"name": "jumpsuite-store"}}]
    assert {"name": "PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "value": "30"} in container["env"]


def test_a_run_may_ask_for_more_gpus_than_its_pool_says() -> None:
    site = next(deployment for deployment in DEPLOYMENTS if deployment["name"] == "site")
    job = kubernetes_job(site, gpus=8, credentials="another")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert container["envFrom"] == [{"secretRef": {"name": "another"}}]


def test_containers_of_docker_have_a_gpu_where_work_needs_one() -> None:
    for deployment in DEPLOYMENTS:
        asked = rendered(DockerWorkerJobConfiguration, "docker", deployment).container_create_kwargs
        assert bool(asked) == (deployment["name"] in ("site", "harvest"))
