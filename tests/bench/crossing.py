"""Where a dense batch becomes quicker than a sparse one: the source of `DENSE_ABOVE` in core/sparse_step.py.

python tests/bench/crossing.py --d-in 640 --width 16384 --batch 2048
"""

import argparse
import statistics
import time

import torch
from rows import heavy_tailed_rows

from core import sparse_step
from core.site import Site
from core.spec import DictionarySpec
from core.statistics import Normaliser
from core.trainer import Trainer
from core.training import Training


def seconds_a_step(args: argparse.Namespace, product: str, density: float, dense: bool, rows: torch.Tensor) -> float:
    tokens = 1_000 * args.batch
    training = Training(
        recipe="gemma-scope", tokens=tokens, batch_rows=args.batch, encoder_product=product, learning_rate=1e-9, threshold_parameter="linear"
    )
    spec = DictionarySpec(Site(0, "resid_post"), "jumprelu", args.width, None, 1e-3, 0, tokens)
    trainer = Trainer(spec, training, Normaliser(torch.zeros(args.d_in), 1.0), torch.device("cpu"))
    trainer.dictionary.start_thresholds(rows, density)
    sparse_step.DENSE_ABOVE = 0.0 if dense else 1.0
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        trainer.train_on(rows)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-in", type=int, default=640)
    parser.add_argument("--width", type=int, default=16_384)
    parser.add_argument("--batch", type=int, default=2_048)
    args = parser.parse_args()
    rows = heavy_tailed_rows(args.batch, args.d_in)
    rows /= rows.square().sum(1).mean().sqrt()
    print("| product | share active | sparse s | dense s |\n|---|---|---|---|")
    for product in ("float32", "bfloat16"):
        for parts in (256, 64, 32, 16, 8, 4):
            sparse, dense = (seconds_a_step(args, product, 1 / parts, dense, rows) for dense in (False, True))
            print(f"| {product} | 1/{parts} | {sparse:.3f} | {dense:.3f} |", flush=True)


if __name__ == "__main__":
    main()
