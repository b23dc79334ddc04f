"""What it costs to run each site as a flow run on a worker: a suite of many tiny sites on two slots, beside the same in one process.

    python tests/bench/workers.py --sites 200

Prints seconds a site and slot, with workers and without, what is between them, and the memory of Prefect's server.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from command import jumpsuite
from conftest import tiny_documents, tiny_fields, write_tiny_model
from prefect_server import Postgres, PrefectServer, Worker

KINDS = ["resid_post", "mlp_out", "attn_z"]
SLOTS = 2


def make_suite(folder: Path, sites: int) -> Path:
    """A suite of so many sites, ten steps each, on a model with a layer for every three."""
    layers = -(-sites // len(KINDS))
    write_tiny_model(folder / "model", layers)
    (folder / "notes.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in tiny_documents()))
    fields = tiny_fields(folder / "model", folder)
    fields |= {"name": "many", "sites": {"layers": f"0-{layers - 1}", "kinds": KINDS}, "dictionaries": [{"widths": 32, "target_l0s": 4}]}
    fields["training"] |= {"tokens": 2_560, "learning_rate_warmup": 2, "sparsity_warmup": 2}
    fields["harvest"] = {"block_sequences": 64, "batch_sequences": 32}
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def resident(pid: int) -> float:
    """Megabytes that a process and its children have in memory."""
    pids, total = [pid], 0
    for one in pids:
        pids += [int(child) for child in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
        total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total / 1e6


def on_workers(suite: Path, folder: Path) -> tuple[float, list[Any], float, float]:
    """Seconds of the sites, their runs, and the server's memory before and at its highest."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    postgres = Postgres()
    server = PrefectServer(folder / "home", PREFECT_API_DATABASE_CONNECTION_URL=postgres.address)
    server.start()
    said = jumpsuite("deploy", suite, "--store", folder / "runs", PREFECT_API_URL=server.address)
    assert said.returncode == 0, said.stderr
    workers = [Worker(server, "jumpsuite", "light"), *(Worker(server, "jumpsuite-gpu", f"gpu-{slot}", limit=1) for slot in range(SLOTS))]
    before = peak = resident(server.pid)
    try:
        with SyncPrefectClient(server.address) as client:
            deployment = client.read_deployment_by_name("suite/many")
            identity = client.create_flow_run_from_deployment(deployment.id).id
            while not (run := client.read_flow_run(identity)).state.is_final():
                peak = max(peak, resident(server.pid))
                time.sleep(5)
            assert run.state.is_completed(), run.state.message
            of_sites, runs = FlowFilter(name=FlowFilterName(any_=["site"])), []
            while page := client.read_flow_runs(flow_filter=of_sites, limit=200, offset=len(runs)):
                runs += page
    finally:
        for worker in workers:
            worker.kill()
        server.stop()
        postgres.stop()
    return (max(run.end_time for run in runs) - min(run.expected_start_time for run in runs)).total_seconds(), runs, before, peak


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sites", type=int, default=200)
    sites = options.parse_args().sites
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite = make_suite(folder, sites)
        seconds, runs, before, peak = on_workers(suite, folder)
        busy = sum((run.end_time - run.start_time).total_seconds() for run in runs)
        began = time.monotonic()
        alone = jumpsuite("run", suite, "--store", folder / "alone")
        assert alone.returncode == 0, alone.stderr
        in_process = time.monotonic() - began
    each, flow = seconds * SLOTS / len(runs), busy / len(runs)
    print(f"{len(runs)} sites on {SLOTS} slots: {seconds:,.0f} s, {each:.1f} s a site and slot, of which {flow:.1f} s its flow")
    print(f"in one process, with harvest and release: {in_process:,.0f} s, {in_process / len(runs):.1f} s a site")
    print(f"Prefect's server: {before:,.0f} MB at the beginning, {peak:,.0f} MB at most")


if __name__ == "__main__":
    main()
