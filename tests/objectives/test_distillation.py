"""Divergences over a vocabulary against loops, at their ends and at logits of ±100,000; and which way their gradients push."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.objectives import distillation
from tests import oracles

SHAPE = (oracles.CASES, 2, 3, 5)
BETAS = (0.1, 0.5, 0.9)


def log_softmax(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def cases():
    """Log-probabilities of student and teacher: even, usual, certain, far apart, equal, and with ids that are ruled out."""
    rng = np.random.default_rng(0)
    scale = rng.choice(np.array([0.0, 0.1, 1.0, 10.0, 1e3, 1e5]), (2, *SHAPE[:-1], 1))
    logits = scale * rng.normal(size=(2, *SHAPE))
    ruled_out = rng.random((2, *SHAPE)) < 0.1
    ruled_out[..., 0] = False
    student, teacher = log_softmax(np.where(ruled_out, -np.inf, logits))
    same = rng.random(SHAPE[:-1])[..., None] < 0.1
    return np.where(same, teacher, student), teacher


def token(beta):
    """The divergence of one token, from the definition."""

    def kl(p, log_p, log_q):
        return math.fsum(x * (a - b) for x, a, b in zip(p, log_p, log_q, strict=True))

    def one(student, teacher):
        log_q, log_p = ([max(float(x), -1e4) for x in row] for row in (student, teacher))
        q, p = ([math.exp(x) for x in row] for row in (log_q, log_p))
        if beta in (0, 1):
            return kl(q, log_q, log_p) if beta else kl(p, log_p, log_q)
        mixed = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
        kept = [i for i in range(len(p)) if mixed[i] > 0]  # what both rule out has no share in it, and no term
        log_m = [math.log(mixed[i]) for i in kept]
        of_p = kl([p[i] for i in kept], [log_p[i] for i in kept], log_m)
        return beta * of_p + (1 - beta) * kl([q[i] for i in kept], [log_q[i] for i in kept], log_m)

    def loop(student, teacher):
        out = np.zeros(student.shape[:-1])
        for place in np.ndindex(out.shape):
            out[place] = one(student[place], teacher[place])
        return out

    return loop


FUNCTIONS = [
    (distillation.forward_kl, 0),
    (distillation.reverse_kl, 1),
    *((functools.partial(distillation.jsd, beta=beta), beta) for beta in (0.0, 1.0, *BETAS)),
]


@pytest.mark.parametrize(("function", "beta"), FUNCTIONS)
def test_a_divergence_equals_a_loop(cases, function, beta):
    oracles.agree(function, token(beta), *cases, atol=2e-5, rtol=2e-5)


def test_divided_by_its_weight_jsd_tends_to_the_kl_of_that_end():
    """Which distribution β is the share of: only teacher first has the forward KL at 0."""
    rng = np.random.default_rng(1)
    student, teacher = log_softmax(rng.normal(size=(2, 50, 7)))
    with jax.enable_x64(True):
        for beta, share, end in ((1e-7, 1e-7, token(0)), (1 - 1e-7, 1e-7, token(1))):
            found = np.asarray(distillation.jsd(jnp.asarray(student), jnp.asarray(teacher), beta=beta)) / share
            np.testing.assert_allclose(found, end(student, teacher), rtol=1e-5)
    assert abs(token(0)(student, teacher) - token(1)(student, teacher)).max() > 0.1, "the ends must differ"


def test_jsd_is_bounded_and_the_same_with_the_roles_exchanged(cases):
    student, teacher = (jnp.asarray(x, jnp.float32) for x in cases)
    for beta in BETAS:
        found = np.asarray(distillation.jsd(student, teacher, beta=beta))
        most = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        assert found.min() >= -1e-6 and found.max() <= most + 1e-5 and found.max() > 0.9 * most
        np.testing.assert_allclose(found, distillation.jsd(teacher, student, beta=1 - beta), atol=1e-6)


def test_gradients_are_those_of_the_closed_forms():
    """By the student's logits: q − p; q (log q/p − KL); (1 − β) q (log q/m − KL(q ‖ m)). All push up what the teacher likes
    more than the student does, for two tokens."""
    rng = np.random.default_rng(2)
    logits, teacher = rng.normal(size=(50, 6)), log_softmax(rng.normal(size=(50, 6)))
    log_q, p = log_softmax(logits), np.exp(teacher)
    q = np.exp(log_q)

    def pulled(log_r):
        return q * (log_q - log_r - (q * (log_q - log_r)).sum(-1, keepdims=True))

    wanted = {0.0: q - p, 1.0: pulled(teacher)}
    wanted |= {beta: (1 - beta) * pulled(np.log(beta * p + (1 - beta) * q)) for beta in BETAS}
    two = np.array([[0.0, 1.0], [2.0, -1.0]]), log_softmax(np.array([[1.0, 0.0], [-2.0, 3.0]]))
    with jax.enable_x64(True):
        for beta, expected in wanted.items():

            def slope(logits, teacher, beta=beta):
                total = lambda x: distillation.jsd(jax.nn.log_softmax(x), teacher, beta=beta).sum()  # noqa: E731
                return np.asarray(jax.jit(jax.grad(total))(jnp.asarray(logits)))

            np.testing.assert_allclose(slope(logits, jnp.asarray(teacher)), expected, atol=1e-12)
            more = np.exp(two[1]) > np.exp(log_softmax(two[0]))
            assert (np.sign(-slope(two[0], jnp.asarray(two[1]))) == np.where(more, 1, -1)).all(), beta


def test_extremes_have_finite_values_and_gradients():
    certain = jnp.array([0.0, -jnp.inf, -jnp.inf])
    rows = jnp.stack(
        [certain, jnp.roll(certain, 1), jnp.log(jnp.array([0.5, 0.5, 0.0])), jnp.array([0.0, -3e38, -1e30])]
    )
    student, teacher = (x.reshape(-1, 3) for x in jnp.broadcast_arrays(rows[:, None], rows[None]))
    for beta in (0.0, 1.0, *BETAS):
        both = jax.value_and_grad(lambda x, beta=beta: distillation.jsd(x, teacher, beta=beta).sum())
        value, slope = jax.jit(both)(student)
        assert np.isfinite(value) and np.isfinite(slope).all(), beta
    np.testing.assert_allclose(distillation.forward_kl(rows, rows), 0, atol=1e-6)


def test_a_beta_outside_is_refused():
    for beta in (-0.1, 1.1):
        with pytest.raises(UserError, match="beta of jsd must be between 0"):
            distillation.jsd(jnp.zeros(2), jnp.zeros(2), beta=beta)
