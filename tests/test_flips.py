"""One byte of a store is changed: whoever reads it says so and names it, nobody uses it, and running again, as is said, repairs it."""

import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command import environment, here, results, write_suite
from conftest import tiny_fields

from core.site import Site
from core.suite import CHUNKS_PER_BLOCK, Suite
from core.suite_file import parse_suite
from storage.catalogue import Catalogue
from storage.objects import Corrupt
from tasks.tokenise import tokenise

SITE = Site(1, "mlp_out")
KINDS = {
    "chunks and indices": "harvests/*/*/activations/**/c/**/*",
    "sums": "harvests/*/*/statistics/*/sums/c/**/*",
    "norms": "harvests/*/*/statistics/*/norms/c/*",
    "tokens": "harvests/*/*/tokens/c/**/*",
    "rows": "harvests/*/*/rows/c/**/*",
    "metadata": "harvests/**/zarr.json",
    "commits": "harvests/*/commits/**/*.json",
    "what was worked out": "harvests/*/[il]*/*.json",
    "checkpoints": "dictionaries/**/checkpoint.json",
    "states": "dictionaries/**/step-*",
    "dictionaries": "dictionaries/**/dictionary.*",
    "scorecards": "dictionaries/**/scorecard-*",
    "release": "tiny/release/**/*",
}


@dataclass
class Stores:
    suite_file: Path
    suite: Suite
    begun: Path
    """Killed after a checkpoint."""
    done: Path


@pytest.fixture(scope="module")
def stores(prefect_server: str, tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Stores:
    fields = tiny_fields(tiny_model, tiny_text)
    fields["sites"] = {"layers": [SITE.layer], "kinds": [SITE.kind]}
    fields["dictionaries"] = [{"widths": 64, "target_l0s": 8}]
    fields["training"]["max_norm"] = 10
    suite_file, folder = write_suite(fields, tmp_path_factory), tmp_path_factory.mktemp("stores")
    command = [sys.executable, "-m", "flows.main", "run", str(suite_file), "--store", str(folder / "begun")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True) as run:
        while not list((folder / "begun").glob("dictionaries/*/*/checkpoint.json")):
            time.sleep(0.002)
        os.killpg(run.pid, signal.SIGKILL)
    shutil.copytree(folder / "begun", folder / "done")
    assert here("run", suite_file, "--store", folder / "done").returncode == 0
    return Stores(suite_file, parse_suite(suite_file.read_text()), folder / "begun", folder / "done")


def flips(store: Path, kind: str, number: int, seed: int) -> Iterator[tuple[Path, bytes]]:
    """Files of a kind, each with what it held, while one byte of it is changed."""
    chance = random.Random(seed)  # noqa: S311
    files = sorted(path for path in store.glob(KINDS[kind]) if path.is_file() and path.stat().st_size)
    assert files, kind
    for _ in range(number):
        path = chance.choice(files)
        data = path.read_bytes()
        flip(path, chance)
        yield path, data
        path.write_bytes(data)


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    path.write_bytes(data)


def complaint(suite: Suite, store: Path, path: Path, caplog: pytest.LogCaptureFixture) -> str | None:
    """What is said when a file is read as a run reads it; None if it means what it meant before."""
    catalogue, name = Catalogue(suite, store), str(path.relative_to(store))
    harvest, (spec,) = catalogue.harvest, catalogue.sites[SITE]
    caplog.clear()
    try:
        if found := re.match(r"harvests/[^/]+/(train|held_out)/([^/]+)/?(.*?)/?c/(\d+)", name):
            part, array, block = harvest.part(found[1]), f"{found[2]}/{found[3]}", int(found[4])
            if array.startswith("activations"):
                for chunk in range(block * CHUNKS_PER_BLOCK, (block + 1) * CHUNKS_PER_BLOCK):
                    part.read(SITE, [chunk], chunk * part.chunk_rows + np.arange(part.chunk_rows))
            elif array.endswith("sums"):
                part.moments(SITE, range(block, block + 1))
            elif array.endswith("norms"):
                part.norms(SITE, range(block, block + 1))
            elif array.startswith("tokens"):
                part.tokens(block)
            else:
                part.rows(block)
        elif name.endswith("zarr.json"):
            tokenise.fn(catalogue)
        elif "dictionary." in name:
            catalogue.folder(spec).load()
        elif "checkpoint" in name or "step-" in name:
            catalogue.folder(spec).load_checkpoint()
        else:
            catalogue.store.get_record(name)
    except Corrupt as damage:
        return str(damage)
    return caplog.text or None


def every_flip_is_named(stores: Stores, times: int, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> dict[str, int]:
    named = {}
    for kind in KINDS:
        if kind == "release":
            continue
        store = tmp_path / kind
        shutil.copytree(stores.begun if kind in ("checkpoints", "states") else stores.done, store)
        before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file() and "prefect" not in path.parts}
        named[kind] = 0
        for seed, (path, data) in enumerate(flips(store, kind, times, seed=len(kind))):
            said = complaint(stores.suite, store, path, caplog)
            for other, was in before.items():  # blocks are struck from their commits
                if other != path and (not other.exists() or other.read_bytes() != was):
                    other.write_bytes(was)
            if said is None:
                # The one change without a meaning: one blank for another.
                assert path.suffix == ".json", (path, seed)
                changed = [(a, b) for a, b in zip(data, path.read_bytes(), strict=True) if a != b]
                assert all(bytes(pair).isspace() for pair in changed), (path, changed)
                continue
            array = re.sub(r"/c/.*", "", str(path.relative_to(store)).partition("/train/")[2] or path.name)
            assert array in said or path.parent.name in said or "step-" in path.name, (path, said)
            assert "expected" in said or "is written anew" in said
            named[kind] += 1
    return named


@pytest.mark.long
def test_every_byte_that_is_changed_is_named(stores: Stores, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.WARNING)
    assert all(every_flip_is_named(stores, 2, caplog, tmp_path).values())


@pytest.mark.slow
def test_two_hundred_bytes_that_are_changed_are_named(stores: Stores, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.WARNING)
    named = every_flip_is_named(stores, 18, caplog, tmp_path)
    print(f"\nof 18 each, named: {named}; {sum(named.values())} in all")
    assert sum(named.values()) >= 200


def mended(stores: Stores, store: Path) -> str:
    """Run again and again, doing what is said, until all is done; gives what was said."""
    said = ""
    for _ in range(60):
        run = here("run", stores.suite_file, "--store", store)
        said += run.stderr
        assert "Traceback" not in run.stdout + run.stderr
        if run.returncode == 0:
            return said
        assert "run again" in run.stderr or "run the suite again" in run.stderr, run.stderr
        for path in re.findall(r"delete (/\S+) and run again", run.stderr):
            shutil.rmtree(path)
        for path in re.findall(r"(/\S+) (?:was changed since it was written|is not a record); expected [^;]+; delete it", run.stderr):
            Path(path).unlink()
        for path in re.findall(r"(/\S+) was changed since it was written; expected SHA-256 \S+; restore it, or delete its folder", run.stderr):
            shutil.rmtree(Path(path).parent)
    raise AssertionError(said)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "release"])
