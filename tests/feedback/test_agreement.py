import math
from itertools import combinations

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.records import Comparison, as_messages
from rlhf_jax.feedback.statistics.agreement import (
    accuracy_bound,
    annotator_ceiling,
    cohen_kappa,
    fleiss_kappa,
    leave_one_out,
    pairwise_agreement,
    verdicts,
)


def judged(annotator, ranks, responses=("a", "b"), **fields):
    return Comparison(as_messages("q"), tuple(responses), ranks, annotator=annotator, source_kind="human", **fields)


def test_cohen_kappa_of_a_textbook_table():
    """Two reviewers of 50 proposals: both yes 20, both no 15, only the first 5, only the second 10; kappa is 0.4."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(second, first) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("weights", "cost"), [("nominal", lambda d: d > 0), ("linear", abs), ("quadratic", lambda d: d * d)]
)
def test_weighted_kappa_is_one_minus_observed_over_expected_cost(weights, cost):
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 60)
    second = np.clip(first + rng.integers(-1, 3, 60), 0, 4)
    observed = np.mean([cost(abs(int(a) - int(b))) for a, b in zip(first, second)])
    expected = np.mean([cost(abs(int(a) - int(b))) for a in first for b in second])
    found = cohen_kappa(first.tolist(), second.tolist(), weights=weights, categories=range(5))
    assert found == pytest.approx(1 - observed / expected, abs=1e-12)


def test_kappa_needs_what_it_needs():
    assert math.isnan(cohen_kappa([1, 1], [1, 1])), "0/0: nothing to agree on"
    assert cohen_kappa([1, 2, 1], [1, 2, 1]) == 1.0
    for bad in (([], []), ([1], [1, 2])):
        with pytest.raises(UserError, match="equally long, non-empty"):
            cohen_kappa(*bad)
    with pytest.raises(UserError, match="need the categories, in order"):
        cohen_kappa([1, 3], [3, 1], weights="linear")
    with pytest.raises(UserError, match="nominal, linear, quadratic"):
        cohen_kappa([1], [1], weights="cubic")
    with pytest.raises(UserError, match=r"labels \['3'\] are not among the categories"):
        cohen_kappa([1, 3], [2, 1], categories=[1, 2])


FLEISS = """0 0 0 0 14 | 0 2 6 4 2 | 0 0 3 5 6 | 0 3 9 2 0 | 2 2 8 1 1
          | 7 7 0 0 0 | 3 2 6 3 0 | 2 5 3 2 2 | 6 5 2 1 0 | 0 2 2 3 7"""


def test_fleiss_kappa_of_the_published_table():
    counts = [[int(cell) for cell in row.split()] for row in FLEISS.split("|")]
    assert fleiss_kappa(counts) == pytest.approx(0.20993, abs=5e-6)


def test_fleiss_kappa_needs_what_it_needs():
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1.0
    for bad in ([[3, 0], [2, 0]], [[1, 0], [0, 1]]):
        with pytest.raises(UserError, match="same number of raters"):
            fleiss_kappa(bad)
    for bad in ([], [1, 2], [[-1, 3]], [[math.nan, 1]]):
        with pytest.raises(UserError, match="items by categories"):
            fleiss_kappa(bad)


def test_verdicts_follow_the_texts_not_their_order():
    given = [judged("x", (0, 1)), judged("y", (0, 1), ("b", "a")), judged("z", (0, 0)), judged("", (0, 1))]
    assert verdicts(given) == [{"x": 1, "y": 2, "z": 0}]
    assert verdicts([*given, judged("x", (1, 0))]) == [{"x": 2, "y": 2, "z": 0}], "the last judgement counts"
    (ab, ac, bc) = verdicts([judged("x", (0, 1, 2), "abc"), judged("y", (0, 1, 1), "cba")])
    assert (ab, ac, bc) == ({"x": 1, "y": 0}, {"x": 1, "y": 2}, {"x": 1, "y": 2})


def test_pairwise_agreement_is_about_decisive_pairs():
    labels = [{"x": 1, "y": 1, "z": 2}, {"x": 0, "y": 1, "z": 1}, {"x": 2, "y": 0}, {"x": 2}]
    assert pairwise_agreement(labels) == (2 / 4, 4)
    assert pairwise_agreement([{"x": 0, "y": 0}]) == (None, 0)


def test_leave_one_out_asks_each_for_the_others():
    assert leave_one_out([{"x": 1, "y": 1, "z": 2}]) == (0.0, 1), "only z's others agree, and z differs"
    assert leave_one_out([{"x": 1, "y": 1, "z": 1}]) == (1.0, 3)
    assert leave_one_out([{"x": 0, "y": 0, "z": 1, "w": 2}]) == (0 / 2, 2), (
        "z and w: the others say tie; x and y: no majority"
    )
    assert leave_one_out([{"x": 1, "y": 2}]) == (0.0, 2)
    assert leave_one_out([{"x": 1}]) == (None, 0)


@pytest.mark.parametrize(
    ("agreement", "bound"), [(0.63, 0.755), (0.726, 0.836), (0.77, 0.867), (1, 1.0), (0.5, 0.5), (0.4, 0.5)]
)
def test_the_bound_on_accuracy(agreement, bound):
    assert accuracy_bound(agreement) == pytest.approx(bound, abs=5e-4)


def test_no_predictor_beats_the_bound():
    rng = np.random.default_rng(0)
    for a, b in [(0.5, 0.5), (2, 1), (20, 3), (1, 1)]:
        p = rng.beta(a, b, 100_000)
        assert np.maximum(p, 1 - p).mean() <= accuracy_bound(float((p**2 + (1 - p) ** 2).mean())) + 1e-12
    assert max(0.8, 0.2) == pytest.approx(accuracy_bound(0.8**2 + 0.2**2)), "reached where all items are alike"


@pytest.mark.parametrize("agreement", [-0.1, 1.1, math.nan])
def test_an_agreement_is_a_share(agreement):
    with pytest.raises(UserError, match="between 0 and 1"):
        accuracy_bound(agreement)


def test_the_ceiling_recovers_what_was_planted():
    """Annotators who see the better response with probability 0.8: agreement 0.68, bound 0.8."""
    rng = np.random.default_rng(0)
    given = [
        judged(name, (0, 1) if rng.random() < 0.8 else (1, 0), item=str(item)) for item in range(3000) for name in "xyz"
    ]
    found = annotator_ceiling(given)
    assert (found.rater_pairs, found.reason) == (9000, "")
    assert found.agreement == pytest.approx(0.68, abs=0.02) and found.bound == pytest.approx(0.8, abs=0.02)
    alike = [[c.ranks for c in given[3 * k : 3 * k + 3]] for k in range(3000)]
    predicted = [
        a == b for item in alike for k, a in enumerate(item) for b in [item[k - 1]] if item[k - 1] == item[k - 2]
    ]
    assert (found.accuracy, found.judgements) == (pytest.approx(np.mean(predicted)), len(predicted))
    assert f"{found.accuracy:.4f}" in str(found)
    pairs = [a == b for item in alike for a, b in combinations(item, 2)]
    assert found.agreement == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "there are no comparisons"),
        ([judged("", (0, 1)), judged("", (1, 0))], "name no annotators"),
        ([judged("x", (0, 1)), judged("x", (1, 0)), judged("y", (0, 1), item="2")], "no item was judged by two"),
        ([judged("x", (0, 0)), judged("y", (0, 1))], "no two annotators both preferred"),
    ],
)
def test_an_unknown_ceiling_says_why(given, reason):
    found = annotator_ceiling(given)
    assert found.agreement is None and found.bound is None and reason in found.reason
    assert str(found) == f"unknown: {found.reason}"
