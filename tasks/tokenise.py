"""Tokenise: documents into the token arrays of a harvest, training and held-out apart."""

import itertools
import logging
import sys
from collections.abc import Iterator

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from core.errors import ConfigError
from core.packing import Packer, SpecialTokens, Tokens, is_held_out
from core.suite import Suite, Text
from storage import texts
from storage.catalogue import Catalogue
from storage.harvest import Harvest
from storage.layout import PARTS
from storage.models import special_tokens
from tasks.progress import Progress

log = logging.getLogger(__name__)

DOCUMENTS_AT_ONCE = 256


@task(task_run_name="tokenise {catalogue.suite.text.source}", cache_policy=NO_CACHE)
def tokenise(catalogue: Catalogue) -> None:
    """Leave every token of the suite in the harvest, and arrays for its sites; do nothing if they are there."""
    harvest, widths = catalogue.harvest, {site: catalogue.shape.width_of(site) for site in catalogue.sites}
    with harvest.turn():
        if not harvest.has_tokens:
            _make_tokens(catalogue)
        harvest.lay_out(catalogue.suite, widths)


@task(task_run_name="read what is new of {catalogue.suite.text.source}", cache_policy=NO_CACHE)
def grow(catalogue: Catalogue) -> None:
    """Leave every token in the harvest that a growing text gives by now, in whole blocks; a catalogue made afterwards has them."""
    harvest, text = catalogue.harvest, texts.contents(catalogue.store, catalogue.suite.text)
    with harvest.turn():
        if harvest.last_read != text:
            _make_tokens(catalogue, as_far_as_it_goes=True)
            harvest.note_read(text)


def _make_tokens(catalogue: Catalogue, as_far_as_it_goes: bool = False) -> None:
    harvest, suite = catalogue.harvest, catalogue.suite
    log.info("Reading %s", suite.text.source)
    tokenizer = catalogue.source.load_tokenizer()
    special = special_tokens(tokenizer)
    harvest.lay_out(suite, {})
    written = _write(harvest, suite, special, _tokenised(tokenizer, suite.text), as_far_as_it_goes)
    if as_far_as_it_goes:
        new = (written - harvest.num_written) * suite.text.context
        log.info("%s gives %s tokens to train on, %s more than before", suite.text.source, f"{written * suite.text.context:,}", f"{new:,}")
        suite = suite.with_sequences(written)
        harvest = Harvest(harvest.store, harvest.key, written)
        harvest.lay_out(suite, {})
    harvest.commit_tokens(
        {
            "model": catalogue.source.identity,
            "model_dtype": suite.model.dtype,
            "text": texts.identity(catalogue.store, suite.text),
            "context": suite.text.context,
            "bos_token": special.begin,
            "excluded_tokens": list(special.excluded),
            "text_seed": suite.text.seed,
            "shuffle_seed": suite.harvest.shuffle_seed,
            "block_sequences": suite.harvest.block_sequences,
        }
    )


def _tokenised(tokenizer: object, text: Text) -> Iterator[tuple[str, list[int]]]:
    """(part, tokens) of each document."""
    # A little more than its share is held out: the part that fills last decides how much text is read. Tokens that are added later do not
    # change the share, so a document is always on the same side.
    share = text.held_out_tokens / (text.tokens + text.held_out_tokens)
    share *= 1 + (1 - share) / 10
    for documents in _batched(texts.documents(text)):
        for document, ids in zip(documents, tokenizer(documents, add_special_tokens=False).input_ids, strict=True):  # type: ignore[operator]
            yield PARTS[is_held_out(document, share, text.seed)], ids


def _batched(documents: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(documents, DOCUMENTS_AT_ONCE)):
        yield batch


def _write(harvest: Harvest, suite: Suite, special: SpecialTokens, tokenised: Iterator[tuple[str, list[int]]], as_far_as_it_goes: bool) -> int:
    """Write tokens that are not there, compare those that are; gives the sequences of the training part.

    Args:
        as_far_as_it_goes: not only the suite's, but whole blocks until the text ends.

    Raises:
        ConfigError: the text is too short, or differs from what was written.
    """
    text = suite.text
    wanted = dict(zip(PARTS, (text.num_sequences, text.num_held_out_sequences), strict=True))
    most = wanted | ({"train": sys.maxsize} if as_far_as_it_goes else {})
    packers = {name: Packer(special, text.context) for name in PARTS}
    parts = {name: harvest.part(name) for name in PARTS}
    there = {"train": harvest.num_written, "held_out": wanted["held_out"] if harvest.num_written else 0}
    packed: dict[str, int] = dict.fromkeys(PARTS, 0)
    waiting: dict[str, list[Tokens]] = {name: [] for name in PARTS}
    with Progress("tokenise", None if as_far_as_it_goes else sum(wanted.values()) * text.context, "tokens") as progress:
        for name, ids in tokenised:
            for sequence in packers[name].add(ids):
                if packed[name] == most[name]:
                    break
                waiting[name].append(sequence)
                packed[name] += 1
                progress.advance(text.context)
                if len(waiting[name]) == parts[name].block_sequences or packed[name] == most[name]:
                    block = (packed[name] - 1) // parts[name].block_sequences
                    if packed[name] > there[name]:
                        parts[name].write_tokens(block, np.stack(waiting[name]), special, suite.harvest.shuffle_seed)
                    elif not np.array_equal(parts[name].tokens(block), np.stack(waiting[name])):
                        raise ConfigError(
                            f"text.source is {text.source!r}, which no longer gives the tokens that were harvested of it; expected the same text, "
                            "to add to; pin its revision, or give the suite another text.seed to begin anew"
                        )
                    waiting[name] = []
            if packed == most:
                break
    for name, field in zip(PARTS, ("tokens", "held_out_tokens"), strict=True):
        if packed[name] < wanted[name]:
            # How documents fall on the two parts depends on their sizes, so the last few percent are not promised.
            of_all = " with text.more_tokens" if name == "train" and text.more_tokens else ""
            raise ConfigError(
                f"text.{field} is {wanted[name] * text.context:,}{of_all}; expected at most about {int(0.95 * packed[name]) * text.context:,}, "
                f"as {text.source} gives {packed[name] * text.context:,}; lower text.{field}, or choose a larger text of more documents"
            )
    return packed["train"] - packed["train"] % suite.harvest.block_sequences if as_far_as_it_goes else packed["train"]
