"""Interquartile mean, probability of improvement and their bootstrap, against loops, enumeration and rliable's own figures."""

import itertools
import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import aggregates

# The scores of tests/rliable/metrics_test.py in github.com/google-research/rliable (Apache-2.0), runs x tasks, and what
# is expected there: interquartile means 1.5 and 2, probability of improvement of x over y 1/3.
X = [[1, 2], [2, 2], [1, 1], [2, 1]]
Y = [[1, 1], [2, 2], [3, 3]]


def middle(values):
    """The mean without the lowest and the highest quarter, by hand."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


def wins(x, y):
    total = 0.0
    for a in x:
        for b in y:
            total += 1.0 if a > b else 0.5 if a == b else 0.0
    return total / (len(x) * len(y))


def test_the_figures_that_rliable_publishes():
    x, y = np.array(X, float), np.array(Y, float)
    assert aggregates.iqm(*x.T) == 1.5 and aggregates.iqm(*y.T) == 2.0
    by_task = [aggregates.improvement(x[:, task], y[:, task])[0] for task in range(2)]
    assert np.mean(by_task) == pytest.approx(1 / 3, abs=1e-12)


def test_estimates_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, m = rng.integers(2, 12, size=2)
        x, y = rng.normal(size=n).round(1), rng.normal(size=m).round(1)  # rounded: there are ties
        assert aggregates.iqm(x) == pytest.approx(middle(x), abs=1e-12)
        assert aggregates.iqm(x, y) == pytest.approx(middle([*x, *y]), abs=1e-12)
        assert aggregates.improvement(x, y, resamples=2)[0] == pytest.approx(wins(x, y), abs=1e-12)


def test_intervals_are_quantiles_of_every_resample_there_is():
    def within(every, low, high):
        """Draws of 20,000 may miss the quantile by three of their deviations, in the probability."""
        for found, at in ((low, 0.025), (high, 0.975)):
            assert np.quantile(every, at - 0.0033) - 1e-9 <= found <= np.quantile(every, at + 0.0033) + 1e-9

    x = [0.1, 0.9, 0.4, 0.35, 2.0]
    estimate, low, high = aggregates.iqm_interval(x, resamples=20_000)
    assert estimate == pytest.approx(middle(x))
    within([middle(drawn) for drawn in itertools.product(x, repeat=5)], low, high)
    x, y = [0.1, 0.4, 0.35, 2.0], [0.3, 0.2, 0.8]
    estimate, low, high = aggregates.improvement(x, y, resamples=20_000)
    assert estimate == pytest.approx(wins(x, y))
    within([wins(a, b) for a in itertools.product(x, repeat=4) for b in itertools.product(y, repeat=3)], low, high)


def test_strata_are_resampled_each_on_its_own():
    """Two far apart: no resample has more of one than of the other, so the mean of both stays in the middle."""
    low_task, high_task = [0.0, 0.0, 0.0, 0.0], [10.0, 10.0, 10.0, 10.0]
    assert aggregates.iqm_interval(low_task, high_task) == (5.0, 5.0, 5.0)
    estimate, low, high = aggregates.iqm_interval([*low_task, *high_task])
    assert estimate == 5.0 and low < 5.0 < high


def test_a_band_is_the_interval_at_every_iteration():
    rng = np.random.default_rng(1)
    curves = rng.normal(size=(5, 3)) + [0, 5, 10]
    middles, low, high = aggregates.band(curves, resamples=20_000)
    for t in range(3):
        want = aggregates.iqm_interval(curves[:, t], resamples=20_000, seed=3)
        assert middles[t] == pytest.approx(want[0])
        spread = want[2] - want[1]
        assert abs(low[t] - want[1]) < 0.05 * spread and abs(high[t] - want[2]) < 0.05 * spread


def test_the_same_seed_gives_the_same_interval():
    values = [0.3, 0.1, 0.7, 0.2]
    assert aggregates.iqm_interval(values) == aggregates.iqm_interval(values)
    assert aggregates.iqm_interval(values, seed=1, resamples=50) != aggregates.iqm_interval(
        values, seed=2, resamples=50
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: aggregates.iqm(), "at least 1 numbers"),
        (lambda: aggregates.iqm([]), "at least 1 numbers"),
        (lambda: aggregates.iqm_interval([1.0]), "at least 2 numbers"),
        (lambda: aggregates.iqm([1.0, math.nan]), "values must be finite, got nan"),
        (lambda: aggregates.improvement([1.0, 2.0], [1.0]), "at least 2 numbers"),
        (lambda: aggregates.improvement([1.0, 2.0], [1.0, math.inf]), "values must be finite, got inf"),
        (lambda: aggregates.iqm_interval([1.0, 2.0], level=1.0), "level is a probability"),
        (lambda: aggregates.iqm_interval([1.0, 2.0], resamples=0), "resamples must be 1 or more"),
        (lambda: aggregates.band([1.0, 2.0]), r"curves must be finite numbers \[n >= 2, T\]"),
        (lambda: aggregates.band([[1.0, math.nan], [1.0, 2.0]]), "curves must be finite numbers"),
    ],
)
def test_what_cannot_be_reckoned_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()
