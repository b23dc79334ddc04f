"""A signal to end reaches training when nothing is half done: the step it is at is kept, and the same bytes come out in the end."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.site import Site
from core.suite_file import parse_suite
from storage.catalogue import Catalogue
from tasks.harvest import harvest_blocks
from tasks.signals import held_back
from tasks.tokenise import tokenise
from tasks.train import train_site

SITE = Site(1, "resid_post")


@pytest.fixture(autouse=True)
def as_from_a_terminal() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C, and tests may be."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def suite_in(store: Path, fields: dict[str, Any]) -> Catalogue:
    catalogue = Catalogue(parse_suite(yaml.safe_dump(fields), ["training.checkpoint_steps=100_000"]), store, str(SITE))
    tokenise.fn(catalogue)
    harvest_blocks.fn(catalogue)
    return catalogue


def dictionaries(store: Path) -> list[str]:
    return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in store.glob("dictionaries/*/*/dictionary.safetensors"))


def interrupted(work: Callable[[], None], seconds: float) -> bool:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        work()
        timer.cancel()
        timer.join()
    except KeyboardInterrupt:
        return True
    return False


def test_training_that_is_told_to_end_keeps_the_step_it_is_at_and_ends_in_the_same_bytes(tiny_suite: dict[str, Any], tmp_path: Path) -> None:
    undisturbed = suite_in(tmp_path / "undisturbed", tiny_suite)
    train_site.fn(undisturbed, SITE)
    catalogue = suite_in(tmp_path / "told", tiny_suite)
    folders, seen = [catalogue.folder(spec) for spec in catalogue.sites[SITE]], [0]
    while interrupted(lambda: train_site.fn(catalogue, SITE), 0.3):
        assert min(folder.progress for folder in folders) >= seen[-1]
        seen.append(min(folder.progress for folder in folders))
    assert seen[1] > 0
    assert len(dictionaries(tmp_path / "told")) == 2
    assert dictionaries(tmp_path / "told") == dictionaries(tmp_path / "undisturbed")


def signalled(times: int) -> list[bool]:
    """What was told in a block that a signal reached so many times, after each of them."""
    heard = []
    try:
        with held_back() as told:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
                heard.append(told())
    except KeyboardInterrupt:
        return heard
    raise AssertionError("the signal had no effect")


def test_a_signal_takes_effect_behind_the_block_and_a_second_one_at_once() -> None:
    assert signalled(1) == [True]
    assert signalled(2) == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
