"""A training step on a GPU: the sparse one, the dense one by autograd, and SAELens where it is installed, beside the encoder product.

    PYTHONPATH=. python tests/bench/gpu.py                      the three widths of d 2,304
    PYTHONPATH=. python tests/bench/gpu.py --width 65536 --profile

Needs torch, Triton and NumPy alone. All rows of the table are measured in one process, one after another; each lets go of its memory.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from rows import heavy_tailed_rows
from torch import Tensor

try:
    import core.training  # noqa: F401
except ModuleNotFoundError:  # without pydantic; steps only read its numbers
    sys.modules["core.training"] = SimpleNamespace(Training=SimpleNamespace)

from core.adam import Adam
from core.cuda_step import CudaStep
from core.dense_step import DenseStep
from core.jumprelu import JumpReLUDictionary
from core.site import Site
from core.spec import DictionarySpec

DEVICE = torch.device("cuda")
WARM_UP, RUNS, STEPS = 5, 5, 10
Step = Callable[[Tensor, int], Any]


def ours(kind: type, product: str) -> Callable[[argparse.Namespace, Tensor], Step]:
    def make(args: argparse.Namespace, rows: Tensor) -> Step:
        training: Any = SimpleNamespace(
            encoder_product=product,
            bandwidth=0.01,
            gradient_clip=1.0,
            target_l0_objective="batch-mean",
            target_l0_coefficient=1e-3,
            frequency_coefficient=0.0,
            matryoshka_prefixes=[],
        )
        spec = DictionarySpec(Site(0, "resid_post"), "jumprelu", args.width, args.l0, None, 0, 10**9)
        dictionary = JumpReLUDictionary(args.d_in, args.width, seed=0, threshold_init=0.01, log_threshold=False).to(DEVICE)
        dictionary.start_thresholds(rows, args.l0 / args.width)
        adam = Adam({name: p.detach() for name, p in dictionary.named_parameters()}, 0.0, 0.999, 1e-8)
        step = kind(dictionary, adam, spec, training)
        return lambda x, _: step(x, 7e-5, 1.0)

    return make


def saelens(args: argparse.Namespace, rows: Tensor) -> Step:
    """SAELens as quick as it goes: autocast and torch.compile."""
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE
    from step import saelens as plain

    JumpReLUTrainingSAE.training_forward_pass = torch.compile(JumpReLUTrainingSAE.training_forward_pass)
    return plain(argparse.Namespace(**vars(args), product="bfloat16", device="cuda"), rows)


KINDS = {
    "sparse, bfloat16 product": ours(CudaStep, "bfloat16"),
    "sparse, float32 product": ours(CudaStep, "float32"),
    "dense, float32": ours(DenseStep, "float32"),
    "saelens, autocast, compiled": saelens,
}


def seconds_each(run: Callable[[int], Any]) -> float:
    """The median, over several runs of several steps, of a step's seconds."""
    for index in range(WARM_UP):
        run(index)
    seconds = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for index in range(STEPS):
            run(index)
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / STEPS)
    return statistics.median(seconds)


def profile(step: Step, batches: tuple[Tensor, ...]) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for index in range(3):
            step(batches[index % len(batches)], index)
        torch.cuda.synchronize()
    print(profiler.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-in", type=int, default=2_304)
    parser.add_argument("--width", type=int, action="append", help="may be given several times")
    parser.add_argument("--batch", type=int, default=4_096)
    parser.add_argument("--l0", type=float, default=100)
    parser.add_argument("--profile", action="store_true", help="where the first kind's time goes, kernel by kernel")
    args = parser.parse_args()
    rows = heavy_tailed_rows(args.batch * 4, args.d_in)
    rows = (rows / rows.square().sum(1).mean().sqrt()).to(DEVICE)
    batches = rows.split(args.batch)
    waiting_on_host = rows.bfloat16().cpu().pin_memory().split(args.batch)  # as `tasks/train.py` has them
    print("| d | width | batch | step | ms a step | bfloat16 encoder products | tokens/s | waiting for rows | peak GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for width in args.width or [16_384, 65_536, 131_072]:
        W_DL = torch.randn(args.d_in, width, device=DEVICE, dtype=torch.bfloat16)
        x_BD = batches[0].bfloat16()
        product = seconds_each(lambda _, x_BD=x_BD, W_DL=W_DL: x_BD @ W_DL)
        del W_DL, x_BD
        for index, (name, make) in enumerate(KINDS.items()):
            gc.collect()
            torch.cuda.empty_cache()
            try:
                step = make(argparse.Namespace(d_in=args.d_in, width=width, batch=args.batch, l0=args.l0), rows)
            except ModuleNotFoundError as missing:
                print(f"{name}: {missing}", file=sys.stderr)
                continue
            torch.cuda.reset_peak_memory_stats()
            seconds = seconds_each(lambda i, step=step: step(batches[i % 4], i))
            peak = torch.cuda.max_memory_allocated()
            fed = seconds_each(lambda i, step=step: step(waiting_on_host[i % 4].to(DEVICE, non_blocking=True).float(), i))
            print(
                f"| {args.d_in:,} | {width:,} | {args.batch:,} | {name} | {seconds * 1e3:.2f} | {seconds / product:.2f} "
                f"| {args.batch / seconds:,.0f} | {max(0.0, 1 - seconds / fed):.1%} | {peak / 1e9:.2f} |",
                flush=True,
            )
            if args.profile and index == 0:
                profile(step, batches)
            del step


if __name__ == "__main__":
    main()
