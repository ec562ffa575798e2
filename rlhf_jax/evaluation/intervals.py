"""Intervals on what experiments report: paired t over seeds, Wilson for shares, bootstrap for anything with a mean.

Each returns (estimate, low, high) as floats. Plain NumPy and SciPy in float64.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics import quality


def paired(differences: ArrayLike, *, level: int | float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences (one per seed) and its Student t interval, n - 1 degrees of freedom.

    For "B beats A": differences = B's result minus A's under the same seed, shown when the interval excludes 0. Raises
    UserError for fewer than 2 differences, for one that is not finite, or a level outside 0..1.
    """
    values = _finite("differences", differences, least=2)
    half = stats.t.ppf(0.5 + _level(level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    mean = float(values.mean())
    return mean, mean - float(half), mean + float(half)


def wilson(successes: int | float, n: int, *, level: int | float = 0.95) -> tuple[float, float, float]:
    """Share of successes and its Wilson score interval (1927): within 0..1, sound for small n and extreme shares.

    `successes` may hold halves (ties). The n trials are taken to be independent: with several pairs per prompt the
    interval is too narrow. Raises UserError unless 0 <= successes <= n and n >= 1.
    """
    if not n >= 1 or not 0 <= successes <= n:
        raise UserError(f"a share needs n >= 1 and 0 <= successes <= n, got {successes} of {n}")
    found = quality.wilson(successes, n, level=_level(level))
    assert found.share is not None and found.low is not None and found.high is not None  # n >= 1
    return found.share, found.low, found.high


def bootstrap(
    values: ArrayLike, *, level: int | float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean and its percentile bootstrap interval (Efron 1979); the same seed gives the same interval.

    Below about 5 values it is too narrow: use `paired`. For values that come in groups (pairs of one prompt) pass the
    groups' means. Raises UserError for fewer than 2 values, for one that is not finite, or a bad level or number of
    resamples.
    """
    sample = _finite("values", values, least=2)
    if resamples < 1:
        raise UserError(f"resamples must be 1 or more, got {resamples}")
    draw = np.random.default_rng(seed)
    step = max(1, 2**22 // len(sample))  # bounds the memory: a block of resamples at a time
    means = [
        sample[draw.integers(len(sample), size=(min(step, resamples - done), len(sample)))].mean(1)
        for done in range(0, resamples, step)
    ]
    tail = (1 - _level(level)) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(sample.mean()), float(low), float(high)


def _finite(name: str, values: ArrayLike, least: int) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or len(array) < least:
        raise UserError(f"{name} must be a list of at least {least} numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(
            f"{name} must be finite, got {array[~np.isfinite(array)][0]} at {np.flatnonzero(~np.isfinite(array))[0]}"
        )
    return array


def _level(level: int | float) -> float:
    if not 0 < level < 1:
        raise UserError(f"level is a probability above 0 and below 1, got {level}")
    return level
