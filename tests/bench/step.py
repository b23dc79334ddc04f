"""One optimiser step of one library's JumpReLU SAE, and the encoder product of the same size, timed in one process.

With `--run STEPS`, the mean step of a whole training of that many, from its initialisation, each library with its own start.

Prints a JSON line. `python tests/bench/run.py` starts this for each library; the ratio of the two times is what to compare, for it holds
on any machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rows import heavy_tailed_rows
from torch import Tensor

Step = Callable[[Tensor, int], Any]
WARM_UP, TIMED = 3, 9


def jumpsuite(args: argparse.Namespace, rows: Tensor) -> Step:
    from core.site import Site
    from core.spec import DictionarySpec
    from core.statistics import Normaliser
    from core.trainer import Trainer
    from core.training import Training

    spec = DictionarySpec(Site(0, "resid_post"), "jumprelu", args.width, args.l0, None, 0, (args.run or 1_000_000) * args.batch)
    normaliser, device = Normaliser(torch.zeros(args.d_in), 1.0), torch.device(args.device)
    if args.run:
        given = {"recipe": args.recipe, "tokens": spec.tokens, "batch_rows": args.batch, "encoder_product": args.product}
        whole = Trainer(spec, Training(**given), normaliser, device)
        return lambda x, _: whole.train_on(x)
    training = Training(
        recipe="gemma-scope",
        tokens=spec.tokens,
        batch_rows=args.batch,
        encoder_product=args.product,
        gradient_clip=1.0,  # SAELens and dictionary_learning clip always
        bandwidth=0.01,
        threshold_parameter="linear",
        target_l0_objective="batch-mean",
    )
    trainer = Trainer(spec, training, normaliser, device)
    trainer.dictionary.start_thresholds(rows, args.l0 / args.width)  # where training has brought it when it has found its sparsity
    return lambda x, _: trainer.train_on(x)


def saelens(args: argparse.Namespace, rows: Tensor) -> Step:
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    config = JumpReLUTrainingSAEConfig(d_in=args.d_in, d_sae=args.width, dtype="float32", device=args.device, l0_coefficient=1e-3)
    sae = JumpReLUTrainingSAE(config)
    optimiser = torch.optim.Adam(sae.parameters(), lr=7e-5, betas=(0.0, 0.999))
    dead = torch.zeros(args.width, dtype=torch.bool, device=args.device)

    def step(x: Tensor, index: int) -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.product == "bfloat16"):
            given = TrainStepInput(sae_in=x, coefficients={"l0": 1e-3}, dead_neuron_mask=dead, n_training_steps=index, is_logging_step=False)
            out = sae.training_forward_pass(given)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


def dictionary_learning(args: argparse.Namespace, rows: Tensor) -> Step:
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    trainer = JumpReluTrainer(steps=10_000, activation_dim=args.d_in, dict_size=args.width, layer=0, lm_name="-", seed=0, device=args.device)
    return lambda x, index: trainer.update(index, x)


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def forget_peak_memory() -> None:
    """So that the peak is that of the steps, not of making the rows or the SAE (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most bytes that were resident since it was forgotten: libraries, rows, SAE and all."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1_024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    libraries = {"jumpsuite": jumpsuite, "saelens": saelens, "dictionary_learning": dictionary_learning}
    parser.add_argument("--library", choices=libraries, required=True)
    parser.add_argument("--d-in", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--product", choices=["float32", "bfloat16"], default="float32", help="bfloat16 means autocast for SAELens")
    parser.add_argument("--l0", type=float, default=50)
    parser.add_argument("--run", type=int, metavar="STEPS", help="time a whole training from its initialisation")
    parser.add_argument("--recipe", default="short-run", help="ours, with --run")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    torch.manual_seed(0)
    rows = heavy_tailed_rows(args.batch * 4, args.d_in)
    rows = (rows / rows.square().sum(1).mean().sqrt()).to(args.device)
    step = libraries[args.library](args, rows)
    forget_peak_memory()
    batches = rows.split(args.batch)
    seconds = [seconds_of(lambda i=i: step(batches[i % 4], i)) for i in range(args.run or WARM_UP + TIMED)]
    memory = torch.cuda.max_memory_allocated() if args.device == "cuda" else peak_memory()
    W = torch.randn(args.d_in, args.width, device=args.device)
    product = statistics.median(seconds_of(lambda: batches[0] @ W) for _ in range(9))
    took = statistics.fmean(seconds) if args.run else statistics.median(seconds[WARM_UP:])
    print(
        json.dumps(
            {
                "library": args.library,
                "product": args.product,
                **({"run": args.run, "recipe": args.recipe if args.library == "jumpsuite" else "its own"} if args.run else {}),
                "d_in": args.d_in,
                "width": args.width,
                "batch": args.batch,
                "step_s": round(took, 4),
                "encoder_product_s": round(product, 4),
                "ratio": round(took / product, 2),
                "tokens_per_s": round(args.batch / took),
                "peak_gb": round(memory / 1e9, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
