"""A text that grows: each run harvests what was added to it since the last one, in whole blocks, and nothing again."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command import here, results, write_suite
from conftest import tiny_documents, tiny_fields
from test_more_tokens import written

from core.errors import ConfigError
from core.suite import Suite
from core.suite_file import parse_suite
from storage import texts
from storage.catalogue import Catalogue
from tasks.harvest import harvest_blocks
from tasks.tokenise import grow, tokenise

DAY = 150
"""Documents that are added at a time."""


def add(folder: Path, day: int, documents: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"day-{day:03d}.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """A folder with the text of a first day."""
    add(tmp_path / "days", 0, tiny_documents(400))
    return tmp_path / "days"


def growing(model: Path, days: Path) -> dict[str, Any]:
    fields = tiny_fields(model, days)
    fields["text"]["grows"] = True
    return fields


def harvested(fields: dict[str, Any], store: Path) -> Catalogue:
    suite = Suite.model_validate(fields)
    grow.fn(Catalogue(suite, store))
    catalogue = Catalogue(suite, store)
    tokenise.fn(catalogue)
    harvest_blocks.fn(catalogue)
    return catalogue


def test_what_is_new_is_harvested_in_whole_blocks_and_what_is_there_is_not_touched(tiny_model: Path, days: Path, tmp_path: Path) -> None:
    fields = growing(tiny_model, days)
    first = harvested(fields, tmp_path / "store")
    before, num_first = written(tmp_path / "store"), first.harvest.num_written
    assert num_first * 32 > 16_384
    assert harvested(fields, tmp_path / "store").harvest.num_written == num_first
    assert written(tmp_path / "store") == before

    add(days, 1, tiny_documents(DAY, seed=1))
    second = harvested(fields, tmp_path / "store")
    new = second.harvest.num_written - num_first
    assert new > 0
    assert new % 16 == 0
    assert {name: now for name, now in written(tmp_path / "store").items() if name in before} == before
    assert second.harvest.key == first.harvest.key

    at_once = harvested(fields, tmp_path / "at once")
    assert at_once.harvest.description == second.harvest.description
    assert {name: data for name, (_, data) in written(tmp_path / "at once").items()} == {
        name: data for name, (_, data) in written(tmp_path / "store").items()
    }


def test_a_text_is_read_again_only_when_files_were_added(tiny_model: Path, days: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields, read = growing(tiny_model, days), []
    documents = texts.documents
    monkeypatch.setattr("tasks.tokenise.texts.documents", lambda text: read.append(text) or documents(text))
    harvested(fields, tmp_path / "store")
    harvested(fields, tmp_path / "store")
    assert len(read) == 1
    add(days, 1, tiny_documents(2, seed=1))  # less than a block
    harvested(fields, tmp_path / "store")
    harvested(fields, tmp_path / "store")
    assert len(read) == 2


@pytest.mark.parametrize("what", ["a day that was there is changed", "a day comes before those that were there"])
def test_a_text_that_did_more_than_grow_is_refused_and_nothing_is_lost(what: str, tiny_model: Path, days: Path, tmp_path: Path) -> None:
    add(days, 2, tiny_documents(DAY, seed=2))
    fields = growing(tiny_model, days)
    harvested(fields, tmp_path / "store")
    before = written(tmp_path / "store")
    add(days, 2 if what.startswith("a day that") else 1, tiny_documents(DAY, seed=3))
    with pytest.raises(ConfigError, match=r"text.source is '.*', which no longer gives the tokens that were harvested of it; expected the same text"):
        harvested(fields, tmp_path / "store")
    assert written(tmp_path / "store") == before


def test_documents_of_a_text_that_grows_come_file_by_file(days: Path) -> None:
    suite = Suite.model_validate(growing(days, days))
    first = list(texts.documents(suite.text))
    assert first != tiny_documents(400)
    assert sorted(first) == sorted(tiny_documents(400))
    add(days, 1, tiny_documents(DAY, seed=1))
    both = list(texts.documents(suite.text))
    assert both[: len(first)] == first
    assert sorted(both[len(first) :]) == sorted(tiny_documents(DAY, seed=1))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("text.source=installed-docs", "text.grows is true; expected false for installed-docs, as files are added to a local text alone"),
        ("harvest.quota=1GB", "harvest.quota is 1,000,000,000 bytes; expected none for a text that grows, whose every block is kept"),
        ("text.tokens=16400", "text.tokens is 16,400, and text.more_tokens is 0; expected whole blocks of 512 tokens"),
    ],
)
def test_what_cannot_grow_is_told(setting: str, sentence: str, tiny_model: Path, days: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = write_suite(growing(tiny_model, days), tmp_path_factory).read_text()
    with pytest.raises(ConfigError, match=sentence):
        parse_suite(text, [setting])


def num_blocks(status: str) -> int:
    done = re.search(r"^harvest  done, (\d+) blocks$", status, re.MULTILINE)
    assert done, status
    return int(done[1])


@pytest.mark.usefixtures("prefect_server")
def test_a_suite_on_a_text_that_grows_makes_only_what_is_new(tiny_model: Path, days: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    fields = growing(tiny_model, days)
    fields["sites"] = {"layers": [1], "kinds": ["mlp_out"]}
    fields["dictionaries"] = [{"widths": 64, "target_l0s": 8}]
    suite, store = write_suite(fields, tmp_path_factory), tmp_path_factory.mktemp("store") / "runs"
    assert "harvest  absent" in here("status", suite, "--store", store).stdout
    first = here("run", suite, "--store", store)
    assert first.returncode == 0, first.stderr
    made = results(store)
    again = here("run", suite, "--store", store)
    assert again.returncode == 0, again.stderr
    assert "train" not in again.stderr
    assert "tokenise" not in again.stderr
    assert results(store) == made

    add(days, 1, tiny_documents(DAY, seed=1))
    blocks = num_blocks(here("status", suite, "--store", store).stdout)
    second = here("run", suite, "--store", store)
    assert second.returncode == 0, second.stderr
    assert "Released and verified" in second.stdout
    dictionaries = {name: digest for name, digest in made.items() if name.startswith("dictionaries/")}
    now = results(store)
    assert {name: now[name] for name in dictionaries} == dictionaries
    assert len({name.split("/")[2] for name in now if name.startswith("dictionaries/")}) == 2
    status = here("status", suite, "--store", store).stdout
    assert num_blocks(status) > blocks, "what was added is counted when it is harvested"
    assert status.count("done") == 2
    assert here("verify", store / "tiny/release").returncode == 0

    assert here("run", suite, "--store", at_once := tmp_path_factory.mktemp("at once") / "runs").returncode == 0
    assert trained(results(at_once)).items() <= trained(now).items()


def trained(results: dict[str, str]) -> dict[str, str]:
    """Of what a run leaves, all but the harvest, which knows how often it grew."""
    return {name: digest for name, digest in results.items() if not name.startswith("harvests/")}
