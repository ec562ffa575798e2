"""The zoo of policy losses against loops, at the bounds and far beyond them; and that they all begin as one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.objectives import policy, policy_zoo, weights
from tests import oracles

MASKED = ("gspo", "gspo_token", "geometric_mean")
F32 = {"atol": 1e-5, "rtol": 5e-5}


@pytest.fixture(scope="module")
def cases():
    """log-probabilities, old ones, advantages, mask; log-ratios from 0 over usual ones to ±10,000; rows that are empty,
    of one token, and whose advantages are 0."""
    rng = np.random.default_rng(0)
    shape = (oracles.CASES, oracles.ROWS, oracles.WINDOW)
    old = -rng.exponential(2.0, shape)
    scale = rng.choice(np.array([0.0, 1e-4, 0.1, 0.5, 5.0, 100.0, 1e4]), (oracles.CASES, 1, 1))
    noise = rng.normal(size=shape)
    side = np.where(scale > 1, rng.choice([-1.0, 1.0], (*shape[:2], 1)) * np.abs(noise), noise)
    level = rng.normal(size=(*shape[:2], 1)) * rng.choice([0.0, 1.0, 30.0], (*shape[:2], 1))
    advantages = np.where(rng.random((oracles.CASES, 1, 1)) < 0.5, level, rng.normal(size=shape))
    mask = oracles.mask_of(oracles.lengths(rng))
    return np.where(mask, old + scale * side, 0), np.where(mask, old, 0), np.where(mask, advantages, 0), mask


def by_token(scalar):
    """An oracle from a function of one token's log-probability, old one and advantage."""
    return lambda new, old, advantages, mask: oracles.each(scalar, new, old, advantages)


def by_row(scalar):
    """An oracle from scalar(log-ratios of a row's tokens, their advantages, the advantage here) -> loss."""

    def loop(new, old, advantages, mask):
        out = np.zeros(new.shape)
        for row, t in np.ndindex(new.shape):
            kept = [i for i in range(new.shape[1]) if mask[row, i]]
            ratios = [float(new[row, i] - old[row, i]) for i in kept]
            out[row, t] = scalar(ratios, [float(advantages[row, i]) for i in kept], float(advantages[row, t]))
        return out

    return loop


def mean(values):
    return sum(values) / len(values) if values else 0.0


def sequence(low, high):
    """GSPO of one row."""
    return lambda ratios, _, advantage: oracles.clipped(mean(ratios), 0.0, advantage, low, high)


def geometric(low, high):
    """GMPO of one row."""

    def loss(ratios, advantages, _):
        whole = mean(advantages)
        side = (whole > 0) - (whole < 0)
        terms = [side * min(side * x, side * min(max(x, -low), high)) for x in ratios]
        return -whole * oracles.bounded_exp(mean(terms))

    return loss


def cispo(low, high):
    """CISPO of one token; no lower bound for None."""

    def loss(new, old, advantage):
        weight = min(oracles.bounded_exp(new - old), 1 + high)
        return -(weight if low is None else max(weight, 1 - low)) * advantage * new

    return loss


def gated(positive, negative):
    """SAPO of one token."""

    def loss(new, old, advantage):
        tau = positive if advantage > 0 else negative
        return -4 / tau / (1 + math.exp(-tau * (oracles.bounded_exp(new - old) - 1))) * advantage

    return loss


def penalised(coefficient):
    """PPO with a penalty, of one token."""

    def loss(new, old, advantage):
        bounded = min(max(new - old, -20.0), 20.0)
        return -math.exp(bounded) * advantage + coefficient * (math.expm1(bounded) - bounded)

    return loss


