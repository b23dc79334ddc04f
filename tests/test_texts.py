"""Texts: every kind of file gives its documents, in one order, and a text that cannot be read gets a sentence."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import ConfigError
from core.suite import Text
from storage import texts
from storage.objects import Store

DOCUMENTS = [f"Document {number}: naïve, “quoted”,\na second line,\n\n  and an indented third.\n" for number in range(25)]


def _text(source: str | Path, **fields: Any) -> Text:
    return Text(source=str(source), tokens=2_000, held_out_tokens=2_000, **fields)


def _write_jsonl(folder: Path) -> None:
    for part in range(2):
        rows = [json.dumps({"text": document, "other": 1}) for document in DOCUMENTS[part::2]]
        (folder / f"{part}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_json(folder: Path) -> None:
    (folder / "all.json").write_text(json.dumps([{"text": document} for document in DOCUMENTS]), encoding="utf-8")


def _write_txt(folder: Path) -> None:
    for number, document in enumerate(DOCUMENTS):
        (folder / f"{number}.txt").write_text(document, encoding="utf-8")


def _write_parquet(folder: Path) -> None:
    for part in range(2):
        table = pa.table({"number": range(len(DOCUMENTS[part::2])), "text": DOCUMENTS[part::2]})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=5)


@pytest.mark.parametrize("write", [_write_jsonl, _write_json, _write_txt, _write_parquet])
def test_local_files_give_every_document_once_and_unchanged(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    assert sorted(texts.documents(_text(tmp_path / "*"))) == sorted(DOCUMENTS)


def test_a_glob_reaches_into_folders(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "one.jsonl").write_text(json.dumps({"text": name}) + "\n")
    assert sorted(texts.documents(_text(tmp_path / "**" / "*.jsonl"))) == ["a", "b/c"]


def test_another_column_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "not this", "body": "this"}\n')
    assert list(texts.documents(_text(tmp_path / "x.jsonl", column="body"))) == ["this"]


def test_the_order_is_a_function_of_the_seed(tmp_path: Path) -> None:
    _write_jsonl(tmp_path)
    orders = [list(texts.documents(_text(tmp_path / "*.jsonl", seed=seed))) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != DOCUMENTS
    assert sorted(orders[0]) == sorted(orders[2])


def _mixed(folder: Path) -> None:
    _write_jsonl(folder)
    _write_txt(folder)


def _bytes(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def _nothing(folder: Path) -> None: ...


def _truncated_parquet(folder: Path) -> None:
    _write_parquet(folder)
    whole = (folder / "1.parquet").read_bytes()
    (folder / "1.parquet").write_bytes(whole[: len(whole) // 2])


NOT_READ = "which could not be read"
NO_COLUMN = "^text.column is 'text'; expected a column of text among .*; correct text.column$"
BAD = {
    "no file": (_nothing, "which names no file; expected installed-docs, hub:ORG/NAME or a glob of .txt, .jsonl, .json, .parquet files"),
    "mixed": (_mixed, r"which names files ending in \.jsonl, \.txt; expected one of .*; narrow the glob"),
    "other kind": (_bytes("x.pdf", b"%PDF"), r"which names files ending in \.pdf; expected one of"),
    "no suffix": (_bytes("x", b"text"), "which names files ending in nothing; expected one of"),
    "truncated parquet": (_truncated_parquet, NOT_READ),
    "parquet that is text": (_bytes("x.parquet", b"not parquet"), NOT_READ),
    "empty parquet": (_bytes("x.parquet", b""), NOT_READ),
    "jsonl that is no JSON": (_bytes("x.jsonl", b"once upon a time\n"), NOT_READ),
    "jsonl cut off": (_bytes("x.jsonl", b'{"text": "one"}\n{"text": "tw'), NOT_READ),
    "jsonl that is compressed": (_bytes("x.jsonl", b"\x00\x01" + gzip.compress(b'{"text": "one"}\n')), NOT_READ),
    "txt that is not UTF-8": (_bytes("x.txt", b"caf\xe9 \xff\xfe"), NOT_READ),
    "no such column": (_bytes("x.jsonl", b'{"body": "one", "title": "two"}\n'), "among body, title; correct text.column"),
    "column of numbers": (_bytes("x.jsonl", b'{"text": 1}\n'), NO_COLUMN),
    "column of nothing": (_bytes("x.jsonl", b'{"text": null}\n'), NO_COLUMN),
}


@pytest.mark.parametrize("what", BAD)
def test_a_text_that_cannot_be_read_gets_one_sentence(tmp_path: Path, what: str) -> None:
    spoil, sentence = BAD[what]
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=sentence) as refused:
        list(texts.documents(_text(tmp_path / "*")))
    assert str(refused.value).startswith("text.")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("source", ["hub:nobody/no-such-text-5f1c", "hub:", "hub:not a name"])
def test_a_hub_text_that_cannot_be_had_gets_one_sentence(source: str) -> None:
    with pytest.raises(ConfigError, match=f"^text.source is '{source}', which could not be read .* text.split and the network$"):
        next(texts.documents(_text(source)))


def test_the_identity_of_a_text_is_what_is_in_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.put("begun", b"")
    (tmp_path / "text").mkdir()
    _write_jsonl(tmp_path / "text")
    text = _text(tmp_path / "text" / "*.jsonl")
    identity = texts.identity(store, text)
    assert texts.identity(store, text) == identity
    path = tmp_path / "text" / "0.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("Document 4", "Document 5"), encoding="utf-8")
    assert texts.identity(store, text) != identity
    with pytest.raises(ConfigError, match="which names no file"):
        texts.identity(store, _text(tmp_path / "nothing" / "*"))


def test_installed_docs_are_english_documents_without_a_copy_in_an_order_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "DOCUMENTED", ("numpy", "zarr"))  # and Python's own; all the packages take half a minute to read
    documents = list(texts.documents(_text("installed-docs")))
    assert len(documents) > 3_000
    assert len(set(documents)) == len(documents)
    assert min(map(len, documents)) >= 200
    words = " ".join(documents[:500]).lower().split()
    assert sum(word in {"the", "a", "of", "to", "and", "is", "in", "be", "for", "if"} for word in words) > 0.12 * len(words)
    for seed in (0, 1):
        by_seed = sorted(documents, key=lambda document, seed=seed: texts._order(document, seed))  # type: ignore[misc]
        assert (by_seed == documents) == (seed == 0)
    for name in ("numpy", "zarr"):
        assert texts.identity(Store("unused"), _text("installed-docs")).count(f"{name}==") == 1