def test_whatever_was_changed_is_repaired(kind: str, stores: Stores, tmp_path: Path) -> None:
    chance, store = random.Random(kind), tmp_path / "runs"  # noqa: S311
    shutil.copytree(stores.begun if kind in ("checkpoints", "states") else stores.done, store)
    files = sorted(path for path in store.glob(KINDS[kind]) if path.is_file())
    if kind not in ("dictionaries", "scorecards"):
        shutil.rmtree(store / "tiny", ignore_errors=True)
        for path in [*store.glob("dictionaries/**/dictionary.json"), *store.glob("dictionaries/**/scorecard-*")]:
            path.unlink()  # so that everything is read again
    if kind == "tokens":
        for path in store.glob("harvests/*/commits/train"):
            shutil.rmtree(path)  # they are read to harvest, and no more
    for path in chance.sample(files, min(6, len(files))):
        flip(path, chance)
    print("\n" + mended(stores, store))
    assert results(store) == results(stores.done)


@pytest.mark.long
def test_verify_names_what_was_changed_in_a_release(stores: Stores) -> None:
    for path, _ in flips(stores.done, "release", 2, seed=0):
        verified = here("verify", stores.done / "tiny/release")
        assert verified.returncode == 1
        assert path.name in verified.stdout + verified.stderr


@pytest.mark.long
def test_what_was_worked_out_is_worked_out_again_by_the_run_that_finds_it_changed(stores: Stores, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(stores.done, store)
    for path in [*store.glob("dictionaries/**/dictionary.json"), *store.glob("dictionaries/**/scorecard-*")]:
        path.unlink()  # so that everything is read again
    changed = list(store.glob(KINDS["what was worked out"]))
    for path in changed:
        path.write_bytes(path.read_bytes()[:-9])
    run = here("run", stores.suite_file, "--store", store)
    assert run.returncode == 0, run.stderr
    assert all(path.name in run.stderr for path in changed)
    assert results(store) == results(stores.done)