ORACLES = [
    ("unclipped", {}, by_token(lambda new, old, advantage: -oracles.bounded_exp(new - old) * advantage)),
    ("kl_penalty", {}, by_token(penalised(1.0))),
    ("kl_penalty", {"penalty": 0.3}, by_token(penalised(0.3))),
    ("cispo", {}, by_token(cispo(None, 4.0))),
    ("cispo", {"clip": 0.5, "clip_high": 0.28}, by_token(cispo(0.5, 0.28))),
    ("sapo", {}, by_token(gated(1.0, 1.05))),
    ("sapo", {"tau_pos": 2.0, "tau_neg": 0.5}, by_token(gated(2.0, 0.5))),
    ("gspo", {}, by_row(sequence(3e-4, 4e-4))),
    ("gspo", {"clip": 0.2, "clip_high": None}, by_row(sequence(0.2, 0.2))),
    ("gspo_token", {}, by_row(sequence(3e-4, 4e-4))),
    ("gspo_token", {"clip": 0.1, "clip_high": 0.3}, by_row(sequence(0.1, 0.3))),
    ("geometric_mean", {}, by_row(geometric(0.4, 0.4))),
    ("geometric_mean", {"clip": 0.1, "clip_high": 0.8}, by_row(geometric(0.1, 0.8))),
]


def loss_of(name, **settings):
    """The named loss as a function of (logprobs, old_logprobs, advantages, mask)."""
    function = functools.partial(getattr(policy_zoo, name), **settings)
    return lambda new, old, advantages, mask: policy.with_mask(function, mask)(new, old, advantages)


@pytest.mark.parametrize(("name", "settings", "oracle"), ORACLES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_loss_equals_a_loop(cases, name, settings, oracle):
    oracles.agree(loss_of(name, **settings), oracle, *cases, **F32)


def test_every_loss_that_can_be_named_has_an_oracle():
    assert {name for name, _, _ in ORACLES} | {"clipped"} == set(policy_zoo.LOSSES)


@pytest.mark.parametrize("name", policy_zoo.LOSSES)
def test_gradients_stay_finite_at_extreme_log_ratios(cases, name):
    new, old, advantages, mask = (x.astype(np.float32) if x.dtype == np.float64 else x for x in cases)
    found = jax.jit(jax.grad(lambda x: jnp.sum(jax.vmap(loss_of(name))(x, old, advantages, mask))))(new)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", policy_zoo.LOSSES)
def test_at_the_old_policy_every_loss_pulls_alike_along_the_advantage(cases, name):
    """With a mean over sequences each token is pulled by −A / length: up where A > 0, down where A < 0, and not at all where
    there is no token. So the first step of each is that of REINFORCE."""
    _, old, _, mask = cases
    level = np.random.default_rng(1).normal(size=(*mask.shape[:2], 1))
    advantages = np.where(mask, level, 0)

    def total(new, old, advantages, mask):
        return jnp.sum(weights.sequence_mean(mask) * loss_of(name)(new, old, advantages, mask))

    with jax.enable_x64(True):
        found = np.asarray(jax.jit(jax.vmap(jax.grad(total)))(old, old, advantages, mask))
    length, rows = mask.sum(axis=2, keepdims=True), (mask.sum(axis=2) > 0).sum(axis=1)[:, None, None]
    np.testing.assert_allclose(found, -advantages / np.maximum(length, 1) / np.maximum(rows, 1), atol=1e-12)
    assert (np.sign(found) == -np.sign(advantages)).all()


@pytest.mark.parametrize(
    ("name", "advantage", "ratio", "slope"),
    [
        ("unclipped", 1.0, 3.0, -3.0),
        ("kl_penalty", 1.0, 1.5, -1.5 + 0.5),  # the penalty holds back
        ("cispo", 1.0, 3.0, -3.0),
        ("cispo", 1.0, 9.0, -5.0),  # bounded, and still pulled
        ("sapo", 1.0, 3.0, -4 * 3.0 * math.exp(-2.0) / (1 + math.exp(-2.0)) ** 2),
        ("gspo", 1.0, 1.0003, -1.0003),
        ("gspo", 1.0, 1.001, 0.0),
        ("gspo", -1.0, 0.9995, 0.0),
        ("gspo", -1.0, 1.5, 1.5),
        ("gspo_token", 1.0, 1.001, 0.0),
        ("gspo_token", -1.0, 1.5, 1.5),
        ("geometric_mean", 1.0, 1.4, -1.4),
        ("geometric_mean", 1.0, 1.6, 0.0),  # log 1.6 is above 0.4
        ("geometric_mean", -1.0, 0.6, 0.0),
        ("geometric_mean", -1.0, 1.6, 1.6),
    ],
)
def test_gradient_by_hand_inside_and_outside_the_bounds(name, advantage, ratio, slope):
    """Of a response of one token, whose sequence ratio is the token's."""
    with jax.enable_x64(True):
        old, mask = jnp.array([[-2.0]]), jnp.array([[True]])
        found = jax.grad(lambda x: loss_of(name)(x, old, jnp.array([[advantage]]), mask)[0, 0])(old + math.log(ratio))
    np.testing.assert_allclose(found, slope, atol=1e-9)


def gradient(name, new, old, advantages, mask, **settings):
    """Of the mean over sequences, in float64."""

    def total(x, *rest):
        return jnp.sum(weights.sequence_mean(rest[-1]) * loss_of(name, **settings)(x, *rest))

    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.grad(total))(new, old, advantages, mask))


