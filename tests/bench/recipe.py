"""One dictionary trained on given rows with a recipe, and how well it reconstructs rows it has not seen. Prints a JSON line.

    python tests/bench/rows.py SUITE SITE rows.npy                          # of a harvest that `jumpsuite run` has made
    python tests/bench/recipe.py rows.npy --l0 50 --tokens 1000000 --set adam_beta2=0.99

Rows are permuted with seed 0; the last 16,384 are held out. So the numbers stand beside those of another library on the same file.
"""

import argparse
import json
import time

import numpy as np
import torch
import yaml

from core.fidelity import row_fidelity
from core.site import Site
from core.spec import DictionarySpec
from core.statistics import Moments
from core.trainer import Trainer
from core.training import Training

HELD_OUT = 16_384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows")
    parser.add_argument("--architecture", default="jumprelu", choices=["jumprelu", "relu-l1", "gated", "topk", "batch-topk"])
    parser.add_argument("--width", type=int, default=2_048)
    parser.add_argument("--l0", type=float, default=50)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of the suite file's training section")
    args = parser.parse_args()

    rows = torch.from_numpy(np.load(args.rows)).float()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    train, held_out = rows[:-HELD_OUT], rows[-HELD_OUT:]
    given = {key: yaml.safe_load(value) for key, _, value in (setting.partition("=") for setting in args.set)}
    training = Training(**({"recipe": "short-run", "tokens": args.tokens} | given))
    normaliser = Moments.of(train).normaliser(training.inputs)
    spec = DictionarySpec(Site(0, "resid_post"), args.architecture, args.width, args.l0, None, args.seed, args.tokens)
    trainer = Trainer(spec, training, normaliser, torch.device("cpu"))
    generator = torch.Generator().manual_seed(args.seed)
    start = time.perf_counter()
    while not trainer.done:
        trainer.train_on(train[torch.randint(len(train), (training.batch_rows,), generator=generator)])
    seconds = time.perf_counter() - start
    scored = row_fidelity(trainer.dictionary.fold(normaliser), held_out.split(2_048), Moments.of(held_out).mean)
    settings = {"architecture": args.architecture, "recipe": training.recipe, **given, "width": args.width, "tokens": args.tokens, "seed": args.seed}
    measured = {"l0": round(scored.l0, 1), "fvu": round(scored.fvu, 4), "dead": round(scored.dead, 3), "seconds": round(seconds, 1)}
    print(json.dumps(settings | measured))


if __name__ == "__main__":
    main()
