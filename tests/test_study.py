"""A study: several architectures on the same rows in the same order, what is read for them, and the sentence that the data supports."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from command import here
from PIL import Image

from core.site import Site
from core.suite_file import parse_suite
from storage.catalogue import Catalogue
from storage.objects import Store
from tasks.harvest import harvest_blocks
from tasks.study import Cell, best, compare, sentences
from tasks.tokenise import tokenise
from tasks.train import train_site

ARCHITECTURES = ("jumprelu", "gated", "topk", "batch-topk", "relu-l1")


def cell(architecture: str, sparsity: str, fvus: list[float], l0: float | None = None, rate: float = 1e-3) -> Cell:
    rows = [{"fvu": fvu, "l0": l0 or float(sparsity), "target_l0": float(sparsity)} for fvu in fvus]
    return Cell("L09.resid_post", 4_096, architecture, sparsity, rate, rows)


# The sentence


def test_each_architecture_is_shown_at_the_learning_rate_that_served_it_best():
    cells = [cell("topk", "40", [0.06, 0.07], rate=1e-3), cell("topk", "40", [0.05, 0.06], rate=4e-3), cell("topk", "100", [0.04], rate=1e-3)]
    assert [(c.sparsity, c.learning_rate) for c in best(cells)] == [("40", 4e-3), ("100", 1e-3)]


def test_a_learning_rate_that_misses_the_target_is_not_best_for_its_lower_error():
    met, missed = cell("topk", "40", [0.06], l0=41.0, rate=1e-3), cell("topk", "40", [0.03], l0=90.0, rate=4e-3)
    assert best([missed, met]) == [met]


def test_two_sparsities_of_the_same_l0_are_compared_without_a_line_between_them():
    same = [cell("topk", "60", [0.05], l0=40.0), cell("topk", "80", [0.05], l0=40.0)]
    assert next(compare([cell("jumprelu", "40", [0.05]), *same])).ratio == pytest.approx(1)


def test_fronts_are_compared_at_the_same_l0_on_the_line_between_their_points():
    theirs = [cell("topk", "10", [0.1, 0.1]), cell("topk", "1000", [0.001, 0.001])]
    ours = [cell("jumprelu", "100", [0.02, 0.02])]
    (found,) = compare([*ours, *theirs])
    assert found.ratio == pytest.approx(2.0), "0.01 is what a straight line in both logarithms has at L0 100"


def test_nothing_is_said_of_sparsities_that_the_other_does_not_reach():
    assert not list(compare([cell("jumprelu", "500", [0.02]), cell("topk", "10", [0.1]), cell("topk", "100", [0.05])]))


@pytest.mark.parametrize(
    ("ours", "verdict", "claim"),
    [
        ([0.040, 0.041, 0.039], "below", "not worse"),
        ([0.051, 0.049, 0.0505], "level", "not worse"),
        ([0.060, 0.061, 0.059], "above", "worse at 1 of 1"),
    ],
)
def test_the_sentence_says_no_more_than_the_seeds_can_tell(ours, verdict, claim):
    (sentence,) = sentences([cell("jumprelu", "40", ours), cell("topk", "40", [0.050, 0.051, 0.049])])
    assert f"({verdict})" in sentence
    assert f"JumpReLU is {claim}" in sentence
    assert "single seed" not in sentence


def test_a_single_seed_is_said_to_be_one():
    (sentence,) = sentences([cell("jumprelu", "40", [0.05]), cell("topk", "40", [0.06])])
    assert "0.833 at L0 40 (below)" in sentence
    assert "single seed" in sentence


# The command


@pytest.fixture(scope="module")
def fields(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    from conftest import tiny_fields

    fields = tiny_fields(tiny_model, tiny_text)
    fields["sites"] = {"layers": [1], "kinds": ["resid_post"]}
    fields["dictionaries"] = [{"widths": 64, "target_l0s": [8, 16], "architecture": name} for name in ARCHITECTURES]
    fields["dictionaries"][0]["seeds"] = [0, 1]
    fields["dictionaries"][2]["learning_rates"] = [1e-3, 5e-3]
    fields["training"] |= {"l0_control": 0.02, "tokens": 15_360}
    fields["explanations"] = {"latents": 30, "least_contexts": 5, "control": False}
    return fields


@pytest.fixture(scope="module")
def studied(
    prefect_server: str, fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("study")
    suite_file = folder / "study.yaml"
    suite_file.write_text(yaml.safe_dump(fields))
    return suite_file, folder / "runs", here("study", suite_file, "--store", folder / "runs")


@pytest.mark.long
def test_a_study_prints_its_table_and_a_sentence_for_each_architecture(studied):
    _, _, ran = studied
    assert ran.returncode == 0, ran.stderr
    for name in ARCHITECTURES:
        assert re.search(rf"L01.resid_post +64 +{name} +16 ", ran.stdout), ran.stdout
    for name in ARCHITECTURES[1:]:
        assert re.search(rf"^L01.resid_post at width 64, JumpReLU is .* than {name}: ", ran.stdout, re.MULTILINE)
    assert "Traceback" not in ran.stdout + ran.stderr


@pytest.mark.long
def test_a_study_leaves_a_table_its_numbers_and_two_pictures(studied):
    _, store, _ = studied
    folder = store / "tiny"
    rows = pq.read_table(folder / "study.parquet").to_pylist()
    assert len(rows) == 4 + 2 + 4 + 2 + 2
    assert {row["architecture"] for row in rows} == set(ARCHITECTURES)
    assert all(row["ms_a_step"] > 0 for row in rows)
    with Image.open(folder / "study.png") as picture:
        assert picture.width > 1_000
    assert "</svg>" in (folder / "study.svg").read_text()
    text = (folder / "study.md").read_text()
    assert "Learning rates that were tried and served less well" in text
    assert not (folder / "release").exists()


@pytest.mark.long
def test_a_study_says_of_each_architecture_how_many_of_its_latents_are_well_simulated(studied):
    _, store, ran = studied
    said = next(line for line in ran.stdout.splitlines() if line.startswith("Latents simulated with a correlation above 0.9: "))
    for name in ARCHITECTURES:
        prefix = "" if name == "jumprelu" else f"{name}_"
        paths = [path for path in (store / "explanations").rglob("trained-explanations-*.parquet") if path.parent.name.startswith(f"{prefix}width_")]
        scores = [row["pearson"] for path in paths for row in pq.read_table(path).to_pylist() if row["pearson"] is not None]
        assert f"{name} {sum(score > 0.9 for score in scores) / len(scores):.1%} (" in said
        assert f"of {len(scores):,})" in said
    text = (store / "tiny/study.md").read_text()
    assert "## What latents mean" in text
    assert said in text


@pytest.mark.long
def test_a_study_is_not_done_again(studied):
    suite_file, store, _ = studied
    stamps = {path: path.stat().st_mtime_ns for path in (store / "dictionaries").rglob("*")}
    assert here("study", suite_file, "--store", store).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (store / "dictionaries").rglob("*")} == stamps


@pytest.mark.long
def test_every_architecture_is_released_and_the_same_function_in_saelens(studied):
    from loaders import in_each

    suite_file, store, _ = studied
    ran = here("run", suite_file, "--store", store)
    assert ran.returncode == 0, ran.stderr
    compared = list(in_each(store / "tiny/release", ["saelens"]))
    assert len(compared) == 14
    assert {type(theirs).__name__ for _, _, theirs, _, _ in compared} == {"JumpReLUSAE", "TopKSAE"}
    for card, _, _, encode, decode in compared:
        assert encode <= 1e-5, card["spec"]
        assert decode <= 1e-5, card["spec"]


# What is read


def bytes_read(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of activations that training asks the store for, checksums included, indices of shards not."""
    total, get_range = [0], Store.get_range

    def counted(self: Store, key: str, start: int, length: int, room: Any) -> Any:
        total[0] += length * ("/activations/" in key)
        return get_range(self, key, start, length, room)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "get_range", counted)
        train_site.fn(catalogue, Site(1, "resid_post"))
    return total[0]


