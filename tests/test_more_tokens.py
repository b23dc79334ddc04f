"""Tokens are added to a harvest that was made: nothing of it is made again, and what trains on it finds it as it was."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import here, results, write_suite
from conftest import tiny_fields

from core.errors import ConfigError
from core.suite import Suite
from core.suite_file import parse_suite
from storage.catalogue import Catalogue
from storage.harvest import Part
from tasks.harvest import harvest_blocks
from tasks.tokenise import tokenise

BLOCK = 16 * 32
ONE = ["--only", "L01.mlp_out"]


def harvested(fields: dict[str, Any], more: int, store: Path) -> Catalogue:
    grown = copy.deepcopy(fields)
    grown["text"]["more_tokens"] = more
    catalogue = Catalogue(Suite.model_validate(grown), store)
    tokenise.fn(catalogue)
    harvest_blocks.fn(catalogue)
    return catalogue


def written(store: Path) -> dict[str, tuple[int, bytes]]:
    """When each object of a harvest was written, and what is in it."""
    objects = [path for path in (store / "harvests").rglob("*") if "c" in path.parts and path.is_file()]
    return {str(path.relative_to(store)): (path.stat().st_mtime_ns, path.read_bytes()) for path in objects}


def test_what_was_harvested_stays_and_what_is_added_is_as_if_all_had_been_harvested_at_once(tiny_suite: dict[str, Any], tmp_path: Path) -> None:
    before = harvested(tiny_suite, 0, tmp_path / "grown")
    first = written(tmp_path / "grown")
    for more in (3 * BLOCK, 5 * BLOCK):
        after = harvested(tiny_suite, more, tmp_path / "grown")
        now = written(tmp_path / "grown")
        assert {name: now[name] for name in first} == first
        assert len(now) - len(first) == more // BLOCK * (2 + 3 * 6)
    at_once = harvested(tiny_suite, 5 * BLOCK, tmp_path / "at once")
    assert {name: data for name, (_, data) in written(tmp_path / "at once").items()} == {name: data for name, (_, data) in now.items()}
    assert at_once.harvest.description == after.harvest.description
    assert (tmp_path / "grown" / after.harvest.prefix / "train/tokens/zarr.json").read_bytes() == (
        tmp_path / "at once" / after.harvest.prefix / "train/tokens/zarr.json"
    ).read_bytes()
    # The smaller suite still has its own number of rows, and a smaller one that was never asked for needs only the tokens to be counted.
    assert before.harvest.part("train").num_blocks == 32
    assert before.harvest.part("train").moments(next(iter(before.sites))).rows == before.harvest.part("train").valid().sum()
    between = harvested(tiny_suite, 4 * BLOCK, tmp_path / "grown")
    assert between.harvest.part("train").num_blocks == 36
    assert {name: data for name, (_, data) in written(tmp_path / "grown").items()} == {name: data for name, (_, data) in now.items()}


def test_no_added_token_is_of_a_document_that_is_held_out(tiny_suite: dict[str, Any], tmp_path: Path) -> None:
    catalogue = harvested(tiny_suite, 8 * BLOCK, tmp_path)
    tokenizer = catalogue.source.load_tokenizer()

    def notes(part: Part) -> set[str]:
        """Documents say their number in every sentence."""
        text = " ".join(tokenizer.decode(sequence) for block in part.blocks for sequence in part.tokens(block))
        return {piece.split(",")[0] for piece in text.split("In note ")[1:] if piece.split(",")[0].isdigit()}

    train, held_out = notes(catalogue.harvest.part("train")), notes(catalogue.harvest.part("held_out"))
    assert len(train) > 100
    assert len(held_out) > 20
    # The first and last of a sequence may be cut off in the middle of their number.
    assert len(train & held_out) <= 0.02 * len(train)


def test_a_text_that_has_changed_is_not_added_to(tiny_suite: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harvested(tiny_suite, 0, tmp_path)
    before = written(tmp_path)
    monkeypatch.setattr("tasks.tokenise.texts.documents", lambda _: (f"Another text, number {number}. " * 20 for number in range(2_000)))
    with pytest.raises(ConfigError, match=r"text.source is '.*', which no longer gives the tokens that were harvested of it; expected the same text"):
        harvested(tiny_suite, BLOCK, tmp_path)
    assert written(tmp_path) == before


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_training_on_more_tokens_makes_new_dictionaries_and_leaves_the_old(tiny_model: Path, tiny_text: Path, tmp_path_factory: Any) -> None:
    suite, store = write_suite(tiny_fields(tiny_model, tiny_text), tmp_path_factory), tmp_path_factory.mktemp("store") / "runs"
    assert here("run", suite, "--store", store, *ONE).returncode == 0
    first = results(store)
    grown = here("run", suite, "--store", store, *ONE, "--set", f"text.more_tokens={4 * BLOCK}")
    assert grown.returncode == 0, grown.stderr
    assert f"harvest 1 sites: {4 * BLOCK:,} tokens" in grown.stderr
    now = results(store)
    dictionaries = {name for name in first if name.startswith("dictionaries/")}
    assert {name: now[name] for name in dictionaries} == {name: first[name] for name in dictionaries}
    assert len({name.split("/")[2] for name in now if name.startswith("dictionaries/")}) == 2
    again = here("run", suite, "--store", store, *ONE)
    assert again.returncode == 0
    assert "train" not in again.stderr


def test_tokens_are_added_by_whole_blocks(tiny_model: Path, tiny_text: Path, tmp_path_factory: Any) -> None:
    text = write_suite(tiny_fields(tiny_model, tiny_text), tmp_path_factory).read_text()
    with pytest.raises(ConfigError, match=r"text.more_tokens is 600; expected whole blocks of 512 tokens \(16 sequences of 32\)"):
        parse_suite(text, ["text.more_tokens=600"])
    assert np.isclose(parse_suite(text, ["text.more_tokens=512"]).text.num_sequences, 512 + 16)
