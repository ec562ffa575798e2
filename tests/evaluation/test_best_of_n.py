"""What best-of-k is worth, against every subset counted; and the bound on its KL, against an enumeration."""

import itertools
import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import best_of_n


def subsets(scores, values):
    """The mean, over all subsets of each size, of the value of its best; ties shared."""
    found = []
    for k in range(1, len(scores) + 1):
        bests = []
        for places in itertools.combinations(range(len(scores)), k):
            top = max(scores[i] for i in places)
            everyone = [values[i] for i in range(len(scores)) if scores[i] == top]
            bests.append(sum(everyone) / len(everyone))
        found.append(sum(bests) / len(bests))
    return found


def test_expected_best_is_the_mean_over_every_subset():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 7):
        scores = rng.choice([rng.normal(size=(40, n)), rng.integers(0, 3, (40, n)).astype(float)])
        values = rng.normal(size=(40, n))
        for given in (scores, values):
            wanted = [subsets(list(s), list(v)) for s, v in zip(scores, given)]
            np.testing.assert_allclose(best_of_n.expected_best(scores, given), wanted, rtol=1e-12, atol=1e-12)


def test_it_is_unbiased_and_its_ends_are_mean_and_maximum():
    """n = 6 samples of a die tell the best of k throws, whose expectation is known."""
    rng = np.random.default_rng(1)
    throws = rng.integers(1, 7, (40_000, 6)).astype(float)
    found = best_of_n.expected_best(throws)
    for k in range(1, 7):
        wanted = sum(1 - ((face - 1) / 6) ** k for face in range(1, 7))
        assert abs(found[:, k - 1].mean() - wanted) < 4 * found[:, k - 1].std() / 200
    np.testing.assert_allclose(found[:, 0], throws.mean(axis=1))
    np.testing.assert_allclose(found[:, -1], throws.max(axis=1))
    assert (np.diff(found, axis=1) >= -1e-12).all()
    assert found[:, 2].std() < throws[:, :3].max(axis=1).std(), "less variance than the best of the first three"


def test_the_bound_is_met_by_many_equally_likely_samples_and_by_few_it_is_not():
    for n in (1, 2, 4, 16):
        for many, met in ((200_000, True), (3, False)):
            rank = np.arange(1, many + 1)
            chance = (rank / many) ** n - ((rank - 1) / many) ** n
            kl = float(np.sum(np.where(chance > 0, chance * np.log(np.maximum(chance, 1e-300) * many), 0.0)))
            assert kl <= best_of_n.kl_bound(n) + 1e-9
            assert (abs(kl - best_of_n.kl_bound(n)) < 1e-3) == (met or n == 1)
    assert best_of_n.kl_bound(4) == pytest.approx(math.log(4) - 0.75)


def test_bad_numbers_are_refused():
    for scores, values in (([1.0], None), ([[]], None), ([[1.0, np.nan]], None), ([[1.0]], [[1.0, 2.0]])):
        with pytest.raises(UserError, match="scores and values"):
            best_of_n.expected_best(scores, values)
    with pytest.raises(UserError, match="1 or more"):
        best_of_n.kl_bound(0)
