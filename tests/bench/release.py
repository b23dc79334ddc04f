"""Releasing and verifying many dictionaries: seconds and peak memory of both commands, as a user runs them.

    make demo
    python tests/bench/release.py deployments/suites/gemma-3-270m-demo.yaml --store runs --width 4096 --each 23

The suite is the given one with other dictionaries, as many at each of its sites, whose weights are random: only their number and size matter. What it
says of them is measured on the suite's own harvest. They lie in the store, and their release beside, until they are removed: the command says where.
"""

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import torch

from core.dictionary import Dictionary
from core.fidelity import row_fidelity
from core.statistics import Moments
from core.suite_file import parse_suite
from storage.catalogue import Catalogue
from tasks.evaluate import sample_rows, scorecards


def random_dictionary(dimensions: int, width: int, seed: int) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(width, dimensions, generator=generator))
    return Dictionary(W_dec.T.contiguous(), torch.zeros(width), W_dec, torch.zeros(dimensions), torch.full((width,), 30.0))


def timed(*arguments: str) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of a command."""
    began = time.perf_counter()
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "flows.main", *arguments])  # noqa: S606
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, arguments
    return time.perf_counter() - began, usage.ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--width", type=int, default=4_096)
    parser.add_argument("--each", type=int, default=23, help="dictionaries of a site")
    args = parser.parse_args()
    template = next(iter(scorecards(Catalogue(parse_suite(args.suite.read_text(), []), args.store))))[1]
    targets = list(range(10, 10 + args.each))
    settings = ["name=many", f"dictionaries=[{{widths: {args.width}, target_l0s: {targets}}}]"]
    catalogue = Catalogue(parse_suite(args.suite.read_text(), settings), args.store)
    number = 0
    for site, specs in catalogue.sites.items():
        sample = sample_rows(catalogue.harvest.part("held_out"), site, None)
        mean = Moments.of(sample).mean
        for spec in specs:
            number += 1
            folder, dictionary = catalogue.folder(spec), random_dictionary(sample.shape[1], args.width, number)
            facts = {"harvest": catalogue.harvest.key, "training": {}, "inputs": template["inputs"] | {"norm_limit": None}, "code": template["code"]}
            if not folder.done:
                folder.finish(dictionary, facts)
            scored = row_fidelity(dictionary, [sample], mean)
            noted = {"sample": {"rows": scored.rows, "l0": scored.l0, "fvu": scored.fvu}, "inputs": facts["inputs"], "dictionary": folder.key}
            folder.save_scorecard(catalogue.scorecard_key(spec), template | noted | {"spec": spec.identity()})
    release = args.store / "many/release"
    store = ("--store", str(args.store))
    print(f"{number} dictionaries, {args.width:,} latents each; this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    seconds, memory = timed("release", str(args.suite), *store, *(word for setting in settings for word in ("--set", setting)))
    size = sum(path.stat().st_size for path in release.rglob("*") if path.is_file() and "canonical" not in path.parts) / 1e9
    print(f"release, which also verifies: {seconds:.0f} s, peak {memory:.2f} GB; {size:.1f} GB in {release}")
    seconds, memory = timed("verify", str(release))
    print(f"verify: {seconds:.0f} s, peak {memory:.2f} GB")


if __name__ == "__main__":
    main()