def test_gspo_and_its_token_form_part_only_where_tokens_have_advantages_of_their_own():
    rng = np.random.default_rng(2)
    old, mask = -rng.exponential(2.0, (4, 6)), oracles.mask_of(np.array([6, 3, 1, 0]))
    new, wide = old + 0.1 * rng.normal(size=old.shape), {"clip": 0.5, "clip_high": 0.5}
    row = np.where(mask, rng.normal(size=(4, 1)), 0)
    alike = [gradient(name, new, old, row, mask, **wide) for name in ("gspo", "gspo_token")]
    np.testing.assert_allclose(*alike, atol=1e-12)
    own = np.where(mask, rng.normal(size=old.shape), 0)
    whole, apart = (gradient(name, new, old, own, mask, **wide) for name in ("gspo", "gspo_token"))
    assert np.ptp(whole[0]) < 1e-12 < 1e-3 < np.ptp(apart[0])
    assert (np.sign(apart[mask]) == -np.sign(own[mask])).all()


@pytest.mark.parametrize("name", MASKED)
def test_what_stands_after_the_last_token_does_not_matter(cases, name):
    new, old, advantages, mask = cases
    rng = np.random.default_rng(3)
    clean = jax.vmap(loss_of(name))(new, old, advantages, mask)
    soiled = jax.vmap(loss_of(name))(*(oracles.soiled(rng, x, mask) for x in (new, old)), advantages, mask)
    np.testing.assert_array_equal(np.asarray(clean)[mask], np.asarray(soiled)[mask])


def test_masked_importance_equals_a_loop_and_is_detached(cases):
    new, old, _, _ = cases

    def loop(new, old, low, high):
        ratio = oracles.bounded_exp(new - old)
        return ratio if low <= ratio <= high else 0.0

    for low, high in ((0.5, 5.0), (0.9, 1.3)):
        weigh = functools.partial(policy.masked_importance, floor=low, cap=high)
        wanted = functools.partial(oracles.each, functools.partial(loop, low=low, high=high))
        oracles.agree(weigh, wanted, new, old, **F32)
    for argument in (0, 1):
        slope = jax.jit(jax.grad(lambda *pair: jnp.sum(policy.masked_importance(*pair)), argument))(new[0], old[0])
        assert (np.asarray(slope) == 0).all()


def test_a_mask_is_bound_only_where_it_is_asked_for():
    mask = jnp.ones((1, 1), bool)
    assert policy.with_mask(policy_zoo.unclipped, mask) is policy_zoo.unclipped
    bound = policy.with_mask(functools.partial(policy_zoo.gspo, clip=0.1), mask)
    assert bound.keywords["mask"] is mask and bound.keywords["clip"] == 0.1
