"""What a suite's table and picture show of its dictionaries."""

from typing import Any

from core.site import Site
from core.spec import DictionarySpec
from tasks.report import fronts
from tasks.tables import further_lines, markdown, rows_of, table, table_lines

SITE = Site(3, "resid_post")


def _scored(architecture: str, target: float, seed: int = 0, rate: float | None = None) -> tuple[DictionarySpec, dict[str, Any]]:
    loss = {"delta": 0.1, "delta_interval": [0.09, 0.12], "delta_zero": 5.0, "delta_mean": 2.0, "intact": 3.0}
    loss |= {"divergence": 0.2, "divergence_interval": None, "divergence_zero": 9.0, "divergence_mean": 4.0}
    card = {
        "l0": target + 0.5,
        "l0_interval": None,
        "fvu": 1 / target,
        "fvu_interval": None,
        "fvu_all_rows": 0.1,
        "cosine": 0.9,
        "relative_norm": 0.95,
        "relative_bias": 1.0,
        "sample": {"fvu": 0.1},
        "sample_in_bfloat16": {"fvu": 0.1002},
        "uniformity": {"mean": None, "interval": None},
        "loss": loss,
        "dead": 0.0,
        "dense": {"0.01": 0.2, "0.1": 0.05},
        "rows": 9,
        "dictionary": "",
        "code": {"commit": ""},
    }
    return DictionarySpec(SITE, architecture, 4_096, target, None, seed, 1_000, rate), card


def test_a_cell_shows_a_value_with_half_of_its_interval_and_alone_where_there_is_none() -> None:
    scored = [_scored("jumprelu", 20)]
    assert "0.100 ± 0.015" in table_lines(scored)[1]
    head, line = further_lines(scored)
    shown = dict(zip(head, line, strict=True))
    assert (shown["L0"], shown["KL"], shown["uniformity"], shown["> 10%"], shown["bfloat16"]) == ("20.5", "0.200", "–", "5.00%", "+0.0002")


def test_a_table_has_no_column_in_which_all_dictionaries_are_alike() -> None:
    head, *_ = table_lines([_scored("jumprelu", 20), _scored("jumprelu", 50)])
    assert not {"architecture", "rate", "tokens", "seed"} & set(head)


def test_dictionaries_of_one_target_are_told_apart_in_the_table() -> None:
    head, *lines = table_lines([_scored("jumprelu", 20), _scored("topk", 20), _scored("topk", 20, seed=1), _scored("topk", 20, rate=2e-3)])
    assert head[:4] == ("site", "architecture", "rate", "seed")
    assert [line[1:4] for line in lines] == [
        ("jumprelu", "recipe's", "0"),
        ("topk", "recipe's", "0"),
        ("topk", "recipe's", "1"),
        ("topk", "0.002", "0"),
    ]


def test_the_picture_joins_dictionaries_that_differ_in_sparsity_alone() -> None:
    scored = [_scored("jumprelu", 50), _scored("jumprelu", 20), _scored("jumprelu", 20, rate=2e-3), _scored("topk", 20), _scored("topk", 50, seed=1)]
    assert sorted([row["target_l0"] for row in front] for front in fronts(rows_of(scored))) == [[20], [20], [20, 50], [50]]


def test_the_terminal_and_the_card_show_the_same_cells() -> None:
    scored = [_scored("jumprelu", 20), _scored("topk", 20)]
    head, _, *lines = markdown(table_lines(scored)).splitlines()
    shown = [line.split() for line in table(scored).splitlines() if "─" not in line]
    assert [line.replace("|", " ").split() for line in (head, *lines)] == shown
