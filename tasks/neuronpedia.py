"""Neuronpedia: what was explained, as its importer takes it (docs.neuronpedia.org/api-and-data/exports).

    v1/MODEL/SOURCE/model.jsonl, release.jsonl, sourceset.jsonl, source.jsonl    a line each
                    features/batch-N.jsonl.gz       of every latent how often it fires, what its decoder does, the nearest others
                    activations/batch-N.jsonl.gz    contexts in which it fires
                    explanations/batch-N.jsonl.gz   what was said of it

A source is a dictionary; one of the same kind and name at another layer is of the same set.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.slices import slices
from core.spec import DictionarySpec
from storage.catalogue import Catalogue
from storage.explanations import part_name
from tasks.browse import contexts_of
from tasks.contexts import HeldOutText
from tasks.explain import LATENTS_AT_ONCE

FEATURES_A_BATCH = 1_024
CREATOR = "clkht01d40000jv08hvalcvly"
"""Whom Neuronpedia's own exports name as the creator of everything; an importer puts its own in this place."""
UNNAMED = "unknown"
"""The kind of explanation, and of explainer, of all that is not among Neuronpedia's own."""


def export(catalogue: Catalogue, spec: DictionarySpec, text: HeldOutText, to: Path) -> str:
    """Write what was explained of a dictionary, and give where it lies below `to`."""
    suite, now = catalogue.suite, datetime.now(UTC).isoformat(timespec="seconds")
    model = _slug(suite.model.source.removeprefix("package:").rstrip("/").rpartition("/")[2])
    of_set = _slug(f"{suite.name}-{spec.site.kind}-{spec.name}")
    title = suite.release.title or suite.name
    made = {"creatorId": CREATOR, "createdAt": now}
    source = {"modelId": model, "layer": f"{spec.site.layer}-{of_set}", "creatorId": CREATOR, "createdAt": now}
    folder = to / "v1" / model / str(source["layer"])
    folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, dict[str, Any]] = {
        "model": {"id": model, "instruct": model.endswith("-it"), "displayNameShort": model, "displayName": model, "updatedAt": now} | made,
        "release": {"name": _slug(suite.name), "description": title, "descriptionShort": title, "urls": []}
        | {"creatorName": "Jumpsuite", "creatorNameShort": "Jumpsuite"}
        | made,
        "sourceset": {"modelId": model, "name": of_set, "description": f"{title}: {spec.site.kind} {spec.name}", "visibility": "PUBLIC"}
        | {"creatorName": "Jumpsuite", "releaseName": _slug(suite.name)}
        | made,
        "source": {"id": source["layer"], "modelId": model, "setName": of_set, "visibility": "PUBLIC", "dataset": suite.text.source}
        | {"num_prompts": len(text.tokens_XW), "num_tokens_in_prompt": text.tokens_XW.shape[1], "hfRepoId": None, "hfFolderId": None}
        | made,
    }
    for name, record in records.items():
        _write(folder / f"{name}.jsonl", [record])
    explained = catalogue.explanations(spec).explained("trained")
    for batch, (features, activations) in enumerate(_latents(catalogue, spec, text, source)):
        said = [
            source
            | {"id": _identity(source, "explanation", row["latent"]), "index": row["latent"], "description": row["explanation"], "authorId": CREATOR}
            | {"typeName": UNNAMED, "explanationModelName": UNNAMED}
            for row in explained
            if row["explanation"] and row["latent"] // FEATURES_A_BATCH == batch
        ]
        for kind, lines in {"features": features, "activations": activations, "explanations": said}.items():
            (folder / kind).mkdir(exist_ok=True)
            _write(folder / kind / f"batch-{batch}.jsonl.gz", lines)
    return str(folder.relative_to(to))


def _latents(
    catalogue: Catalogue, spec: DictionarySpec, text: HeldOutText, source: dict[str, Any]
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The features, and their activations, of a batch of latents after another."""
    explanations = catalogue.explanations(spec)
    for part in slices(spec.width, LATENTS_AT_ONCE):
        decoder, frequency, examples = (explanations.need(part_name("trained", what, part.start)) for what in ("decoder", "latents", "examples"))
        columns = {name: decoder[name].to_pylist() for name in decoder.column_names} | {"frequency": frequency["frequency"].to_pylist()}
        contexts = contexts_of(examples, text.tokens_XW.shape[1])
        for some in slices(part.stop - part.start, FEATURES_A_BATCH):
            features, activations = [], []
            for latent in range(part.start + some.start, part.start + some.stop):
                own = {name: values[latent - part.start] for name, values in columns.items()}
                firing = [
                    source | _activation(source, latent, number, text, *entry)
                    for number, (kind, *entry) in enumerate(contexts[latent])
                    if kind != "quiet"
                ]
                features.append(source | _feature(latent, own, text, max((line["maxValue"] for line in firing), default=0.0)))
                activations += firing
            yield features, activations


def _feature(latent: int, own: dict[str, Any], text: HeldOutText, highest: float) -> dict[str, Any]:
    nothing = (
        "freq_hist_data_bar_heights freq_hist_data_bar_values logits_hist_data_bar_heights logits_hist_data_bar_values neuron_alignment_indices "
        "neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_pearson correlated_neurons_l1 "
        "correlated_features_indices correlated_features_pearson correlated_features_l1 decoder_weights_dist vector"
    )
    return {
        "index": latent,
        "maxActApprox": highest,
        "frac_nonzero": own["frequency"],
        "pos_str": [text.spell(token) for token in own["raised"]],
        "pos_values": own["raised_by"],
        "neg_str": [text.spell(token) for token in own["lowered"]],
        "neg_values": own["lowered_by"],
        "topkCosSimIndices": own["nearest"],
        "topkCosSimValues": own["cosine"],
        "hasVector": False,
        "vectorLabel": None,
        "hookName": None,
        **{name: [] for name in nothing.split()},
    }


def _activation(
    source: dict[str, Any], latent: int, number: int, text: HeldOutText, context: int, places: list[int], values: list[float]
) -> dict[str, Any]:
    pieces = text.pieces(context)
    activations = [0.0] * len(pieces)
    for place, value in zip(places, values, strict=True):
        activations[place] = value
    highest = max(activations)
    return {
        "id": _identity(source, "activation", latent, number),
        "index": latent,
        "tokens": pieces,
        "values": activations,
        "maxValue": highest,
        "minValue": min(activations),
        "maxValueTokenIndex": activations.index(highest),
        "dataSource": None,
        "dataIndex": str(context),
        **dict.fromkeys(("dfaTargetIndex", "dfaMaxValue", "binMin", "binMax", "binContains", "qualifyingTokenIndex", "logitContributions")),
        "dfaValues": [],
        "lossValues": [],
    }


def _identity(source: dict[str, Any], *what: Any) -> str:
    """As long as the identifiers that Neuronpedia makes, and always the same."""
    return "c" + hashlib.sha256(json.dumps([source["modelId"], source["layer"], *what]).encode()).hexdigest()[:24]


def _slug(words: str) -> str:
    return re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines).encode("utf-8", "replace")
    path.write_bytes(gzip.compress(data, 5, mtime=0) if path.suffix == ".gz" else data)
