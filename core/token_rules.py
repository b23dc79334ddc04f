"""The statistical explainer: which tokens predict a latent, and which tokens before them change it. No language model is asked.

A latent's activation is written as a sum over rules, each of which holds at some positions: this token is here, that token is directly before, that
token is among the few before, or the first with one of the others. Rules are taken one by one, each time the one that explains most of the
squared error that is left (orthogonal matching pursuit: Pati et al., Asilomar 1993), of those of which fewer than one would go as far by chance:
Chernoff's bound (Annals of Mathematical Statistics 23, 1952), times the number of rules that are tried. The bound is of the values that are there,
for activations are rare and large: a normal distribution's tails would let in whatever fired twice. The sum is also the simulator: what it says
of other text is compared with what the latent does there.

Shapes, in suffixes: N contexts, W positions of a context, P positions of all of them that are text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

REACH = 8
"""Tokens before a position that are near it."""
MOST_RULES = 16
PRIOR = 1.0
"""Positions at which a rule is supposed to have made no difference, besides those that were seen: it favours rules that hold more often."""
TILTS = tuple(sign * 2.0**power for sign in (1, -1) for power in range(-3, 5))
"""Values of t for which the bound is tried, in units of one over the largest value."""
ROUNDING = 1e-9
"""Share of the squared error that is taken for nothing."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """Where it holds, the latent is `weight` higher."""

    token: int | None
    """The token that is here, or any."""
    before: int | None
    """The token that is before it, or any."""
    reach: int
    """How far before it may be; one is directly."""
    weight: float = 0.0

    def holds(self, tokens_NW: npt.ArrayLike) -> Mask:
        tokens_NW = np.asarray(tokens_NW)
        holds = np.ones(tokens_NW.shape, bool) if self.token is None else tokens_NW == self.token
        if self.before is not None:
            near = np.zeros_like(holds)
            for distance in range(1, min(self.reach, tokens_NW.shape[1] - 1) + 1):
                near[:, distance:] |= tokens_NW[:, :-distance] == self.before
            holds &= near
        return holds


@dataclass(frozen=True)
class Explanation:
    base: float
    """The activation where no rule holds."""
    rules: tuple[Rule, ...]
    """In the order in which they were found."""

    def simulate(self, tokens_NW: npt.ArrayLike) -> Floats:
        """The activations that it expects."""
        expected_NW = np.full(np.shape(tokens_NW), self.base)
        for rule in self.rules:
            expected_NW += rule.weight * rule.holds(tokens_NW)
        return expected_NW.clip(min=0)

    def text(self, spell: Callable[[int], str]) -> str:
        """A sentence for people.

        Args:
            spell: a token's text.
        """
        return "; ".join(_clause(rule, spell) for rule in self.rules) or "no token, and none before it, predicts this latent"


def _clause(rule: Rule, spell: Callable[[int], str]) -> str:
    words = []
    if rule.token is not None:
        words.append(f"on {spell(rule.token)!r}")
    if rule.before is not None:
        words.append(f"directly after {spell(rule.before)!r}" if rule.reach == 1 else f"within {rule.reach} tokens after {spell(rule.before)!r}")
    return f"{' '.join(words)} ({float(f'{rule.weight:.2g}'):+g})"


def explain(tokens_NW: npt.ArrayLike, activations_NW: npt.ArrayLike, is_text_NW: npt.ArrayLike) -> Explanation:
    """Explain a latent by contexts in which it fires and some in which it does not.

    Args:
        is_text_NW: positions that count, at least one; the others are not explained, but can be before one that is.
    """
    is_text_NW = np.asarray(is_text_NW, bool)
    candidates = _Candidates(np.asarray(tokens_NW, np.int64), is_text_NW)
    f_P = np.asarray(activations_NW, np.float64)[is_text_NW]
    rules, columns = list[Rule](), [np.ones(len(f_P))]
    weights, left_P = _fit(f_P, columns)
    rounding = ROUNDING * (left_P @ left_P)
    while len(rules) < MOST_RULES:
        rule, holds_P, explained = candidates.best(left_P)
        if rule is None or explained <= rounding:
            break
        rules.append(rule)
        columns.append(holds_P.astype(np.float64))
        candidates.refine(rule)
        weights, left_P = _fit(f_P, columns)
    # A rule may have lost its point to later ones: that a token is here, when all that matters is what comes before it.
    for rule in [*rules]:
        number = rules.index(rule)
        without = columns[: number + 1] + columns[number + 2 :]
        _, left_P = _fit(f_P, without)
        if left_P @ left_P <= rounding or not candidates.is_more_than_chance(rule, columns[number + 1], left_P):
            del rules[number]
            columns = without
    weights, left_P = _fit(f_P, columns)
    return Explanation(float(weights[0]), tuple(replace(rule, weight=float(weight)) for rule, weight in zip(rules, weights[1:], strict=True)))


def _fit(f_P: Floats, columns: list[Floats]) -> tuple[Floats, Floats]:
    """The weights by least squares, and what they leave."""
    X = np.stack(columns, axis=1)
    weights = np.linalg.lstsq(X, f_P)[0].astype(np.float64)
    return weights, f_P - X @ weights


class _Candidates:
    """The rules that may be taken next, as the positions at which each holds: those of one token, and of pairs whose first token was taken."""

    def __init__(self, tokens_NW: Integers, is_text_NW: Mask) -> None:
        self._context_P, column_P = np.nonzero(is_text_NW)
        self._token_P = tokens_NW[is_text_NW]
        padded = np.pad(tokens_NW, ((0, 0), (REACH, 0)), constant_values=-1)
        back = column_P[:, None] + REACH - np.arange(1, REACH + 1)
        self._before_PR = padded[self._context_P[:, None], back]
        """The tokens before each position, nearest first; -1 before the first."""
        self._rules: list[tuple[int | None, int | None, int]] = []
        self._rule_E = np.empty(0, np.int64)
        self._position_E = np.empty(0, np.int64)
        everywhere = np.arange(len(self._token_P))
        self._class_P = np.zeros_like(everywhere)
        """Which rule of one token, of those that were taken, holds at a position: what is left there varies more than elsewhere."""
        self._add(self._token_P, everywhere, lambda token: (token, None, 0))
        self._add_before(None, everywhere)

    @property
    def number(self) -> int:
        return len(self._rules)

    def best(self, left_P: Floats) -> tuple[Rule | None, Mask, float]:
        """Of the rules that are not chance, the one that explains most of what is left; where it holds; what it explains of the squared error."""
        holds_P = np.zeros(len(left_P), bool)
        if not self.number:
            return None, holds_P, 0.0
        total = np.bincount(self._rule_E, left_P[self._position_E], self.number)
        times = np.bincount(self._rule_E, minlength=self.number)
        surprise = np.zeros(self.number)
        for t, cumulant_P in _cumulants(left_P, self._class_P):
            surprise = np.maximum(surprise, t * total - np.bincount(self._rule_E, cumulant_P[self._position_E], self.number))
        explained = np.where(surprise < np.log(self.number), 0, total**2 / (times + PRIOR))
        best = int(explained.argmax())  # of equal ones the first: the plainer one
        if not explained[best]:
            return None, holds_P, 0.0
        holds_P[self._position_E[self._rule_E == best]] = True
        return Rule(*self._rules[best]), holds_P, float(explained[best])

    def refine(self, rule: Rule) -> None:
        """Let pairs of the rule's token with those before it be candidates too."""
        if rule.token is not None and rule.before is None:
            where = np.flatnonzero(self._token_P == rule.token)
            self._class_P[where] = self._class_P.max() + 1
            self._add_before(rule.token, where)

    def is_more_than_chance(self, rule: Rule, holds_P: Floats, left_P: Floats) -> bool:
        """Whether a rule that was taken would be taken when that is left."""
        class_P = np.where((rule.before is None) & (self._token_P == rule.token), 0, self._class_P)
        surprise = max((t * (holds_P @ left_P) - holds_P @ cumulant_P for t, cumulant_P in _cumulants(left_P, class_P)), default=0)
        return bool(surprise >= np.log(self.number))

    def _add_before(self, token: int | None, where: Integers) -> None:
        before_ER = self._before_PR[where]
        self._add(before_ER[:, 0], where, lambda before: (token, before, 1))
        self._add(before_ER.ravel(), where.repeat(REACH), lambda before: (token, before, REACH))

    def _add(self, values_E: Integers, position_E: Integers, rule: Callable[[int], tuple[int | None, int | None, int]]) -> None:
        """Add a rule for each value that is there in more than one context: what happened once predicts nothing."""
        there = values_E >= 0
        # Once a position: a token may be several times among those before.
        pairs = np.unique(np.stack([values_E[there], position_E[there]], axis=1), axis=0)
        value_E, position_E = pairs.T
        values, number_E = np.unique(value_E, return_inverse=True)
        contexts = np.unique(np.stack([number_E, self._context_P[position_E]], axis=1), axis=0)[:, 0]
        often = np.bincount(contexts, minlength=len(values)) > 1
        place = np.where(often, self.number + np.cumsum(often) - 1, -1)
        kept = often[number_E]
        self._rule_E = np.concatenate([self._rule_E, place[number_E[kept]]])
        self._position_E = np.concatenate([self._position_E, position_E[kept]])
        self._rules += [rule(int(value)) for value in values[often]]


def _cumulants(left_P: Floats, class_P: Integers) -> Iterator[tuple[float, Floats]]:
    """For some t, log E exp(t value) at each position, of a value drawn from those that are left at positions of its class. That a sum of n such
    values reaches s has at most the probability exp(n log E exp(t value) - t s), for every t of the sign of s."""
    largest = np.abs(left_P).max()
    if largest:
        for scale in TILTS:
            tilted = np.bincount(class_P, np.exp(scale * left_P / largest)) / np.maximum(np.bincount(class_P), 1)
            yield scale / largest, np.log(tilted, where=tilted > 0, out=np.zeros_like(tilted))[class_P]
