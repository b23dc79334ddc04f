"""A plan comes near what Gemma Scope reports (arXiv:2408.05147, section 3.4), and tells whether to keep the harvest or to roll it."""

from pathlib import Path
from typing import Any

import pytest

from core.devices import DEVICES, UTILISATION
from core.forecast import Forecast, forecast
from core.suite import Suite
from core.suite_file import parse_suite
from storage.catalogue import Catalogue
from tasks.plan import describe

GEMMA_2B = Path("deployments/suites/gemma-scope-2b.yaml")
NINE_B = "model.shape={layers: 42, d_model: 3584, d_attn: 4096, parameters: 8_324_201_984}"
TIB = 2**40


def planned(*settings: str) -> tuple[Suite, Forecast]:
    suite = parse_suite(GEMMA_2B.read_text(), list(settings))
    assert suite.model.shape
    return suite, forecast(suite, suite.model.shape, suite.sites_of(suite.model.shape))


def test_one_dictionary_of_131k_latents_takes_the_chip_hours_that_the_paper_measured() -> None:
    """45 ms for a batch of 4,096 on 8 chips of a TPU v3, so 195 chip-hours for 8 billion activations of Gemma 2 9B."""
    one = ["sites={layers: 20, kinds: resid_post}", "dictionaries=[{widths: 131072, l0_coefficients: 6e-4, tokens: 8_000_000_000}]"]
    _, f = planned(NINE_B, *one)
    hours = f.training_flop / (UTILISATION * DEVICES["tpu-v3"].bfloat16) / 3_600
    assert hours == pytest.approx(0.045 * 8 * 8e9 / 4_096 / 3_600, rel=0.05)


def test_a_site_of_the_9b_model_takes_the_100_tebibytes_that_the_paper_stored() -> None:
    _, f = planned(
        NINE_B, "text.tokens=8_000_000_000", "sites={layers: 20, kinds: resid_post}", "dictionaries=[{widths: 131072, l0_coefficients: 6e-4}]"
    )
    assert f.harvest_bytes / TIB == pytest.approx(104, rel=0.02)  # "around 100 TiB"


def test_every_site_of_both_models_takes_the_17_pebibytes_that_the_paper_stored() -> None:
    every = ["text.tokens=8_000_000_000", "dictionaries=[{widths: 16384, l0_coefficients: 6e-4}]"]
    total = planned(*every)[1].harvest_bytes + planned(NINE_B, *every)[1].harvest_bytes
    assert total / 2**50 == pytest.approx(17, rel=0.1)


def test_the_activations_of_a_plan_are_those_that_a_run_leaves(tiny_suite: dict[str, Any], tmp_path: Path) -> None:
    from tasks.harvest import harvest_blocks
    from tasks.tokenise import tokenise

    catalogue = Catalogue(Suite.model_validate(tiny_suite), tmp_path / "runs")
    tokenise.fn(catalogue)
    harvest_blocks.fn(catalogue)
    written = sum(path.stat().st_size for path in (tmp_path / "runs/harvests").glob("*/*/activations/*/c/*/*"))
    assert forecast(catalogue.suite, catalogue.shape, catalogue.sites).harvest_bytes == written


def test_a_plan_says_what_rolling_needs_and_a_quota_of_that_is_accepted(tmp_path: Path) -> None:
    suite, _ = planned()
    said = describe(Catalogue(suite, tmp_path), "h100", 2.5)
    assert "activations 11.1 PB, kept; with harvest.quota: 38.8TB or more they roll, in 954 windows" in said
    rolling = describe(Catalogue(planned("harvest.quota=38.9TB")[0], tmp_path), "h100", 2.5)
    assert "activations roll: at most 38.8 TB at a time, of 11.1 PB in 954 windows" in rolling


def test_a_price_is_that_of_the_hours(tmp_path: Path) -> None:
    suite, f = planned()
    h100 = UTILISATION * DEVICES["h100"].float32
    hours = (f.harvest_flop + f.training_flop + f.evaluation_flop) / h100 / 3_600
    said = describe(Catalogue(suite, tmp_path), "h100", 2.5)
    assert f"{2.5 * hours:,.0f} at 2.5 an hour of the device" in said
    assert "price" not in describe(Catalogue(suite, tmp_path), "h100")
