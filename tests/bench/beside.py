"""Ours beside dictionary_learning's on the same rows, sparsity by sparsity and learning rate by learning rate: FVU on rows that no one trained on.

    python tests/bench/rows.py SUITE SITE rows.npy
    make peers PEERS=/tmp/peers
    python tests/bench/beside.py rows.npy --peers /tmp/peers/bin/python --quality ../shared/peers/quality.py --tokens 1000000 --l0 15 40 100

One training at a time, by `recipe.py` and by `--quality`, which hold out the same rows. Prints a line of Markdown for each, as it ends.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def jobs(args: argparse.Namespace) -> Iterator[tuple[str, str, str, float, list[str]]]:
    """Library, architecture, what sets its sparsity, learning rate, command."""
    for architecture in args.ours:
        for l0, rate in itertools.product(args.l0, args.rates):
            command = [sys.executable, str(HERE / "recipe.py"), args.rows, "--architecture", architecture, "--l0", f"{l0:g}"]
            yield "ours", architecture, f"L0 {l0:g}", rate, [*command, "--set", f"learning_rate={rate}"]
    for architecture in args.theirs:
        # Its Gated has a price, which tells little of the L0 that comes of it.
        option, name, values = ("--l1", "lambda", args.l1) if architecture == "gated" else ("--k", "L0", args.l0)
        for value, rate in itertools.product(values, args.rates):
            command = [args.peers, args.quality, args.rows, "--architecture", architecture, option, f"{value:g}", "--lr", str(rate)]
            yield "dictionary_learning", architecture, f"{name} {value:g}", rate, command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows")
    parser.add_argument("--peers", required=True, help="the Python of an environment with dictionary_learning")
    parser.add_argument("--quality", required=True, help="the script that trains its dictionaries")
    parser.add_argument("--width", type=int, default=4_096)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--l0", type=float, nargs="+", default=[15, 40, 100])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--l1", type=float, nargs="+", default=[0.1], help="prices of dictionary_learning's Gated")
    parser.add_argument("--ours", nargs="*", default=["jumprelu", "topk"])
    parser.add_argument("--theirs", nargs="*", default=["topk"])
    args = parser.parse_args()
    print("| library | architecture | sparsity | rate | L0 | FVU | dead | seconds |\n|---|---|---|---|---|---|---|---|", flush=True)
    for library, architecture, sparsity, rate, command in jobs(args):
        size = ["--width", str(args.width), "--tokens", str(args.tokens), "--seed", str(args.seed)]
        done = subprocess.run([*command[:3], *size, *command[3:]], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        got: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        measured = f"{got['l0']:.1f} | {got['fvu']:.4f} | {got['dead']:.2f} | {got['seconds']:.0f}"
        print(f"| {library} | {architecture} | {sparsity} | {rate:g} | {measured} |", flush=True)


if __name__ == "__main__":
    main()
