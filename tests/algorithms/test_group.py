"""Targets without a critic, each choice flipped, and PPO's loss without values."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import group, ppo
from rlhf_jax.algorithms.update import make_update
from rlhf_jax.errors import UserError
from rlhf_jax.objectives import group_advantages, kl, policy_zoo, weights
from rlhf_jax.types import STOP_LENGTH, TrainState
from tests import oracles, worlds

KEY = jax.random.key(0)


@functools.cache
def found():
    """Eight ragged responses of the table policy, two a prompt, some cut at the window; made with a critic, as PPO's are."""
    return worlds.facts(bootstrap=True)


def lengths():
    return np.asarray(found().response_length)


def mask():
    return np.asarray(found().mask)


def cut():
    return np.asarray(found().stop) == STOP_LENGTH


def pairs(scores):
    """Every score less the other one of its prompt."""
    scores = np.asarray(scores, np.float64)
    return scores - scores.reshape(-1, 2)[:, ::-1].ravel()


def over_tokens(advantage, of=None):
    return np.where(mask() if of is None else of, np.asarray(advantage)[:, None], 0.0)


def rloo(**settings):
    return group.targets(found(), advantage=group_advantages.rloo, **settings)


def test_every_token_has_the_advantage_of_its_response():
    batch = rloo()
    np.testing.assert_allclose(batch.advantages, over_tokens(pairs(found().scores)), atol=1e-6)
    np.testing.assert_array_equal(batch.mask, mask())
    assert (np.asarray(batch.values) == 0).all()
    for name in ("logprobs", "behaviour_logprobs", "ref_logprobs", "tokens", "prompt_length", "response_length"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(found(), name))


def gap():
    return np.asarray(found().logprobs, np.float64) - np.asarray(found().ref_logprobs, np.float64)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_in_the_reward_is_summed_over_the_response_or_given_token_by_token(name):
    terms = {"k1": gap(), "k2": gap() ** 2 / 2, "k3": np.exp(-gap()) - 1 + gap()}[name]
    terms = np.where(mask(), 0.3 * terms, 0.0)
    settings = {"kl_coef": 0.3, "kl_estimator": getattr(kl, name)}
    scores = np.asarray(found().scores, np.float64)
    np.testing.assert_allclose(rloo(**settings).advantages, over_tokens(pairs(scores - terms.sum(axis=1))), atol=2e-5)
    later = scores[:, None] - np.cumsum(terms[:, ::-1], axis=1)[:, ::-1]
    batch = group.targets(found(), advantage=group_advantages.reinforce_plus_plus, **settings)
    np.testing.assert_allclose(batch.advantages, oracles.whiten(np.where(mask(), later, 0), mask()), atol=1e-4)
    np.testing.assert_allclose(batch.returns, np.where(mask(), later, 0), atol=2e-5)


def test_scores_are_shaped_before_they_are_compared():
    scores, length = np.asarray(found().scores, np.float64), lengths()
    overlong = np.array([min(max((worlds.R - 3 - n) / 3, -1), 0) for n in length])
    for settings, wanted in (
        ({"length_coef": 0.1}, scores - 0.1 * length),
        ({"reward_clip": 0.4}, np.clip(scores, -0.4, 0.4)),
        ({"missing_eos_penalty": -2.0}, np.where(cut(), -2.0, scores)),
        ({"overlong_buffer": 3}, scores + overlong),
        ({"length_coef": 0.1, "reward_clip": 0.4}, np.clip(scores - 0.1 * length, -0.4, 0.4)),
    ):
        np.testing.assert_allclose(rloo(**settings).advantages, over_tokens(pairs(wanted)), atol=1e-5)
        assert np.abs(pairs(wanted) - pairs(scores)).max() > 1e-2, "the setting changed nothing"


def test_responses_cut_at_the_window_leave_the_loss_and_stay_in_their_groups():
    batch = rloo(mask_truncated=True)
    kept = mask() & ~cut()[:, None]
    np.testing.assert_array_equal(batch.mask, kept)
    np.testing.assert_allclose(batch.advantages, over_tokens(pairs(found().scores), kept), atol=1e-6)
    assert (np.asarray(batch.returns)[~kept] == 0).all() and cut().any()


def test_groups_that_all_score_the_same_leave_the_loss():
    """Before the KL is taken off, which would tell them apart; and without it they only have an advantage of 0."""
    scores = found().scores.at[2:4].set(0.3).at[6].set(found().scores[7])
    facts = found().replace(scores=scores)
    flat = np.array([0, 0, 1, 1, 0, 0, 1, 1], bool)
    for settings in ({}, {"kl_coef": 0.3}):
        batch = group.targets(facts, drop_flat=True, **settings)
        np.testing.assert_array_equal(batch.mask, mask() & ~flat[:, None])
        np.testing.assert_array_equal(group.targets(facts, **settings).mask, mask())
    assert (np.asarray(group.targets(facts).advantages)[flat] == 0).all()
    told = group.metrics(facts, group.targets(facts, drop_flat=True))
    assert float(told["group/flat"]) == 0.5 and float(told["group/learnt"]) == 0.5
    deviations = np.abs(pairs(scores)) / np.sqrt(2)
    assert float(told["group/score_std"]) == pytest.approx(deviations.mean(), rel=1e-5)


def test_remax_needs_the_greedy_scores():
    greedy = jnp.arange(8.0)
    batch = group.targets(found(), advantage=group_advantages.remax, greedy=greedy)
    np.testing.assert_allclose(batch.advantages, over_tokens(found().scores - greedy), atol=1e-6)
    with pytest.raises(UserError, match="greedy"):
        group.targets(found(), advantage=group_advantages.remax)


