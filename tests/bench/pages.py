"""How quick the report's pages are with many latents: first paint, the list of all latents, a search, a latent's page, in headless Chromium.

    python tests/bench/pages.py --latents 65536

The latents are made up, every one with an explanation; files and pages are those of `jumpsuite report`.
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from core.site import Site
from core.spec import DictionarySpec
from storage.dictionaries import DictionaryFolder
from storage.explanations import ExplanationFolder
from storage.objects import Store
from tasks import browse
from tasks.explain import LATENTS_AT_ONCE, NEAREST, SCHEMA, SCORES, TOKENS

W, CONTEXTS, VOCABULARY = 32, 4_096, 20_000
WORDS = [f" w{token:05d}" for token in range(VOCABULARY)]


def made_up(folder: Path, latents: int) -> str:
    """Write a report with one dictionary; gives the dictionary's place in it."""
    chance = np.random.default_rng(0)
    store = Store(folder)
    store.make()
    spec = DictionarySpec(Site(9, "resid_post"), "jumprelu", latents, 50.0, None, 0, 10**6)
    explanations = ExplanationFolder(DictionaryFolder(store, spec, "key"), "key")
    for first in range(0, latents, LATENTS_AT_ONCE):
        some = np.arange(first, min(first + LATENTS_AT_ONCE, latents), dtype=np.int32)
        kinds = np.array(["top"] * 10 + ["sample"] * 6 + ["quiet"] * 3)
        f = chance.exponential(size=(len(some), len(kinds), W)) * (chance.random((len(some), len(kinds), W)) < 0.1) * (kinds != "quiet")[:, None]
        f[:, :10, 3] = 5
        columns = {
            "latent": some.repeat(len(kinds)),
            "shown": np.zeros(len(some) * len(kinds), bool),
            "kind": pa.array(np.tile(kinds, len(some)).tolist()),
            "context": chance.integers(CONTEXTS, size=len(some) * len(kinds)),
            "activations": pa.FixedSizeListArray.from_arrays(pa.array(f.reshape(-1).astype(np.float32)), W),
        }
        explanations.save_table(f"trained-examples-{first:07d}", pa.table(columns))
        explanations.save_table(f"trained-latents-{first:07d}", pa.table({"latent": some, "frequency": chance.random(len(some)) ** 8}))
        number, token = chance.integers(latents, size=(len(some), NEAREST)), chance.integers(VOCABULARY, size=(len(some), TOKENS))
        value = np.sort(chance.random((len(some), TOKENS)))
        decoder = {"nearest": number, "cosine": value[:, :NEAREST], "raised": token, "raised_by": value, "lowered": token[::-1], "lowered_by": -value}
        explanations.save_table(f"trained-decoder-{first:07d}", pa.table({name: list(column) for name, column in decoder.items()}))
        said = [f"on {WORDS[t]!r} (+12); within 8 tokens after {WORDS[u]!r} (+3.4)" for t, u in token[:, :2]]
        rows = [{"latent": int(n), "explanation": text} | dict.fromkeys(SCORES, float(chance.random())) for n, text in zip(some, said, strict=True)]
        explanations.save_table(f"trained-explanations-{first:07d}", pa.Table.from_pylist(rows, SCHEMA))
    tokens = chance.integers(VOCABULARY, size=(CONTEXTS, W))
    text: Any = SimpleNamespace(tokens_XW=tokens, spell=WORDS.__getitem__, pieces=lambda context: [WORDS[token] for token in tokens[context]])
    card: dict[str, Any] = {"l0": 50.0, "fvu": 0.1, "dead": 0.0, "frequency_histogram": {"log10_edges": [-2, -1, 0], "latents": [1, 2]}}
    card |= {"dense": {"0.01": 0.1, "0.1": 0.0}, "cosine": 0.9, "relative_norm": 0.9, "uniformity": {"mean": 0.5}}
    card |= {"fvu_by_position": {"begins": [1, 2], "fvu": [0.1, 0.2]}}
    card["loss"] = {"delta": 0.1, "delta_interval": [0.08, 0.12], "delta_mean": 1.0, "delta_zero": 2.0, "divergence": 0.1}
    card["loss"] |= {"by_position": {"begins": [1, 2], "delta": [0.1, 0.2]}}
    scores = {"trained": {"explained": latents} | {name: {"mean": 0.5, "low": 0.4, "high": 0.6} for name in SCORES}}
    catalogue: Any = SimpleNamespace(store=store, suite=SimpleNamespace(name="bench"))
    writer = browse.Writer(catalogue)
    entry = browse.entry_of(spec, card) | {"explained": scores, "simulation": browse.write_latents(writer, explanations, spec, text)}
    browse.write_text(writer, text)
    suite = {"name": "bench", "title": "bench", "model": "none", "total": 1, "failures": [], "legend": "", "made": ""}
    writer.data("suite", suite | {"contexts_a_file": browse.CONTEXTS_A_FILE, "dictionaries": [entry]})
    writer.pages()
    return f"{spec.site}/{spec.name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=65_536)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        began = time.perf_counter()
        dictionary = made_up(Path(folder), args.latents)
        written = time.perf_counter() - began
        report = Path(folder) / "bench/report"
        sizes = [path.stat().st_size for path in report.rglob("*") if path.is_file()]
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = chromium.new_page()
        page.goto(f"file://{report}/index.html#/d/{dictionary}")
        page.get_by_text(f"{args.latents:,} of {args.latents:,} latents").wait_for(timeout=120_000)
        listed = page.evaluate("performance.now()")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        search = """async (query) => {
            const input = document.querySelector('input[type=search]'), began = performance.now();
            input.value = query;
            input.dispatchEvent(new Event('input'));
            document.querySelector('.row').getBoundingClientRect();
            return performance.now() - began;
        }"""
        searches = [page.evaluate(search, query) for query in ("w00123", "w0", "8 tokens after ' w19999", "")]
        open_latent = """async (place) => {
            const began = performance.now();
            location.hash = place;
            while (!document.querySelector('.example')) await new Promise((resolve) => setTimeout(resolve, 1));
            return performance.now() - began;
        }"""
        opened = page.evaluate(open_latent, f"#/l/{dictionary}/{args.latents // 2}")
        chromium.close()
    print("| latents | files | MB | written in s | first paint, ms | all latents listed, ms | slowest of four searches, ms | a latent's page, ms |")
    print("|---|---|---|---|---|---|---|---|")
    size = f"| {args.latents:,} | {len(sizes):,} | {sum(sizes) / 1e6:,.0f} | {written:.0f} "
    print(size + f"| {paint:.0f} | {listed:.0f} | {max(searches):.0f} | {opened:.0f} |")


if __name__ == "__main__":
    main()
