"""Odds ratios, against the closed form of a two by two table, and against odds that were planted beside a confounder."""

from collections.abc import Sized

import numpy as np
import pytest

from core.odds import odds_ratios


def each(observations: Sized) -> list[str]:
    """A cluster for each of them."""
    return [str(number) for number in range(len(observations))]


def test_of_two_groups_it_is_the_cross_product_of_the_table_with_woolfs_interval() -> None:
    counts = {"jumprelu": (30, 70), "gated": (20, 80)}
    happened = np.concatenate([[True] * yes + [False] * no for yes, no in counts.values()])
    groups = [name for name, (yes, no) in counts.items() for _ in range(yes + no)]
    found = odds_ratios(happened, groups, "jumprelu", {}, each(happened))["gated"]
    ratio, error = (30 * 80) / (70 * 20), (1 / 30 + 1 / 70 + 1 / 20 + 1 / 80) ** 0.5
    assert (found.ratio, found.low, found.high) == pytest.approx((ratio, ratio * np.exp(-1.95996 * error), ratio * np.exp(1.95996 * error)), rel=1e-4)


def test_what_a_control_explains_is_not_put_down_to_the_group() -> None:
    """Group b is mostly at the site where everything is easier: alone it looks better, and is not."""
    chance, held = np.random.default_rng(0), 0
    groups = np.repeat(["a", "b"], 1_000)
    for _ in range(100):
        site = np.where(chance.random(2_000) < np.where(groups == "a", 0.2, 0.8), "easy", "hard")
        l0 = chance.normal(size=2_000)
        happened = chance.random(2_000) < 1 / (1 + np.exp(-(np.where(site == "easy", 1.5, -1.0) - 0.5 * l0)))
        alone = odds_ratios(happened, groups.tolist(), "a", {}, each(happened))["b"]
        assert alone.high < 0.5
        controls = {"site": site.tolist(), "log L0": l0.tolist(), "same": ["x"] * 2_000, "site again": site.tolist()}
        controlled = odds_ratios(happened, groups.tolist(), "a", controls, each(happened))["b"]
        held += controlled.low < 1 < controlled.high
    assert held >= 88, "of a hundred intervals of 95%"


def test_observations_of_one_dictionary_are_not_taken_for_independent() -> None:
    """Dictionaries differ, and the groups do not: taken one by one a difference is seen far too often."""
    chance, held, alone = np.random.default_rng(0), 0, 0
    dictionary = np.repeat(np.arange(60), 50)
    groups = np.where(dictionary < 30, "a", "b")
    for _ in range(100):
        happened = chance.random(3_000) < (1 / (1 + np.exp(-chance.normal(size=60))))[dictionary]
        together = odds_ratios(happened, groups.tolist(), "a", {}, dictionary.astype(str).tolist())["b"]
        one_by_one = odds_ratios(happened, groups.tolist(), "a", {}, each(happened))["b"]
        held += together.low < 1 < together.high
        alone += one_by_one.low < 1 < one_by_one.high
    assert held >= 86
    assert alone < 70


def test_where_it_always_or_never_happened_nothing_is_said() -> None:
    happened = np.array([True, False] * 10 + [False] * 20 + [True, True, False] * 5)
    groups = ["a"] * 20 + ["never"] * 20 + ["c"] * 15
    assert list(odds_ratios(happened, groups, "a", {}, each(happened))) == ["c"]
    assert odds_ratios(happened, groups, "never", {}, each(happened)) == {}
    assert odds_ratios(happened, groups, "absent", {}, each(happened)) == {}
    site = ["x" if value else "y" for value in happened]
    assert odds_ratios(happened, groups, "a", {"site": site}, each(happened)) == {}, "a control that tells everything"
    assert odds_ratios(happened, groups, "a", {"same": groups}, each(happened)) == {}, "a control that is the group itself"


def test_a_site_where_it_never_happened_is_left_out_and_the_others_tell() -> None:
    chance = np.random.default_rng(0)
    happened, groups = chance.random(400) < 0.4, ["a", "b"] * 200
    expected = odds_ratios(happened, groups, "a", {}, each(happened))["b"]
    found = odds_ratios(np.r_[happened, [False] * 100], [*groups, *["a", "b"] * 50], "a", {"site": ["x"] * 400 + ["y"] * 100}, each(range(500)))["b"]
    assert (found.ratio, found.low, found.high) == pytest.approx((expected.ratio, expected.low, expected.high))
