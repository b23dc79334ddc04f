"""Harvest of every site of a model beside the bare forward pass over the same tokens: tokens a second, GB/s written, peak memory.

    python tests/bench/harvest.py deployments/suites/gemma-3-270m-demo.yaml --store runs --blocks 4 --set model.dtype=bfloat16

The bare pass is the trunk's: no logits, nothing captured. It is timed before and after the harvest, so that a machine whose speed changes is
noticed. The harvest is made in a temporary folder beside the store, which lends it the unpacked model.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import torch

from core.anatomy import Anatomy
from core.suite_file import parse_suite
from storage.catalogue import Catalogue
from storage.layout import PARTS
from tasks.harvest import harvest_blocks
from tasks.resources import borrowed_anatomy
from tasks.tokenise import tokenise


@torch.inference_mode()
def bare_pass(anatomy: Anatomy, catalogue: Catalogue) -> float:
    """Seconds of a pass of the trunk over all tokens."""
    began = time.perf_counter()
    for part in map(catalogue.harvest.part, PARTS):
        for block in range(part.num_blocks):
            for batch in torch.from_numpy(part.tokens(block)).long().split(catalogue.suite.harvest.batch_sequences):
                anatomy.trunk(batch, use_cache=False)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--blocks", type=int, default=4, help="of the training part; one more is held out")
    parser.add_argument("--set", nargs="*", default=[], dest="settings")
    args = parser.parse_args()
    given = parse_suite(args.suite.read_text(), args.settings)
    of_block = given.harvest.block_sequences * given.text.context
    tokens = (args.blocks + 1) * of_block
    sites = "sites={layers: all, kinds: [resid_post, mlp_out, attn_z]}"
    text = [f"text.tokens={args.blocks * of_block}", f"text.held_out_tokens={of_block}"]
    suite = parse_suite(args.suite.read_text(), [*args.settings, *text, sites, "dictionaries=[{widths: 64, target_l0s: 8}]"])
    args.store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.store) as folder:
        if (args.store / "models").exists():
            shutil.copytree(args.store / "models", Path(folder) / "models", copy_function=os.link)
        catalogue = Catalogue(suite, folder)
        tokenise.fn(catalogue)
        with borrowed_anatomy(catalogue) as anatomy:
            bare_pass(anatomy, catalogue)
            before = bare_pass(anatomy, catalogue)
        idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        harvest_blocks.fn(catalogue)
        os.sync()
        seconds = time.perf_counter() - began
        after = bare_pass(anatomy, catalogue)
        written = sum(path.stat().st_size for path in catalogue.store.local(catalogue.harvest.prefix).rglob("*") if path.is_file())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bare = (before + after) / 2
    print("| sites | tokens | bare tokens/s, before and after | harvest tokens/s | share of bare | GB/s written | peak GB, before and after |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {len(catalogue.sites)} | {tokens:,} | {tokens / before:,.0f}, {tokens / after:,.0f} | {tokens / seconds:,.0f} | {bare / seconds:.0%} "
        f"| {written / seconds / 1e9:.2f} | {idle / 2**20:.1f}, {peak / 2**20:.1f} |"
    )


if __name__ == "__main__":
    main()
