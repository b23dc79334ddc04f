"""A language model as explainer and as judge: by prompts, of which every answer is a JSON value or none.

Shapes, in suffixes: N contexts, W positions of a context.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from core.interpretability import Contexts, Floats, Integers, Mask
from core.prompts import Prompt, read_explanation, read_numbers, to_detect, to_explain, to_recognise, to_simulate

T = TypeVar("T")

AT_ONCE = 10
"""Excerpts of a question about several."""


class Ask(Protocol):
    def __call__(self, prompt: Prompt, read: Callable[[str], T]) -> T | None:
        """What an answer says; None where no answer could be read."""


def forecast(latents: int, contexts: int, positions: int) -> tuple[int, int, int]:
    """How many questions explaining and judging so many latents takes, and about how many tokens the questions have, and the answers.

    Args:
        contexts: of each latent, for each purpose. positions: of a context.
    """
    groups = -(-contexts // AT_ONCE)
    task, excerpt = 100, positions + 10
    to_explain = task + contexts * excerpt + contexts // 2 * 20
    to_simulate = task + 30 + 7 * positions
    to_judge_together = groups * (task + 30) + contexts * excerpt
    answers = 40 + contexts * 3 * positions + 2 * contexts * 3
    return latents * (1 + contexts + 2 * groups), latents * (to_explain + contexts * to_simulate + 2 * to_judge_together), latents * answers


@dataclass(frozen=True)
class LanguageModel:
    ask: Ask
    spell: Callable[[int], str]
    """A token's text."""

    def explain(self, contexts: Contexts) -> str | None:
        """What a latent means, by contexts in which it fires and some in which it does not."""
        pieces, peaks_N = self._pieces(contexts.tokens_NW, contexts.is_text_NW), contexts.activations_NW.max(axis=1)
        strongest_first = np.argsort(-peaks_N, kind="stable")
        firing, quiet = strongest_first[peaks_N[strongest_first] > 0], np.flatnonzero(peaks_N == 0)
        prompt = to_explain([pieces[number] for number in firing], contexts.activations_NW[firing], [pieces[number] for number in quiet])
        return self.ask(prompt, read_explanation)

    def judge(self, explanation: str) -> "AskedJudge":
        return AskedJudge(self.ask, self._pieces, explanation)

    def _pieces(self, tokens_NW: Integers, is_text_NW: Mask) -> list[list[str]]:
        """The texts of the tokens of each context; of special ones, nothing."""
        pairs = (zip(tokens_W.tolist(), is_text_W, strict=True) for tokens_W, is_text_W in zip(tokens_NW, is_text_NW, strict=True))
        return [[self.spell(token) if text else "" for token, text in pair] for pair in pairs]


@dataclass(frozen=True)
class AskedJudge:
    """The judge that asks a language model which was told an explanation. What it does not say is not a number."""

    ask: Ask
    pieces: Callable[[Integers, Mask], list[list[str]]]
    explanation: str

    def simulate(self, tokens_NW: Integers, is_text_NW: Mask) -> Floats:
        simulated_NW = np.where(is_text_NW, np.nan, 0.0)
        for pieces, is_text_W, simulated_W in zip(self.pieces(tokens_NW, is_text_NW), is_text_NW, simulated_NW, strict=True):
            of_text = [piece for piece, text in zip(pieces, is_text_W, strict=True) if text]
            simulated_W[is_text_W] = self._numbers(to_simulate(self.explanation, of_text), len(of_text))
        return simulated_NW

    def detect(self, tokens_NW: Integers, is_text_NW: Mask) -> Floats:
        pieces = self.pieces(tokens_NW, is_text_NW)
        groups = [pieces[begin : begin + AT_ONCE] for begin in range(0, len(pieces), AT_ONCE)]
        return _joined(self._numbers(to_detect(self.explanation, group), len(group)) for group in groups)

    def recognise(self, tokens_NW: Integers, is_text_NW: Mask, marked_NW: Mask) -> Floats:
        pieces = self.pieces(tokens_NW, is_text_NW)
        groups = [slice(begin, begin + AT_ONCE) for begin in range(0, len(pieces), AT_ONCE)]
        return _joined(self._numbers(to_recognise(self.explanation, pieces[group], marked_NW[group]), len(pieces[group])) for group in groups)

    def _numbers(self, prompt: Prompt, number: int) -> Floats:
        numbers = self.ask(prompt, lambda answer: read_numbers(answer, prompt))
        return np.full(number, np.nan) if numbers is None else np.array(numbers, np.float64)


def _joined(pieces: Iterable[Floats]) -> Floats:
    return np.concatenate([np.zeros(0), *pieces])
