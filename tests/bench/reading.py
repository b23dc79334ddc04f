"""Shuffled batches of a harvest, beside a memory map read in the same order and SAELens's cached activations of the same rows: rows a second.

    python tests/bench/reading.py --width 640 --sequences 2048

The rows are random, bfloat16, in a temporary folder, and read once before anything is timed, so that they come from the page cache. What
of ours is timed is what training does (`tasks/train.py`): chunks with their checksums verified, rows permuted, the next group read ahead.
The memory map is one file without chunks or checksums, from which the same rows are taken for each batch. SAELens keeps float32 (Arrow has
no bfloat16) and mixes a buffer of as many rows as we shuffle at a time.
"""

import argparse
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor

from core.order import TrainingOrder
from core.packing import SpecialTokens
from core.site import Site
from core.suite import Suite
from storage.harvest import Harvest, Part
from storage.objects import Store
from tasks.train import Reader

SITE = Site(0, "resid_post")
SPECIAL = SpecialTokens(2, (0, 1, 2))


def written(args: argparse.Namespace, folder: Path) -> Part:
    """A harvest of random rows, and beside it `rows.bin` and `saelens/` with the same."""
    fields: dict[str, Any] = {
        "name": "reading",
        "model": {"source": "none"},
        "text": {"source": "none", "context": args.context, "tokens": args.sequences * args.context, "held_out_tokens": args.context},
        "sites": {"layers": [0], "kinds": ["resid_post"]},
        "dictionaries": [{"widths": 64, "target_l0s": 8}],
        "training": {"recipe": "short-run", "tokens": args.batch, "batch_rows": args.batch},
        "evaluation": {"loss_sequences": 1},
    }
    harvest, chance = Harvest(Store(folder / "runs"), "key"), np.random.default_rng(0)
    harvest.lay_out(Suite.model_validate(fields), {SITE: args.width})
    part = harvest.part("train")
    with (folder / "rows.bin").open("wb") as flat:
        for block in part.blocks:
            tokens = np.full((part.block_sequences, args.context), 9, dtype=np.int32)
            tokens[:, 0] = SPECIAL.begin
            part.write_tokens(block, tokens, SPECIAL, 0)
            x = torch.from_numpy(chance.standard_normal((part.block_rows, args.width), dtype=np.float32)).bfloat16()
            part.write_block(block, {SITE: x})
            x.view(torch.uint16).numpy().tofile(flat)
    rows = np.memmap(folder / "rows.bin", np.uint16).reshape(-1, args.context - 1, args.width)
    features = datasets.Features({"x": datasets.Array2D((args.context - 1, args.width), "float32")})

    def sequences() -> Iterator[dict[str, Any]]:
        for sequence in rows:
            yield {"x": torch.from_numpy(np.array(sequence)).view(torch.bfloat16).float().numpy()}

    made = datasets.Dataset.from_generator(sequences, features=features, cache_dir=str(folder / "cache"))
    made.save_to_disk(folder / "saelens")
    shutil.rmtree(folder / "cache")
    return part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--context", type=int, default=257)
    parser.add_argument("--sequences", type=int, default=2_048)
    parser.add_argument("--batch", type=int, default=4_096)
    parser.add_argument("--shuffle", type=int, default=65_536, help="rows shuffled at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path, default=Path("runs"), help="a folder on the disk to be used")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message="All samples in the training dataset")
    args.store.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.store) as name:
        folder = Path(name)
        part = written(args, folder)
        kept = part.valid()
        order = TrainingOrder(lambda _: kept, 1, len(kept), batch_rows=args.batch, chunk_rows=part.chunk_rows, shuffle_rows=args.shuffle, seed=0)
        steps = len(kept) // args.batch
        flat = np.memmap(folder / "rows.bin", np.uint16).reshape(-1, args.width)
        theirs = ActivationsStore(
            model=None,  # type: ignore[arg-type]
            dataset=None,
            streaming=False,
            hook_name="x",
            hook_head_index=None,
            context_size=args.context - 1,
            d_in=args.width,
            n_batches_in_buffer=args.shuffle // (8 * (args.context - 1)),
            total_training_tokens=len(kept),
            store_batch_size_prompts=8,
            train_batch_size_tokens=args.batch,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float32",
            cached_activations_path=str(folder / "saelens"),
        )

        def ours() -> Iterator[Tensor]:
            with closing(Reader(part, SITE, order, steps, torch.device("cpu"))) as reader:
                yield from map(reader.batch, range(steps))

        def mapped() -> Iterator[Tensor]:
            groups: dict[tuple[int, int], Tensor] = {}

            def rows_of(turn: int, group: int) -> Tensor:
                if (turn, group) not in groups:
                    groups.clear()
                    groups[turn, group] = torch.from_numpy(order.group(turn, group)[1])
                return groups[turn, group]

            for t in range(steps):
                yield torch.from_numpy(flat[order.batch(t, rows_of).numpy()]).view(torch.bfloat16)

        def sae_lens() -> Iterator[Tensor]:
            for _ in range(steps):
                yield theirs.next_batch()

        for a, b in zip(ours(), mapped(), strict=True):
            assert torch.equal(a, b)
        ways: dict[str, Callable[[], Iterator[Tensor]]] = {"ours": ours, "memory map": mapped, "SAELens": sae_lens}
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(args.rounds):
            for way, batches in ways.items():
                began = time.perf_counter()
                for _batch in batches():
                    pass
                best[way] = min(best[way], time.perf_counter() - began)
    rows = steps * args.batch
    print(f"{rows:,} rows of {args.width}, batches of {args.batch:,}, {args.shuffle:,} shuffled at a time; the best of {args.rounds} rounds")
    print("| | rows/s | GB/s as bfloat16 | ours to it |")
    print("|---|---|---|---|")
    for way, seconds in best.items():
        print(f"| {way} | {rows / seconds:,.0f} | {rows * args.width * 2 / seconds / 1e9:.2f} | {seconds / best['ours']:.2f} |")


if __name__ == "__main__":
    main()
