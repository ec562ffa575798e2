import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, sparse, stats

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.baselines import accuracy, bag_of_words, length_only, logistic
from rlhf_jax.feedback.records import Pair, as_messages


def pair(chosen, rejected, prompt="q", **fields):
    return Pair(as_messages(prompt), chosen, rejected, source_kind="human", **fields)


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([2.0, 0.1, 5.0], 1.0),
        ([0.0, 0.0], 0.5),
        ([-1.0, -2.0], 0.0),
        ([1.0, -1.0, 0.0, 3.0], 2.5 / 4),
        ([math.inf], 1.0),
    ],
)
def test_accuracy_of_perfect_constant_and_reversed_scores(margins, expected):
    found = accuracy(margins)
    assert found.accuracy == expected and found.n == len(margins)


def test_accuracy_comes_with_its_interval():
    found = accuracy(np.array([1.0] * 526 + [-1.0] * 228))
    expected = stats.binomtest(526, 754).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert str(found) == "0.6976 [0.6639, 0.7293] of 754 pairs"
    assert accuracy([0.0, 1.0], ties=0).accuracy == 0.5


@pytest.mark.parametrize(
    ("margins", "words"), [([], "non-empty"), ([1.0, math.nan], "margin 1 of 2 is NaN"), ([[1.0]], "shape")]
)
def test_accuracy_refuses_what_it_cannot_count(margins, words):
    with pytest.raises(UserError, match=words):
        accuracy(margins)


LONGER, SHORTER, EQUAL = pair("aaa", "a"), pair("a", "aaa"), pair("aa", "bb")


def test_length_only_learns_the_direction():
    found = length_only([LONGER, LONGER, SHORTER], [LONGER, SHORTER, SHORTER, EQUAL])
    assert (found.accuracy, found.n, found.detail) == (1.5 / 4, 4, "prefers the longer")
    found = length_only([LONGER, SHORTER, SHORTER], [LONGER, SHORTER, SHORTER, EQUAL])
    assert (found.accuracy, found.detail) == (2.5 / 4, "prefers the shorter")
    weighted = length_only([replace(LONGER, weight=3.0), SHORTER, SHORTER], [LONGER])
    assert weighted.accuracy == 1.0
    huge = length_only([pair("a" * 1000, "a"), SHORTER, SHORTER], [SHORTER])
    assert huge.accuracy == 1.0, "pairs count, not letters"


def test_length_only_leaves_ties_out_and_reads_labels():
    tie = replace(LONGER, tie=True, label=0.5)
    found = length_only([tie, tie, SHORTER], [tie, SHORTER])
    assert (found.accuracy, found.n) == (1.0, 1)
    turned = replace(LONGER, label=0.2)
    assert length_only([turned], [turned, SHORTER]).accuracy == 1.0, "a label below one half turns the pair round"
    for train, test in (([tie], [LONGER]), ([LONGER], [tie]), ([LONGER], [])):
        with pytest.raises(UserError, match="no decisive pair"):
            length_only(train, test)


def test_logistic_of_one_feature():
    """Its optimum solves one equation in one unknown."""
    rng = np.random.default_rng(0)
    x, labels, weights = rng.normal(size=50), rng.random(50), rng.random(50)
    for penalty in (0.01, 1.0, 100.0):

        def slope(theta, penalty=penalty):
            return (weights * x * (1 / (1 + np.exp(-x * theta)) - labels)).sum() + penalty * theta

        found = logistic(sparse.csr_matrix(x[:, None]), labels, weights, penalty)
        assert found[0] == pytest.approx(optimize.brentq(slope, -50, 50, xtol=1e-14), rel=1e-6)


def test_logistic_under_a_penalty_so_heavy_that_the_value_no_longer_falls():
    """Here a trust region gives up at a gradient above the asked one: what is left to gain is below the value's rounding."""
    rng = np.random.default_rng(34)
    shape = int(rng.integers(3, 200)), int(rng.integers(2, 60))
    x = rng.integers(-2, 3, shape).astype(float)
    labels, weights = rng.integers(0, 2, shape[0]).astype(float), rng.random(shape[0])
    theta = logistic(sparse.csr_matrix(x), labels, weights, 1e5)
    slope = x.T @ (weights * (1 / (1 + np.exp(-x @ theta)) - labels)) + 1e5 * theta
    assert np.linalg.norm(slope) < 1e-8 * np.linalg.norm(x.T @ (weights * (0.5 - labels)))


