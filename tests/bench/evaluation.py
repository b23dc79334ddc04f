"""Our evaluation of all dictionaries of a site beside SAELens's of the same ones: seconds, and how far the numbers agree.

    jumpsuite run SUITE --store RUNS
    python tests/bench/evaluation.py SUITE --store RUNS --site L09.resid_post --sequences 16

Both take the same model, loaded once by transformers, and the same held-out sequences: those without a special token but the first, for a special
token's own prediction counts in SAELens's means and not in ours. SAELens splices and measures as its `get_eval_everything_config` says. Ours is
timed as a run does it, with the fidelity of all held-out rows, the site's mean as one replacement more, and uniformity. `--saebench` runs
SAEBench's core evaluation in SAELens's place: with a Python that has it.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.fidelity import row_fidelity
from core.packing import SpecialTokens, is_text
from core.positions import Positions
from core.site import Site
from core.splice import predicted, spliced_predictions
from core.suite_file import parse_suite
from storage.catalogue import Catalogue
from storage.release import read_dictionary
from tasks.evaluate import row_scores
from tasks.resources import borrowed_anatomy
from tasks.spliced import Spliced


class Prompts:
    """Gives SAELens's evaluations the same tokens as ours, from the beginning in each pass."""

    def __init__(self, tokens: torch.Tensor, batch: int) -> None:
        self.store_batch_size_prompts, self.context_size = batch, tokens.shape[1]
        self._batches = tokens.split(batch)
        self.reset_input_dataset()

    def reset_input_dataset(self) -> None:
        self._next = itertools.cycle(self._batches)

    def get_batch_tokens(self, *_: Any, **__: Any) -> torch.Tensor:
        return next(self._next)


def theirs_of(sae: Any, model: Any, tokens: torch.Tensor, special: SpecialTokens, batch: int, saebench: bool) -> dict[str, Any]:
    batches = len(tokens) // batch
    if saebench:
        from sae_bench.evals.core.eval_config import CoreEvalConfig
        from sae_bench.evals.core.main import run_evals

        config = CoreEvalConfig(
            batch_size_prompts=batch,
            n_eval_reconstruction_batches=batches,
            n_eval_sparsity_variance_batches=batches,
            compute_kl=True,
            compute_ce_loss=True,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            exclude_special_tokens_from_reconstruction=True,
        )
        sae.cfg.hook_name, sae.cfg.hook_layer, sae.cfg.hook_head_index = sae.cfg.metadata.hook_name, 0, None
        measured, _ = run_evals(sae, Prompts(tokens, batch), model, config, ignore_tokens=set(special.excluded))
        return dict(measured)
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    config = get_eval_everything_config(batch, batches, batches)
    measured, _ = run_evals(sae, Prompts(tokens, batch), model, ActivationScaler(), config, exclude_special_tokens=special.excluded)
    return dict(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--store", required=True)
    parser.add_argument("--site", required=True)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--batch", type=int, default=2, help="sequences at a time of theirs, which hold all their logits")
    parser.add_argument("--saebench", action="store_true")
    args = parser.parse_args()
    from sae_lens import SAE
    from sae_lens.load_model import HookedProxyLM

    suite = parse_suite(args.suite.read_text(), [f"evaluation.loss_sequences={args.sequences}"])
    catalogue, site = Catalogue(suite, args.store), Site.parse(args.site)
    description = catalogue.harvest.description
    assert description is not None
    special = SpecialTokens(description["bos_token"], tuple(description["excluded_tokens"]))
    part = catalogue.harvest.part("held_out")
    everything = part.first_tokens(part.num_sequences)
    clean = is_text(everything, special)[:, 1:].all(1).nonzero()[0][: args.sequences]
    tokens = torch.from_numpy(everything[clean]).long()
    release = Path(args.store) / suite.name / "release"
    cards = {path.stem: json.loads(path.read_text()) for path in sorted((release / "scorecards" / args.site).glob("*.json"))}
    dictionaries = {name: read_dictionary(release, card)["saelens"] for name, card in cards.items()}
    with borrowed_anatomy(catalogue) as anatomy:
        anatomy.trunk(tokens[:1], use_cache=False)  # warm

    began = time.perf_counter()
    Spliced(catalogue, site, dictionaries)
    for dictionary in dictionaries.values():
        row_scores(catalogue, site, dictionary, None)
    ours = time.perf_counter() - began
    print(f"ours: {ours:.0f} s", flush=True)

    # The same tokens, and the same means as theirs: of predictions that text makes.
    text = torch.from_numpy(is_text(tokens.numpy(), special))
    where = Positions(*predicted(text).T.numpy())
    by_text = where.position_E > 0
    kept = part.valid()
    kept[kept] = np.isin(np.concatenate([part.rows(block)[:, 0] for block in part.blocks]), clean)
    found: dict[str, dict[str, float]] = {}
    with borrowed_anatomy(catalogue) as anatomy:
        for name, dictionary in dictionaries.items():
            losses: list[Any] = [[], [], []]
            for some, some_text in zip(tokens.split(8), text.split(8), strict=True):
                intact, spliced = spliced_predictions(anatomy, site, {name: dictionary.reconstruct}, some, some_text)
                for kept_losses, values in zip(losses, (intact.loss_P, spliced[name].loss_P, spliced[name].divergence_P), strict=True):
                    kept_losses.append(values)
            intact_loss, loss, divergence = (float(torch.cat(each).double()[by_text].mean()) for each in losses)
            rows = torch.cat(list(part.batches(site, kept))).float()
            scored = row_fidelity(dictionary, [rows], rows.double().numpy().mean(0))
            found[name] = {"L0": scored.l0, "FVU": scored.fvu, "cosine": scored.cosine, "relative norm": scored.relative_norm}
            found[name] |= {"CE": loss, "intact CE": intact_loss, "KL": divergence}

        proxy = HookedProxyLM(anatomy.model, catalogue.source.load_tokenizer(), hook_names=[f"model.layers.{site.layer}"])
        model: Any = proxy
        began = time.perf_counter()
        theirs = {}
        for name, card in cards.items():
            sae = SAE.load_from_disk(str(release / card["formats"]["saelens"]))
            sae.cfg.metadata.hook_name = f"model.layers.{site.layer}"
            theirs[name] = theirs_of(sae, model, tokens, special, min(args.batch, len(tokens)), args.saebench)
        seconds = time.perf_counter() - began
    library = "SAEBench" if args.saebench else "SAELens"
    print(f"{len(cards)} dictionaries at {site}, {tokens.numel():,} tokens: ours {ours:.0f} s, {library} {seconds:.0f} s: {seconds / ours:.1f} times")
    print(f"| dictionary | measure | ours | {library} | relative difference |\n|---|---|---|---|---|")
    for name, measured in theirs.items():
        flat = {key: value for group in measured.values() for key, value in group.items()}
        flat["FVU"] = 1 - flat["explained_variance"]
        names = {"L0": "l0", "FVU": "FVU", "cosine": "cossim", "relative norm": "l2_ratio", "CE": "ce_loss_with_sae"}
        for measure, key in (names | {"intact CE": "ce_loss_without_sae", "KL": "kl_div_with_sae"}).items():
            mine, its = found[name][measure], float(flat[key])
            print(f"| {name} | {measure} | {mine:.5f} | {its:.5f} | {mine / its - 1:+.1e} |")


if __name__ == "__main__":
    main()
