"""Texts: documents from the hub, from local files, or from the documentation of installed packages."""

import ast
import glob
import hashlib
import platform
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.suite import Text
from storage.digests import digest
from storage.objects import Store

FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}

DOCUMENTED = ("torch", "numpy", "pandas", "pyarrow", "datasets", "zarr", "prefect", "pydantic")
"""Packages whose documentation is `installed-docs`, beside Python's own: all of them come with this project."""

SHORTEST_DOCUMENT = 200
"""Characters under which a docstring is a label, not a text."""


def identity(store: Store, text: Text) -> str:
    """A word that changes when the documents do; of a text that grows, when those of its first file do.

    Raises:
        ConfigError: local files that are not there.
    """
    return f"grows:{digest(store, _files(text)[:1])}" if text.grows else contents(store, text)


def contents(store: Store, text: Text) -> str:
    """A word that changes when any document does. Raises as `identity`."""
    if text.source == "installed-docs":
        return f"installed-docs:python=={platform.python_version()}," + ",".join(f"{name}=={_version(name)}" for name in DOCUMENTED)
    if not text.is_local:
        return text.source
    return f"files:{digest(store, _files(text))}"


def documents(text: Text) -> Iterator[str]:
    """Every document, in an order that is a function of the configuration.

    Raises:
        ConfigError: the text cannot be had, or has no such column.
    """
    if text.source == "installed-docs":
        return iter(sorted(set(_installed_docs()), key=lambda document: _order(document, text.seed)))
    return _column(text, _explained(text, _load(text)))


def _load(text: Text) -> Iterable[dict[str, Any]]:
    import datasets  # here, for it takes a second, and most processes read no text

    datasets.disable_progress_bars()
    if text.is_local:
        files = _files(text)
        options: dict[str, Any] = {"sample_by": "document"} if files[0].suffix == ".txt" else {}
        kind, together = FORMATS[files[0].suffix], [[file] for file in files] if text.grows else [files]
        loaded: Iterator[Any] = (
            datasets.load_dataset(kind, data_files=[str(file) for file in some], split="train", streaming=True, **options) for some in together
        )
    else:
        name = text.source.removeprefix("hub:")
        loaded = iter([datasets.load_dataset(name, text.subset, revision=text.revision, split=text.split, streaming=True)])
    for examples in loaded:
        yield from examples.shuffle(seed=text.seed, buffer_size=10_000)


def _explained(text: Text, examples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the library below says when a text cannot be had, in one sentence."""
    from datasets.exceptions import DatasetsError

    try:
        yield from examples
    except (OSError, ValueError, LookupError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"text.source is {text.source!r}, which could not be read ({reason}); expected installed-docs, hub:ORG/NAME or files; "
            "check the name, text.subset, text.split and the network"
        ) from None


def _column(text: Text, examples: Iterable[dict[str, Any]]) -> Iterator[str]:
    for example in examples:
        value = example.get(text.column)
        if not isinstance(value, str):
            raise ConfigError(f"text.column is {text.column!r}; expected a column of text among {', '.join(example)}; correct text.column")
        yield value


def _files(text: Text) -> list[Path]:
    files = sorted(Path(path) for path in glob.glob(text.source, recursive=True) if Path(path).is_file())
    if not files:
        raise ConfigError(
            f"text.source is {text.source!r}, which names no file; expected installed-docs, hub:ORG/NAME or a glob of "
            f"{', '.join(FORMATS)} files; correct the path"
        )
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= set(FORMATS):
        raise ConfigError(
            f"text.source is {text.source!r}, which names files ending in {', '.join(sorted(suffixes)) or 'nothing'}; expected one of "
            f"{', '.join(FORMATS)}; narrow the glob"
        )
    return files


def _order(document: str, seed: int) -> bytes:
    return hashlib.blake2b(document.encode("utf-8", "surrogatepass"), key=b"order" + seed.to_bytes(8, "little")).digest()


def _installed_docs() -> Iterator[str]:
    """Docstrings, and the READMEs in package metadata; each one document."""
    from pydoc_data.topics import topics

    yield from (topic for topic in topics.values() if len(topic) >= SHORTEST_DOCUMENT)
    roots = [Path(sysconfig.get_paths()["stdlib"])]
    for name in DOCUMENTED:
        if spec := find_spec(name):
            roots += [Path(place) for place in spec.submodule_search_locations or []]
        try:
            description = distribution(name).metadata.json.get("description")
        except PackageNotFoundError:
            continue
        if isinstance(description, str) and len(description) >= SHORTEST_DOCUMENT:
            yield description
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root).parts
            if not {"site-packages", "tests", "test", "idlelib"} & set(inside):
                yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) >= SHORTEST_DOCUMENT:
                yield docstring


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
