"""Explain: what the latents of a site's dictionaries mean, and how far to believe it.

First the contexts that show each latent are collected, then some latents are explained by them. Contexts are of the held-out text: one half is shown
to who explains, in the other the explanation is put to the test.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from core.asking import LanguageModel
from core.bootstrap import interval
from core.decoder import nearest, token_effects
from core.dictionary import Dictionary
from core.errors import JumpsuiteError
from core.examples import Examples, Number
from core.interpretability import BySimulation, Contexts, Judge, Scores, examine
from core.random_directions import random_directions
from core.site import Site
from core.slices import slices
from core.spec import DictionarySpec
from core.suite import Explanations
from core.token_rules import explain
from storage.catalogue import Catalogue
from storage.explanations import ExplanationFolder, part_name
from storage.objects import Corrupt
from tasks.asking import Asker, asked_for
from tasks.contexts import HeldOutText
from tasks.evaluate import sample_rows
from tasks.progress import Progress
from tasks.provenance import code
from tasks.resources import borrowed_anatomy

log = logging.getLogger(__name__)
T = TypeVar("T")

LATENTS_AT_ONCE = 4_096
"""Whose contexts are collected together: what that takes of memory is the same for every width."""
EXPLAINED_AT_ONCE = 64
"""Latents that a run which is killed may have to explain again."""
NEAREST, TOKENS = 8, 10
"""Other latents, and tokens raised and lowered, that are noted of each latent."""
WELL_SIMULATED = 0.9
"""Pearson correlation from which arXiv:2407.14435 (section 5.3) takes a latent for well simulated."""
SCORES = tuple(field.name for field in fields(Scores))


@task(task_run_name="explain {site}", cache_policy=NO_CACHE)
def explain_site(catalogue: Catalogue, site: Site, asker: Asker | None = None) -> None:
    """Leave latents of every finished dictionary of the site explained and scored; do nothing for those that are.

    Args:
        asker: of the language model that explains and judges; without one, explanations are statistical.

    Raises:
        JumpsuiteError: the language model may cost no more, or gives no answer.
    """
    for spec in catalogue.sites[site]:
        if catalogue.folder(spec).done and catalogue.explanations(spec).summary() is None:
            _explain_dictionary(catalogue, spec, asker)


def to_explain(catalogue: Catalogue, site: Site) -> bool:
    """Whether the suite says how its latents are explained, all dictionaries of the site are trained, and some are not explained."""
    specs = catalogue.sites[site]
    if not catalogue.suite.explanations or not all(catalogue.folder(spec).done for spec in specs):
        return False
    return any(catalogue.explanations(spec).summary() is None for spec in specs)


def need_trained(catalogue: Catalogue, site: Site) -> None:
    """Raises JumpsuiteError where a dictionary of the site is not."""
    for spec in catalogue.sites[site]:
        if not catalogue.folder(spec).done:
            raise JumpsuiteError(f"{spec} is not trained; expected a finished dictionary; run the suite first")


def _explain_dictionary(catalogue: Catalogue, spec: DictionarySpec, asker: Asker | None) -> None:
    folder, explanations, settings = catalogue.folder(spec), catalogue.explanations(spec), catalogue.suite.explaining
    limit = folder.facts["inputs"]["norm_limit"]
    text = HeldOutText(catalogue, spec.site, limit)
    dictionary = folder.load().to(text.device)
    subjects = {"trained": dictionary}
    if settings.control:
        sample = sample_rows(catalogue.harvest.part("held_out"), spec.site, limit).to(text.device)
        subjects["control"] = random_directions(dictionary, sample, settings.seed)
    _look_at_decoder(catalogue, spec, dictionary, explanations)
    model = LanguageModel(asker.ask, text.spell) if asker else None
    found = {name: Subject(name, of, text, explanations, settings, model).explain(f"{spec} {name}") for name, of in subjects.items()}
    explainer = settings.endpoint.model if settings.endpoint else None
    explanations.finish({"dictionary": folder.key, "spec": spec.identity(), "code": code(), "explainer": explainer, **found})


def _look_at_decoder(catalogue: Catalogue, spec: DictionarySpec, dictionary: Dictionary, explanations: ExplanationFolder) -> None:
    """Leave what the decoder tells of every latent: the nearest other ones, and the tokens that it makes likelier or less likely."""
    parts = slices(spec.width, LATENTS_AT_ONCE)
    waiting = [part for part in parts if _intact(partial(explanations.table, part_name("trained", "decoder", part.start))) is None]
    if not waiting:
        return
    with borrowed_anatomy(catalogue) as anatomy, Progress(f"decoder {spec}", sum(part.stop - part.start for part in waiting), "latents") as progress:
        for latents in waiting:
            near = nearest(dictionary.W_dec, latents, NEAREST)
            raised, lowered = token_effects(anatomy, spec.site, dictionary.W_dec[latents], TOKENS)
            columns = {
                "nearest": near.numbers_LK,
                "cosine": near.values_LK,
                "raised": raised.numbers_LK,
                "raised_by": raised.values_LK,
                "lowered": lowered.numbers_LK,
                "lowered_by": -lowered.values_LK,
            }
            explanations.save_table(
                part_name("trained", "decoder", latents.start), pa.table({name: list(column.cpu().numpy()) for name, column in columns.items()})
            )
            progress.advance(latents.stop - latents.start)


def _intact(read: Callable[[], T | None]) -> T | None:
    """What is read; None where it is damaged, for it can be made again."""
    try:
        return read()
    except Corrupt as damage:
        log.warning("%s; it is made again", str(damage).partition(";")[0])
        return None


class Subject:
    """A dictionary whose latents are explained: a trained one, or its control."""

    def __init__(
        self,
        name: str,
        dictionary: Dictionary,
        text: HeldOutText,
        folder: ExplanationFolder,
        settings: Explanations,
        model: LanguageModel | None,
    ) -> None:
        self._model = model
        self._name, self._dictionary, self._text, self._folder, self._settings = name, dictionary, text, folder, settings
        self._examples = lru_cache(maxsize=1)(self._load_examples)

    def explain(self, title: str) -> dict[str, Any]:
        """Do what is missing, and say what it came to."""
        self._collect(title)
        able = self._able()
        chosen = able
        if self._settings.latents is not None and self._settings.latents < len(able):
            chosen = np.sort(np.random.default_rng(self._settings.seed).choice(able, self._settings.latents, replace=False))
        if self._settings.endpoint:
            log.info("%s: %s", title, asked_for(self._settings.endpoint, len(chosen), self._text.tokens_XW.shape[1]))
        tables = []
        with Progress(f"explain {title}", len(chosen), "latents") as progress:
            for begin in range(0, len(chosen), EXPLAINED_AT_ONCE):
                name, latents = part_name(self._name, "explanations", begin), chosen[begin : begin + EXPLAINED_AT_ONCE]
                table = self._table(name)
                if table is None:
                    table = pa.Table.from_pylist(list(self._beside_each_other(latents)), SCHEMA)
                    self._folder.save_table(name, table)
                tables.append(table)
                progress.advance(len(latents))
        explained = sum(len(table) - table["explanation"].null_count for table in tables)
        return {"latents": len(self._dictionary.b_enc), "able": len(able), "drawn": len(chosen), "explained": explained, **_summary(tables)}

    # Examples

    @property
    def _parts(self) -> list[slice]:
        return slices(len(self._dictionary.b_enc), LATENTS_AT_ONCE)

    def _collect(self, title: str) -> None:
        waiting = [part for part in self._parts if self._table(part_name(self._name, "examples", part.start)) is None]
        with Progress(f"examples {title}", self._text.num_rows * len(waiting), "rows") as progress:
            for latents in waiting:
                self._collect_some(latents, progress)

    def _collect_some(self, latents: slice, progress: Progress) -> None:
        """Go through the text for some latents."""
        first = latents.start
        number, W = Number(self._settings.top, self._settings.sample, self._settings.quiet), self._text.tokens_XW.shape[1]
        halves = {
            shown: Examples(latents.stop - first, W, number, first_latent=first, seed=self._settings.seed, device=self._dictionary.b_enc.device)
            for shown in (True, False)
        }
        for contexts_X, is_text_XW, x_BD in self._text.rows():
            f_BL = self._dictionary.encode_some(x_BD, latents)
            f_XWL = f_BL.new_zeros(*is_text_XW.shape, f_BL.shape[1])
            f_XWL[is_text_XW] = f_BL
            shown_X = self._text.is_shown(contexts_X)
            for shown, examples in halves.items():
                which = shown_X == shown
                if which.any():
                    examples.offer(contexts_X[which], f_XWL[which], is_text_XW[which])
            progress.advance(len(x_BD))
        fired = sum(examples.fired_L for examples in halves.values())
        assert isinstance(fired, Tensor)
        frequency = (fired.double() / self._text.num_rows).cpu().numpy()
        self._folder.save_table(
            part_name(self._name, "latents", first), pa.table({"latent": np.arange(first, latents.stop, dtype=np.int32), "frequency": frequency})
        )
        self._folder.save_table(part_name(self._name, "examples", first), pa.concat_tables(list(_tables(halves, first))))

    def _load_examples(self, first: int) -> dict[str, Any]:
        table = self._folder.need(part_name(self._name, "examples", first))
        W = self._text.tokens_XW.shape[1]
        columns = {name: table[name].to_numpy() for name in ("latent", "shown", "kind", "context")}
        return columns | {"activations": table["activations"].combine_chunks().values.to_numpy(zero_copy_only=False).reshape(-1, W)}

    def _able(self) -> npt.NDArray[np.int64]:
        """The latents that fire in enough contexts of both halves."""
        enough, width = [], len(self._dictionary.b_enc)
        for latents in self._parts:
            examples = self._examples(latents.start)
            sampled = examples["kind"] == "sample"
            counts = [np.bincount(examples["latent"][sampled & (examples["shown"] == shown)], minlength=width) for shown in (True, False)]
            enough.append(np.flatnonzero(np.minimum(*counts) >= self._settings.least_contexts))
        return np.concatenate(enough)

    def _contexts(self, latent: int, shown: bool) -> Contexts:
        examples = self._examples(latent // LATENTS_AT_ONCE * LATENTS_AT_ONCE)
        among = np.flatnonzero((examples["latent"] == latent) & (examples["shown"] == shown))
        contexts, first = np.unique(examples["context"][among], return_index=True)
        return Contexts(
            self._text.tokens_XW[contexts].astype(np.int64),
            examples["activations"][among[first]].astype(np.float64),
            self._text.is_text_XW[contexts],
        )

    def _table(self, name: str) -> pa.Table | None:
        return _intact(partial(self._folder.table, name))

    # Explanations

    def _beside_each_other(self, latents: npt.NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """Most of the time with a language model is waiting for it."""
        at_once = self._settings.endpoint.at_once if self._settings.endpoint else 1
        with ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(lambda pair: self._explained(*pair), [(int(latent), *self._both(int(latent))) for latent in latents])

    def _both(self, latent: int) -> tuple[Contexts, Contexts]:
        return self._contexts(latent, shown=True), self._contexts(latent, shown=False)

    def _explained(self, latent: int, shown: Contexts, hidden: Contexts) -> dict[str, Any]:
        said: str | None
        if self._model and self._settings.endpoint:
            shown, hidden = (contexts.some(self._settings.endpoint.contexts, latent) for contexts in (shown, hidden))
            said = self._model.explain(shown)
            judge: Judge | None = self._model.judge(said) if said else None
        else:
            explanation = explain(shown.tokens_NW, shown.activations_NW, shown.is_text_NW)
            said, judge = explanation.text(self._text.spell), BySimulation(explanation)
        scores = vars(examine(judge, hidden, latent)) if judge else dict.fromkeys(SCORES)
        return {"latent": latent, "explanation": said, **scores}


SCHEMA = pa.schema([("latent", pa.int32()), ("explanation", pa.string()), *((score, pa.float64()) for score in SCORES)])


def _tables(halves: dict[bool, Examples], first: int) -> Iterator[pa.Table]:
    """What was kept, a row a context."""
    for shown, examples in halves.items():
        for kind, kept in examples.kept.items():
            latents_E, contexts_E, f_EW = (tensor.cpu().numpy() for tensor in kept.entries())
            yield pa.table(
                {
                    "latent": (latents_E + first).astype(np.int32),
                    "shown": np.full(len(latents_E), shown),
                    "kind": pa.array([kind] * len(latents_E), pa.string()),
                    "context": contexts_E.astype(np.int64),
                    "activations": pa.FixedSizeListArray.from_arrays(pa.array(f_EW.reshape(-1).astype(np.float32)), f_EW.shape[1]),
                }
            )


def _summary(tables: list[pa.Table]) -> dict[str, Any]:
    """Of each score the mean with its 95% interval over latents, or None where nothing was scored."""
    scores = {name: np.concatenate([np.zeros(0), *(table[name].drop_null().to_numpy() for table in tables)]) for name in SCORES}
    means = {name: _mean(values) if len(values) else None for name, values in scores.items()}
    return means | {"well_simulated": float((scores["pearson"] > WELL_SIMULATED).mean()) if len(scores["pearson"]) else None}


def _mean(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    low, high = interval(values)
    return {"mean": float(values.mean()), "low": low, "high": high, "latents": len(values)}
