"""Interpretability: how much an explanation of a latent says about what it does, in contexts that whoever explained it has not seen.

Three scores. Simulation: how the activations that the explanation leads one to expect correlate with the true ones (Bills et al., "Language models
can explain neurons in language models", 2023; so scored in arXiv:2407.14435, section 5.3). Detection: whether it tells contexts in which the latent
fires from others; fuzzing: whether it tells the tokens on which it fires from others of the same context (both Paulo et al., arXiv:2410.13928).
What it is asked through is a judge: a simulator, or a language model that reads it.

Shapes, in suffixes: N contexts, W positions of a context.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Contexts:
    """Some of a text, and what a latent does there."""

    tokens_NW: Integers
    activations_NW: Floats
    """Zero where it does not fire."""
    is_text_NW: Mask
    """Positions that count: no special tokens."""

    @property
    def fires(self) -> Mask:
        """In which contexts it fires."""
        fires_N: Mask = np.any(self.activations_NW > 0, axis=1)
        return fires_N

    def some(self, number: int, seed: int) -> "Contexts":
        """At most so many, drawn at random: half in which it fires and half in which it does not."""
        chance, fires_N = np.random.default_rng(seed), self.fires
        drawn = [chance.permutation(np.flatnonzero(which))[: number // 2] for which in (fires_N, ~fires_N)]
        chosen = np.sort(np.concatenate(drawn))
        return Contexts(self.tokens_NW[chosen], self.activations_NW[chosen], self.is_text_NW[chosen])


class Judge(Protocol):
    """Someone who knows an explanation, and is asked of contexts without their activations. What it has no answer to is not a number."""

    def simulate(self, tokens_NW: Integers, is_text_NW: Mask) -> Floats:
        """The activations to be expected, N x W."""

    def detect(self, tokens_NW: Integers, is_text_NW: Mask) -> Floats:
        """N: how surely the latent fires on some text of each context; only the order matters."""

    def recognise(self, tokens_NW: Integers, is_text_NW: Mask, marked_NW: Mask) -> Floats:
        """N: how surely the marked tokens are those on which the latent fires; only the order matters."""


class Simulator(Protocol):
    def simulate(self, tokens_NW: Integers) -> Floats: ...


@dataclass(frozen=True)
class BySimulation:
    """The judge that answers all questions from the activations that it expects."""

    simulator: Simulator

    def simulate(self, tokens_NW: Integers, is_text_NW: Mask) -> Floats:  # noqa: ARG002
        return self.simulator.simulate(tokens_NW)

    def detect(self, tokens_NW: Integers, is_text_NW: Mask) -> Floats:
        highest_N: Floats = np.max(self.simulator.simulate(tokens_NW), axis=1, where=is_text_NW, initial=0.0)
        return highest_N

    def recognise(self, tokens_NW: Integers, is_text_NW: Mask, marked_NW: Mask) -> Floats:  # noqa: ARG002
        return np.average(self.simulator.simulate(tokens_NW), axis=1, weights=marked_NW)


@dataclass(frozen=True)
class Scores:
    """None where there is nothing to tell apart: a latent that fires in every context, or in none."""

    pearson: float | None
    """Of simulated with true activations, over all text; zero for an explanation that expects the same everywhere."""
    spearman: float | None
    """The same of their ranks."""
    detection: float | None
    """How often a context in which the latent fires is held for likelier than one in which it does not: the area under the ROC curve. Of answers
    that are yes or no it is the mean of both accuracies. One half is chance."""
    fuzzing: float | None
    """The same of contexts in which the tokens that fire are marked, and those in which as many others are."""


def examine(judge: Judge, contexts: Contexts, seed: int) -> Scores:
    """Score an explanation, by its judge's answers; what it does not answer does not count.

    Args:
        seed: of which other tokens are marked, and in which order contexts are asked about.
    """
    tokens_NW, is_text_NW = contexts.tokens_NW, contexts.is_text_NW
    simulated_P, true_P = judge.simulate(tokens_NW, is_text_NW)[is_text_NW], contexts.activations_NW[is_text_NW]
    answered_P = ~np.isnan(simulated_P)
    simulated_P, true_P = simulated_P[answered_P], true_P[answered_P]
    chance = np.random.default_rng(seed)
    # Shuffled, so that a judge who is asked of several contexts together sees both kinds, and learns nothing from their order.
    order = chance.permutation(len(tokens_NW))
    detected = judge.detect(tokens_NW[order], is_text_NW[order])
    among, right_NW, wrong_NW = markings(contexts, chance)
    both, marked_NW, is_right = np.tile(among, 2), np.concatenate([right_NW, wrong_NW]), np.arange(2 * len(among)) < len(among)
    mixed = chance.permutation(len(both))
    recognised = judge.recognise(tokens_NW[both[mixed]], is_text_NW[both[mixed]], marked_NW[mixed])
    return Scores(
        correlation(simulated_P, true_P),
        correlation(_ranks(simulated_P), _ranks(true_P)),
        _told_apart(detected, contexts.fires[order]),
        _told_apart(recognised, is_right[mixed]),
    )


def _told_apart(answers: Floats, is_so: Mask) -> float | None:
    answered = ~np.isnan(answers)
    return area_under_roc(answers[answered & is_so], answers[answered & ~is_so])


def markings(contexts: Contexts, chance: np.random.Generator) -> tuple[Integers, Mask, Mask]:
    """Which contexts can be marked in two ways, the tokens there on which the latent fires, and as many others that are text, drawn at random."""
    fires_NW = contexts.activations_NW > 0
    others_NW = contexts.is_text_NW & ~fires_NW
    among = np.flatnonzero(fires_NW.any(1) & (others_NW.sum(1) >= fires_NW.sum(1)))
    chance_NW = chance.random(fires_NW.shape)[among]
    order_NW = np.where(others_NW[among], chance_NW, 2.0).argsort(axis=1).argsort(axis=1)
    return among, fires_NW[among], order_NW < fires_NW[among].sum(1, keepdims=True)


def correlation(expected_P: Floats, true_P: Floats) -> float | None:
    """Pearson's. Zero where the expectation is the same everywhere, None where the truth is."""
    if not len(true_P):
        return None
    expected_P, true_P = expected_P - expected_P.mean(), true_P - true_P.mean()
    if not np.any(true_P):
        return None
    scale = np.sqrt(expected_P @ expected_P) * np.sqrt(true_P @ true_P)
    return float(expected_P @ true_P / scale) if scale else 0.0


def area_under_roc(positive: Floats, negative: Floats) -> float | None:
    """The share of pairs in which the positive is higher; equal ones count half. None without a pair."""
    if not len(positive) or not len(negative):
        return None
    ranks = _ranks(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def _ranks(values: Floats) -> Floats:
    """From one up; equal values have the mean of theirs."""
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[number]
