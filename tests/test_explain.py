"""`jumpsuite explain`: the contexts that it collects are those that a search of the whole text finds, what it finished it leaves, and what was
killed or damaged ends in the same bytes."""

import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import zarr
from chat_server import ChatServer, reader
from command import environment, here, results, write_suite
from conftest import tiny_fields
from transformers import AutoTokenizer

import tasks.explain

SITE, CONTEXT, W = "L01.resid_post", 32, 12
TOP, SAMPLE, QUIET = 3, 12, 6


def suite_fields(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    fields = tiny_fields(tiny_model, tiny_text)
    fields["sites"] = {"layers": [1], "kinds": ["resid_post"]}
    fields["dictionaries"] = [{"widths": 64, "target_l0s": 8}, {"architecture": "topk", "widths": 64, "target_l0s": 8}]
    fields["training"] |= {"tokens": 15_360}
    return fields


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite that says how its latents are explained."""
    how = {"latents": 20, "context": W, "top": TOP, "sample": SAMPLE, "quiet": QUIET, "least_contexts": 5}
    return write_suite(suite_fields(tiny_model, tiny_text) | {"explanations": how}, tmp_path_factory)


@pytest.fixture(scope="module")
def trained(prefect_server: str, tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with trained dictionaries, of the same suite without a word of explanations."""
    store = tmp_path_factory.mktemp("store") / "runs"
    run = here("run", write_suite(suite_fields(tiny_model, tiny_text), tmp_path_factory), "--store", store)
    assert run.returncode == 0, run.stderr
    assert not (store / "explanations").exists()
    return store


@pytest.fixture(scope="module")
def explained(trained: Path, suite_file: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same store once its latents are explained, and what the command said."""
    return trained, here("explain", suite_file, "--store", trained)


def explanations(store: Path) -> dict[str, bytes]:
    """All that is there of explanations, by name."""
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted((store / "explanations").rglob("*")) if path.is_file()}


def table(store: Path, dictionary: str, name: str) -> list[dict[str, Any]]:
    (path,) = (store / "explanations" / SITE).glob(f"{dictionary}-*/{name}.parquet")
    return pq.read_table(path).to_pylist()


def test_the_command_shows_what_latents_mean_beside_a_control_and_how_far_that_predicts_them(explained: Any) -> None:
    store, run = explained
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith(SITE) and "±" in line]
    assert len(lines) == 2
    assert "\nnext: jumpsuite report" in run.stdout
    for summary in (json.loads(path.read_text()) for path in (store / "explanations").rglob("summary.json")):
        for subject in ("trained", "control"):
            assert summary[subject]["explained"] == summary[subject]["drawn"] == min(20, summary[subject]["able"])
            assert -1 <= summary[subject]["pearson"]["low"] <= summary[subject]["pearson"]["mean"] <= summary[subject]["pearson"]["high"] <= 1


def test_a_run_explains_the_latents_of_a_suite_that_says_how_and_status_tells(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    store, _ = explained
    mine = copy_of_trained(store, tmp_path)
    (mine / "tiny").unlink()
    status = here("status", suite_file, "--store", mine)
    assert status.stdout.count("not yet explained") == 2
    assert "\nnext: jumpsuite run" in status.stdout
    run = here("run", suite_file, "--store", mine)
    assert run.returncode == 0, run.stderr
    assert explanations(mine) == explanations(store)
    status = here("status", suite_file, "--store", mine)
    assert status.stdout.count("explained 20") == 2
    assert "\nnext: jumpsuite report" in status.stdout
    pages = {path: path.stat().st_mtime_ns for path in (mine / "tiny/report/data").rglob("*.js")}
    assert pages
    assert here("run", suite_file, "--store", mine).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (mine / "tiny/report/data").rglob("*.js")} == pages, "nothing was written again"
    titled = here("report", suite_file, "--store", mine, "--set", "release.title=Another")
    assert titled.returncode == 0
    assert "Another" in (mine / "tiny/report/data/suite.js").read_text()


def test_a_plan_says_what_explaining_takes(explained: Any, suite_file: Path) -> None:
    plan = here("plan", suite_file, "--store", explained[0])
    assert "explanations  up to 80 latents, half of them random directions; by rules about tokens" in plan.stdout
    endpoint = "{address: http://127.0.0.1:9, model: reader, max_tokens: 1000, price: {prompt: 1, answer: 2}, max_cost: 3}"
    asked = here("plan", suite_file, "--store", explained[0], "--set", f"explanations.endpoint={endpoint}")
    assert "questions to reader, about" in asked.stdout
    assert "never more than 1,000 tokens or 3 in money" in asked.stdout
    unpriced = here("plan", suite_file, "--set", "explanations.endpoint={address: http://127.0.0.1:9, model: reader, max_tokens: 9, max_cost: 3}")
    assert unpriced.returncode == 2
    assert "max_cost is set without price" in unpriced.stderr


def test_what_is_explained_is_left_as_it_is(explained: Any, suite_file: Path) -> None:
    store, _ = explained
    before, times = explanations(store), [path.stat().st_mtime_ns for path in sorted((store / "explanations").rglob("*"))]
    assert here("explain", suite_file, "--store", store).returncode == 0
    assert explanations(store) == before
    assert [path.stat().st_mtime_ns for path in sorted((store / "explanations").rglob("*"))] == times


def held_out(store: Path, dictionary: str) -> tuple[Any, Any, Any]:
    """Tokens, which positions are text (sequences x context), and f (x latents), read and computed by others than the code under test."""
    (harvest,) = (store / "harvests").iterdir()
    group = zarr.open_group(harvest, mode="r")["held_out"]
    (folder,) = (store / "dictionaries" / SITE).glob(f"{dictionary}-*")
    weights = {name: tensor.astype(np.float64) for name, tensor in safetensors.numpy.load_file(folder / "dictionary.safetensors").items()}
    rows, x = group["rows"][:], group[f"activations/{SITE}"][:].astype(np.float64)
    z = x @ weights["W_enc"] + weights["b_enc"]
    f = np.where(z > weights["threshold"], z, 0)
    if dictionary.startswith("topk"):
        f[np.arange(len(f))[:, None], np.argsort(-f, axis=1)[:, 8:]] = 0
    tokens = group["tokens"][:]
    is_text, whole = np.zeros(tokens.shape, bool), np.zeros((*tokens.shape, f.shape[1]))
    for (sequence, position), values in zip(rows, f, strict=True):
        if sequence >= 0:
            is_text[sequence, position], whole[sequence, position] = True, values
    return tokens, is_text, whole


@pytest.mark.parametrize("dictionary", ["width_64_l0_8", "topk_width_64_l0_8"])
def test_the_examples_are_those_that_a_search_of_the_whole_text_finds(explained: Any, dictionary: str) -> None:
    store, _ = explained
    tokens, is_text, f = held_out(store, dictionary)
    starts = [(sequence, begin) for sequence in range(len(tokens)) for begin in range(0, CONTEXT, W)]
    peaks = np.array([f[sequence, begin : begin + W].max(0) for sequence, begin in starts])
    examples = table(store, dictionary, "trained-examples-0000000")
    frequency = {row["latent"]: row["frequency"] for row in table(store, dictionary, "trained-latents-0000000")}
    for latent in range(64):
        assert frequency[latent] == pytest.approx((f[is_text][:, latent] > 0).mean())
        for shown in (True, False):
            mine = [number for number, (sequence, _) in enumerate(starts) if (sequence % 2 == 0) == shown]
            fires, silent = [n for n in mine if peaks[n, latent] > 0], {n for n in mine if peaks[n, latent] == 0}
            kept = {kind: [] for kind in ("top", "sample", "quiet")}
            for row in examples:
                if row["latent"] == latent and row["shown"] == shown:
                    kept[row["kind"]].append(row["context"])
                    sequence, begin = starts[row["context"]]
                    expected = f[sequence, begin : begin + W, latent]
                    assert row["activations"] == pytest.approx([*expected, *[0.0] * (W - len(expected))], abs=1e-4)
            assert [peaks[n, latent] for n in kept["top"]] == pytest.approx(sorted(peaks[fires, latent], reverse=True)[:TOP], abs=1e-4)
            assert len(set(kept["sample"])) == min(SAMPLE, len(fires))
            assert set(kept["sample"]) <= set(fires)
            assert set(kept["quiet"]) <= silent


def test_how_many_latents_are_collected_at_a_time_makes_no_difference(
    explained: Any, suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = explained
    mine = copy_of_trained(store, tmp_path)
    monkeypatch.setattr(tasks.explain, "LATENTS_AT_ONCE", 10)
    monkeypatch.setattr(tasks.explain, "EXPLAINED_AT_ONCE", 7)
    assert here("explain", suite_file, "--store", mine).returncode == 0
    for dictionary, subject in itertools.product(("width_64_l0_8", "topk_width_64_l0_8"), ("trained", "control")):
        parts = (table(mine, dictionary, f"{subject}-examples-{first:07d}") for first in range(0, 64, 10))
        kept, expected = (
            {(row["latent"], row["shown"], row["kind"], row["context"]) for row in rows}
            for rows in (itertools.chain(*parts), table(store, dictionary, f"{subject}-examples-0000000"))
        )
        # Products of a few columns are rounded otherwise than those of many: an activation at its threshold may fall on either side.
        assert len(kept ^ expected) <= 0.005 * len(expected)
        latents = [row["latent"] for begin in (0, 7, 14) for row in table(mine, dictionary, f"{subject}-explanations-{begin:07d}")]
        assert latents == [row["latent"] for row in table(store, dictionary, f"{subject}-explanations-0000000")]


def copy_of_trained(store: Path, where: Path) -> Path:
    """The store as it was before anything was explained."""
    mine = where / "runs"
    mine.mkdir()
    for part in store.iterdir():
        if part.name not in ("explanations", "prefect", "locks"):
            (mine / part.name).symlink_to(part)
    return mine


def copy_of_explained(store: Path, where: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The store with its explanations changed.

    Args:
        change: from a file's name and bytes to what is in its place, or nothing.
    """
    mine = copy_of_trained(store, where)
    for name, data in explanations(store).items():
        path = mine / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if (changed := change(path.name, data)) is not None:
            path.write_bytes(changed)
    return mine


def test_a_part_that_was_damaged_is_made_again(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    store, _ = explained

    def change(name: str, data: bytes) -> bytes | None:
        if name == "trained-examples-0000000.parquet":
            return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]
        return None if name == "summary.json" else data

    mine = copy_of_explained(store, tmp_path, change)
    run = here("explain", suite_file, "--store", mine)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("it is made again") == 2
    assert explanations(mine) == explanations(store)


def test_a_finished_part_that_was_damaged_is_named(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    store, _ = explained
    mine = copy_of_explained(store, tmp_path, lambda name, data: data[:-1] if name == "trained-explanations-0000000.parquet" else data)
    run = here("explain", suite_file, "--store", mine)
    assert run.returncode == 1
    assert "trained-explanations-0000000.parquet was changed since it was written" in run.stderr
    assert "delete its folder and run again" in run.stderr


def test_a_finished_part_that_is_gone_is_named_by_the_report(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    store, _ = explained
    mine = copy_of_explained(store, tmp_path, lambda name, data: None if name == "trained-decoder-0000000.json" else data)
    (mine / "tiny").unlink()  # or the report would be written into the one that is shared
    run = here("report", suite_file, "--store", mine)
    assert run.returncode == 1
    assert "trained-decoder-0000000.json is missing" in run.stderr
    assert "delete its folder and run again" in run.stderr


def test_a_dictionary_none_of_whose_latents_fires_often_enough_is_reported_without_explanations(
    explained: Any, suite_file: Path, tmp_path: Path
) -> None:
    mine = copy_of_trained(explained[0], tmp_path)
    (mine / "tiny").unlink()
    rare = ["--store", mine, "--set", "explanations.sample=5000", "--set", "explanations.least_contexts=5000"]
    run = here("explain", suite_file, *rare)
    assert run.returncode == 0, run.stderr
    assert "0 of 0" in run.stdout
    assert here("report", suite_file, *rare).returncode == 0


def test_a_dictionary_that_is_not_trained_is_named_and_the_others_are_explained(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    mine = copy_of_trained(explained[0], tmp_path)
    run = here("explain", suite_file, "--store", mine, "--set", "sites.kinds=[resid_post, mlp_out]", "--set", "explanations.control=false")
    assert run.returncode == 1
    assert "L01.mlp_out: L01.mlp_out width_64_l0_8 is not trained" in run.stderr
    assert [line for line in run.stdout.splitlines() if line.startswith(SITE) and "±" in line]


def test_a_language_model_explains_up_to_its_cap_and_goes_on_from_there_with_more(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    server = ChatServer()
    server.start()
    mine = copy_of_trained(explained[0], tmp_path)

    def run(max_tokens: int) -> subprocess.CompletedProcess[str]:
        endpoint = f"explanations.endpoint={{address: {server.address}, model: reader, contexts: 6, max_tokens: {max_tokens}}}"
        return here("explain", suite_file, "--store", mine, "--set", endpoint, "--set", "explanations.latents=4")

    capped = run(8_000)
    assert capped.returncode == 1
    assert f"{SITE}: explanations.endpoint.max_tokens is 8,000, of which {server.tokens:,} are spent" in capped.stderr
    assert 0 < server.tokens <= 8_000
    whole = run(10**7)
    server.stop()
    assert whole.returncode == 0, whole.stderr
    assert "questions to reader, about" in whole.stderr
    assert len({json.dumps(body, sort_keys=True) for body in server.asked}) == len(server.asked), "nothing was asked twice"
    assert f"{server.tokens:,} tokens of 10,000,000 have been spent on reader" in whole.stderr
    rows = table(mine, "width_64_l0_8", "trained-explanations-0000000")
    assert [row["explanation"][:10] for row in rows] == ["the token "] * 4
    assert run(10**7).returncode == 0, "without the server, for nothing is left to ask"


@pytest.mark.long
def test_a_run_killed_at_any_moment_ends_in_the_same_bytes(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    store, _ = explained
    mine, killed = copy_of_trained(store, tmp_path), 0
    for files in (1, 4, 9):
        command = [sys.executable, "-m", "flows.main", "explain", str(suite_file), "--store", str(mine)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True)
        while process.poll() is None and len(explanations(mine)) < files:
            time.sleep(0.001)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed == 3
    assert here("explain", suite_file, "--store", mine).returncode == 0
    assert explanations(mine) == explanations(store)


def test_fewer_contexts_than_a_latent_is_to_fire_in_are_refused(suite_file: Path, tmp_path: Path) -> None:
    run = here("explain", suite_file, "--store", tmp_path, "--set", "explanations.least_contexts=50")
    assert run.returncode == 2
    assert "explanations.least_contexts is 50" in run.stderr


def test_latents_whose_explanation_was_malformed_are_left_unscored_beside_the_others(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    explanations_asked = itertools.count()

    def now_and_then(task: str, said: str) -> str:
        return "no" if task == "explain" and next(explanations_asked) % 4 < 2 else reader(task, said)

    server = ChatServer(now_and_then)
    server.start()
    mine = copy_of_trained(explained[0], tmp_path)
    (mine / "tiny").unlink()
    endpoint = f"{{address: {server.address}, model: reader, contexts: 4, max_tokens: 1_000_000, at_once: 1}}"
    asked = ["--store", mine, "--set", f"explanations.endpoint={endpoint}", "--set", "explanations.latents=4", "--set", "explanations.control=false"]
    run = here("explain", suite_file, *asked)
    server.stop()
    assert run.returncode == 0, run.stderr
    rows = table(mine, "width_64_l0_8", "trained-explanations-0000000")
    assert any(row["explanation"] is None for row in rows)
    assert any(row["explanation"] for row in rows)
    assert all(row["pearson"] is None for row in rows if row["explanation"] is None)
    assert here("report", suite_file, *asked).returncode == 0


def test_explaining_leaves_what_a_run_made_as_it_was(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    store, _ = explained
    mine, before = copy_of_trained(store, tmp_path), results(store)
    assert here("explain", suite_file, "--store", mine, "--set", "explanations.latents=5").returncode == 0
    assert explanations(mine)
    assert results(store) == before


# Other people's formats


def test_an_export_for_delphi_holds_every_activation_of_the_held_out_text(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    store, _ = explained
    export = here("export", suite_file, "--store", store, "--as", "delphi", "--to", tmp_path / "delphi")
    assert export.returncode == 0, export.stderr
    for dictionary in ("width_64_l0_8", "topk_width_64_l0_8"):
        tokens, is_text, f = held_out(store, dictionary)
        folder = tmp_path / "delphi/latents" / f"{SITE}.{dictionary}"
        assert str(folder) in export.stdout
        cache = safetensors.numpy.load_file(folder / "0_63.safetensors")
        assert np.array_equal(cache["tokens"], tokens)
        rebuilt = np.zeros((*tokens.shape, 64), np.float32)
        rebuilt[tuple(cache["locations"].T)] = cache["activations"]
        assert len(np.unique(cache["locations"], axis=0)) == len(cache["locations"]) == len(cache["activations"])
        np.testing.assert_allclose(rebuilt, np.where(is_text[..., None], f, 0), rtol=1e-4, atol=1e-5)
        config = json.loads((folder / "config.json").read_text())
        assert config["n_tokens"] == tokens.size
        assert config["ctx_len"] == tokens.shape[1]


def test_an_export_for_neuronpedia_says_of_every_latent_what_the_report_does(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    store, _ = explained
    export = here("export", suite_file, "--store", store, "--as", "neuronpedia", "--to", tmp_path)
    assert export.returncode == 0, export.stderr

    def lines(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]

    sources = sorted((tmp_path / "v1/model").iterdir())
    assert [source.name for source in sources] == ["1-tiny-resid-post-topk-width-64-l0-8", "1-tiny-resid-post-width-64-l0-8"]
    for source, dictionary in zip(sources, ("topk_width_64_l0_8", "width_64_l0_8"), strict=True):
        features, activations, said = (lines(source / kind / "batch-0.jsonl.gz") for kind in ("features", "activations", "explanations"))
        (about,) = map(json.loads, (source / "source.jsonl").read_text().splitlines())
        assert about["id"] == source.name
        frequencies = [row["frequency"] for row in table(store, dictionary, "trained-latents-0000000")]
        assert [feature["index"] for feature in features] == list(range(64))
        assert [feature["frac_nonzero"] for feature in features] == frequencies
        rows = table(store, dictionary, "trained-explanations-0000000")
        assert [(line["index"], line["description"]) for line in said] == [(row["latent"], row["explanation"]) for row in rows]
        assert len({line["id"] for line in [*activations, *said]}) == len(activations) + len(said)
        for line in activations:
            assert line["values"][line["maxValueTokenIndex"]] == line["maxValue"] == max(line["values"]) > 0
            assert len(line["values"]) == len(line["tokens"])
            assert line["maxValue"] <= features[line["index"]]["maxActApprox"]
        assert {line["index"] for line in activations} == {index for index, frequency in enumerate(frequencies) if frequency}
        assert all(line["modelId"] == "model" and line["layer"] == source.name for line in [*features, *activations, *said])


def test_nothing_is_exported_of_a_suite_without_explanations(explained: Any, suite_file: Path, tmp_path: Path) -> None:
    mine = copy_of_trained(explained[0], tmp_path)
    export = here("export", suite_file, "--store", mine, "--as", "neuronpedia", "--to", tmp_path / "out")
    assert export.returncode == 1
    assert "has nothing explained yet; expected explanations; run jumpsuite explain first" in export.stderr
    (tmp_path / "file").write_text("")
    export = here("export", suite_file, "--store", explained[0], "--as", "delphi", "--to", tmp_path / "file")
    assert export.returncode == 2
    assert "which cannot be written" in export.stderr


# Pages


@pytest.fixture(scope="module")
def report(explained: Any, suite_file: Path) -> Path:
    """The folder of the report's pages."""
    store, _ = explained
    run = here("report", suite_file, "--store", store)
    assert run.returncode == 0, run.stderr
    assert f"Pages: open {store}/tiny/report/index.html in a browser" in run.stdout
    return store / "tiny/report"


@contextmanager
def browsing(report: Path, place: str = "", **how: Any) -> Iterator[Any]:
    """A page of the report in Chromium, opened from its folder. It asked for nothing but files of the folder, and complained of nothing."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = chromium.new_page(**how)
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"file://{report}/index.html#/{place}")
        yield page
        assert "[object" not in page.inner_text("main"), "what was to be drawn is not spelt out"
        chromium.close()
    assert not complaints
    assert all(url.startswith(f"file://{report}/") for url in asked)


def test_one_goes_from_the_suite_to_a_dictionary_to_a_latent_and_back_with_the_keyboard(report: Path) -> None:
    with browsing(report) as page:
        page.get_by_role("heading", name="tiny").wait_for()
        page.keyboard.press("Tab")
        page.locator(".tile").first.focus()
        page.keyboard.press("Enter")
        page.get_by_text("64 of 64 latents").wait_for()
        page.keyboard.press("/")
        page.keyboard.type("37")
        page.get_by_text("1 of 64 latents").wait_for()
        page.keyboard.press("Tab")
        for _ in range(4):  # past the heads
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Latent 37").wait_for()
        page.keyboard.press("ArrowRight")
        page.get_by_role("heading", name="Latent 38").wait_for()
        page.keyboard.press("Escape")
        page.get_by_text("1 of 64 latents").wait_for()


def test_a_latents_page_shows_its_highest_contexts_with_what_fires_in_colour(report: Path, explained: Any, tiny_model: Path) -> None:
    store, _ = explained
    row = max(table(store, "width_64_l0_8", "trained-explanations-0000000"), key=lambda row: row["pearson"])
    tops = [r for r in table(store, "width_64_l0_8", "trained-examples-0000000") if r["latent"] == row["latent"] and r["kind"] == "top"]
    highest = max(tops, key=lambda top: max(top["activations"]))
    tokens, _, _ = held_out(store, "width_64_l0_8")
    sequence, number = divmod(highest["context"], -(-CONTEXT // W))
    with browsing(report, f"d/{SITE}/width_64_l0_8") as page:
        page.goto(f"file://{report}/index.html#/l/{SITE}/width_64_l0_8/{row['latent']}")
        page.get_by_text(row["explanation"]).wait_for()
        spans = page.locator(".example").first.locator(".text span")
        shown = spans.evaluate_all("spans => spans.map(s => [s.textContent, getComputedStyle(s).backgroundColor !== 'rgba(0, 0, 0, 0)'])")
        spelt = page.evaluate("async ([first, at]) => (await load(`text/${first}`)).tokens[at]", [0, highest["context"]])
    assert [word for word, _ in shown] == spelt
    assert [fires for _, fires in shown] == [value > 0 for value in highest["activations"]]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    here_tokens = tokens[sequence, number * W : (number + 1) * W]
    assert spelt == [tokenizer.decode([token]) for token in here_tokens] + [""] * (W - len(here_tokens))


def test_what_looks_like_html_is_shown_as_the_text_that_it_is(report: Path, tmp_path: Path) -> None:
    evil = "<script>window.evil=1</script><img src=x onerror=window.evil=1>"
    mine = tmp_path / "report"
    shutil.copytree(report, mine)
    for path in mine.glob("data/text/*.js"):
        head, _, value = path.read_text().removesuffix(");\n").partition(", ")
        text = json.loads(value)
        text["tokens"] = [[evil] * len(tokens) for tokens in text["tokens"]]
        path.write_text(f"{head}, {json.dumps(text)});\n")
    for path in mine.glob(f"data/{SITE}/width_64_l0_8/latents-*.js"):
        head, _, value = path.read_text().removesuffix(");\n").partition(", ")
        latents = json.loads(value)
        for row in latents["explained"]:
            row[1] = evil
        path.write_text(f"{head}, {json.dumps(latents)});\n")
        latent = latents["explained"][0][0]
    with browsing(mine, f"l/{SITE}/width_64_l0_8/{latent}") as page:
        page.get_by_text(evil).first.wait_for()
        assert page.locator(".example .text span").first.text_content() == evil
        page.goto(f"file://{mine}/index.html#/d/{SITE}/width_64_l0_8")
        page.locator(".row").get_by_text(evil).first.wait_for()
        assert page.evaluate("window.evil") is None


def test_people_rate_latents_without_knowing_whose_they_are_and_a_command_joins_their_answers(
    report: Path, explained: Any, suite_file: Path, tmp_path: Path
) -> None:
    store, _ = explained
    data = (report / "data/rating.js").read_text()
    assert not [word for word in ("L01", "resid_post", "width", "topk", "control", "trained") if word in data]
    rated = json.loads(data.removesuffix(");\n").partition(", ")[2])
    files = []
    for rater, answers in (("ann", "yyym"), ("bea", "yynm")):
        with browsing(report, "rate") as page:
            page.get_by_text(f"Latent 1 of {len(rated)}").wait_for()
            assert page.locator(".example").count() == len(rated[0]["examples"])
            for number, key in enumerate(answers, 2):
                page.keyboard.press(key)
                page.get_by_text(f"Latent {number} of").wait_for()
            page.reload()
            page.get_by_text(f"4 of {len(rated)} rated").wait_for()
            page.get_by_role("heading", name="Latent 5 of").wait_for()
            page.get_by_label("your name").fill(rater)
            page.keyboard.press("Tab")
            with page.expect_download() as download:
                page.get_by_role("button", name="Save as a file").click()
            files.append(tmp_path / f"{rater}.json")
            download.value.save_as(files[-1])
        assert json.loads(files[-1].read_text())["rater"] == rater
    run = here("ratings", suite_file, *files, "--store", store)
    assert run.returncode == 0, run.stderr
    assert f"2 raters, 4 of {len(rated)} latents." in run.stdout
    rows = [line.split() for line in run.stdout.splitlines() if line.startswith(SITE)]
    assert sum(int(next(word for word in row if word.isdigit())) for row in rows) == 8, "answers"
    (tmp_path / "other.json").write_text('{"ratings": {"0123": "yes"}}')
    wrong = here("ratings", suite_file, tmp_path / "other.json", "--store", store)
    assert wrong.returncode == 2
    assert "rates 0123, which is not on this suite's page" in wrong.stderr
