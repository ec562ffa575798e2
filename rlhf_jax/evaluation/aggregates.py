"""What several seeds of an arm say together: interquartile mean, probability of improvement, bootstrap intervals.

Definitions of arXiv 2108.13264 (sections 4.1 and 4.3), checked against its authors' library rliable (metrics.py,
library.py at github.com/google-research/rliable). A stratum is what is resampled on its own: in the paper the runs of one
task, in a sweep the seeds of one arm. Percentile intervals, as there; plain NumPy and SciPy in float64.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rlhf_jax.errors import UserError

RESAMPLES = 10_000


def iqm(*strata: ArrayLike) -> float:
    """Interquartile mean of all values of all strata together: the mean without the lowest and the highest quarter.

    A quarter is rounded down to whole values: of 5 one is left out at either end, of 3 none. UserError for no values or one
    that is not finite.
    """
    return float(_iqm(*_checked(strata, least=1)))


def iqm_interval(
    *strata: ArrayLike, level: int | float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """(`iqm`, low, high): each stratum's values are drawn anew from its own, with replacement.

    Below about 10 values it is too narrow: with n values all alike occur in a share n^(1-n) of the draws, and no draw goes
    beyond the values seen. UserError for a stratum of fewer than 2 values, or a bad level or number of resamples.
    """
    samples = _checked(strata, least=2)
    low, high = _resampled(samples, _iqm, level, resamples, seed)
    return float(_iqm(*samples)), float(low), float(high)


def improvement(
    x: ArrayLike, y: ArrayLike, *, level: int | float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """(P(X > Y), low, high): over all pairs of a run of x and a run of y, how often x is above; a tie counts half.

    It is Mann and Whitney's U over the number of pairs. x and y are resampled each on its own. UserError for fewer than 2
    values in either, for one that is not finite, or a bad level or number of resamples.
    """
    first, second = _checked((x, y), least=2)
    low, high = _resampled([first, second], _above, level, resamples, seed)
    return float(_above(first, second)), float(low), float(high)


def band(
    curves: ArrayLike, *, level: int | float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(interquartile mean, low, high), f64 [T] each, of n curves [n, T]: at each point on its own, of whole seeds redrawn.

    UserError for fewer than 2 curves, or one that is not finite.
    """
    array = np.asarray(curves, np.float64)
    if array.ndim != 2 or len(array) < 2 or not np.isfinite(array).all():
        raise UserError(f"curves must be finite numbers [n >= 2, T], got shape {array.shape}")
    rows = np.random.default_rng(seed).integers(len(array), size=(_count(resamples), len(array)))
    drawn = np.stack([_iqm(column[rows]) for column in array.T], axis=-1)  # a column at a time: the memory stays small
    tail = (1 - _level(level)) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return _iqm(array.T), low, high


def _iqm(*samples: NDArray[np.float64], axis: int = -1) -> Any:
    return stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)


def _above(x: NDArray[np.float64], y: NDArray[np.float64], axis: int = -1) -> Any:
    x, y = np.moveaxis(x, axis, -1)[..., :, None], np.moveaxis(y, axis, -1)[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1))


def _resampled(
    samples: list[NDArray[np.float64]], statistic: Any, level: int | float, resamples: int, seed: int
) -> tuple[float, float]:
    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=_count(resamples),
        batch=max(1, 2**22 // (len(samples[0]) * len(samples[-1]))),
        vectorized=True,
        confidence_level=_level(level),
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return found.confidence_interval.low, found.confidence_interval.high


def _checked(strata: tuple[ArrayLike, ...], least: int) -> list[NDArray[np.float64]]:
    samples = [np.asarray(stratum, np.float64) for stratum in strata]
    for sample in samples or [np.zeros(0)]:
        if sample.ndim != 1 or len(sample) < least:
            raise UserError(f"a stratum must be a list of at least {least} numbers, got shape {sample.shape}")
        if not np.isfinite(sample).all():
            raise UserError(f"values must be finite, got {sample[~np.isfinite(sample)][0]}")
    return samples


def _level(level: int | float) -> float:
    if not 0 < level < 1:
        raise UserError(f"level is a probability above 0 and below 1, got {level}")
    return level


def _count(resamples: int) -> int:
    if resamples < 1:
        raise UserError(f"resamples must be 1 or more, got {resamples}")
    return resamples
