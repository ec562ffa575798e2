"""Advantages without a critic against loops: ragged groups in any order, empty rows, groups that all score the same."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.objectives import group_advantages
from tests import oracles

ROWS, WINDOW = 8, 5
OF_SCORES = ("grpo", "grpo_batch_std", "dr_grpo", "rloo", "opo", "pass_at_k")


@pytest.fixture(scope="module")
def cases():
    """scores, groups, lengths: from one group to eight, in any order; scores spread out, tied, all equal, or far from 0."""
    rng = np.random.default_rng(0)
    shape = (oracles.CASES, ROWS)
    groups = rng.integers(0, rng.integers(1, 6, (oracles.CASES, 1)), shape).astype(np.int32) * 7 - 3
    scores = rng.normal(size=shape) * rng.choice([0.01, 1.0, 30.0], (oracles.CASES, 1))
    kind = rng.integers(0, 4, (oracles.CASES, 1))
    scores = np.where(kind == 0, rng.integers(0, 2, shape), np.where(kind == 1, 0.1, scores))
    scores += rng.choice([0.0, 1000.0], (oracles.CASES, 1))
    return scores, groups, oracles.lengths(rng, rows=ROWS, window=WINDOW)


def rows_of(groups, length, row):
    """The rows of the group of `row` that hold a response."""
    return [j for j in range(len(groups)) if groups[j] == groups[row] and length[j] > 0]


def mean(values):
    return sum(values) / len(values)


def deviation(values, ddof):
    centre = mean(values)
    return math.sqrt(sum((x - centre) ** 2 for x in values) / max(len(values) - ddof, 1))


def best_of(scores, rows, row, k):
    """The mean gain of the best of k, over all k-subsets that hold the row."""
    others = [j for j in rows if j != row]
    gains = [
        max(scores[j] for j in (*chosen, row)) - max(scores[j] for j in chosen)
        for chosen in itertools.combinations(others, k - 1)
    ]
    return mean(gains) if gains else 0.0


def one(name, scores, groups, length, row, ddof=1, eps=1e-4, k=2):
    """The advantage of one row by its definition."""
    rows = rows_of(groups, length, row)
    scores = [float(x) for x in scores]
    own = [scores[j] for j in rows]
    others = [scores[j] for j in rows if j != row]
    if name == "pass_at_k":
        return best_of(scores, rows, row, k)
    if name == "rloo":
        return scores[row] - mean(others) if others else 0.0
    if name == "opo":
        return scores[row] - sum(scores[j] * int(length[j]) for j in rows) / sum(int(length[j]) for j in rows)
    distance = scores[row] - mean(own)
    if name == "grpo":
        return distance / (deviation(own, ddof) + eps)
    if name == "grpo_batch_std":
        return distance / (deviation([scores[j] for j in range(ROWS) if length[j] > 0], ddof) + eps)
    return distance


def oracle(name, **settings):
    def loop(scores, groups, length):
        return np.array(
            [one(name, scores, groups, length, row, **settings) if length[row] > 0 else 0.0 for row in range(ROWS)]
        )

    return loop


def called(name, **settings):
    """The named function of (scores, groups, length), whatever it asks for."""
    function = getattr(group_advantages, name)

    def call(scores, groups, length):
        rest = {"length": length} if name == "opo" else {}
        return function(scores, groups, length > 0, **rest, **settings)

    return call


SETTINGS = [(name, {}) for name in OF_SCORES] + [
    ("grpo", {"ddof": 0, "eps": 1e-2}),
    ("grpo_batch_std", {"ddof": 0}),
    ("pass_at_k", {"k": 3}),
    ("pass_at_k", {"k": 5}),
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_an_advantage_equals_a_loop(cases, name, settings):
    """atol64 allows for the loop's own rounding: it subtracts scores near 1,000, and GRPO divides by 1e-4."""
    limits = {"atol": 1e-3, "rtol": 1e-5, "atol64": 1e-7} if name.startswith("grpo") else {"atol": 1e-3}
    oracles.agree(called(name, **settings), oracle(name, **settings), *cases, **limits)


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_near_zero_it_equals_a_loop_to_ten_digits(cases, name, settings):
    scores, groups, length = cases
    near = np.where(scores > 500, scores - 1000, scores)
    oracles.agree(called(name, **settings), oracle(name, **settings), near, groups, length, atol=2e-5, rtol=2e-5)


