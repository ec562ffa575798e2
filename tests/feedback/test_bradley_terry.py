import math

import numpy as np
import pytest
from scipy.special import expit

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics import bradley_terry


def test_two_items_have_a_closed_form():
    """7 wins to 3, and a weak virtual node: the difference is the log odds."""
    found = bradley_terry.fit([0] * 10, [1] * 10, [1] * 7 + [0] * 3, items=2, strength=1e-6)
    assert found[0] - found[1] == pytest.approx(math.log(7 / 3), abs=1e-4)
    assert found.sum() == pytest.approx(0, abs=1e-6), "the virtual node stands at 0"


def test_the_virtual_node_is_one_win_and_one_loss():
    """An item of one win: with the node's half a win and half a loss against 0, sigma(2 s) = ... solved by bisection."""
    found = bradley_terry.fit([0], [1], [1], items=2, strength=0.5)
    s = found[0]
    assert found[1] == pytest.approx(-s, abs=1e-6)
    assert expit(-2 * s) == pytest.approx(0.5 * (2 * expit(s) - 1), abs=1e-7), (
        "the slope of log sigma(2 s) and the node's"
    )


def test_a_tie_is_half_a_win_of_each():
    ties = bradley_terry.fit([0, 0, 1], [1, 1, 2], [0.5, 1, 0.5], items=3)
    wins = bradley_terry.fit([0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 2, 2], [1, 0, 1, 1, 1, 0], items=3, strength=1.0)
    assert ties == pytest.approx(wins, abs=1e-6), "twice everything is the same maximum"


def test_scores_are_recovered():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=8)
    first = rng.integers(8, size=40_000)
    second = (first + rng.integers(1, 8, size=len(first))) % 8
    won = (rng.random(len(first)) < expit(truth[first] - truth[second])).astype(float)
    found = bradley_terry.fit(first, second, won, items=8)
    assert found - found.mean() == pytest.approx(truth - truth.mean(), abs=0.06)


def davidson_world(seed, nu, size=40_000):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=6)
    first = rng.integers(6, size=size)
    second = (first + rng.integers(1, 6, size=size)) % 6
    odds = np.stack([np.exp(truth[first]), np.exp(truth[second]), nu * np.exp((truth[first] + truth[second]) / 2)], 1)
    draw = rng.random(size) * odds.sum(1)
    return truth, first, second, np.where(draw < odds[:, 0], 1.0, np.where(draw < odds[:, :2].sum(1), 0.0, 0.5))


def test_davidson_recovers_scores_and_nu():
    truth, first, second, outcome = davidson_world(0, 0.8)
    scores, nu = bradley_terry.davidson(first, second, outcome, items=6)
    assert nu == pytest.approx(0.8, abs=0.03)
    assert scores - scores.mean() == pytest.approx(truth - truth.mean(), abs=0.06)


def test_davidson_is_at_its_maximum():
    """No coordinate of the fit can be moved to a higher likelihood, written out here from the model's odds."""
    _, first, second, outcome = davidson_world(1, 0.5, size=60)

    def log_posterior(s, nu):
        odds = np.stack([np.exp(s[first]), nu * np.exp((s[first] + s[second]) / 2), np.exp(s[second])])
        p = odds / odds.sum(0)
        said = np.log(np.where(outcome == 1, p[0], np.where(outcome == 0.5, p[1], p[2]))).sum()
        node = 0.5 * np.log(expit(s) * expit(-s)).sum()
        return said + node + math.log(nu / 2 / (1 + nu / 2) ** 2)

    scores, nu = bradley_terry.davidson(first, second, outcome, items=6)
    best = log_posterior(scores, nu)
    for step in (-0.01, 0.01):
        assert log_posterior(scores, nu * math.exp(step)) < best
        assert all(log_posterior(scores + step * e, nu) < best for e in np.eye(6))


def test_davidson_without_ties_is_bradley_terry_and_with_ties_alone_finite():
    plain = bradley_terry.fit([0, 1], [1, 2], [1, 1], items=3)
    scores, nu = bradley_terry.davidson([0, 1], [1, 2], [1, 1], items=3)
    assert nu == 0.0 and scores == pytest.approx(plain)
    scores, nu = bradley_terry.davidson([0, 1], [1, 2], [0.5, 0.5], items=3)
    assert 2 < nu < 10 and scores == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "outcome", "told"),
    [
        ([], [], [], "non-empty"),
        ([0], [1, 2], [1], "equally long"),
        ([0], [3], [1], "from 0 to 2"),
        ([0, 1], [1, 1], [1, 1], "comparison 1 is of item 1 with itself"),
        ([0], [1], [2], "an outcome is 1"),
        ([0], [1], [math.nan], "an outcome is 1"),
    ],
)
def test_comparisons_that_are_none(first, second, outcome, told):
    with pytest.raises(UserError, match=told):
        bradley_terry.fit(first, second, outcome, items=3)


def test_settings_that_have_no_fit():
    with pytest.raises(UserError, match="strength must be above 0"):
        bradley_terry.fit([0], [1], [1], items=2, strength=0)
    with pytest.raises(UserError, match="1, 0.5 or 0"):
        bradley_terry.davidson([0], [1], [0.7], items=2)
