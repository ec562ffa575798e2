"""Nash-MD's batch: who is judged against whom, what is learnt from, and that its mean is over responses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import nash
from rlhf_jax.errors import UserError
from rlhf_jax.objectives import nash as objectives
from rlhf_jax.types import STOP_EOS, STOP_LENGTH, Rollout, Sampling

G, P, R, V = 4, 2, 3, 7
SCORES = np.array([[1.0, 3.0], [2.0, -1.0], [0.5, 0.5], [4.0, 4.5]], np.float32)
LENGTHS = np.array([3, 1, 2, 2, 1, 3, 2, 3])


@pytest.fixture(scope="module")
def rollout():
    """Two responses to each of four prompts; the third pair is a tie, the fourth's second response is cut."""
    rng = np.random.default_rng(0)
    noise = {name: jnp.asarray(rng.normal(size=(2 * G, R)), jnp.float32) for name in ("logprobs", "ref_logprobs")}
    stop = np.full(2 * G, STOP_EOS)
    stop[-1] = STOP_LENGTH
    return Rollout(
        tokens=jnp.asarray(rng.integers(1, V, (2 * G, P + R)), jnp.int32),
        prompt_length=jnp.asarray(np.repeat([1, 2, 2, 1], 2), jnp.int32),
        response_length=jnp.asarray(LENGTHS, jnp.int32),
        stop=jnp.asarray(stop, jnp.int32),
        prompt_id=jnp.repeat(jnp.arange(G), 2),
        uid=jnp.arange(2 * G),
        version=jnp.zeros(2 * G, jnp.int32),
        behaviour_logprobs=noise["logprobs"],
        entropy=noise["logprobs"],
        values=None,
        bootstrap=None,
        scores=jnp.asarray(SCORES.reshape(-1)),
        score_parts={},
        sampling=Sampling(),
        **noise,
    )


def test_the_first_response_is_judged_against_the_second(rollout):
    found = nash.judge(rollout, temperature=2.0)
    wanted = 1 / (1 + np.exp(-(SCORES[:, 0] - SCORES[:, 1]).astype(np.float64) / 2))
    np.testing.assert_allclose(found.probability, wanted, rtol=1e-6)
    for name in ("tokens", "prompt_length", "response_length", "ref_logprobs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(rollout, name)[::2], err_msg=name)
    np.testing.assert_array_equal(nash.judge(rollout, temperature=0.0).probability, [0, 1, 0.5, 0])
    cut = nash.judge(rollout, temperature=0.0, missing_eos_penalty=-1.0)
    np.testing.assert_array_equal(cut.probability, [0, 1, 0.5, 1])
    told = nash.told(rollout)
    assert told["opponent/score"] == SCORES[:, 1].mean() and told["opponent/length"] == LENGTHS[1::2].mean()
    with pytest.raises(UserError, match="collect the rollout with a reference"):
        nash.judge(rollout.replace(ref_logprobs=None))


def forward(params, tokens, prompt_length, response_length):
    """A table of log-probabilities for a model; what stands past a response must not count."""
    inside = jnp.arange(R) < response_length[:, None]
    return jnp.where(inside, params[tokens[:, :R]] + 0.1 * prompt_length[:, None], jnp.nan)


def test_the_loss_is_the_mean_over_responses_of_their_sums(rollout):
    params = jnp.asarray(np.random.default_rng(1).normal(size=V), jnp.float32)
    batch = nash.judge(rollout)
    total = functools.partial(
        nash.loss, forward=forward, objective=functools.partial(objectives.nash_md_token, beta=0.3)
    )
    terms, kls, counts = [], [], np.zeros(V)
    for row in range(G):
        size = LENGTHS[2 * row]
        ids = np.asarray(rollout.tokens[2 * row, :size])
        logprobs = np.asarray(params, np.float64)[ids] + 0.1 * int(rollout.prompt_length[2 * row])
        apart = logprobs - np.asarray(rollout.ref_logprobs[2 * row, :size])
        gain = float(batch.probability[row]) - 0.5 - 0.3 * apart
        terms.append(-(logprobs * gain).sum())
        kls.append(apart.sum())
        np.add.at(counts, ids, -gain / G)
    (value, metrics), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(params, batch, nash.weigh(batch))
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(slope, counts, atol=1e-6)
    wanted = {"nash/loss": np.mean(terms), "nash/kl": np.mean(kls), "nash/probability": np.mean(batch.probability)}
    assert metrics == pytest.approx({name: float(x) for name, x in wanted.items()}, rel=1e-5)
    halves = [jax.tree.map(lambda x, piece=piece: x[piece], batch) for piece in (slice(0, 2), slice(2, 4))]
    parts = [jax.grad(lambda p, half=half: total(p, half, nash.weigh(batch)[:2])[0])(params) for half in halves]
    np.testing.assert_allclose(sum(parts), slope, atol=1e-6)


def test_a_loss_of_ones_own_gives_one_number_a_response(rollout):
    batch = nash.judge(rollout)
    params = jnp.zeros(V)
    with pytest.raises(UserError, match=r"returned shape \(4, 3\); it must return one number a response, \(4,\)"):
        nash.loss(params, batch, nash.weigh(batch), forward=forward, objective=lambda logprobs, *_: logprobs)

    def mine(logprobs, ref_logprobs, probability, mask):
        return probability

    found = nash.loss(params, batch, nash.weigh(batch), forward=forward, objective=mine)[0]
    assert found == pytest.approx(float(batch.probability.mean()))