def test_logistic_is_at_the_minimum():
    rng = np.random.default_rng(1)
    x, labels, weights = rng.poisson(0.5, (80, 30)) - 0.5, rng.random(80), rng.random(80)

    def loss(theta):
        z = x @ theta
        return (
            weights * (np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - labels * z)
        ).sum() + 0.5 * 0.3 * theta @ theta

    theta = logistic(sparse.csr_matrix(x), labels, weights, 0.3)
    slopes = [(loss(theta + 1e-5 * e) - loss(theta - 1e-5 * e)) / 2e-5 for e in np.eye(30)]
    assert np.abs(slopes).max() < 1e-5 * np.abs(x.T @ (weights * (0.5 - labels))).max()
    with pytest.raises(UserError, match="penalty must be above 0"):
        logistic(sparse.csr_matrix(x), labels, weights, 0)


def planted(count, seed, flip=0.0):
    """Pairs whose better response has one word more of the good ones; lengths tell nothing."""
    rng = np.random.default_rng(seed)
    good, bad, filler = ["kind", "clear"], ["rude", "vague"], ["the", "a", "of", "and", "so"]
    pairs = []
    for k in range(count):
        chosen, rejected = [list(rng.choice(filler, rng.integers(2, 9))) for _ in range(2)]
        chosen.append(str(rng.choice(good)))
        rejected.append(str(rng.choice(bad)))
        texts = [" ".join(rng.permutation(words)) for words in (chosen, rejected)]
        pairs.append(pair(*(texts if rng.random() >= flip else texts[::-1]), prompt=f"prompt {k // 4}"))
    return pairs


def test_bag_of_words_finds_planted_words():
    train, test = planted(200, 0, flip=0.2), planted(200, 1)
    found = bag_of_words(train, test)
    assert found.accuracy == 1.0 and found.n == 200 and "words, penalty" in found.detail
    assert abs(length_only(train, test).accuracy - 0.5) < 0.15
    shouted = [replace(p, chosen=p.chosen.upper()) if k % 2 else p for k, p in enumerate(train)]
    assert bag_of_words(shouted, test) == found


def test_bag_of_words_knows_no_prompt():
    """The same words are right for one prompt and wrong for the other: nothing to learn from the words alone."""
    train = [pair("kind", "rude", prompt=f"x{k}") for k in range(50)] + [
        pair("rude", "kind", prompt=f"y{k}") for k in range(50)
    ]
    assert bag_of_words(train, train).accuracy == 0.5


def test_bag_of_words_does_not_care_which_side_is_called_chosen():
    train, test = planted(120, 2, flip=0.3), planted(100, 3, flip=0.3)
    turned = [replace(p, chosen=p.rejected, rejected=p.chosen, label=1 - p.label) for p in train]
    mixed = [a if k % 2 else b for k, (a, b) in enumerate(zip(train, turned))]
    assert bag_of_words(mixed, test) == bag_of_words(train, test)
    turned = [replace(p, chosen=p.rejected, rejected=p.chosen, label=1 - p.label) for p in test]
    assert bag_of_words(train, turned).accuracy == bag_of_words(train, test).accuracy


def test_bag_of_words_penalty_is_chosen_by_prompt():
    """A word per prompt, judged alike by all four annotators. Folds by row would let it be learnt by heart and choose a
    small penalty; folds by prompt see that it helps no other prompt."""
    rng = np.random.default_rng(0)
    train = []
    for k in range(60):
        texts = [f"word{k}", "so"] if rng.random() < 0.5 else ["so", f"word{k}"]
        train += [pair(*texts, prompt=f"prompt {k}")] * 4
    assert bag_of_words(train, train).detail.endswith("penalty 10000")
    apart = [replace(p, prompt_id=str(k)) for k, p in enumerate(train)]
    assert bag_of_words(apart, apart).detail.endswith("penalty 0.1")


def test_bag_of_words_weights_and_rare_words():
    train = [pair("good", "bad", prompt=str(k), weight=5.0) for k in range(10)]
    train += [pair("bad", "good", prompt=str(k)) for k in range(10, 30)]
    assert bag_of_words(train, [pair("good", "bad")]).accuracy == 1.0
    assert bag_of_words([replace(p, weight=1.0) for p in train], [pair("good", "bad")]).accuracy == 0.0
    rare = bag_of_words(train, [pair("unseen", "words")])
    assert rare.accuracy == 0.5 and rare.detail.startswith("2 words")
    assert bag_of_words(train, [pair("good", "bad")], min_pairs=31).detail.startswith("0 words")
    assert bag_of_words(train, [pair("good", "bad")], words=1).detail.startswith("1 words")
    none = [replace(train[0], weight=0.0)]
    for left, right in ((none, train), (train, none), ([], train)):
        with pytest.raises(UserError, match="no decisive pair"):
            bag_of_words(left, right)
    for bad in ({"folds": 1}, {"penalties": ()}):
        with pytest.raises(UserError, match="folds >= 2 and a penalty"):
            bag_of_words(train, train, **bad)
    assert bag_of_words([train[0]] * 3, [train[0]]).accuracy == 1.0, "one prompt: no folds"