def every(scores, length):
    """Each advantage of one group of responses, by name."""
    groups, valid, mask = jnp.zeros(ROWS, jnp.int32), length > 0, jnp.arange(WINDOW) < length[:, None]
    of_tokens = {
        "reinforce_plus_plus": group_advantages.reinforce_plus_plus(jnp.where(mask, scores[:, None], 0.0), mask),
        "reinforce_plus_plus_baseline": group_advantages.reinforce_plus_plus_baseline(scores, groups, valid, mask),
        "remax": group_advantages.remax(scores, scores, valid),
    }
    return of_tokens | {name: called(name)(scores, groups, length) for name in OF_SCORES}


def test_a_group_that_all_scores_the_same_gets_exactly_zero():
    """In f32, where the mean of three times 0.1 is not 0.1: groups of 1 to 8 with holes, scores from 1e-8 to 1e8; and what
    would flow back through them is finite."""
    rng = np.random.default_rng(5)
    length = np.where(rng.random((200, ROWS)) < 0.3, 0, rng.integers(1, WINDOW + 1, (200, ROWS))).astype(np.int32)
    level = np.float32(10.0) ** rng.uniform(-8, 8, (200, 1)) * rng.choice([-1, 1], (200, 1))
    scores = np.where(np.arange(200)[:, None] == 0, 0.1, np.broadcast_to(level, (200, ROWS))).astype(np.float32)
    found = jax.jit(jax.vmap(every))(scores, length)
    slopes = jax.jit(jax.vmap(jax.jacrev(every)))(scores, length)
    assert set(found) == set(group_advantages.ADVANTAGES) and (length > 0).sum(axis=1).min() <= 2
    for name in found:
        assert (np.asarray(found[name]) == 0).all(), name
        assert np.isfinite(slopes[name]).all(), name
    varies = jax.vmap(lambda s, n: group_advantages.varies(s, jnp.zeros(ROWS, jnp.int32), n > 0))(scores, length)
    assert not np.asarray(varies).any()


@pytest.mark.parametrize("name", OF_SCORES)
def test_rows_without_a_response_take_no_part(cases, name):
    """Whatever their score and group are: to the last bit, and where no row is valid at all."""
    scores, groups, length = (np.asarray(x) for x in cases)
    rng, valid = np.random.default_rng(1), length > 0
    function = jax.jit(jax.vmap(called(name)))
    clean, soiled = (function(x, groups, length) for x in (scores, oracles.soiled(rng, scores, valid)))
    np.testing.assert_array_equal(clean, soiled)
    assert (np.asarray(clean)[~valid] == 0).all()
    assert (np.asarray(function(np.full_like(scores, np.nan), groups, 0 * length)) == 0).all(), "nobody is there"


@pytest.mark.parametrize("name", sorted({*OF_SCORES} - {"grpo_batch_std"}))
def test_a_better_score_never_lowers_the_advantage_and_the_best_is_above_the_worst(cases, name):
    scores, groups, length = (x[:200] for x in cases)
    raised = scores.copy()
    raised[:, 0] += 0.5
    with jax.enable_x64(True):
        function = jax.jit(jax.vmap(called(name)))
        before, after = (np.asarray(function(x, groups, length)) for x in (scores, raised))
    assert (after[:, 0] >= before[:, 0] - 1e-9).all()
    for case in range(200):
        for i, j in itertools.combinations(range(ROWS), 2):
            together = groups[case, i] == groups[case, j] and length[case, i] > 0 < length[case, j]
            if together and scores[case, i] > scores[case, j] + 1e-6 and name != "pass_at_k":
                assert before[case, i] > before[case, j], (case, i, j)


def whitened(values, mask):
    return oracles.whiten(np.where(mask, values, 0.0), mask)


@pytest.fixture(scope="module")
def returns():
    """returns [cases, rows, window] and mask; in a tenth of the cases all equal."""
    rng = np.random.default_rng(2)
    mask = oracles.mask_of(oracles.lengths(rng, rows=ROWS, window=WINDOW), WINDOW)
    values = rng.normal(size=mask.shape) + rng.choice([0.0, 10.0], (oracles.CASES, 1, 1))
    return np.where(rng.random((oracles.CASES, 1, 1)) < 0.1, 0.7, values), mask


