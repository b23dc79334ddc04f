"""What happens to a disk happens to a run: it says so in a sentence, costs nothing that was committed, and running again completes it."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import environment, here, results, write_suite
from conftest import tiny_fields

pytestmark = pytest.mark.long

ONE = ["--only", "L01.mlp_out"]


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tiny_fields(tiny_model, tiny_text), tmp_path_factory)


@pytest.fixture(scope="module")
def undisturbed(prefect_server: str, suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    store = tmp_path_factory.mktemp("store") / "runs"
    run = here("run", suite_file, "--store", store, *ONE)
    assert run.returncode == 0, run.stderr
    return results(store)


def on_a_disk_of_its_own(script: str, *arguments: str | Path) -> str:
    """A shell script in a namespace of its own, where anybody may mount; gives what it printed."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", script, "sh", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(PYTHON=sys.executable))
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


FULL = {
    3: r"jumpsuite: \S+disk/runs/prefect has [\d.]+ MB left; expected 4 MB and more; make room and run again",
    5: r"jumpsuite: (failed: .*disk/runs/\S+ cannot be written \(No space left on device\); expected room and rights there"
    r"|.*the Prefect server failed \(HTTP 500\); expected it to answer, and room for its database); see to it and run again",
}
"""What is said on a disk of so many megabytes."""


@pytest.mark.parametrize("megabytes", FULL)
def test_a_full_disk_is_said_and_when_there_is_room_the_run_completes(
    megabytes: int, suite_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    said = on_a_disk_of_its_own(
        """
        mount -t tmpfs -o size=$3m tmpfs "$1"
        "$PYTHON" -m flows.main run "$2" --store "$1/runs" --only L01.mlp_out 2>&1 && exit 3
        mount -o remount,size=200m "$1"
        "$PYTHON" -m flows.main run "$2" --store "$1/runs" --only L01.mlp_out 2>&1
        cp -r "$1/runs" "$4"
        """,
        tmp_path / "disk",
        suite_file,
        str(megabytes),
        tmp_path / "after",
    )
    complaints = [line for line in said.splitlines() if line.startswith("jumpsuite: ")]
    assert len(complaints) == 1
    assert re.fullmatch(FULL[megabytes], complaints[0])
    assert "Traceback" not in said
    assert results(tmp_path / "after") == undisturbed


def test_a_disk_that_may_only_be_read_is_said(suite_file: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    said = on_a_disk_of_its_own(
        """
        mount -t tmpfs -o ro tmpfs "$1"
        for command in run harvest; do
            "$PYTHON" -m flows.main $command "$2" --store "$1/runs" 2>&1 && exit 3
        done
        "$PYTHON" -m flows.main status "$2" --store "$1/runs" 2>&1
        """,
        tmp_path / "disk",
        suite_file,
    )
    assert said.count("disk/runs', which cannot be made (Read-only file system); expected a folder; choose another") == 2
    assert "harvest  absent" in said
    assert "Traceback" not in said


def test_a_store_that_is_deleted_under_a_run_is_said_and_the_next_run_makes_it_anew(
    suite_file: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "runs"
    command = [sys.executable, "-m", "flows.main", "run", str(suite_file), "--store", str(store), *ONE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()) as run:
        while not list(store.glob("harvests/*/commits/train/*")):
            time.sleep(0.005)
        for part in ("harvests", "dictionaries", "tiny", "locks"):
            shutil.rmtree(store / part, ignore_errors=True)
        said, _ = run.communicate()
    assert "Traceback" not in said
    assert run.returncode == 0 or re.search(r"jumpsuite: failed: .*; expected .*; .*run again", said), said
    again = here("run", suite_file, "--store", store, *ONE)
    assert again.returncode == 0, again.stderr
    assert results(store) == undisturbed


def test_damaged_blocks_are_harvested_again_by_the_run_that_finds_them(suite_file: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "runs"
    assert here("harvest", suite_file, "--store", store, *ONE).returncode == 0
    (part,) = store.glob("harvests/*/train")
    for name in ("statistics/L01.mlp_out/sums/c/1/0", "activations/L01.mlp_out/c/5/0", "activations/L01.mlp_out/c/6/0"):
        data = (part / name).read_bytes()
        (part / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    run = here("run", suite_file, "--store", store, *ONE)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("expected what was harvested; harvesting it again") == 3
    assert "Traceback" not in run.stderr
    assert results(store) == undisturbed
