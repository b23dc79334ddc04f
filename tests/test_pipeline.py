"""The whole pipeline as its user runs it: the command, a real Prefect server, a small real model."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import environment, here, jumpsuite, results, write_suite
from conftest import tiny_fields
from s3_server import S3Server

from core.suite_file import parse_suite
from storage.catalogue import Catalogue
from storage.release import read_dictionary

SITES = [f"L{layer:02d}.{kind}" for layer in (0, 1) for kind in ("resid_post", "mlp_out", "attn_z")]


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = tiny_fields(tiny_model, tiny_text)
    fields["harvest"]["block_sequences"] = 64
    return write_suite(fields, tmp_path_factory)


@pytest.fixture(scope="module")
def first_run(prefect_server: str, suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A store in which the suite was run once, undisturbed, and what the command said."""
    store = tmp_path_factory.mktemp("store") / "runs"
    return store, here("run", suite_file, "--store", store)


@pytest.fixture(scope="module")
def store(first_run: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return first_run[0]


def test_one_command_goes_from_text_to_a_verified_release(first_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    store, run = first_run
    assert run.returncode == 0, run.stderr
    assert "Released and verified" in run.stdout
    assert all(site in run.stdout for site in SITES)
    assert re.search(r"\nnext: jumpsuite verify \S+", run.stdout)
    assert (store / "tiny" / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_that_a_run_prints_is_a_traceback(first_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    said = first_run[1].stdout + first_run[1].stderr
    assert "Traceback" not in said
    assert "Error" not in said


def test_with_no_server_configured_a_run_has_one_of_its_own_and_leaves_none_behind(store: Path, suite_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "runs"
    shutil.copytree(store, mine)
    run = jumpsuite("run", suite_file, "--store", mine)
    assert run.returncode == 0, run.stderr
    assert "Released and verified" in run.stdout
    assert "Traceback" not in run.stdout + run.stderr
    assert not _processes_of(mine)
    assert results(mine) == results(store)


def _processes_of(store: Path) -> list[str]:
    """Those that have the store in their command or their environment, as Prefect's server has."""
    running = subprocess.run(["ps", "axeww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in running.splitlines() if str(store) in line]


@pytest.mark.long
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_no_server_and_says_how_it_goes_on(told: signal.Signals, suite_file: Path, tmp_path: Path) -> None:
    # What a shell starts in the background ignores SIGINT, and so would the run.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "flows.main", "run", str(suite_file), "--store", str(tmp_path / "runs")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()) as run:
        assert run.stderr
        said = next(line for line in run.stderr if line.startswith("train "))
        assert _processes_of(tmp_path)
        run.send_signal(told)
        said += run.stderr.read()
    assert run.returncode == 1
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    assert not _processes_of(tmp_path)


def test_target_l0_is_met_on_held_out_text_and_reconstruction_beats_the_mean(store: Path) -> None:
    cards = [json.loads(path.read_text()) for path in (store / "tiny/release/scorecards").rglob("*.json")]
    assert len(cards) == 7
    for card in cards:
        assert card["l0"] == pytest.approx(card["spec"]["target_l0"], rel=0.2)
        assert card["fvu"] < 0.7


def test_a_scorecard_says_what_the_models_own_forward_passes_say(store: Path, suite_file: Path, tiny_model: Path) -> None:
    """The model as transformers loads it, a hook of its own on every position of text, the released weights: all sums in one batch, in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    suite = parse_suite(suite_file.read_text())
    tokens = torch.from_numpy(Catalogue(suite, str(store)).harvest.part("held_out").first_tokens(suite.evaluation.loss_sequences)).long()
    is_text, counts = tokens > 2, (tokens > 2)[:, 1:]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    release = store / "tiny/release"
    paths = sorted((release / "scorecards/L01.resid_post").glob("*.json"))
    assert paths
    for path in paths:
        card = json.loads(path.read_text())
        dictionary = read_dictionary(release, card)["saelens"]

        def log_p(replace: Any = None) -> torch.Tensor:
            def hook(_: Any, __: Any, output: Any) -> Any:
                x = (output[0] if isinstance(output, tuple) else output).clone()
                x[is_text] = x[is_text] if replace is None else replace(x[is_text])
                return (x, *output[1:]) if isinstance(output, tuple) else x

            handle = model.model.layers[1].register_forward_hook(hook)
            with torch.no_grad():
                said = model(tokens, use_cache=False).logits.double().log_softmax(-1)[:, :-1][counts]
            handle.remove()
            return said

        def loss(log_q: torch.Tensor) -> float:
            return float(-log_q.gather(1, tokens[:, 1:][counts][:, None]).mean())

        intact, spliced, zero = log_p(), log_p(lambda x, d=dictionary: d.decode(d.encode(x))), log_p(torch.zeros_like)
        assert card["loss"]["predictions"] == len(intact)
        assert card["loss"]["intact"] == pytest.approx(loss(intact), rel=1e-5)
        assert card["loss"]["delta"] == pytest.approx(loss(spliced) - loss(intact), abs=2e-5)
        assert card["loss"]["delta_zero"] == pytest.approx(loss(zero) - loss(intact), abs=2e-5)
        assert card["loss"]["divergence"] == pytest.approx(float((intact.exp() * (intact - spliced)).sum(1).mean()), abs=2e-5)
        low, high = card["loss"]["delta_interval"]
        assert low < card["loss"]["delta"] < high
        assert high - low < 5 * abs(card["loss"]["delta_zero"])
        by_position = card["loss"]["by_position"]
        position = counts.nonzero()[:, 1]
        delta = intact.gather(1, tokens[:, 1:][counts][:, None])[:, 0] - spliced.gather(1, tokens[:, 1:][counts][:, None])[:, 0]
        for begin, value in zip(by_position["begins"], by_position["delta"], strict=True):
            end = begin * 2 if begin != by_position["begins"][-1] else tokens.shape[1]
            assert value == pytest.approx(float(delta[(position >= begin) & (position < end)].mean()), abs=5e-5)
        assert 1 / card["l0"] < card["uniformity"]["mean"] <= 1
        assert card["sample_in_bfloat16"]["fvu"] == pytest.approx(card["sample"]["fvu"], abs=0.01)
        assert card["dense"]["0.1"] <= card["dense"]["0.01"]


def test_every_released_dictionary_is_the_same_function_in_saelens(store: Path) -> None:
    from loaders import in_each

    compared = list(in_each(store / "tiny/release", ["saelens"]))
    assert len(compared) == 7
    for card, _, theirs, encode, decode in compared:
        assert theirs.cfg.metadata.hook_name.startswith(f"blocks.{card['spec']['site'][1:3].lstrip('0') or '0'}.")
        assert theirs.cfg.metadata.jumpsuite_dictionary == card["dictionary"]
        assert encode <= 1e-5
        assert decode <= 1e-5


def test_gemma_scopes_tree_is_readable_with_numpy_alone(store: Path) -> None:
    paths = list((store / "tiny/release/gemma_scope").rglob("params.npz"))
    assert len(paths) == 7 + len(SITES), "of each site one is there as its canonical one, too"
    for path in paths:
        assert re.search(r"gemma_scope/(res|mlp|att)/layer_[01]/width_64/(average_l0_\d+|canonical)/params.npz", str(path))
        with np.load(path, allow_pickle=False) as p:
            assert set(p.files) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
            assert all(p[name].dtype == np.float32 for name in p.files)
            assert np.allclose(np.linalg.norm(p["W_dec"], axis=1), 1, atol=1e-5)


@pytest.mark.long
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(store: Path, suite_file: Path, tmp_path: Path) -> None:
    chaos(store, suite_file, tmp_path / "runs", kills=3, seed=0)


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_in_the_same_bytes(store: Path, suite_file: Path, tmp_path: Path) -> None:
    chaos(store, suite_file, tmp_path / "runs", kills=10, seed=1)


def chaos(reference: Path, suite_file: Path, store: Path, kills: int, seed: int) -> None:
    """Kill a run again and again, each time after it has done some more, and compare what it ends in."""
    chance = random.Random(seed)  # noqa: S311
    # Moments are chosen by work done, not by the clock: most of the seconds of so small a run are Prefect's.
    undisturbed = len([name for name in results(reference) if name.startswith(("harvests", "dictionaries"))])
    moments = sorted(chance.uniform(0.02, 0.98) * undisturbed for _ in range(kills))
    killed = 0
    for moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.main", "run", suite_file, "--store", store],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        while process.poll() is None and _files(store) < moment:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.2))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    run = jumpsuite("run", suite_file, "--store", store)
    assert run.returncode == 0, run.stderr
    assert killed == kills
    print(f"\nkilled {killed} times at {[round(m) for m in moments]} of {undisturbed} files")
    assert results(store) == results(reference)


def _files(store: Path) -> int:
    return sum(1 for part in ("harvests", "dictionaries") for path in (store / part).rglob("*") if path.is_file())


@pytest.mark.long
def test_a_run_in_a_bucket_ends_in_the_same_bytes_though_its_server_was_away(store: Path, suite_file: Path, s3: S3Server) -> None:
    in_a_bucket(store, suite_file, s3, seconds=5)


@pytest.mark.slow
def test_a_run_in_a_bucket_ends_in_the_same_bytes_though_its_server_was_away_for_long(store: Path, suite_file: Path, s3: S3Server) -> None:
    in_a_bucket(store, suite_file, s3, seconds=15)


def in_a_bucket(reference: Path, suite_file: Path, s3: S3Server, seconds: float) -> None:
    """Run in a bucket of a real S3 server that is killed in the middle and comes back."""
    command = [sys.executable, "-m", "flows.main", "run", str(suite_file), "--store", "s3://bucket/runs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as run:
        assert run.stderr
        said = next(line for line in run.stderr if line.startswith("train "))
        s3.kill()
        time.sleep(seconds)
        s3.start()
        out, rest = run.communicate()
    assert run.returncode == 0, said + rest
    assert "Traceback" not in out + rest
    assert re.search(r"\nnext: jumpsuite verify s3://bucket/runs/tiny/release\n", out)
    assert results(s3.root / "bucket/runs") == results(reference)
    assert not list((s3.root / "bucket/runs/locks").glob("*"))
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"].encode()
    assert not [path for path in s3.root.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert secret.decode() not in out + said + rest
    verified = here("verify", "s3://bucket/runs/tiny/release")
    assert verified.returncode == 0, verified.stderr
    status = here("status", suite_file, "--store", "s3://bucket/runs")
    assert status.stdout.count(" done ") == 7


@pytest.mark.usefixtures("prefect_server")
def test_a_failed_site_leaves_the_others_running_and_is_all_that_the_next_run_does(store: Path, suite_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "runs"
    shutil.copytree(store, mine)
    shutil.rmtree(mine / "dictionaries")
    shutil.rmtree(mine / "tiny")
    (mine / "dictionaries").mkdir()
    (mine / "dictionaries/L01.mlp_out").write_text("a file where a folder must be: nothing can be written below it")

    failed = here("run", suite_file, "--store", mine)
    assert failed.returncode == 1
    assert re.search(r"jumpsuite: failed: L01.mlp_out: .+; expected .+; .+", failed.stderr)
    assert "Traceback" not in failed.stdout + failed.stderr
    status = here("status", suite_file, "--store", mine)
    assert status.returncode == 0
    lines = {line.split()[0]: line for line in status.stdout.splitlines() if line.startswith("L")}
    assert re.search(r"L01.mlp_out +\S+ +failed", lines["L01.mlp_out"])
    assert all(" done " in lines[site] for site in SITES if site != "L01.mlp_out")

    (mine / "dictionaries/L01.mlp_out").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in (mine / "dictionaries").rglob("*") if path.is_file()}
    again = here("run", suite_file, "--store", mine)
    assert again.returncode == 0, again.stderr
    trained = {line.split(":")[0] for line in again.stderr.splitlines() if line.startswith("train ")}
    assert trained == {"train L01.mlp_out"}
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert results(mine) == results(store)


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_sick_dictionary_is_named_and_the_others_of_its_site_are_scored(store: Path, suite_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "runs"
    shutil.copytree(store / "harvests", mine / "harvests")
    sick = "dictionaries=[{widths: 64, target_l0s: 8}, {widths: 64, l0_coefficients: 1e38, sites: L00.resid_post}]"
    run = here("run", suite_file, "--store", mine, "--only", "L00.resid_post", "--set", sick)
    assert run.returncode == 1
    assert re.search(r"failed: L00.resid_post: L00.resid_post width_64_lambda_1e\+38 was stopped at step .*: .*; expected .*; .*", run.stderr)
    status = here("status", suite_file, "--store", mine, "--only", "L00.resid_post", "--set", sick).stdout
    assert re.search(r"L00.resid_post +width_64_l0_8 +done", status)
    assert re.search(r"L00.resid_post +width_64_lambda_1e\+38 +failed .*was stopped", status)


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_site_added_later_joins_the_rows_that_are_there(store: Path, suite_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "runs"
    shutil.copytree(store, mine)
    before = results(mine)
    run = here("run", suite_file, "--store", mine, "--only", "L02.mlp_out", "--set", "sites.layers=all")
    assert run.returncode == 0, run.stderr
    assert "harvest 1 sites" in run.stderr
    after = results(mine)
    assert any("activations/L02.mlp_out" in name for name in after)
    kept = {name for name in before if "/activations/" in name or "/tokens/" in name or name.startswith("dictionaries")}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


@pytest.mark.usefixtures("prefect_server")
def test_plan_status_report_and_release_say_what_to_do_next(store: Path, suite_file: Path, tmp_path: Path) -> None:
    for command in (("plan",), ("status",), ("report",), ("release", "--to", str(tmp_path / "copy"))):
        said = here(command[0], suite_file, "--store", store, *command[1:])
        assert said.returncode == 0, said.stderr
        assert said.stdout.splitlines()[-1].startswith("next: jumpsuite ")
    assert here("verify", tmp_path / "copy").returncode == 0


def test_plan_and_status_make_nothing(suite_file: Path, tmp_path: Path) -> None:
    for command in ("plan", "status"):
        assert here(command, suite_file, "--store", tmp_path / "none").returncode == 0
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("prefect_server")
def test_a_release_never_replaces_a_folder_that_is_not_one(store: Path, suite_file: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("years of work")
    run = here("release", suite_file, "--store", store, "--to", tmp_path)
    assert run.returncode == 1
    assert "is not a release" in run.stderr
    assert (tmp_path / "thesis").read_text() == "years of work"


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_too_little_text_is_said_with_how_much_there_is(suite_file: Path, tmp_path: Path) -> None:
    run = here("run", suite_file, "--store", tmp_path / "runs", "--set", "text.tokens=10000000")
    assert run.returncode == 2
    assert re.search(r"text.tokens is 10,000,000; expected at most about [\d,]+, as .* gives [\d,]+; lower text.tokens, or", run.stderr)


def test_running_again_changes_nothing_and_with_a_prefect_server_configured_is_seen_there(prefect_server: str, store: Path, suite_file: Path) -> None:
    import httpx

    before, began = results(store), datetime.now(UTC)
    stamps = {path: path.stat().st_mtime_ns for path in (store / "dictionaries").rglob("*")}
    run = here("run", suite_file, "--store", store)
    assert run.returncode == 0, run.stderr
    assert results(store) == before
    assert {path: path.stat().st_mtime_ns for path in (store / "dictionaries").rglob("*")} == stamps

    asked = {"flow_runs": {"start_time": {"after_": began.isoformat()}}}
    runs = httpx.post(f"{prefect_server}/flow_runs/filter", json=asked).json()
    names = sorted(run["name"] for run in runs)
    assert names == sorted(["suite tiny", "harvest tiny", "release tiny", *(f"site {site}" for site in SITES)])
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
