"""Token rules say what a latent was made to mean, say nothing of one that means nothing, and expect of other text what it does there."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from core.token_rules import Explanation, Rule, explain

N, W, VOCABULARY = 48, 32, 50
BANK, RIVER, BLOOD = 7, 3, 11
Array = npt.NDArray[np.float64]


def text(seed: int) -> npt.NDArray[np.int64]:
    """Contexts of which many have the tokens that matter."""
    chance = np.random.default_rng(seed)
    rare = 1 / np.arange(1, VOCABULARY + 1)
    return chance.choice(VOCABULARY, (N, W), p=rare / rare.sum())


def on_bank(tokens: npt.NDArray[np.int64]) -> Array:
    return 3.0 * (tokens == BANK)


def on_bank_near_river(tokens: npt.NDArray[np.int64]) -> Array:
    return 2.0 * Rule(BANK, RIVER, 8).holds(tokens)


def after_river(tokens: npt.NDArray[np.int64]) -> Array:
    return 1.5 * Rule(None, RIVER, 1).holds(tokens)


def on_bank_less_after_blood(tokens: npt.NDArray[np.int64]) -> Array:
    return 3.0 * (tokens == BANK) - 2.0 * Rule(BANK, BLOOD, 8).holds(tokens)


ALL = np.ones((N, W), bool)
LATENTS = [on_bank, on_bank_near_river, after_river, on_bank_less_after_blood]


def correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if a.std() and b.std() else 0.0


@pytest.mark.parametrize("latent", LATENTS)
def test_its_simulator_is_right_on_text_that_it_has_not_seen(latent: Callable[..., Array]) -> None:
    explanation = explain(text(0), latent(text(0)), ALL)
    assert correlation(explanation.simulate(text(1)), latent(text(1))) > 0.97


@pytest.mark.parametrize("latent", LATENTS)
def test_the_explanation_of_another_latent_does_not_predict_it(latent: Callable[..., Array]) -> None:
    explanation = explain(text(0), 1.0 * (text(0) == 23), ALL)
    assert abs(correlation(explanation.simulate(text(1)), latent(text(1)))) < 0.1


def test_what_was_planted_is_what_it_says() -> None:
    def said(latent: Callable[..., Array]) -> Explanation:
        return explain(text(0), latent(text(0)), ALL)

    (rule,) = said(on_bank).rules
    assert (rule.token, rule.before) == (BANK, None)
    assert rule.weight == pytest.approx(3, rel=0.02)
    (rule,) = said(after_river).rules
    assert (rule.token, rule.before, rule.reach) == (None, RIVER, 1)
    (rule,) = said(on_bank_near_river).rules
    assert (rule.token, rule.before, rule.reach) == (BANK, RIVER, 8)
    first, second, *_ = said(on_bank_less_after_blood).rules
    assert (first.token, first.before, second.token, second.before) == (BANK, None, BANK, BLOOD)
    assert second.weight < 0
    assert said(on_bank).text({BANK: " bank"}.__getitem__) == "on ' bank' (+3)"


def test_of_latents_that_fire_by_chance_it_gives_less_than_one_rule_each_and_predicts_nothing() -> None:
    rules, correlations = 0, []
    for seed in range(20):
        chance = np.random.default_rng(seed + 100)
        f_NW = chance.random((N, W)) * (chance.random((N, W)) < 0.05)
        explanation = explain(text(seed), f_NW, ALL)
        rules += len(explanation.rules)
        correlations.append(correlation(explanation.simulate(text(seed + 50)), f_NW))
    assert rules < 20
    assert abs(np.mean(correlations)) < 0.02


def test_positions_that_are_no_text_are_not_explained_but_may_come_before() -> None:
    tokens = text(0)
    tokens[:, 0] = VOCABULARY
    is_text = ALL.copy()
    is_text[:, 0] = False
    f_NW = np.zeros((N, W))
    f_NW[:, 0] = 1_000
    f_NW[:, 1] = 1
    (rule,) = explain(tokens, f_NW, is_text).rules
    assert (rule.token, rule.before, rule.reach) == (None, VOCABULARY, 1)
    assert rule.weight == pytest.approx(1, rel=0.05)


def test_nothing_is_expected_below_zero_and_a_silent_latent_is_no_trouble() -> None:
    silent = explain(text(0), np.zeros((N, W)), ALL)
    assert silent == Explanation(0.0, ())
    assert silent.text(str) == "no token, and none before it, predicts this latent"
    assert (explain(text(0), on_bank_less_after_blood(text(0)), ALL).simulate(text(2)) >= 0).all()


def test_text_that_repeats_nothing_gives_no_rule() -> None:
    explanation = explain(np.arange(4)[:, None], np.arange(4)[:, None], np.ones((4, 1)))
    assert explanation == Explanation(pytest.approx(1.5), ())
