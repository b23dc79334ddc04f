"""Browse: a suite as pages that open from a folder, with no server: its dictionaries, their latents, and the contexts that show what each does.

    SUITE/report/index.html, style.css, app.js       the pages, the same for every suite (`tasks/browser/`)
                 data/suite.js                       all dictionaries and their scores
                 data/SITE/NAME/latents-N.js         of some latents each: how often they fire, what they mean, how far that predicts them
                 data/SITE/NAME/pages-N.js           of a few: their contexts, the nearest latents, the tokens that they make likelier
                 data/text/N.js                      the tokens of some contexts
                 data/rating.js                      latents to be rated by people who do not know whose they are

Data is loaded when it is looked at. It comes as scripts, for a page that is opened from a folder may load nothing else, and as JSON within them.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from core.key import key_of
from core.slices import slices
from core.spec import DictionarySpec
from storage.catalogue import Catalogue
from storage.explanations import ExplanationFolder, part_name
from storage.objects import Corrupt
from tasks.contexts import HeldOutText
from tasks.evaluate import scorecards
from tasks.explain import LATENTS_AT_ONCE, SCORES
from tasks.explained import legend
from tasks.progress import Progress
from tasks.provenance import code
from tasks.rating import chosen_latents, name_of, save_owners
from tasks.tables import Scored

PAGES = Path(__file__).parent / "browser"
LATENTS_A_FILE = LATENTS_AT_ONCE
PAGES_A_FILE = 64
CONTEXTS_A_FILE = 512
SHOWN = {"top": 10, "sample": 6, "quiet": 3}
"""Contexts of each kind on a latent's page."""


def write_pages(catalogue: Catalogue) -> str:
    """Write the pages of the whole suite, where they are not as they would be now, and give where to begin."""
    whole = Catalogue(catalogue.suite, catalogue.store.address)
    writer = Writer(whole)
    scored = list(scorecards(whole))
    failures = [f"{site}: {reason}" for site in whole.all_sites if (reason := whole.failure(site))]
    of_each = [[card, whole.explanations(spec).summary()] for spec, card in scored]
    made_of = key_of("report", code(), whole.suite.release.title, failures, of_each)
    if writer.made_of != made_of:
        writer.begin()
        _write_data(whole, writer, scored, failures)
        writer.finish(made_of)
    writer.pages()
    return whole.store.where(f"{whole.suite.name}/report/index.html")


def _write_data(whole: Catalogue, writer: "Writer", scored: Scored, failures: list[str]) -> None:
    text: HeldOutText | None = None
    entries, rated, owners = [], list[dict[str, Any]](), dict[str, tuple[str, str]]()
    with Progress("report", len(scored), "dictionaries") as progress:
        for spec, card in scored:
            explanations = whole.explanations(spec)
            summary = explanations.summary()
            entry = entry_of(spec, card)
            if summary:
                text = text or HeldOutText(whole, spec.site, None)
                entry |= {"explained": _scores(summary), "simulation": write_latents(writer, explanations, spec, text)}
                for subject in entry["explained"]:
                    for item in _to_rate(explanations, subject, text, whole.suite.explaining.seed):
                        owners[item["name"]] = (str(spec), subject)
                        rated.append(item)
            entries.append(entry)
            progress.advance(1)
    if text:
        write_text(writer, text)
        save_owners(whole, owners)
        writer.data("rating", sorted(rated, key=lambda item: str(item["name"])))
    suite = whole.suite
    writer.data(
        "suite",
        {
            "name": suite.name,
            "title": suite.release.title or suite.name,
            "model": suite.model.source,
            "total": sum(map(len, whole.all_sites.values())),
            "failures": failures,
            "legend": legend(whole),
            "contexts_a_file": CONTEXTS_A_FILE,
            "dictionaries": entries,
            "made": f"Made by Jumpsuite at {code()['commit']}. All measured on held-out text.",
        },
    )


class Writer:
    """Writes a suite's report."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._store, self._prefix = catalogue.store, f"{catalogue.suite.name}/report"

    def put(self, name: str, data: bytes) -> None:
        self._store.put(f"{self._prefix}/{name}", data)

    @property
    def made_of(self) -> str | None:
        """The key of what the pages show."""
        try:
            record = self._store.get_record(f"{self._prefix}/data/made-of.json")
        except Corrupt:
            return None
        return str(record["made_of"]) if record else None

    def begin(self) -> None:
        """From now on the pages may be of one thing and of another, until `finish`."""
        self._store.delete(f"{self._prefix}/data/made-of.json")

    def finish(self, made_of: str) -> None:
        self._store.put_record(f"{self._prefix}/data/made-of.json", {"made_of": made_of})

    def pages(self) -> None:
        """What is the same for every suite."""
        for path in sorted(PAGES.iterdir()):
            self.put(path.name, path.read_bytes())

    def data(self, name: str, value: Any) -> None:
        """What `receive` in the pages is given under a name."""
        said = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        self.put(f"data/{name}.js", f"receive({json.dumps(name)}, {said});\n".encode("utf-8", "replace"))


def entry_of(spec: DictionarySpec, card: dict[str, Any]) -> dict[str, Any]:
    """A dictionary, as the suite's page lists it; none of its latents explained."""
    loss = card["loss"]
    return {
        "id": f"{spec.site}/{spec.name}",
        "site": str(spec.site),
        "layer": spec.site.layer,
        "kind": spec.site.kind,
        "name": spec.name,
        "width": spec.width,
        "l0": card["l0"],
        "fvu": card["fvu"],
        "dead": card["dead"],
        "dense": card["dense"],
        "cosine": card["cosine"],
        "relative_norm": card["relative_norm"],
        "uniformity": card["uniformity"]["mean"],
        "divergence": loss["divergence"],
        "by_position": {"begins": loss["by_position"]["begins"], "fvu": card["fvu_by_position"]["fvu"], "delta": loss["by_position"]["delta"]},
        "delta": loss["delta"],
        "delta_interval": loss["delta_interval"],
        "mean": loss["delta_mean"],
        "zero": loss["delta_zero"],
        "histogram": card["frequency_histogram"],
        "latents_a_file": LATENTS_A_FILE,
        "pages_a_file": PAGES_A_FILE,
        "explained": None,
    }