def test_four_dictionaries_of_a_site_read_as_many_bytes_as_one(fields, tmp_path, monkeypatch):
    counts = []
    for targets in ([8], [4, 8, 12, 16]):
        one = fields | {"dictionaries": [{"widths": 64, "target_l0s": targets}]}
        catalogue = Catalogue(parse_suite(yaml.safe_dump(one)), tmp_path / f"{len(targets)}")
        tokenise.fn(catalogue)
        harvest_blocks.fn(catalogue)
        counts.append(bytes_read(catalogue, monkeypatch))
        assert all(catalogue.folder(spec).done for spec in catalogue.sites[Site(1, "resid_post")])
    print(f"\n{counts[0]:,} bytes for one dictionary, {counts[1]:,} for four")
    assert counts[0] == counts[1] > 0


def test_all_architectures_see_the_same_rows_in_the_same_order(fields, tmp_path, monkeypatch):
    from core.trainer import Trainer

    seen: dict[str, list[float]] = {}
    train_on = Trainer.train_on

    def noted(self: Trainer, x: torch.Tensor) -> None:
        seen.setdefault(str(self.spec), []).append(float(x.double().sum()))
        train_on(self, x)

    monkeypatch.setattr(Trainer, "train_on", noted)
    catalogue = Catalogue(parse_suite(yaml.safe_dump(fields), ["training.tokens=5_120"]), tmp_path / "runs")
    tokenise.fn(catalogue)
    harvest_blocks.fn(catalogue)
    train_site.fn(catalogue, Site(1, "resid_post"))
    first, *others = seen.values()
    assert len(first) == 20
    assert len(others) == 13
    assert all(other == first for other in others)
