"""Nash-MD's losses against loops in float64, and their gradients against the gradient of the game, all responses enumerated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.objectives import nash
from tests import oracles

BETA = 0.07
LOSSES = {"nash_md": nash.nash_md, "nash_md_token": nash.nash_md_token}


@pytest.fixture(scope="module")
def cases():
    """(logprobs, ref_logprobs, probability, mask): a fifth of the rows empty, a fifth of one token, junk where no token is."""
    rng = np.random.default_rng(0)
    mask = oracles.mask_of(oracles.lengths(rng))
    logprobs = -rng.exponential(2.0, mask.shape)
    apart = rng.choice(np.array([0.0, 0.01, 1.0, 30.0]), mask.shape) * rng.normal(size=mask.shape)
    probability = rng.choice(np.array([0.0, 0.5, 1.0]), mask.shape[:2])
    probability = np.where(rng.random(probability.shape) < 0.5, rng.random(probability.shape), probability)
    return oracles.soiled(rng, logprobs, mask), oracles.soiled(rng, logprobs - apart, mask), probability, mask


def gains(name, logprobs, ref_logprobs, probability, mask):
    """What each token's log-probability is multiplied by, from the formulas."""
    out = np.zeros(mask.shape)
    for row, t in zip(*np.nonzero(mask)):
        places = range(t, mask.shape[1]) if name == "nash_md" else (t,)
        penalty = sum(logprobs[row, m] - ref_logprobs[row, m] for m in places if mask[row, m])
        out[row, t] = probability[row] - 0.5 - BETA * penalty
    return out


def losses(name, logprobs, ref_logprobs, probability, mask):
    gain = gains(name, logprobs, ref_logprobs, probability, mask)
    out = np.zeros(len(mask))
    for row, t in zip(*np.nonzero(mask)):
        out[row] -= logprobs[row, t] * gain[row, t]
    return out


@pytest.mark.parametrize("name", nash.LOSSES)
def test_a_loss_equals_a_loop(cases, name):
    function = functools.partial(LOSSES[name], beta=BETA)
    oracles.agree(function, functools.partial(losses, name), *cases, atol=2e-3)


@pytest.mark.parametrize("name", nash.LOSSES)
def test_the_gain_is_detached(cases, name):
    """So the gradient of a token's log-probability is its gain alone, and 0 where no token is."""

    def slope(logprobs, *rest):
        return jax.grad(lambda x: jnp.sum(LOSSES[name](x, *rest, beta=BETA)))(logprobs)

    oracles.agree(slope, lambda *case: -gains(name, *case), *cases, atol=1e-4)


@pytest.mark.parametrize("name", nash.LOSSES)
def test_a_win_makes_a_response_likelier_and_the_kl_draws_it_back(name):
    logprobs = jnp.full((3, 2), -1.0)
    mask = jnp.ones((3, 2), bool)

    def step(ref, probability, beta):
        return -jax.grad(lambda x: jnp.sum(LOSSES[name](x, ref, probability, mask, beta=beta)))(logprobs)

    pushed = step(logprobs, jnp.array([1.0, 0.5, 0.0]), 0.1)
    assert (pushed[0] > 0).all() and (pushed[1] == 0).all() and (pushed[2] < 0).all()
    np.testing.assert_array_equal(np.abs(pushed[::2]), 0.5)
    drawn = step(logprobs - jnp.array([[1.0], [0.0], [-1.0]]), jnp.full(3, 0.5), 0.1)
    assert (drawn[0] < 0).all() and (drawn[1] == 0).all() and (drawn[2] > 0).all(), (
        "too likely, as the reference, too unlikely"
    )


@pytest.mark.parametrize("name", nash.LOSSES)
def test_extremes_have_finite_values_and_gradients(name):
    """Log-probabilities of 0 and of −10⁶ on either side, in f32; and no token at all."""
    values = jnp.array(list(itertools.product([0.0, -1e-6, -1e6], repeat=4)), jnp.float32)
    mask = jnp.arange(len(values))[:, None] % 3 > jnp.array([-1, 0])
    arguments = values[:, :2], values[:, 2:], jnp.ones(len(values)), mask.at[-3:].set(False)
    found = LOSSES[name](*arguments)
    slope = jax.grad(lambda x: jnp.sum(LOSSES[name](x, *arguments[1:])))(arguments[0])
    assert jnp.isfinite(found).all() and jnp.isfinite(slope).all()
    assert not found[-3:].any() and not slope[-3:].any()


# The game itself: responses of up to three tokens out of three, of which 0 ends one

V, R = 3, 3


def responses():
    """Every response, padded with zeros, and its length."""
    found = [
        (row + (0,) * (R - size), size)
        for size in range(1, R + 1)
        for row in itertools.product(range(V), repeat=size)
        if 0 not in row[:-1] and (row[-1] == 0 or size == R)
    ]
    rows, sizes = zip(*found)
    return np.array(rows), np.array(sizes)


def token_logprobs(table, rows):
    """[B, R]: a token depends on its place and on the token before it. `table` is [R, V, V]; before the first stands 0."""
    before = np.pad(rows, ((0, 0), (1, 0)))[:, :-1]
    return jax.nn.log_softmax(table)[np.arange(R), before, rows]


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_expected_gradient_is_that_of_winning_less_the_kl(beta):
    """Σ π(y) ∇loss(y) = −∇[Σ π(y) q(y′) P(y ≻ y′) − β KL(π ‖ π_ref)]; with a token's own log-ratio alone, at β = 0."""
    rng = np.random.default_rng(1)
    rows, sizes = responses()
    mask = np.arange(R) < sizes[:, None]
    table, ref = rng.normal(size=(2, R, V, V))
    opponent = rng.dirichlet(np.ones(len(rows)))
    wins = np.triu(rng.random((len(rows),) * 2), 1)
    wins = wins + np.tril(1 - wins.T, -1) + 0.5 * np.eye(len(rows))
    with jax.enable_x64(True):

        def whole(table):
            return jnp.sum(jnp.where(mask, token_logprobs(table, rows), 0), axis=1)

        def game(table):
            own = jnp.exp(whole(table))
            return own @ wins @ opponent - beta * jnp.sum(own * (whole(table) - whole(jnp.asarray(ref))))

        weights = np.exp(np.asarray(whole(jnp.asarray(table))))
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)

        def expected(objective):
            fixed = token_logprobs(jnp.asarray(ref), rows), jnp.asarray(wins @ opponent), jnp.asarray(mask)
            return lambda table: jnp.sum(weights * objective(token_logprobs(table, rows), *fixed, beta=beta))

        wanted = -jax.jit(jax.grad(game))(table)
        found = {name: jax.jit(jax.grad(expected(LOSSES[name])))(table) for name in LOSSES}
    assert np.abs(wanted).max() > 0.02
    np.testing.assert_allclose(found["nash_md"], wanted, atol=1e-12)
    assert (np.abs(found["nash_md_token"] - wanted).max() < 1e-12) == (beta == 0)
