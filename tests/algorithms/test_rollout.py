"""Collect: what is sampled is what is trained on, every distribution at the same temperature, groups in their places."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import rollout
from rlhf_jax.errors import UserError
from rlhf_jax.generate import engine
from rlhf_jax.model import transformer
from rlhf_jax.types import STOP_EOS, STOP_LENGTH, STOP_SEQUENCE, Samples, Sampling
from tests import worlds


def test_in_chunks_equals_one_call_and_refuses_rows_that_do_not_divide():
    def forward(scale, x, y):
        return {"sum": (x * scale).sum(axis=1), "y": y}

    x, y = jnp.arange(24.0).reshape(12, 2), jnp.arange(12)
    for rows in (1, 3, 12):
        found = rollout.in_chunks(forward, rows)(2.0, x, y)
        assert found["sum"].tolist() == (2 * x.sum(axis=1)).tolist() and found["y"].tolist() == y.tolist()
    with pytest.raises(UserError, match="12 rows do not divide into chunks of 5"):
        rollout.in_chunks(forward, 5)(2.0, x, y)


def test_join_puts_the_response_right_after_the_prompt_and_zeros_after_it():
    rng = np.random.default_rng(0)
    prompts, responses = rng.integers(1, 9, (6, 4)), rng.integers(1, 9, (6, 3))
    start, length = rng.integers(1, 5, 6), rng.integers(0, 4, 6)
    arrays = (jnp.asarray(x, jnp.int32) for x in (prompts, start, responses, length))
    wanted = [
        [*prompts[b, : start[b]], *responses[b, : length[b]], *[0] * (7 - start[b] - length[b])] for b in range(6)
    ]
    assert rollout.join(*arrays).tolist() == wanted


@pytest.fixture(scope="module")
def sampled():
    """What the engine drew for `worlds.experience()`."""
    prompts, key = worlds.prompts(), jax.random.fold_in(jax.random.key(0), 0)
    arguments = (jnp.asarray(x) for x in (prompts.tokens, prompts.length, worlds.uids()))
    policy = worlds.actor_critic()["policy"]
    return engine.generate(policy, *arguments, key, window=worlds.R, cfg=worlds.LM, sampling=worlds.SAMPLING)


def test_invariant_17_training_sees_the_sampled_ids_and_only_the_score_sees_text(sampled):
    """The text forgets everything but the number of tokens; nothing of the rollout does."""
    seen = []

    def score(prompts, responses, meta):
        seen.extend(zip(prompts, responses, strict=True))
        return [0.0] * len(responses)

    lossy = worlds.collect(score=score)
    for row in range(worlds.B):
        start, length = int(lossy.prompt_length[row]), int(sampled.length[row])
        wanted = sampled.responses[row, :length]
        assert lossy.tokens[row, start : start + length].tolist() == wanted.tolist()
        assert lossy.tokens[row, :start].tolist() == worlds.prompts().tokens[row // worlds.N, :start].tolist()
        assert (np.asarray(lossy.tokens[row, start + length :]) == 0).all()
        assert seen[row] == (f"p{row // worlds.N}", worlds.decode(wanted.tolist()))
    np.testing.assert_array_equal(lossy.response_length, sampled.length)
    np.testing.assert_array_equal(lossy.stop, sampled.stop)


def test_invariant_07_the_eos_is_sampled_scored_and_counted():
    found = worlds.experience()
    ended = np.asarray(found.stop) == STOP_EOS
    at = np.asarray(found.prompt_length + found.response_length) - 1
    assert ended.any() and not ended.all()
    assert (np.asarray(found.tokens)[np.arange(worlds.B), at] == worlds.EOS)[ended].all()
    last = np.asarray(found.logprobs)[np.arange(worlds.B), np.asarray(found.response_length) - 1]
    assert (last < 0).all() and np.asarray(found.mask).sum() == np.asarray(found.response_length).sum()


def test_invariant_40_groups_are_contiguous_and_their_samples_differ():
    found = worlds.experience()
    assert found.prompt_id.tolist() == [10 + row // worlds.N for row in range(worlds.B)]
    assert found.uid.tolist() == list(range(worlds.B))
    for g in range(worlds.G):
        rows = np.asarray(found.tokens)[g * worlds.N : (g + 1) * worlds.N]
        assert len({row.tobytes() for row in rows}) > 1


def test_prompts_repeat_in_the_order_of_the_samples():
    texts, meta = dataclasses.replace(worlds.prompts(), meta=[{"g": g} for g in range(worlds.G)]).repeat(3)
    assert texts == [f"p{row // 3}" for row in range(24)] and [m["g"] for m in meta] == [row // 3 for row in range(24)]


def test_invariant_04_the_samplers_log_probabilities_are_those_of_the_training_forward():
    told = rollout.metrics(worlds.experience())
    assert told["mismatch/max"] <= 1e-4 and told["mismatch/outside"] == 0
    assert 0 <= told["mismatch/mean"] <= told["mismatch/p95"] <= told["mismatch/max"]


def test_invariant_04_mismatch_is_told_as_mean_p95_max_and_share_outside():
    """A known error in every log-probability, and junk in the masked slots."""
    found = worlds.facts()
    mask = np.asarray(found.mask)
    gap = np.random.default_rng(0).normal(size=mask.shape) * 0.2
    behaviour = np.where(mask, np.asarray(found.logprobs, np.float64) - gap, np.nan)
    told = rollout.metrics(found.replace(behaviour_logprobs=jnp.asarray(behaviour, jnp.float32)))
    ratio = np.exp(gap[mask])
    assert told["mismatch/mean"] == pytest.approx(np.abs(gap[mask]).mean(), rel=1e-5)
    assert told["mismatch/p95"] == pytest.approx(np.quantile(np.abs(gap[mask]), 0.95), rel=1e-5)
    assert told["mismatch/max"] == pytest.approx(np.abs(gap[mask]).max(), rel=1e-5)
    assert told["mismatch/outside"] == pytest.approx(((ratio < 0.9) | (ratio > 1.1)).mean())


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.3])
def test_invariant_05_kl_of_a_policy_to_itself_is_zero_at_every_temperature(sampled, temperature):
    """And the log-probabilities are those of logits / T, in NumPy; the values do not know the temperature."""
    forward, params = worlds.policy_forward(temperature), worlds.actor_critic()
    found = rollout.collect(
        params,
        worlds.prompts(),
        worlds.uids(),
        jax.random.key(0),
        sampling=Sampling(temperature=temperature),
        version=0,
        sample=lambda *_: sampled,
        policy=lambda params, *row: forward(params["policy"], *row),
        reference=lambda *row: forward(params["policy"], *row)[0],
        value=lambda params, *row: worlds.value_forward()(params["value"], *row),
        decode=worlds.decode,
        score=worlds.count_threes,
    )
    told = rollout.metrics(found)
    assert told["rollout/kl"] == 0 and told["rollout/kl_k3"] == 0
    np.testing.assert_array_equal(found.values, worlds.experience().values)
    logits = np.asarray(all_logits(found), np.float64) / temperature
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    for row in range(worlds.B):
        start, length = int(found.prompt_length[row]), int(found.response_length[row])
        at = np.arange(start, start + length)
        own = logits[row, at - 1]
        np.testing.assert_allclose(found.logprobs[row, :length], own[range(length), found.tokens[row, at]], atol=1e-5)
        np.testing.assert_allclose(found.entropy[row, :length], -(np.exp(own) * own).sum(axis=-1), atol=1e-5)


@jax.jit
def all_logits(found):
    params = worlds.actor_critic()["policy"]
    states = transformer.hidden(params, found.tokens, found.prompt_length + found.response_length, cfg=worlds.LM)
    return transformer.logits(params, states, cfg=worlds.LM)


def test_invariant_05_temperature_zero_is_refused_before_anything_is_sampled():
    with pytest.raises(UserError, match="sampling.temperature above 0"):
        worlds.collect(sampling=Sampling(temperature=0.0))


def test_invariant_06_truncated_sampling_keeps_two_log_probabilities_and_tells_their_gap():
    """Under top-p the sampler's are renormalised over what it kept: larger than the policy's by − log of the kept mass."""
    sampling = Sampling(temperature=0.7, top_p=0.8)
    found = worlds.collect(sampling=sampling)
    logits = np.asarray(all_logits(found), np.float64) / 0.7
    for row in range(worlds.B):
        for t in range(int(found.response_length[row])):
            at = int(found.prompt_length[row]) + t
            p = np.exp(logits[row, at - 1] - logits[row, at - 1].max())
            p /= p.sum()
            order = np.argsort(-p)
            kept = order[: int(np.searchsorted(np.cumsum(p[order]), 0.8)) + 1]
            token = int(found.tokens[row, at])
            assert token in kept
            gap = float(found.behaviour_logprobs[row, t] - found.logprobs[row, t])
            assert gap == pytest.approx(-np.log(p[kept].sum()), abs=1e-4)
    told = rollout.metrics(found)
    assert told["mismatch/mean"] > 0.02 and told["mismatch/outside"] > 0.1


def test_invariant_46_rollout_metrics_equal_a_loop_over_trimmed_rows():
    found = worlds.facts().replace(score_parts={"length": jnp.arange(8.0)})
    mask = np.asarray(found.mask)
    junk = {n: jnp.where(found.mask, getattr(found, n), jnp.nan) for n in ("logprobs", "ref_logprobs", "entropy")}
    told = rollout.metrics(found.replace(**junk))
    gaps = [
        [float(found.logprobs[b, t]) - float(found.ref_logprobs[b, t]) for t in range(int(found.response_length[b]))]
        for b in range(8)
    ]
    assert told["rollout/kl"] == pytest.approx(np.mean([sum(row) for row in gaps]), rel=1e-4, abs=1e-6)
    assert told["rollout/kl_k3"] == pytest.approx(
        np.mean([sum(np.exp(-g) - 1 + g for g in row) for row in gaps]), rel=1e-4
    )
    assert told["rollout/entropy"] == pytest.approx(np.asarray(found.entropy)[mask].mean(), rel=1e-5)
    assert told["rollout/length"] == np.mean(np.asarray(found.response_length))
    assert told["rollout/eos"] + told["rollout/truncated"] == 1
    assert told["rollout/score"] == pytest.approx(float(found.scores.mean()), rel=1e-5)
    assert told["rollout/score_std"] == pytest.approx(float(found.scores.std()), rel=1e-5)
    assert told["reward/length"] == 3.5
    assert all(type(x) is float for x in told.values())


def test_invariant_27_a_kl_that_no_kl_can_be_is_warned_of():
    """Half a nat a token in the wrong direction: masks, temperature or truncation differ somewhere."""
    found = worlds.facts()
    with pytest.warns(UserWarning, match="which no KL can be"):
        rollout.metrics(found.replace(ref_logprobs=found.logprobs + 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rollout.metrics(found.replace(ref_logprobs=found.logprobs - 0.5))
        rollout.metrics(found.replace(ref_logprobs=found.logprobs))
        noise = np.random.default_rng(1).normal(0.0, 0.3, found.logprobs.shape)  # mean about 0: chance, not a mistake
        rollout.metrics(found.replace(ref_logprobs=found.logprobs + np.float32(noise)))
        assert "rollout/kl" not in rollout.metrics(found.replace(ref_logprobs=None))


def test_invariant_12_the_value_before_a_token_does_not_see_it():
    """Another fourth token changes the values after it, not those before it and its own."""
    found = worlds.experience()
    row = int(np.argmax(np.asarray(found.response_length)))
    place = int(found.prompt_length[row]) + 3
    tokens = found.tokens.at[row, place].set((found.tokens[row, place] + 3) % worlds.V)
    changed = worlds.value_forward()(worlds.actor_critic()["value"], tokens, *worlds.row_of(found)[1:])
    np.testing.assert_array_equal(changed[row, :4], found.values[row, :4])
    assert abs(float(changed[row, 4] - found.values[row, 4])) > 1e-4


def fixed(stop, length=None):
    """A sampler that always gives this."""
    length = worlds.R if length is None else length
    shape = (worlds.B, worlds.R)
    return Samples(
        responses=jnp.full(shape, 5, jnp.int32),
        length=jnp.full(worlds.B, length, jnp.int32),
        stop=jnp.full(worlds.B, stop, jnp.int32),
        behaviour_logprobs=jnp.zeros(shape),
    )


@pytest.mark.parametrize("stop", [STOP_EOS, STOP_LENGTH, STOP_SEQUENCE])
def test_invariant_18_how_a_response_ended_is_what_the_sampler_said(stop):
    """No token is an EOS, whatever the sampler says."""
    forward = worlds.policy_forward()
    found = rollout.collect(
        worlds.actor_critic()["policy"],
        worlds.prompts(),
        worlds.uids(),
        jax.random.key(0),
        sampling=worlds.SAMPLING,
        version=7,
        sample=lambda *_: fixed(stop),
        policy=forward,
        decode=worlds.decode,
        score=worlds.count_threes,
    )
    told = rollout.metrics(found)
    assert found.stop.tolist() == [stop] * worlds.B and found.version.tolist() == [7] * worlds.B
    assert told["rollout/eos"] == (stop == STOP_EOS) and told["rollout/truncated"] == (stop == STOP_LENGTH)
    assert found.values is None and found.bootstrap is None and found.ref_logprobs is None


def test_scores_of_the_wrong_number_or_not_finite_stop_the_collection():
    with pytest.raises(UserError, match=r"must return \(32,\)"):
        worlds.collect(score=lambda p, r, m: [1.0])
    with pytest.raises(UserError, match=r"not finite in rows \[0, 1"):
        worlds.collect(score=lambda p, r, m: [float("nan")] * len(r))