def _scores(summary: dict[str, Any]) -> dict[str, Any]:
    return {subject: summary[subject] for subject in ("trained", "control") if subject in summary}


def _to_rate(explanations: ExplanationFolder, subject: str, text: HeldOutText, seed: int) -> Iterator[dict[str, Any]]:
    """What the rating page shows of some latents: contexts, and no word of whose they are."""
    latents = chosen_latents(explanations, subject, seed)
    for first in sorted({latent // LATENTS_AT_ONCE * LATENTS_AT_ONCE for latent in latents}):
        table = explanations.need(part_name(subject, "examples", first))
        for latent, examples in contexts_of(table, text.tokens_XW.shape[1], latents).items():
            yield {
                "name": name_of(explanations, subject, latent),
                "examples": [[kind, text.pieces(context), places, values] for kind, context, places, values in examples if kind != "quiet"],
            }


def write_latents(writer: Writer, explanations: ExplanationFolder, spec: DictionarySpec, text: HeldOutText) -> list[int]:
    """Write a dictionary's latents; gives how many explanations score from 0, 0.1, … up to 1."""
    explained = explanations.explained("trained")
    for some in slices(spec.width, LATENTS_A_FILE):
        first, last = some.start, some.stop
        frequency = explanations.need(part_name("trained", "latents", first))["frequency"].to_numpy()
        rows = [row for row in explained if first <= row["latent"] < last]
        listed = [[row["latent"], row["explanation"] or "unscored", *(_short(row[name]) for name in SCORES)] for row in rows]
        writer.data(f"{spec.site}/{spec.name}/latents-{first}", {"frequency": [float(f"{value:.3g}") for value in frequency], "explained": listed})
        pages = list(_pages(explanations, first, last, text))
        for begin in range(0, last - first, PAGES_A_FILE):
            writer.data(f"{spec.site}/{spec.name}/pages-{first + begin}", pages[begin : begin + PAGES_A_FILE])
    pearson = np.array([row["pearson"] for row in explained if row["pearson"] is not None])
    return [int(number) for number in np.histogram(pearson.clip(0, 1), np.linspace(0, 1, 11))[0]]


def _pages(explanations: ExplanationFolder, first: int, last: int, text: HeldOutText) -> Iterator[dict[str, Any]]:
    examples = contexts_of(explanations.need(part_name("trained", "examples", first)), text.tokens_XW.shape[1])
    decoder = explanations.need(part_name("trained", "decoder", first))
    columns = {name: decoder[name].to_pylist() for name in decoder.column_names}
    for latent in range(first, last):
        own = {name: values[latent - first] for name, values in columns.items()}
        yield {
            "examples": examples[latent],
            "nearest": [[other, round(cosine, 3)] for other, cosine in zip(own["nearest"], own["cosine"], strict=True)],
            **{
                name: [[text.spell(token), round(effect, 1)] for token, effect in zip(own[name], own[f"{name}_by"], strict=True)]
                for name in ("raised", "lowered")
            },
        }


def contexts_of(table: pa.Table, positions: int, only: list[int] | None = None) -> dict[int, list[list[Any]]]:
    """Of each latent the contexts to be shown, from both halves of the text: kind, number, where it fires there, and how strongly."""
    if only is not None:
        table = table.filter(pc.is_in(table["latent"], pa.array(only, pa.int32())))
    latent_E, shown_E, kind_E, context_E = (table[name].to_numpy() for name in ("latent", "shown", "kind", "context"))
    f_EW = table["activations"].combine_chunks().values.to_numpy(zero_copy_only=False).reshape(-1, positions)
    found: dict[int, list[list[Any]]] = defaultdict(list)
    for kind, number in SHOWN.items():
        own = np.flatnonzero(kind_E == kind)
        # The highest first; of those that were drawn at random, the first of both halves in turn.
        rank = -f_EW[own].max(1) if kind == "top" else _rank(latent_E[own] * 2 + shown_E[own])
        own = own[np.lexsort((rank, latent_E[own]))]
        for entry in own[_rank(latent_E[own]) < number]:
            places = np.flatnonzero(f_EW[entry])
            values = [float(f"{value:.3g}") for value in f_EW[entry, places]]
            found[int(latent_E[entry])].append([kind, int(context_E[entry]), places.tolist(), values])
    return found


def _rank(groups_E: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The how-manieth of its group each entry is; a group's entries follow each other."""
    number_E = np.arange(len(groups_E))
    begins = np.r_[True, groups_E[1:] != groups_E[:-1]][: len(groups_E)]
    return number_E - np.maximum.accumulate(np.where(begins, number_E, 0))


def write_text(writer: Writer, text: HeldOutText) -> None:
    """Write the tokens of all contexts."""
    for some in slices(len(text.tokens_XW), CONTEXTS_A_FILE):
        writer.data(f"text/{some.start}", {"first": some.start, "tokens": [text.pieces(context) for context in range(some.start, some.stop)]})


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
