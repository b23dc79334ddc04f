"""People's ratings of latents: shares with intervals, and how far raters agree (the manual study of arXiv:2407.14435, section 5.3)."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

ANSWERS = ("no", "maybe", "yes")
"""To whether a latent means something that can be said; from the least to the most."""

NORMAL_95 = 1.959964


def wilson(times: int, of: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, JASA 22, 1927). At least one in all."""
    share, z2 = times / of, NORMAL_95**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2)) / (1 + z2 / of)
    return middle - half, middle + half


def agreement(answers: Iterable[Sequence[int]]) -> float | None:
    """Krippendorff's alpha for ordered answers ("Computing Krippendorff's alpha-reliability", 2011): 1 where all agree, 0 where they do as by chance.

    Args:
        answers: of each item, one for each of its raters, in any order. Items with one rater do not count.

    Returns:
        None where no item has two raters, or all answers are the same.
    """
    items = [Counter(given) for given in answers if len(given) > 1]
    total = sum(items, Counter[int]())
    distance = _ordinal(total)
    number = total.total()
    observed = sum(_within(item, distance) / (item.total() - 1) for item in items)
    expected = _within(total, distance) / (number - 1) if number else 0.0
    return 1 - observed / expected if expected else None


def _within(counts: Mapping[int, int], distance: Mapping[tuple[int, int], float]) -> float:
    """The squared distances of all ordered pairs."""
    return sum(counts[a] * counts[b] * distance[a, b] for a in counts for b in counts)


def _ordinal(counts: Mapping[int, int]) -> dict[tuple[int, int], float]:
    """Squared: as many ranks apart as there are answers from the middle of the one to the middle of the other."""
    found = {}
    for a in counts:
        for b in counts:
            low, high = min(a, b), max(a, b)
            found[a, b] = (sum(counts[c] for c in counts if low <= c <= high) - (counts[a] + counts[b]) / 2) ** 2
    return found