def test_reinforce_plus_plus_equals_a_loop(returns):
    """A single token has nothing to be compared with: 0."""
    values, mask = returns
    wanted = lambda values, mask: whitened(values, mask) if mask.sum() > 1 else np.zeros(mask.shape)  # noqa: E731
    oracles.agree(group_advantages.reinforce_plus_plus, wanted, values, mask, atol=2e-4)
    soiled = oracles.soiled(np.random.default_rng(3), values, mask)
    function = jax.jit(jax.vmap(group_advantages.reinforce_plus_plus))
    both = [function(x, mask) for x in (values, soiled)]
    np.testing.assert_array_equal(*both)


def test_reinforce_plus_plus_baseline_equals_a_loop(cases):
    scores, groups, length = cases
    scores = np.where(scores > 500, scores - 1000, scores)

    def loop(scores, groups, length):
        centred = oracle("dr_grpo")(scores, groups, length)
        mask = oracles.mask_of(length, WINDOW)
        return whitened(np.broadcast_to(centred[:, None], mask.shape), mask)

    def call(scores, groups, length):
        mask = jnp.arange(WINDOW) < length[:, None]
        return group_advantages.reinforce_plus_plus_baseline(scores, groups, length > 0, mask)

    oracles.agree(call, loop, scores, groups, length, atol=2e-4)


def test_remax_is_the_distance_to_the_greedy_response(cases):
    scores, _, length = cases
    greedy = np.random.default_rng(4).normal(size=scores.shape)
    wanted = lambda scores, greedy, length: np.where(length > 0, scores - greedy, 0.0)  # noqa: E731
    call = lambda scores, greedy, length: group_advantages.remax(scores, greedy, length > 0)  # noqa: E731
    oracles.agree(call, wanted, scores, greedy, length)


def test_varies_finds_the_groups_with_two_scores(cases):
    scores, groups, length = cases
    found = np.asarray(jax.jit(jax.vmap(lambda s, g, n: group_advantages.varies(s, g, n > 0)))(*cases))
    narrow = scores.astype(np.float32)
    for case in range(oracles.CASES):
        for row in range(ROWS):
            own = {narrow[case, j] for j in rows_of(groups[case], length[case], row)}
            assert found[case, row] == (len(own) > 1 and length[case, row] > 0)


def test_pass_at_k_by_hand():
    """Scores 0 … 4, k = 2: the best adds 1, 2, 3, 4 over each other, 2.5 in the mean; of all five it adds its lead."""
    groups, valid = jnp.zeros(5, jnp.int32), jnp.ones(5, bool)
    scores = jnp.array([2.0, 0.0, 4.0, 1.0, 3.0])
    found = functools.partial(group_advantages.pass_at_k, scores, groups, valid)
    np.testing.assert_allclose(found(k=2), [(1 + 2) / 4, 0, 2.5, 1 / 4, 1.5], rtol=1e-6)
    np.testing.assert_allclose(found(k=5), [0, 0, 1, 0, 0], atol=1e-6)
    assert (np.asarray(found(k=6)) == 0).all(), "there are not six"
    with pytest.raises(UserError, match="2 or more"):
        found(k=1)


def test_pass_at_k_is_the_gradient_of_the_expected_best_of_k():
    """Over all groups of n draws from three kinds of response with probabilities p: the mean of Σ A ∇log p · k / n is the
    gradient of the expected best of k, reckoned by enumeration."""
    values, logits, n, k = np.array([0.0, 1.0, 3.0]), np.array([0.3, -0.2, 0.1]), 4, 3

    def best(logits):
        chances = jax.nn.softmax(logits)
        draws = np.array(list(itertools.product(range(3), repeat=k)))
        return jnp.sum(jnp.prod(chances[draws], axis=1) * values[draws].max(axis=1))

    with jax.enable_x64(True):
        chances = np.asarray(jax.nn.softmax(logits))
        draws = np.array(list(itertools.product(range(3), repeat=n)))
        groups, valid = jnp.zeros(n, jnp.int32), jnp.ones(n, bool)
        gains = jax.jit(jax.vmap(lambda s: group_advantages.pass_at_k(s, groups, valid, k=k)))
        found = gains(jnp.asarray(values[draws]))
        slopes = np.eye(3)[draws] - chances
        estimate = (np.asarray(found)[..., None] * slopes).sum(axis=1) * k / n
        mean_slope = (np.prod(chances[draws], axis=1)[:, None] * estimate).sum(axis=0)
        np.testing.assert_allclose(mean_slope, jax.jit(jax.grad(best))(jnp.asarray(logits)), atol=1e-12)
