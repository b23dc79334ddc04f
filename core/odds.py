"""Odds: how much likelier something is of one group than of another, other things equal: as arXiv:2407.14435 reads its study of meanings."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class OddsRatio:
    """Of the reference group's odds to another's."""

    ratio: float
    low: float
    """Of its 95% interval (Wald's), as is `high`."""
    high: float


def odds_ratios(
    happened: npt.NDArray[np.bool_], groups: Sequence[str], reference: str, controls: Mapping[str, Sequence[str] | Sequence[float]]
) -> dict[str, OddsRatio]:
    """The reference's odds over those of every other group, with all else that the controls tell held equal.

    Args:
        happened: E observations. groups: E, one of each. controls: E values each, by name: numbers enter as they are, words as categories.

    Returns:
        Nothing of a group in which it always or never happened, or happened so in the reference; nothing at all where a control tells
        everything.
    """
    from statsmodels.discrete.discrete_model import Logit
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    names = sorted(set(groups))
    some = {name: 0 < happened[np.equal(groups, name)].mean() < 1 for name in names}
    others = [name for name in names if name != reference and some[name]]
    if reference not in names or not some[reference] or not others:
        return {}
    kept = np.isin(groups, [reference, *others])
    columns = [np.ones(int(kept.sum())), *(np.equal(groups, name)[kept].astype(float) for name in others)]
    for values in controls.values():
        columns += _columns(np.asarray(values)[kept])
    X = np.stack(columns, 1)
    if np.linalg.matrix_rank(X) < X.shape[1]:
        return {}  # groups and controls tell the same
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerfectSeparationWarning)
        try:
            fit = Logit(happened[kept].astype(float), X).fit(disp=False, maxiter=100)
        except (PerfectSeparationWarning, np.linalg.LinAlgError):
            return {}
    interval = fit.conf_int(0.05)
    return {
        name: OddsRatio(*(float(np.exp(-value)) for value in (fit.params[i], interval[i][1], interval[i][0]))) for i, name in enumerate(others, 1)
    }


def _columns(values: npt.NDArray[Any]) -> list[npt.NDArray[np.float64]]:
    """A control's part of the design: nothing where it is the same of all."""
    kinds = np.unique(values)
    if len(kinds) == 1:
        return []
    if values.dtype.kind in "fiu":
        return [values.astype(float) - values.mean()]
    return [(values == kind).astype(float) for kind in kinds[1:]]
