"""KL estimators: against loops, against exact enumeration of a five-token vocabulary, and the adaptive controller."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.objectives import kl
from tests import oracles

SCALARS = {
    "k1": lambda p, q: p - q,
    "k2": lambda p, q: 0.5 * (p - q) ** 2,
    "k3": lambda p, q: math.expm1(min(max(q - p, -20), 20)) - min(max(q - p, -20), 20),
}


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_estimators_equal_a_loop(name):
    rng = np.random.default_rng(0)
    shape = (oracles.CASES, oracles.ROWS, oracles.WINDOW)
    ref = -rng.exponential(2.0, shape)
    scale = rng.choice(np.array([0.0, 0.1, 1.0, 10.0, 1e3]), (oracles.CASES, 1, 1))
    new = ref + scale * rng.normal(size=shape)
    oracles.agree(getattr(kl, name), functools.partial(oracles.each, SCALARS[name]), new, ref, rtol=5e-5)


@pytest.fixture(scope="module")
def enumerated():
    """For a five-token policy and reference: the exact KL and its gradient, and E[f(k)] for any f, all in float64."""
    with jax.enable_x64(True):
        theta = jnp.array([0.3, -1.2, 0.8, 0.1, -0.4])
        ref = jax.nn.log_softmax(jnp.array([-0.5, 0.9, 0.2, -1.0, 0.4]))[None]

        def logprobs(theta):
            return jax.nn.log_softmax(theta)[None]

        def exact(theta):
            return jnp.sum(jnp.exp(logprobs(theta)) * (logprobs(theta) - ref))

        p = jnp.exp(logprobs(theta))
        values, slopes, in_reward = {}, {}, {}
        for name in SCALARS:
            estimator = getattr(kl, name)
            values[name] = float(jnp.sum(p * estimator(logprobs(theta), ref)))
            # sampled on-policy: the probabilities are those of the samples and are not differentiated
            slopes[name] = np.asarray(jax.grad(lambda x, k=estimator: jnp.sum(p * k(logprobs(x), ref)))(theta))
            penalty = estimator(logprobs(theta), ref)
            in_reward[name] = np.asarray(jax.grad(lambda x, k=penalty: jnp.sum(p * k * logprobs(x)))(theta))
        return float(exact(theta)), np.asarray(jax.grad(exact)(theta)), values, slopes, in_reward


def test_invariant_25_k1_and_k3_are_unbiased(enumerated):
    exact, _, values, _, _ = enumerated
    assert values["k1"] == pytest.approx(exact, rel=1e-12)
    assert values["k3"] == pytest.approx(exact, rel=1e-12)
    assert abs(values["k2"] - exact) > 1e-2


def test_invariant_25_k1_as_a_loss_has_no_gradient_on_average(enumerated):
    _, _, _, slopes, _ = enumerated
    np.testing.assert_allclose(slopes["k1"], 0, atol=1e-12)


def test_invariant_25_k2_as_a_loss_has_the_gradient_of_the_kl(enumerated):
    _, gradient, _, slopes, _ = enumerated
    np.testing.assert_allclose(slopes["k2"], gradient, atol=1e-12)


def test_invariant_25_k3_as_a_loss_does_not(enumerated):
    _, gradient, _, slopes, _ = enumerated
    assert np.linalg.norm(slopes["k3"] - gradient) > 0.1 * np.linalg.norm(gradient)


def test_invariant_25_k1_in_the_reward_has_the_gradient_of_the_kl(enumerated):
    _, gradient, _, _, in_reward = enumerated
    np.testing.assert_allclose(in_reward["k1"], gradient, atol=1e-12)


@pytest.mark.parametrize("gap", [30.0, 90.0, 1e4])
def test_invariant_26_k3_and_its_gradient_are_finite_at_any_log_ratio(gap):
    for sign in (1, -1):
        x, ref = jnp.array([[-1.0]]), jnp.array([[-1.0 + sign * gap]])
        value, slope = jax.value_and_grad(lambda x, ref=ref: kl.k3(x, ref)[0, 0])(x)
        assert np.isfinite(float(value)) and float(value) >= 0 and np.isfinite(np.asarray(slope)).all()
    largest = float(kl.k3(jnp.array([[-91.0]]), jnp.array([[-1.0]]))[0, 0])
    assert largest == pytest.approx(math.exp(20) - 21, rel=1e-5)


def test_identical_policies_have_exactly_no_kl():
    x = jnp.asarray(-np.random.default_rng(0).exponential(3.0, (5, 7)), jnp.float32)
    for name in SCALARS:
        assert (np.asarray(getattr(kl, name)(x, x)) == 0).all()


@pytest.mark.parametrize("observed", [0.0, 3.0, 5.9, 6.0, 6.5, 7.1, 7.3, 60.0])
def test_invariant_45_adaptive_kl_equals_the_formula_of_lm_human_preferences(observed):
    error = float(np.clip(observed / 6.0 - 1, -0.2, 0.2))
    wanted = 0.15 * (1 + error * 512 / 10_000)
    assert kl.adapt(0.15, observed, samples=512) == pytest.approx(wanted, rel=1e-12)
    assert (kl.adapt(0.15, observed, samples=512) > 0.15) == (observed > 6.0)


def test_invariant_45_adaptive_kl_moves_at_most_a_fifth_over_the_horizon():
    assert kl.adapt(1.0, 1e9, target=1.0, horizon=100.0, samples=100) == pytest.approx(1.2)
    assert kl.adapt(1.0, -5.0, target=1.0, horizon=100.0, samples=100) == pytest.approx(0.8)
