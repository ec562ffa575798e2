"""Pairs of two samples a prompt: which is the better, what ties teach, and XPO's term upon the second of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import offline, online
from rlhf_jax.objectives import preference
from rlhf_jax.types import STOP_EOS, STOP_LENGTH, Rollout, Sampling

G, P, R, V = 4, 2, 3, 7
judge = jax.jit(online.judge)
SCORES = np.array([[1.0, 3.0], [2.0, -1.0], [0.5, 0.5], [4.0, 4.5]], np.float32)


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
        response_length=jnp.asarray([3, 1, 2, 2, 1, 3, 2, 3], jnp.int32),
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


def test_the_better_response_comes_first(rollout):
    found = judge(rollout)
    better = [1, 0, 0, 1]
    np.testing.assert_array_equal(found.second, [0, 1, 1, 0])
    np.testing.assert_array_equal(found.pairs.weight, [1, 1, 0, 1])
    np.testing.assert_array_equal(found.pairs.label, 1)
    np.testing.assert_array_equal(found.pairs.prompt_length, [1, 2, 2, 1])
    for row, first in enumerate(better):
        for place, source in enumerate((2 * row + first, 2 * row + 1 - first)):
            size = int(rollout.response_length[source])
            assert found.pairs.response_length[row, place] == size
            np.testing.assert_array_equal(found.pairs.tokens[row, place], rollout.tokens[source])
            wanted = np.asarray(rollout.ref_logprobs[source, :size], np.float64).sum()
            np.testing.assert_allclose(found.pairs.ref_logprobs[row, place], wanted, rtol=1e-6)
    told = online.told(found)
    assert told["judged/decided"] == 0.75 and told["judged/second_won"] == pytest.approx(2 / 3)


def test_a_cut_response_has_the_score_of_the_penalty(rollout):
    found = online.judge(rollout, missing_eos_penalty=-1.0)
    np.testing.assert_array_equal(found.second, [0, 1, 1, 1])


def test_a_soft_judge_is_bradley_and_terry(rollout):
    found = online.judge(rollout, temperature=2.0)
    np.testing.assert_allclose(found.pairs.label, [1 / (1 + np.exp(-d / 2)) for d in (2, 3, 0, 0.5)], rtol=1e-6)
    np.testing.assert_array_equal(found.pairs.weight, 1)


def forward(params, tokens, prompt_length, response_length):
    """A table of log-probabilities for a model; what stands past a response must not count."""
    return params[tokens[:, :R]] + 0.1 * prompt_length[:, None]


def ask(rollout, **settings):
    params = jnp.asarray(np.random.default_rng(1).normal(size=V), jnp.float32)
    batch = judge(rollout)
    objectives = {"sigmoid": (preference.sigmoid, 1.0), "sft": (preference.sft, 0.3)}
    total = functools.partial(online.loss, forward=forward, objectives=objectives, **settings)
    (value, metrics), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(params, batch, online.weigh(batch))
    alone = jax.jit(functools.partial(offline.loss, forward=forward, objectives=objectives))
    plain = alone(params, batch.pairs, online.weigh(batch))
    return params, value, metrics, slope, plain


def test_without_exploration_it_is_the_offline_loss(rollout):
    _, value, metrics, _, plain = ask(rollout)
    assert value == pytest.approx(float(plain[0]), rel=1e-6) and metrics.keys() == plain[1].keys()
    for name, x in plain[1].items():
        assert metrics[name] == pytest.approx(float(x), rel=1e-5, abs=1e-6), name


def test_xpo_adds_the_log_probability_of_the_second_response(rollout):
    params, value, metrics, slope, plain = ask(rollout, exploration=0.25)
    terms = []
    for row in (0, 1, 3):  # the tie teaches nothing
        source = 2 * row + 1
        size = int(rollout.response_length[source])
        ids = np.asarray(rollout.tokens[source, :R])[:size]
        terms.append(sum(float(params[token]) + 0.1 * float(rollout.prompt_length[source]) for token in ids))
    assert metrics["preference/second_logprob"] == pytest.approx(np.mean(terms), rel=1e-5)
    assert value == pytest.approx(float(plain[0]) + 0.25 * np.mean(terms), rel=1e-5)
    assert value == metrics["preference/loss"]
    more = slope - ask(rollout)[3]  # of its own part: descending it makes the second responses' tokens less likely
    counts = np.zeros(V)
    for row in (0, 1, 3):
        size = int(rollout.response_length[2 * row + 1])
        np.add.at(counts, np.asarray(rollout.tokens[2 * row + 1, :size]), 0.25 / 3)
    np.testing.assert_allclose(more, counts, atol=1e-6)
