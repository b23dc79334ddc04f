"""A rolling harvest: activations that never fit on the disk at once, and the dictionaries that a harvest kept whole gives."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from command import environment, here, results, write_suite
from conftest import tiny_fields

from core.errors import ConfigError
from core.suite_file import parse_suite

HELD_OUT = 1  # block of 16 sequences
BLOCKS = 32


def fields(tiny_model: Path, tiny_text: Path) -> dict[str, object]:
    """A suite whose training text is 32 blocks, each a window: two epochs of it, and a dictionary that is finished in the first."""
    found = tiny_fields(tiny_model, tiny_text)
    found["text"] |= {"held_out_tokens": 512}
    found["harvest"] |= {"window_tokens": 512}
    found["sites"] = {"layers": [1], "kinds": ["resid_post", "attn_z"]}
    found["dictionaries"] = [
        {"widths": 64, "target_l0s": 8, "sites": "L01.resid_post", "tokens": 3_000, "seeds": 1},
        {"widths": 64, "target_l0s": 8},
    ]
    found["training"] |= {"tokens": 13_000, "batch_rows": 128, "max_norm": 2, "checkpoint_steps": 50}
    return found


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(fields(tiny_model, tiny_text), tmp_path_factory)


@pytest.fixture(scope="module")
def kept_whole(prefect_server: str, suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store") / "runs"
    run = here("run", suite_file, "--store", store)
    assert run.returncode == 0, run.stderr
    return store


@pytest.fixture(scope="module")
def quota(suite_file: Path) -> int:
    """What three blocks take: two windows, and what is held out."""
    return 3 * parse_suite(suite_file.read_text()).block_bytes([32, 24])


def trained(store: Path) -> dict[str, str]:
    """Dictionaries, scorecards and the report; the harvest, and what names the quota, differ."""
    return {name: checksum for name, checksum in results(store).items() if not name.startswith(("harvests", "tiny/release"))}


def activations(store: Path) -> list[Path]:
    return [path for path in store.glob("harvests/*/*/activations/*/c/*/*") if path.is_file()]


class Peak:
    """While open, the most bytes of activations that a store was seen to hold."""

    def __init__(self, store: Path) -> None:
        self.store, self.bytes, self._ended = store, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, sum(path.stat().st_size for path in activations(self.store) if path.exists()))

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def rolling(suite_file: Path, kept_whole: Path, quota: int, store: Path, kills: int) -> None:
    """Roll, killed so many times on the way, and compare with what a harvest kept whole gave."""
    chance = random.Random(kills)  # noqa: S311
    whole = sum(path.stat().st_size for path in activations(kept_whole))
    assert whole >= 10 * quota
    given = ["run", str(suite_file), "--store", str(store), "--set", f"harvest.quota={quota}"]
    with Peak(store) as peak:
        for _ in range(kills):
            ways: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
            with subprocess.Popen([sys.executable, "-m", "flows.main", *given], env=environment(), **ways) as run:
                assert run.stderr
                lines = chance.randrange(5, 5 + 35 // kills)  # so that the work lasts for all kills
                for line in run.stderr:
                    lines -= line.startswith(("train ", "harvest "))
                    if not lines:
                        break
                time.sleep(chance.uniform(0, 0.3))
                os.killpg(run.pid, signal.SIGKILL)
            assert run.returncode == -signal.SIGKILL
        ended = here(*given)
    assert ended.returncode == 0, ended.stderr
    assert trained(store) == trained(kept_whole)
    assert 0.9 * quota < peak.bytes <= quota
    assert {path.relative_to(store).parts[2] for path in activations(store)} == {"held_out"}
    print(f"\nwhole {whole:,} bytes of activations, quota {quota:,}, peak {peak.bytes:,}; killed {kills} times")
    again = here(*given)
    assert again.returncode == 0, again.stderr
    assert "harvest 2 sites" not in again.stderr
    status = here("status", *given[1:]).stdout
    assert f"harvest  rolls, {HELD_OUT} of {BLOCKS + HELD_OUT} blocks are here now" in status


@pytest.mark.long
def test_ten_times_more_activations_than_the_quota_give_the_same_weights(suite_file: Path, kept_whole: Path, quota: int, tmp_path: Path) -> None:
    rolling(suite_file, kept_whole, quota, tmp_path / "runs", kills=1)


@pytest.mark.slow
def test_a_rolling_run_killed_at_ten_random_moments_gives_the_same_weights(suite_file: Path, kept_whole: Path, quota: int, tmp_path: Path) -> None:
    rolling(suite_file, kept_whole, quota, tmp_path / "runs", kills=10)


def test_a_quota_that_holds_the_whole_harvest_keeps_it_and_one_that_holds_no_two_windows_is_refused(suite_file: Path, quota: int) -> None:
    widths = [32, 24]
    text = suite_file.read_text()
    whole = parse_suite(text).block_bytes(widths) * (BLOCKS + HELD_OUT)
    assert not parse_suite(text).rolls(widths)
    assert not parse_suite(text, [f"harvest.quota={whole}"]).rolls(widths)
    assert parse_suite(text, [f"harvest.quota={whole - 1}"]).rolls(widths)
    with pytest.raises(ConfigError) as refused:
        parse_suite(text, ["harvest.window_tokens=2048", f"harvest.quota={quota}"]).rolls(widths)
    said = str(refused.value)
    assert re.match(rf"harvest.quota is {quota:,} bytes; expected at least [\d,]+, for two windows and what is held out; raise it, or lower", said)
    room = re.search(r"harvest.window_tokens to ([\d,]+)", said)
    assert room
    assert parse_suite(text, [f"harvest.window_tokens={room[1].replace(',', '_')}", f"harvest.quota={quota}"]).rolls(widths)


@pytest.mark.parametrize(("written", "meant"), [("200GB", 200 * 10**9), ("1.5 TB", 1_500 * 10**9), ("10_000", 10_000), ("3kb", 3_000)])
def test_a_quota_is_a_number_of_bytes_or_has_a_unit(suite_file: Path, written: str, meant: int) -> None:
    assert parse_suite(suite_file.read_text(), [f"harvest.quota={written}"]).harvest.quota == meant


@pytest.mark.parametrize("written", ["much", "-3GB", "3 XB", "GB"])
def test_what_is_no_number_of_bytes_is_refused(suite_file: Path, written: str) -> None:
    with pytest.raises(ConfigError, match=r"harvest.quota is .*; expected a number of bytes such as 200GB; write for example '200GB'"):
        parse_suite(suite_file.read_text(), [f"harvest.quota={written}"])


def test_a_window_that_holds_no_batch_is_refused(suite_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"harvest.window_tokens is 512; expected at least one training batch of 2,048 rows"):
        parse_suite(suite_file.read_text(), ["training.batch_rows=2048"])
