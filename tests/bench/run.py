"""Ours beside SAELens and dictionary_learning: seconds of a training step, as a multiple of the encoder product measured beside it.

    make bench                                                the table of tests/bench/RESULTS.md
    python tests/bench/run.py --peers PYTHON --size 2304,16384,1024
    python tests/bench/run.py --size 640,16384,2048 --run 40  a whole training of 40 steps, from its initialisation

dictionary_learning needs packages that do not fit ours, so it runs in an environment of its own (`make peers`).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZES = ["640,16384,2048", "2304,16384,1024"]


def measure(python: str, library: str, size: str, product: str, device: str, run: int | None) -> dict[str, Any] | None:
    d_in, width, batch = size.split(",")
    command = [python, str(HERE / "step.py"), "--library", library, "--product", product, "--device", device, *(["--run", str(run)] if run else [])]
    done = subprocess.run([*command, "--d-in", d_in, "--width", width, "--batch", batch], capture_output=True, text=True)
    if done.returncode:
        print(f"{library} at {size}: {(done.stderr.strip().splitlines() or [f'ended with {done.returncode}'])[-1]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="the Python of an environment with dictionary_learning; left out, it is not measured")
    parser.add_argument("--size", action="append", help="d_in,width,batch; may be given several times")
    parser.add_argument("--run", type=int, metavar="STEPS", help="whole trainings of that many steps, ours by the recipe short-run")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    runs = [(sys.executable, library, product) for product in ("float32", "bfloat16") for library in ("jumpsuite", "saelens")]
    if args.peers:
        runs.append((args.peers, "dictionary_learning", "float32"))
    print("| d | width | batch | library | product | s a step | encoder products | tokens/s | peak GB |\n|---|---|---|---|---|---|---|---|---|")
    for size in args.size or SIZES:
        for python, library, product in runs:
            if r := measure(python, library, size, product, args.device, args.run):
                print(
                    f"| {r['d_in']:,} | {r['width']:,} | {r['batch']:,} | {library} | {product} | {r['step_s']:.3f} | {r['ratio']:.2f} "
                    f"| {r['tokens_per_s']:,} | {r['peak_gb']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
