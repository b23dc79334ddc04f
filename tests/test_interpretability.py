"""Scores of explanations against SciPy, and against latents whose meaning was planted: theirs scores high, that of another latent like chance."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from test_token_rules import LATENTS, N, W, text

from core.bootstrap import interval
from core.interpretability import BySimulation, Contexts, area_under_roc, correlation, examine, markings
from core.token_rules import Explanation, Rule, explain

Array = npt.NDArray[np.float64]
Latent = Callable[[npt.NDArray[np.int64]], Array]
ALL = np.ones((N, W), bool)

numbers = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=40).map(np.array)


def contexts(latent: Latent, seed: int = 1) -> Contexts:
    tokens_NW = text(seed)
    return Contexts(tokens_NW, latent(tokens_NW), ALL)


@pytest.mark.parametrize("latent", LATENTS)
def test_the_explanation_of_a_planted_latent_scores_high_with_every_scorer(latent: Latent) -> None:
    scores = examine(BySimulation(explain(text(0), latent(text(0)), ALL)), contexts(latent), seed=0)
    assert min(vars(scores).values()) > 0.95


@pytest.mark.parametrize("latent", LATENTS)
def test_the_explanation_of_another_latent_scores_like_chance(latent: Latent) -> None:
    other = explain(text(0), 1.0 * (text(0) == 23), ALL)
    scores = [examine(BySimulation(other), contexts(latent, seed), seed) for seed in range(1, 21)]
    assert abs(np.mean([score.pearson for score in scores])) < 0.05
    assert abs(np.mean([score.spearman for score in scores])) < 0.05
    assert np.mean([score.detection for score in scores]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([score.fuzzing for score in scores]) == pytest.approx(0.5, abs=0.08)


def test_an_explanation_that_expects_the_same_everywhere_says_nothing() -> None:
    scores = examine(BySimulation(Explanation(1.0, ())), contexts(LATENTS[0]), seed=0)
    assert vars(scores) == {"pearson": 0, "spearman": 0, "detection": 0.5, "fuzzing": 0.5}


def test_a_latent_that_fires_everywhere_or_nowhere_has_nothing_to_be_told_apart() -> None:
    judge = BySimulation(Explanation(0.0, (Rule(7, None, 0, 1.0),)))
    everywhere = examine(judge, contexts(lambda tokens: 1.0 + tokens), seed=0)
    assert everywhere.detection is None
    assert everywhere.fuzzing is None
    nowhere = examine(judge, contexts(lambda tokens: 0.0 * tokens), seed=0)
    assert set(vars(nowhere).values()) == {None}


@given(numbers, st.data())
def test_correlations_are_scipys(true_P: Array, data: st.DataObject) -> None:
    expected_P = np.array(data.draw(st.lists(st.integers(-3, 3).map(float), min_size=len(true_P), max_size=len(true_P))))
    got = correlation(expected_P, true_P)
    if np.ptp(true_P) == 0:
        assert got is None
    elif np.ptp(expected_P) == 0:
        assert got == pytest.approx(0, abs=1e-12)
    else:
        assert got == pytest.approx(scipy.stats.pearsonr(expected_P, true_P).statistic, abs=1e-9)


def test_the_rank_correlation_is_scipys_where_many_are_equal() -> None:
    latent = contexts(LATENTS[3])
    judge = BySimulation(Explanation(0.0, (Rule(7, None, 0, 1.0), Rule(None, 3, 8, 0.5))))
    expected = scipy.stats.spearmanr(judge.simulate(latent.tokens_NW, ALL).ravel(), latent.activations_NW.ravel()).statistic
    assert examine(judge, latent, seed=0).spearman == pytest.approx(expected, abs=1e-12)


@given(numbers, numbers)
def test_the_area_under_the_curve_is_mann_and_whitneys_u(positive: Array, negative: Array) -> None:
    u = scipy.stats.mannwhitneyu(positive, negative).statistic
    assert area_under_roc(positive, negative) == pytest.approx(u / len(positive) / len(negative))


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.lists(st.booleans(), min_size=1, max_size=30))
def test_of_answers_that_are_yes_or_no_it_is_the_balanced_accuracy(of_positive: list[bool], of_negative: list[bool]) -> None:
    got = area_under_roc(np.array(of_positive, float), np.array(of_negative, float))
    assert got == pytest.approx((np.mean(of_positive) + 1 - np.mean(of_negative)) / 2)


def test_marked_are_all_tokens_that_fire_or_as_many_others_that_are_text() -> None:
    latent, is_text = LATENTS[0], ALL.copy()
    is_text[:, :2] = False
    tokens = text(4)
    given_contexts = Contexts(tokens, latent(tokens) * is_text, is_text)
    among, right, wrong = markings(given_contexts, np.random.default_rng(0))
    assert list(among) == list(np.flatnonzero(given_contexts.fires))
    assert np.array_equal(right, given_contexts.activations_NW[among] > 0)
    assert np.array_equal(right.sum(1), wrong.sum(1))
    assert not (right & wrong).any()
    assert not wrong[:, :2].any()
    assert not np.array_equal(markings(given_contexts, np.random.default_rng(1))[2], wrong)


def test_positions_that_are_no_text_are_not_scored() -> None:
    tokens, is_text = text(5), ALL.copy()
    is_text[:, ::2] = False
    truth = LATENTS[0](tokens)
    judge = BySimulation(Explanation(0.0, (Rule(7, None, 0, 1.0),)))
    scores = examine(judge, Contexts(tokens, np.where(is_text, truth, 0), is_text), seed=0)
    assert scores.pearson == pytest.approx(1)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    chance = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        low, high = interval(chance.exponential(size=60), draws=500)
        held += low < 1 < high
    assert 0.90 < held / 400 < 0.98