@pytest.mark.parametrize("name", group_advantages.ADVANTAGES)
def test_every_advantage_that_can_be_named_is_offered_what_it_asks_for(name):
    function = getattr(group_advantages, name)
    asked = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.default is p.empty}
    assert group.takes(function) == set(asked) <= set(group.OFFERED)
    batch = group.targets(found(), advantage=function, greedy=jnp.zeros(8))
    assert batch.advantages.shape == mask().shape and np.isfinite(batch.advantages).all()
    assert np.abs(batch.advantages).max() > 0 and (np.asarray(batch.advantages)[~mask()] == 0).all()


def test_an_advantage_of_ones_own():
    batch = group.targets(found(), advantage=lambda scores, length, scale=2.0: scale * scores / length)
    np.testing.assert_allclose(batch.advantages, over_tokens(2 * found().scores / lengths()), rtol=1e-5)
    with pytest.raises(UserError, match="may ask for scores, groups.*got values"):
        group.takes(lambda scores, values: scores)
    with pytest.raises(UserError, match=r"shape \(\); it must be one number a response"):
        group.targets(found(), advantage=lambda scores: jnp.mean(scores))


def test_nothing_flows_through_the_targets():
    slope = jax.grad(lambda x: jnp.sum(group.targets(found().replace(logprobs=x), kl_coef=0.3).advantages))
    assert (np.asarray(slope(found().logprobs)) == 0).all()


# --- the loss without a critic ------------------------------------------------------------------------------------------


def without_values(params, batch):
    return *worlds.look_up(params, batch)[:2], None


def evaluated(batch, forward=without_values, **settings):
    """((loss, metrics), gradient) of the table policy after it moved."""
    loss = functools.partial(ppo.loss, forward=forward, **settings)
    params = worlds.moved(worlds.table())
    return jax.value_and_grad(loss, has_aux=True)(params, batch, weights.sequence_mean(batch.mask))


def test_it_is_that_of_ppo_less_the_value_loss():
    settings = {"entropy_coef": 0.1, "kl_coef": 0.3, "importance_cap": 1.5}
    (alone, told), slope = evaluated(rloo(), **settings)
    (whole, with_value), other = evaluated(rloo(), worlds.look_up, value_coef=0.0, **settings)
    assert float(alone) == float(whole) and worlds.same_bits(slope["policy"], other["policy"])
    assert {name for name in with_value if name not in told} == {"value/loss", "value/mean"}
    assert all(float(told[name]) == float(with_value[name]) for name in told)


@pytest.mark.parametrize("name", policy_zoo.LOSSES)
def test_every_policy_loss_runs_in_it_with_its_mask_bound(name):
    batch, function = rloo(), getattr(policy_zoo, name)
    (_, told), slope = evaluated(batch, policy_loss=function)
    new = worlds.looked_up(worlds.moved(worlds.table()), batch)[0]
    needs = {"mask": batch.mask} if "mask" in inspect.signature(function).parameters else {}
    by_hand = function(jnp.where(batch.mask, new, 0.0), batch.logprobs, batch.advantages, **needs)
    counted = np.asarray(weights.sequence_mean(batch.mask), np.float64) * np.asarray(by_hand, np.float64)
    assert float(told["policy/loss"]) == pytest.approx(counted.sum(), rel=1e-4, abs=1e-6)
    assert np.isfinite(slope["policy"]).all() and (np.asarray(slope["policy"]) != 0).any()


def test_a_loss_of_ones_own_may_ask_for_the_mask():
    def own(logprobs, old_logprobs, advantages, mask):
        return logprobs + jnp.sum(mask, axis=1, keepdims=True)

    (loss, _), _ = evaluated(rloo(), policy_loss=own)
    new = np.asarray(worlds.looked_up(worlds.moved(worlds.table()), rloo())[0], np.float64)
    assert float(loss) == pytest.approx(np.mean(np.where(mask(), new, 0).sum(axis=1) / lengths() + lengths()), rel=1e-5)


def updated(batch, **settings):
    """The table after one step along the gradient."""
    loss = functools.partial(ppo.loss, forward=without_values, policy_loss=policy_zoo.gspo)
    weigh = lambda batch: weights.sequence_mean(batch.mask)  # noqa: E731
    update = make_update(loss, optax.sgd(1.0), weigh=weigh, **settings)
    state, metrics = update(TrainState.create(worlds.table(), optax.sgd(1.0)), batch, KEY)
    return state.params["policy"], metrics


def test_micro_batches_change_nothing_of_a_sequence_loss():
    whole, cut_up = updated(rloo())[0], updated(rloo(), microbatches=4)[0]
    np.testing.assert_allclose(whole, cut_up, atol=1e-6)
    assert np.abs(whole - worlds.table()["policy"]).max() > 1e-3


def test_nothing_moves_where_all_responses_score_the_same():
    """Exactly, in f32, whatever the advantage; with every group dropped too, although no token is left to count."""
    facts = found().replace(scores=jnp.full(8, 0.1))
    for name in ("grpo", "dr_grpo", "rloo", "opo", "pass_at_k", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        batch = group.targets(facts, advantage=getattr(group_advantages, name))
        assert (np.asarray(batch.advantages) == 0).all(), name
    for drop in (False, True):
        end, metrics = updated(group.targets(facts, drop_flat=drop))
        np.testing.assert_array_equal(end, worlds.table()["policy"])
        assert np.isfinite(metrics["policy/loss"]).all()
