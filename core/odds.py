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
    happened: npt.NDArray[np.bool_],
    groups: Sequence[str],
    reference: str,
    controls: Mapping[str, Sequence[str] | Sequence[float]],
    clusters: Sequence[str],
) -> dict[str, OddsRatio]:
    """The reference's odds over those of every other group, with all else that the controls tell held equal.

    Args:
        happened: E observations. groups: E, one of each. controls: E values each, by name: numbers enter as they are, words as categories.
        clusters: E, what each was observed in: those of one are not taken for independent (sandwich covariance, Liang and Zeger 1986). With few
            clusters the intervals are too narrow.

    Returns:
        Nothing of a group in which it always or never happened, or that the controls tell already; nothing at all where that is so of the
        reference, or where no fit was found.
    """
    from statsmodels.discrete.discrete_model import Logit
    from statsmodels.tools.sm_exceptions import ModelWarning

    names = sorted(set(groups))
    some = {name: 0 < happened[np.equal(groups, name)].mean() < 1 for name in names}
    others = [name for name in names if name != reference and some[name]]
    if reference not in names or not some[reference] or not others:
        return {}
    kept = np.isin(groups, [reference, *others])
    # Where a control's category has it always, or never, its observations tell nothing of the groups, and the fit would not end.
    for values in map(np.asarray, controls.values()):
        if values.dtype.kind not in "fiu":
            for kind in np.unique(values):
                kept &= (values != kind) | (0 < happened[values == kind].mean() < 1)
    if not kept.any():
        return {}
    X = [np.ones(int(kept.sum()))]
    for column in [column for values in controls.values() for column in _columns(np.asarray(values)[kept])]:
        X = _with(X, column)
    told = {}
    for name in others:
        if len(wider := _with(X, np.equal(groups, name)[kept].astype(float))) > len(X):
            told[name], X = len(X), wider
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        warnings.simplefilter("error", RuntimeWarning)
        try:
            number = np.unique(np.asarray(clusters)[kept], return_inverse=True)[1]
            fit = Logit(happened[kept].astype(float), np.stack(X, 1)).fit(
                disp=False, maxiter=100, cov_type="cluster", cov_kwds={"groups": number, "use_correction": False}
            )
        except (ModelWarning, RuntimeWarning, np.linalg.LinAlgError):
            return {}
    interval = fit.conf_int(0.05)
    return {name: OddsRatio(*(float(np.exp(-value)) for value in (fit.params[i], interval[i][1], interval[i][0]))) for name, i in told.items()}


def _with(columns: list[npt.NDArray[np.float64]], column: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """One more column of a design, unless those that are there tell it already."""
    wider = [*columns, column]
    return wider if np.linalg.matrix_rank(np.stack(wider, 1)) == len(wider) else columns


def _columns(values: npt.NDArray[Any]) -> list[npt.NDArray[np.float64]]:
    """A control's part of the design."""
    if values.dtype.kind in "fiu":
        return [values.astype(float) - values.mean()]
    return [(values == kind).astype(float) for kind in np.unique(values)[1:]]
