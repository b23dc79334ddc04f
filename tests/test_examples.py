"""What is kept of a text for each latent is what a search of the whole text would pick, in any order and in any number of parts."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from core.examples import Examples, Kept, Number

X, W, L = 60, 5, 7
NUMBER = Number(top=4, sample=6, quiet=3)


def activations(seed: int = 0, fire: float = 0.1) -> Tensor:
    """X x W x L, few above zero, and of few different values, so that peaks are equal."""
    chance = np.random.default_rng(seed)
    return torch.from_numpy(chance.integers(1, 6, (X, W, L)) * (chance.random((X, W, L)) < fire)).float()


ALL_TEXT = torch.ones(X, W, dtype=torch.bool)


def examples(f_XWL: Tensor, parts: Iterable[Iterable[int]] = (range(X),), is_text_XW: Tensor = ALL_TEXT, number: Number = NUMBER) -> Examples:
    """What is kept of contexts that are offered in these parts."""
    kept = Examples(f_XWL.shape[2], f_XWL.shape[1], number)
    for part in parts:
        contexts_X = torch.tensor(list(part))
        kept.offer(contexts_X, f_XWL[contexts_X], is_text_XW[contexts_X])
    return kept


def of(kept: Kept, latent: int) -> Iterator[tuple[int, Tensor]]:
    """(context, its activations) of a latent, highest key first."""
    latents_E, contexts_E, f_EW = kept.entries()
    return ((int(context), f_W) for context, f_W in zip(contexts_E[latents_E == latent], f_EW[latents_E == latent], strict=True))


def everything(kept: Examples) -> list[tuple[str, int, list[tuple[int, list[float]]]]]:
    num_latents = len(kept.fired_L)
    return [
        (kind, latent, [(context, f_W.tolist()) for context, f_W in of(of_kind, latent)])
        for kind, of_kind in kept.kept.items()
        for latent in range(num_latents)
    ]


def test_the_contexts_with_the_highest_peaks_are_kept_highest_first_and_of_equal_ones_the_first() -> None:
    f_XWL = activations()
    kept = examples(f_XWL)
    for latent in range(L):
        peaks = f_XWL[:, :, latent].numpy().max(1)
        best = [x for x in sorted(range(X), key=lambda x: (-peaks[x], x)) if peaks[x] > 0][:4]
        assert [(context, f_W.tolist()) for context, f_W in of(kept.kept["top"], latent)] == [(x, f_XWL[x, :, latent].tolist()) for x in best]


def test_a_latent_that_fires_in_fewer_contexts_than_are_kept_has_all_of_them() -> None:
    f_XWL = torch.zeros(X, W, L)
    f_XWL[[3, 50], 2, 1] = torch.tensor([1.0, 2.0])
    kept = examples(f_XWL)
    assert [context for context, _ in of(kept.kept["top"], 1)] == [50, 3]
    assert {context for context, _ in of(kept.kept["sample"], 1)} == {3, 50}
    assert not list(of(kept.kept["top"], 0))


@given(st.permutations(range(X)), st.lists(st.integers(1, X - 1), max_size=5), st.integers(0, 5))
def test_order_and_parts_make_no_difference(order: list[int], cuts: list[int], merged: int) -> None:
    f_XWL = activations()
    ends = sorted({0, X, *cuts})
    parts = [order[begin:end] for begin, end in itertools.pairwise(ends)]
    kept = examples(f_XWL, parts[merged:])
    kept.merge(examples(f_XWL, parts[:merged]))
    whole = examples(f_XWL)
    assert everything(kept) == everything(whole)
    assert kept.rows == whole.rows == X * W
    assert kept.fired_L.tolist() == whole.fired_L.tolist() == (f_XWL > 0).sum((0, 1)).tolist()


def test_latents_are_kept_in_parts_as_if_together() -> None:
    f_XWL = activations()
    some = Examples(3, W, NUMBER, first_latent=4)
    some.offer(torch.arange(X), f_XWL[:, :, 4:], ALL_TEXT)
    whole = examples(f_XWL)
    assert everything(some) == [(kind, latent - 4, kept) for kind, latent, kept in everything(whole) if latent >= 4]


def test_every_context_in_which_a_latent_fires_is_as_likely_to_be_in_its_sample() -> None:
    num_latents, fires = 4_000, 30
    f_XWL = torch.zeros(X, W, num_latents)
    f_XWL[:fires, 0] = 1
    sample = examples(f_XWL).kept["sample"]
    times = np.zeros(X)
    latents_E, contexts_E, _ = sample.entries()
    for chosen in contexts_E[latents_E.argsort(stable=True)].reshape(num_latents, 6).tolist():
        assert len(set(chosen)) == 6
        times[chosen] += 1
    assert not times[fires:].any()
    expected, deviation = num_latents * 6 / fires, (num_latents * 6 / fires * (1 - 6 / fires)) ** 0.5
    assert abs(times[:fires] - expected).max() < 4 * deviation
    assert 0.5 < (times[:fires] - expected).std() / deviation < 1.5, "as different as chance makes them, not less"


def test_quiet_contexts_are_those_in_which_a_latent_does_not_fire() -> None:
    f_XWL = activations(fire=0.3)
    quiet = examples(f_XWL).kept["quiet"]
    for latent in range(L):
        silent = set(np.flatnonzero(~(f_XWL[:, :, latent] > 0).any(1)))
        contexts = [context for context, _ in of(quiet, latent)]
        assert set(contexts) <= silent
        assert len(contexts) == min(3, len(silent))


def test_positions_that_are_no_text_do_not_count() -> None:
    f_XWL, is_text_XW = torch.ones(X, W, L), ALL_TEXT.clone()
    is_text_XW[:, 0] = False
    is_text_XW[9] = False
    kept = examples(f_XWL, is_text_XW=is_text_XW)
    assert kept.rows == (X - 1) * (W - 1)
    assert kept.fired_L.tolist() == [(X - 1) * (W - 1)] * L
    assert next(of(kept.kept["top"], 0))[1].tolist() == [0, 1, 1, 1, 1]
    assert not list(of(kept.kept["quiet"], 0))
