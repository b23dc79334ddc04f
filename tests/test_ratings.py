"""Agreement and intervals, against Krippendorff's own example and against SciPy."""

import pytest
import scipy.stats

from core.ratings import agreement, wilson

# Four raters of twelve items, with gaps: K. Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), section D.
RATERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def test_agreement_is_what_krippendorff_computes() -> None:
    items = [[answer for answer in item if answer is not None] for item in zip(*RATERS, strict=True)]
    assert agreement(items) == pytest.approx(0.815, abs=5e-4)


def test_raters_who_always_agree_have_one_and_who_never_do_less_than_chance() -> None:
    assert agreement([[0, 0], [2, 2], [1, 1]]) == 1
    assert agreement([[0, 2], [2, 0]]) < 0
    assert agreement([[0], [1], [2]]) is None, "nobody to agree with"
    assert agreement([[1, 1], [1, 1]]) is None, "nothing to tell apart"


@pytest.mark.parametrize(("times", "of"), [(0, 1), (1, 1), (3, 20), (20, 20), (57, 100)])
def test_the_interval_of_a_share_is_scipys(times: int, of: int) -> None:
    expected = scipy.stats.binomtest(times, of).proportion_ci(method="wilson")
    assert wilson(times, of) == pytest.approx((expected.low, expected.high), abs=1e-6)
